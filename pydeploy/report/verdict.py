"""What a run's numbers mean: which engine to ship, and one line that says whether the budget was met.

An engine that is not faster is never recommended as an improvement: each step of change (dense, pruned, half,
quantized, mixed) has to be at least `NOTICEABLE` faster than the less changed engine it would replace.
"""

from __future__ import annotations

from pydeploy.report.schema import EngineName, ModelResult, Models, Recommendation, Report
from pydeploy.tasks.metric import Metric
from pydeploy.timing.ratio import Ratio

NOTICEABLE = 0.02
"""Relative differences in latency below this are treated as none; two builds of one network differ by as much."""


def recommend(models: Models, metric: Metric, *, limit: float = 1.0, measured: bool = True) -> Recommendation:
    """The fastest engine that loses at most `limit` against dense (points for a share, else the metric's unit), with the reason.

    `measured` is `Target.measured`; the reason says so when the latencies are analytic.
    """
    chosen: EngineName = "dense"
    remarks: list[str] = []
    for name, result in models.present.items():
        if name == "dense":
            continue
        lost = metric.lost(models.dense.value, result.value)
        if lost > limit:
            remarks.append(
                f"{_named(name, result)} loses {metric.amount(round(lost, 2))} of {metric.name}, more than the {limit:g} allowed"
            )
        elif not _faster(result, models.present[chosen]):
            remarks.append(_not_faster(name, result, chosen, models.present[chosen]))
        else:
            chosen = name
    best = models.present[chosen]
    facts = [_claim(chosen, best, models.dense, metric, limit), *remarks]
    disturbed = [name for name, result in models.present.items()
                 if result.latency_us.disturbed or result.latency_us.ratio_to(models.dense.latency_us).disturbed]  # fmt: skip
    if disturbed:
        facts.append(f"other load disturbed the measurement of {' and '.join(disturbed)}, so measure again")
    if not measured:
        facts.append("all latencies here are analytic, not measured")
    return Recommendation(model=chosen, reason="; ".join(facts) + ".")


def headline(report: Report) -> str:
    """One line: the budget, whether it was met, by what, how much faster and how sure that is, at which value of the metric."""
    name, dense = shown_model(report), report.models.dense
    result = report.models.present[name]
    median = result.latency_us.median
    places = ms_places(report.budget_us, median)
    how = "measured" if report.target.measured else "analytic, NOT measured"
    taken = result.latency_us.ratio_to(dense.latency_us)
    return (
        f"Budget {milliseconds(report.budget_us, places)} ms: {_met(report, name, places)}, {milliseconds(median, places)} "
        f"ms {how} ({speedup(taken)}{_share_used(report.used(result))}), {report.metric.name} "
        f"{report.metric.text(result.value)} (dense {report.metric.text(dense.value)})"
    )


def _met(report: Report, name: EngineName, places: int) -> str:
    """Whether the engine `name` is within the budget, and the pruned one where that differs; by `Report.within` alone."""
    shown, pruned = report.models.present[name], report.models.pruned
    within = report.within(shown)
    missed = "missed" if within else f"missed by {_excess(report.used(shown))}"
    if within == report.within(pruned):
        said = "met" if within else missed
    elif within:
        said = (
            f"missed by the pruned engine ({milliseconds(pruned.latency_us.median, places)} ms), met by the {name} one"
        )
    else:
        said = f"met by the pruned engine ({milliseconds(pruned.latency_us.median, places)} ms), {missed} by the {name} one"
    return f"{said} (DISTURBED by other load, which proves nothing)" if doubtful(report) else said


def doubtful(report: Report) -> bool:
    """Whether what the headline says of the budget rests on disturbed rounds."""
    shown = report.models.present[shown_model(report)]
    return report.used(shown).disturbed or report.used(report.models.pruned).disturbed


def _excess(used: Ratio) -> str:
    over = 100 * (used.value - 1)
    return "less than 0.1 %" if over < 0.1 else f"{over:.1f} %"


def _share_used(used: Ratio) -> str:
    """What is known of a share of the budget by rounds; older reports hold none."""
    return f"; {used.value:.3f} of the budget, {used.interval}" if used.rounds else ""


def shown_model(report: Report) -> EngineName:
    """The engine that the headline speaks of: the recommended one, or the pruned one where dense is recommended."""
    return "pruned" if report.recommendation.model == "dense" else report.recommendation.model


def speedup(taken: Ratio) -> str:
    """``2.11x faster``, ``1.05x slower``, or ``1.03x as fast`` where the interval holds both or other load disturbed it."""
    times = 1 / taken.value
    if round(max(times, taken.value), 2) == 1:
        return "1.00x as fast"
    unsure = taken.low is not None and taken.high is not None and taken.low <= 1 <= taken.high
    if taken.disturbed or unsure:
        return f"{times:.2f}x as fast"
    return f"{times:.2f}x faster" if times > 1 else f"{taken.value:.2f}x slower"


def ms_places(*values_us: float) -> int:
    """Decimals that show the largest of `values_us` in milliseconds with four significant digits, three at most."""
    largest = max(values_us) / 1000
    return 3 if largest < 10 else 2 if largest < 100 else 1


def milliseconds(value_us: float, places: int) -> str:
    """A time in milliseconds with `places` decimals, without the unit."""
    return f"{value_us / 1000:.{places}f}"


def _faster(result: ModelResult, than: ModelResult) -> bool:
    """By more than `NOTICEABLE`, and where the rounds tell an interval, by more than that."""
    taken = result.latency_us.ratio_to(than.latency_us)
    return taken.value < 1 - NOTICEABLE and (taken.high is None or taken.high < 1)


def _named(name: str, result: ModelResult) -> str:
    return f"{name} ({result.precision}, {milliseconds(result.latency_us.median, 3)} ms)"


def _not_faster(name: str, result: ModelResult, chosen: str, best: ModelResult) -> str:
    taken = result.latency_us.ratio_to(best.latency_us)
    pair, said = (_named(name, result), _named(chosen, best)), speedup(taken)
    if taken.value < 1 - NOTICEABLE:  # so its interval reaches beyond 1
        return f"{pair[0]} is not shown to be faster than {pair[1]} ({said}; share {taken})"
    small = f"; differences below {NOTICEABLE:.0%} count as none" if "faster" in said else ""
    return f"{pair[0]} is not faster than {pair[1]} ({said}{small})"


def _claim(name: str, result: ModelResult, dense: ModelResult, metric: Metric, limit: float) -> str:
    if name == "dense":
        return f"no other engine is both faster than dense and within {metric.amount(limit)} of its {metric.name}"
    return (
        f"{result.precision} at {milliseconds(result.latency_us.median, 3)} ms is the fastest engine within "
        f"{metric.amount(limit)} of dense: {speedup(result.latency_us.ratio_to(dense.latency_us))}, "
        f"{metric.change(dense.value, result.value)}"
    )
