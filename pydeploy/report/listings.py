"""The report's tables as plain text cells, made once for both renderings so that they cannot disagree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydeploy.report.charts import frontier, points
from pydeploy.report.schema import Latency, ModelResult, Report
from pydeploy.report.verdict import milliseconds, ms_places, speedup
from pydeploy.tasks.metric import Metric, MetricTable
from pydeploy.tasks.sampling import right_answers, wilson
from pydeploy.timing.ratio import Ratio

NONE = "-"
"""What an empty cell shows."""
MOST_ROWS = 40
"""Larger tables beside a metric are in ``report.json`` only."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Column heads, rows of texts, and which columns are numbers (aligned right). `strong` rows stand out."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    strong: tuple[int, ...] = ()


def _listing(heads: Sequence[str], rows: Sequence[tuple[str, ...]], strong: Sequence[int] = ()) -> Listing:
    """A listing; a head that ends in ``>`` is a column of numbers."""
    numeric = tuple(head.endswith(">") for head in heads)
    return Listing(tuple(head.removesuffix(">") for head in heads), tuple(rows), numeric, tuple(strong))


def all_listings(report: Report) -> dict[str, Listing]:
    """The tables that this report has data for, by name."""
    made = {"engines": engines(report), "points": measured_points(report), "rounds": rounds(report),
            "layers": layers(report), "groups": groups(report), "target": target(report),
            "table": latency_table(report), "seconds": seconds(report)}  # fmt: skip
    return {name: grid for name, grid in made.items() if grid.rows}


def explained(report: Report) -> dict[str, Listing]:
    """The tables beside the metric, of the dense and the recommended engine; confusion matrices of the latter alone."""
    chosen = report.models.present[report.recommendation.model]
    both = {"dense": report.models.dense} | {report.recommendation.model: chosen}
    made = {}
    for title, table in chosen.tables.items():
        if len(table.rows) > MOST_ROWS or len(table.columns) > MOST_ROWS:
            continue
        if table.kind == "confusion":
            made[f"{title}, {report.recommendation.model}"] = _confusion(table)
            continue
        same = {name: one.tables[title] for name, one in both.items() if title in one.tables}
        same = {name: one for name, one in same.items() if (one.rows, one.columns) == (table.rows, table.columns)}
        made[title] = _beside(same, table)
    return made


def _confusion(table: MetricTable) -> Listing:
    rows = [(name, *(f"{value:g}" if value is not None else NONE for value in row))
            for name, row in zip(table.rows, table.values, strict=True)]  # fmt: skip
    return _listing(["true, below; predicted, right", *(f"{name}>" for name in table.columns)], rows)


def _beside(same: Mapping[str, MetricTable], like: MetricTable) -> Listing:
    """The same table of several engines: their columns side by side, a column that is equal in all of them once."""
    units = like.units or ("",) * len(like.columns)
    columns: list[tuple[str, list[str]]] = []
    for place, (name, unit) in enumerate(zip(like.columns, units, strict=True)):
        label = f"{name}, {unit}" if unit else name
        shown = {engine: [_metric_cell(row[place], unit) for row in one.values] for engine, one in same.items()}
        if len({tuple(cells) for cells in shown.values()}) == 1:
            columns.append((label, next(iter(shown.values()))))
        else:
            columns += [(f"{label}: {engine}", cells) for engine, cells in shown.items()]
    rows = [(row, *(cells[index] for _, cells in columns)) for index, row in enumerate(like.rows)]
    return _listing(["", *(f"{label}>" for label, _ in columns)], rows)


def _metric_cell(value: float | None, unit: str) -> str:
    return NONE if value is None else f"{100 * value:.2f}" if unit == "%" else f"{value:g}"


def engines(report: Report) -> Listing:
    """The run's own engines side by side, one column each: few columns fit a phone and a terminal."""
    present, dense, metric = report.models.present, report.models.dense, report.metric
    places = ms_places(*(m.latency_us.median for m in present.values()))
    basis = _basis(report)

    def row(name: str, cell: Callable[[ModelResult], str]) -> tuple[str, ...]:
        return (name, *(cell(result) for result in present.values()))

    def latency(result: ModelResult) -> str:
        return milliseconds(result.latency_us.median, places) + _flag(result.latency_us)

    rows = [
        row("precision", lambda m: m.precision),
        row(f"latency, ms{basis}", latency),
        row(f"p10 to p90, ms{basis}", lambda m: _spread(m.latency_us, places)),
        row("timed runs", lambda m: f"{m.latency_us.n}"),
        row("share of dense", lambda m: NONE if m is dense else _share(m.latency_us.ratio_to(dense.latency_us))),
        row("against dense", lambda m: NONE if m is dense else speedup(m.latency_us.ratio_to(dense.latency_us))),
        row("share of budget", lambda m: _share(report.used(m))),
        row("within budget", lambda m: _met(report.within(m), report.used(m).disturbed)),
        row(metric.label, lambda m: metric.number(m.value)),
        row("95 % interval", lambda m: _sampled(metric, m)),
        row(metric.change_label, lambda m: NONE if m is dense else metric.signed(dense.value, m.value)),
        row("test samples", lambda m: f"{m.samples}"),
        row("parameters", lambda m: _short(m.params)),
        row("MACs", lambda m: _short(m.macs)),
        row("engine file", lambda m: _size(m.bytes)),
        row("ONNX file", lambda m: _size(m.onnx_bytes)),
        row("target", lambda m: m.target[:8]),
    ]
    chosen = report.recommendation.model
    heads = [f"{name}{' (recommended)' if name == chosen else ''}>" for name in present]
    return _listing(["", *heads], rows, strong=(1, 8))


def measured_points(report: Report) -> Listing:
    """All points of the Pareto chart, fastest first; empty when the run has no candidates to compare with."""
    if not report.candidates:
        return _listing([], [])
    shown = points(report)
    front = {id(point) for point in frontier(shown)}
    details = [(m.precision, "this run", m.params, m.macs, "") for m in report.models.present.values()]
    details += [(c.precision, c.method, c.params, c.macs, c.note) for c in report.candidates]
    places = ms_places(*(p.latency_us.median for p in shown))
    rows = []
    for point, (precision, method, params, macs, note) in zip(shown, details, strict=True):
        name = point.series if point.series != "other" else point.name
        times = (
            milliseconds(point.latency_us.median, places) + _flag(point.latency_us),
            _spread(point.latency_us, places),
        )
        cells = (name, method, precision, *times, report.metric.number(point.value), _short(params), _short(macs),
                 "yes" if id(point) in front else "", note)  # fmt: skip
        rows.append((point.latency_us.median, -point.goodness, cells))
    ordered = [cells for *_, cells in sorted(rows, key=lambda row: row[:2])]
    basis = _basis(report)
    heads = ["engine", "method", "precision", f"latency, ms{basis}>", f"p10 to p90, ms{basis}>", f"{report.metric.label}>",
             "parameters>", "MACs>", "front", "note"]  # fmt: skip
    strong = [i for i, cells in enumerate(ordered) if cells[1] == "this run"]
    return _listing(heads, ordered, strong)


def rounds(report: Report) -> Listing:
    """Prediction and measurement of every plan of every round."""
    values = [v for r in report.rounds for v in (r.predicted_us, r.measured_us)]
    places = ms_places(*values) if values else 3
    limits = any(item.limit_us for item in report.rounds)  # older reports hold none
    rows = []
    for item in report.rounds:
        kept = NONE if item.widths is None else f"{sum(item.widths.values())}"
        times = milliseconds(item.predicted_us, places), milliseconds(item.measured_us, places)
        budget = (NONE, NONE)
        if item.limit_us:
            budget = milliseconds(item.limit_us, places), f"{item.measured_us / item.limit_us:.3f}"
        rows.append((f"{item.number}", *times, *(budget if limits else ()), f"{100 * item.error:+.1f} %",
                     _met(item.met, item.disturbed), kept))  # fmt: skip
    how = "measured" if report.target.measured else "analytic, not measured"
    budgets = ["budget then, ms>", "share of it>"] if limits else []
    heads = ["round>", "predicted, ms>", f"{how}, ms>", *budgets, "error>", "budget met", "channels kept>"]
    return _listing(heads, rows)


def layers(report: Report) -> Listing:
    """Widths and times of every operator; the last row sums the times."""
    basis = _basis(report)
    rows = [
        (x.name, x.kind, _change(x.cin_before, x.cin_after), _change(x.cout_before, x.cout_after),
         _micros(x.before_us), _micros(x.after_us), _ratio(x.before_us, x.after_us))
        for x in report.layers
    ]  # fmt: skip
    timed = [(x.before_us, x.after_us) for x in report.layers if x.before_us is not None and x.after_us is not None]
    strong: tuple[int, ...] = ()
    if timed:
        before, after = sum(b for b, _ in timed), sum(a for _, a in timed)
        strong = (len(rows),)
        rows.append(("sum", "", "", "", _micros(before), _micros(after), _ratio(before, after)))
    heads = [
        "layer",
        "kind",
        "inputs>",
        "outputs>",
        f"before, \u00b5s{basis}>",
        f"after, \u00b5s{basis}>",
        "after / before>",
    ]
    return _listing(heads, rows, strong)


def groups(report: Report) -> Listing:
    """Channels of every group; a frozen one with the reason."""
    rows = [
        (g.name, f"{g.before}", f"{g.after}", f"{100 * g.after / max(g.before, 1):.0f} %", g.frozen)
        for g in report.groups
    ]
    return _listing(["group", "before>", "after>", "kept>", "frozen because"], rows)


def target(report: Report) -> Listing:
    """All facts of the target."""
    at = report.target
    facts = {"device": at.device, "backend": f"{at.backend} {at.backend_version}", "precision": at.precision,
             "batch": f"{at.batch}", "threads": f"{at.threads}", **at.facts, "fingerprint": at.fingerprint,
             "measured": "yes" if at.measured else "NO: analytic, not measured"}  # fmt: skip
    if report.preprocessing:
        steps = {key: value for key, value in report.preprocessing["preprocessing"].items() if value is not None}
        facts["preprocessing"] = ", ".join(f"{key} {value}" for key, value in steps.items())
    if report.calibration:
        facts["calibration"] = report.calibration
    return _listing(["fact", "value"], list(facts.items()))


def latency_table(report: Report) -> Listing:
    """How the latency table was made."""
    if report.table is None:
        return _listing([], [])
    facts = report.table
    rows = [
        ("probe networks", f"{facts.probes}"),
        ("keys", f"{facts.keys}"),
        ("seconds", f"{facts.seconds:.1f}"),
    ]
    rows += [("disturbed by other load", f"{facts.disturbed}")] if facts.disturbed else []
    return _listing(["fact", "value>"], rows)


def seconds(report: Report) -> Listing:
    """Duration of every stage and of the whole run."""
    rows = [(stage, f"{spent:.1f}") for stage, spent in report.seconds.items()]
    return _listing(
        ["stage", "seconds>"], [*rows, ("total", f"{report.total_seconds:.1f}")] if rows else [], (len(rows),)
    )


def _met(met: bool, disturbed: bool) -> str:
    """Whether a budget was met; a disturbed measurement proves neither."""
    return "disturbed" if disturbed else "yes" if met else "no"


def _basis(report: Report) -> str:
    return "" if report.target.measured else " (analytic, not measured)"


def _flag(latency: Latency) -> str:
    return " (disturbed)" if latency.disturbed else ""


def _sampled(metric: Metric, result: ModelResult) -> str:
    """What the size of the test set leaves open (not what other training seeds would give)."""
    k = right_answers(result.value, result.samples) if metric.share and metric.counted else None
    if k is None:
        return NONE
    low, high = wilson(k, result.samples)
    return f"{100 * low:.2f} to {100 * high:.2f}"


def _share(taken: Ratio) -> str:
    """``0.498 (0.494 to 0.502)``: the median over the rounds and its 95 % interval."""
    ends = "" if taken.low is None or taken.high is None else f" ({taken.low:.3f} to {taken.high:.3f})"
    return f"{taken.value:.3f}{ends}"


def _spread(latency: Latency, places: int) -> str:
    return f"{milliseconds(latency.p10, places)} to {milliseconds(latency.p90, places)}"


def _change(before: int, after: int) -> str:
    return f"{before}" if before == after else f"{before} \u2192 {after}"


def _micros(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _ratio(before: float | None, after: float | None) -> str:
    return NONE if not before or after is None else f"{after / before:.2f}"


def _short(count: int) -> str:
    """``1.09 M`` for 1 090 000: three significant digits."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.{2 if count < 10 * size else 1 if count < 100 * size else 0}f} {unit}"
    return f"{count}"


def _size(count: int) -> str:
    """``1.50 MiB``: sizes of files in binary units."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
