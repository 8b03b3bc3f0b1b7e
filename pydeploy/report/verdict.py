"""What a run's numbers mean: which engine to ship, and one line that says whether the budget was met.

An engine that is not faster is never recommended as an improvement: each step of change (dense, pruned, half,
quantized, mixed) has to be at least `NOTICEABLE` faster than the less changed engine it would replace.
"""

from __future__ import annotations

from pydeploy.report.schema import EngineName, ModelResult, Models, Recommendation, Report

NOTICEABLE = 0.02
"""Relative differences in latency below this are treated as none; two builds of one network differ by as much."""


def recommend(models: Models, *, limit_points: float = 1.0, measured: bool = True) -> Recommendation:
    """The fastest engine whose accuracy is within `limit_points` (percentage points) of dense, with the reason.

    `measured` is `Target.measured`; the reason says so when the latencies are analytic.
    """
    chosen: EngineName = "dense"
    remarks: list[str] = []
    for name, result in models.present.items():
        if name == "dense":
            continue
        lost = _lost_points(models.dense, result)
        if lost > limit_points:
            remarks.append(
                f"{_named(name, result)} loses {lost:.2f} points of accuracy, more than the {limit_points:g} allowed"
            )
        elif not _faster(result, models.present[chosen]):
            remarks.append(_not_faster(name, result, chosen, models.present[chosen]))
        else:
            chosen = name
    best = models.present[chosen]
    facts = [_claim(chosen, best, models.dense, limit_points), *remarks]
    disturbed = [name for name, result in models.present.items() if result.latency_us.disturbed]
    if disturbed:
        facts.append(f"other load disturbed the measurement of {' and '.join(disturbed)}, so measure again")
    if not measured:
        facts.append("all latencies here are analytic, not measured")
    return Recommendation(model=chosen, reason="; ".join(facts) + ".")


def headline(report: Report) -> str:
    """One line: the budget, whether it was met, by what, how much faster, at which accuracy."""
    name, dense = shown_model(report), report.models.dense
    result = report.models.present[name]
    median = result.latency_us.median
    places = ms_places(report.budget_us, median)
    how = "measured" if report.target.measured else "analytic, NOT measured"
    met = "met" if report.met else f"missed by {100 * (median / report.budget_us - 1):.1f} %"
    if not report.met and median <= report.budget_us:  # `report.met` speaks of the pruned engine
        pruned = milliseconds(report.models.pruned.latency_us.median, places)
        met = f"missed by the pruned engine ({pruned} ms), met by the {name} one"
    return (
        f"Budget {milliseconds(report.budget_us, places)} ms: {met}, {milliseconds(median, places)} ms {how} "
        f"({speedup(dense.latency_us.median, median)}), {report.metric} {100 * result.accuracy:.2f} % "
        f"(dense {100 * dense.accuracy:.2f} %)"
    )


def shown_model(report: Report) -> EngineName:
    """The engine that the headline speaks of: the recommended one, or the pruned one where dense is recommended."""
    return "pruned" if report.recommendation.model == "dense" else report.recommendation.model


def speedup(before_us: float, after_us: float) -> str:
    """``2.11x faster``, ``1.05x slower`` or ``1.00x as fast``."""
    ratio = before_us / after_us
    if round(max(ratio, 1 / ratio), 2) == 1:
        return "1.00x as fast"
    return f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / ratio:.2f}x slower"


def ms_places(*values_us: float) -> int:
    """Decimals that show the largest of `values_us` in milliseconds with four significant digits, three at most."""
    largest = max(values_us) / 1000
    return 3 if largest < 10 else 2 if largest < 100 else 1


def milliseconds(value_us: float, places: int) -> str:
    """A time in milliseconds with `places` decimals, without the unit."""
    return f"{value_us / 1000:.{places}f}"


def _lost_points(dense: ModelResult, result: ModelResult) -> float:
    # Rounded, so that 0.94 - 0.93 counts as exactly one point.
    return round(100 * (dense.accuracy - result.accuracy), 6)


def _faster(result: ModelResult, than: ModelResult) -> bool:
    """By more than `NOTICEABLE`, and where the rounds tell an interval, by more than that."""
    taken = result.latency_us.ratio_to(than.latency_us)
    return taken.value < 1 - NOTICEABLE and (taken.high is None or taken.high < 1)


def _named(name: str, result: ModelResult) -> str:
    return f"{name} ({result.precision}, {milliseconds(result.latency_us.median, 3)} ms)"


def _not_faster(name: str, result: ModelResult, chosen: str, best: ModelResult) -> str:
    ratio = speedup(best.latency_us.median, result.latency_us.median)
    small = f"; differences below {NOTICEABLE:.0%} count as none" if "faster" in ratio else ""
    return f"{_named(name, result)} is not faster than {_named(chosen, best)} ({ratio}{small})"


def _claim(name: str, result: ModelResult, dense: ModelResult, limit_points: float) -> str:
    if name == "dense":
        return f"no other engine is both faster than dense and within {_points(limit_points)} of its accuracy"
    change = -_lost_points(dense, result)
    return (
        f"{result.precision} at {milliseconds(result.latency_us.median, 3)} ms is the fastest engine within "
        f"{_points(limit_points)} of dense: {speedup(dense.latency_us.median, result.latency_us.median)}, "
        f"{change:+.2f} points"
    )


def _points(count: float) -> str:
    return f"{count:g} point{'' if count == 1 else 's'}"
