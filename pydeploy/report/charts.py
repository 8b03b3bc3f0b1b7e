"""The report's four charts. Each returns None where the report lacks what it would show.

Times are drawn in milliseconds for networks and microseconds for layers, accuracies in percent. Where the target
is analytic, the axis says that nothing was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree as ET

from pydeploy.report import svg
from pydeploy.report.labels import Box, place
from pydeploy.report.schema import Latency, Report
from pydeploy.report.svg import Drawing, Scale
from pydeploy.report.verdict import milliseconds, ms_places

WIDTH = 680
_SHAPES = {"dense": "square", "pruned": "circle", "unquantized": "circle", "half": "circle", "quantized": "diamond",
           "mixed": "diamond"}  # fmt: skip
_LONGEST_NAME = 26


@dataclass(frozen=True, slots=True)
class Point:
    """One engine in the plane of latency (ms) and accuracy (%)."""

    name: str
    series: str
    latency_us: Latency
    accuracy: float

    @property
    def ms(self) -> float:
        return self.latency_us.median / 1000

    @property
    def percent(self) -> float:
        return 100 * self.accuracy


def points(report: Report) -> list[Point]:
    """All measured engines: the run's own first, then the candidates."""
    own = [Point(f"{n}, {m.precision}", n, m.latency_us, m.accuracy) for n, m in report.models.present.items()]
    return own + [Point(c.name, "other", c.latency_us, c.accuracy) for c in report.candidates]


def frontier(candidates: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both latency and accuracy, from fast to slow."""
    best: list[Point] = []
    for point in sorted(candidates, key=lambda p: (p.latency_us.median, -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def all_charts(report: Report) -> dict[str, Drawing]:
    """The charts that this report has data for, by file name stem, in reading order."""
    drawn = {"pareto": pareto(report), "rounds": rounds(report), "widths": widths(report), "layers": layers(report)}
    return {name: chart for name, chart in drawn.items() if chart is not None}


def pareto(report: Report) -> Drawing:
    """Accuracy against latency: every engine with its p10 to p90, the Pareto front, the budget as a line."""
    shown = points(report)
    listed = "; ".join(f"{p.name}: {p.ms:.3f} ms, {p.percent:.2f} %" for p in shown)
    chart = svg.drawing("pareto", f"{_capital(report.metric)} against latency",
                        f"Scatter plot of {len(shown)} engines. {listed}.", WIDTH, 420)  # fmt: skip
    frame = Box(64, 30, WIDTH - 20, 420 - 56)
    across, up = _pareto_scales(report, shown, frame)
    _grid(chart.root, across, up, frame)
    svg.text(chart.root, frame.left, 16, f"{report.metric}, %", "muted")
    name = f"{_latency_name(report)}, ms (batch {report.target.batch}); whiskers from p10 to p90"
    svg.text(chart.root, (frame.left + frame.right) / 2, frame.bottom + 40, name, "muted", "middle")
    front = [(across.at(point.ms), up.at(point.percent)) for point in frontier(shown)]
    _front(chart.root, front)
    budget_x = across.at(report.budget_us / 1000)
    svg.line(chart.root, budget_x, frame.top, budget_x, frame.bottom, "limit")
    budget = f"budget {milliseconds(report.budget_us, ms_places(report.budget_us))} ms"
    left = budget_x + svg.text_width(budget) > WIDTH
    svg.text(chart.root, budget_x, 16, budget, "budget", "end" if left else "middle")
    _whiskers(chart.root, shown, across, up)
    fence = Box(budget_x - 2, frame.top, budget_x + 2, frame.bottom)
    _labelled(chart.root, shown, across, up, frame, [fence, *_stairs(front)])
    return chart


def _pareto_scales(report: Report, shown: Sequence[Point], frame: Box) -> tuple[Scale, Scale]:
    edges = (
        [p.latency_us.p10 / 1000 for p in shown] + [p.latency_us.p90 / 1000 for p in shown] + [report.budget_us / 1000]
    )
    low, high = min(edges), max(edges)
    # Lengths compare best from zero; where all engines are about as fast that would hide what differs.
    pad = 0.06 * (high - low) if low > 0.6 * high else 0.06 * high
    first = max(0.0, low - pad) if low > 0.6 * high else 0.0
    across = Scale(first, high + pad, frame.left, frame.right)
    values = [p.percent for p in shown]
    # A span of at least one point, so that noise is not drawn as a difference.
    spare = max(0.18 * (max(values) - min(values)), (1 - (max(values) - min(values))) / 2, 0.1)
    return across, Scale(min(values) - spare, max(values) + spare, frame.bottom, frame.top)


def _grid(root: ET.Element, across: Scale, up: Scale, frame: Box) -> None:
    columns, lines = svg.ticks(across.lo, across.hi), svg.ticks(up.lo, up.hi)
    for value, label in zip(columns, svg.tick_labels(columns), strict=True):
        svg.line(root, across.at(value), frame.top, across.at(value), frame.bottom, "grid")
        svg.text(root, across.at(value), frame.bottom + 18, label, "muted", "middle")
    for value, label in zip(lines, svg.tick_labels(lines), strict=True):
        svg.line(root, frame.left, up.at(value), frame.right, up.at(value), "grid")
        svg.text(root, frame.left - 8, up.at(value) + 4.5, label, "muted", "end")
    svg.line(root, frame.left, frame.bottom, frame.right, frame.bottom, "axis")


def _front(root: ET.Element, places: Sequence[tuple[float, float]]) -> None:
    """Steps, not slopes, through `places`: between two engines nothing was measured."""
    corners = list(places[:1])
    for (_, y), (x, higher) in pairwise(places):
        corners += [(x, y), (x, higher)]
    if len(corners) > 1:
        path = " ".join(f"{x:.2f},{y:.2f}" for x, y in corners)
        ET.SubElement(root, "polyline", {"points": path, "class": "front"})


def _stairs(places: Sequence[tuple[float, float]]) -> list[Box]:
    """The steps that `_front` draws, as thin boxes for labels to keep off."""
    boxes: list[Box] = []
    for (x0, y0), (x1, y1) in pairwise(places):
        boxes += [Box(x0, y0 - 1, x1, y0 + 1), Box(x1 - 1, y1, x1 + 1, y0)]
    return boxes


def _whiskers(root: ET.Element, shown: Sequence[Point], across: Scale, up: Scale) -> None:
    for point in shown:
        y = up.at(point.percent)
        ends = (across.at(point.latency_us.p10 / 1000), across.at(point.latency_us.p90 / 1000))
        svg.line(root, ends[0], y, ends[1], y, f"line-{point.series}")
        for x in ends:
            svg.line(root, x, y - 4, x, y + 4, f"line-{point.series}")


def _labelled(
    root: ET.Element, shown: Sequence[Point], across: Scale, up: Scale, frame: Box, lines: Sequence[Box]
) -> None:
    where = [(across.at(p.ms), up.at(p.percent), p) for p in shown]
    named = [
        (x, y, svg.shortened(p.name, 34) + (" (disturbed)" if p.latency_us.disturbed else "")) for x, y, p in where
    ]
    bars = [
        Box(across.at(p.latency_us.p10 / 1000), y - 5, across.at(p.latency_us.p90 / 1000), y + 5) for _, y, p in where
    ]
    labels = place(named, [*bars, *lines], frame)
    for (x, y, _), label in zip(where, labels, strict=True):
        if label.distant:
            near = min(max(x, label.box.left), label.box.right)
            svg.line(root, x, y, near, label.box.bottom - 2 if label.box.bottom < y else label.box.top + 4, "leader")
    # Texts first: no letter of a wider font may hide a point.
    for point, label in zip(shown, labels, strict=True):
        strong = " strong" if point.series != "other" else ""
        svg.text(root, label.x, label.baseline, label.words, f"ink halo{strong}", label.anchor)
    for x, y, point in where:
        style = f"ring-{point.series}" if point.series == "other" else f"fill-{point.series}"
        svg.marker(root, x, y, _SHAPES.get(point.series, "triangle"), style)


def rounds(report: Report) -> Drawing | None:
    """Predicted (ring) against measured (dot) latency, one row per plan, with the prediction error."""
    if not report.rounds:
        return None
    height = 92 + 34 * len(report.rounds)
    told = "; ".join(f"round {r.number}: predicted {r.predicted_us / 1000:.3f}, measured {r.measured_us / 1000:.3f} ms"
                     for r in report.rounds)  # fmt: skip
    chart = svg.drawing("rounds", "Predicted against measured latency", f"One row per plan. {told}.", WIDTH, height)
    frame = Box(84, 44, WIDTH - 150, height - 46)
    # Each round has a speed and so a budget of its own: shares of it can be drawn beside one line, times cannot.
    shares = all(r.limit_us for r in report.rounds)
    scales = [100 / r.limit_us if shares and r.limit_us else 1 / 1000 for r in report.rounds]
    limit = 100.0 if shares else report.budget_us / 1000
    values = [v * x for r, x in zip(report.rounds, scales, strict=True) for v in (r.predicted_us, r.measured_us)] + [
        limit
    ]
    pad = max(0.12 * (max(values) - min(values)), 0.02 * max(values))
    across = Scale(min(values) - pad, max(values) + pad, frame.left, frame.right)
    _columns(chart.root, across, frame)
    unit = f"{_latency_name(report)}, {'% of the budget in that round' if shares else 'ms'}"
    how = "measured" if report.target.measured else "analytic, not measured"
    _key(chart.root, frame.left, 16, (("ring-pruned", "circle", "predicted"), ("fill-pruned", "circle", how)))
    x = across.at(limit)
    svg.line(chart.root, x, frame.top - 4, x, frame.bottom, "limit")
    svg.text(chart.root, x, frame.top - 8, "budget", "budget", "middle")
    svg.text(
        chart.root,
        (frame.left + frame.right) / 2,
        height - 8,
        unit,
        "muted",
        "middle",
    )
    svg.text(chart.root, WIDTH - 16, frame.top - 8, "prediction error", "muted", "end")
    for index, item in enumerate(report.rounds):
        y = frame.top + 34 * (index + 0.5)
        svg.text(chart.root, frame.left - 14, y + 4.5, f"round {item.number}", "ink", "end")
        ends = across.at(item.predicted_us * scales[index]), across.at(item.measured_us * scales[index])
        svg.line(chart.root, ends[0], y, ends[1], y, "line-pruned")
        # The ring is larger, so that it stays visible around a dot at the same place.
        svg.marker(chart.root, ends[0], y, "circle", "ring-pruned", 8)
        svg.marker(chart.root, ends[1], y, "circle", "fill-pruned", 5)
        verdict = "disturbed" if item.disturbed else "met" if item.met else "missed"
        svg.text(chart.root, WIDTH - 16, y + 4.5, f"{100 * item.error:+.1f} %, {verdict}", "ink", "end")
    return chart


def widths(report: Report) -> Drawing | None:
    """Output channels of every layer, before and after; of every group where no layers are listed."""
    if report.layers:
        rows = [_Row(layer.name, layer.cout_before, layer.cout_after) for layer in report.layers]
    else:
        rows = [_Row(group.name, group.before, group.after) for group in report.groups]
    return _paired("widths", "Layer widths before and after", "channels", rows, 0)


def layers(report: Report) -> Drawing | None:
    """Time of every layer inside the running network, before and after."""
    rows = [_Row(layer.name, layer.before_us, layer.after_us) for layer in report.layers
            if layer.before_us is not None and layer.after_us is not None]  # fmt: skip
    unit = "\u00b5s" if report.target.measured else "\u00b5s (analytic, not measured)"
    return _paired("layers", "Time per layer before and after", unit, rows, 1)


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    before: float
    after: float


def _paired(name: str, title: str, unit: str, rows: Sequence[_Row], places: int) -> Drawing | None:
    """Two bars a row, the upper one before and the lower one after, with both numbers at the right."""
    if not rows:
        return None
    pitch = 26
    height = 78 + pitch * len(rows)
    total = f"In sum {sum(r.before for r in rows):.{places}f} before and {sum(r.after for r in rows):.{places}f} after"
    chart = svg.drawing(name, title, f"Paired bars for {len(rows)} layers, in {unit}. {total}.", WIDTH, height)
    names = [svg.shortened(row.name, _LONGEST_NAME) for row in rows]
    frame = Box(min(200, max(map(svg.text_width, names)) + 24), 34, WIDTH - 130, height - 44)
    across = Scale(0, 1.02 * max(max(r.before, r.after) for r in rows) or 1.0, frame.left, frame.right)
    _columns(chart.root, across, frame)
    _key(chart.root, frame.left, 16, (("fill-dense", "square", "before"), ("fill-pruned", "square", "after")))
    svg.text(chart.root, (frame.left + frame.right) / 2, height - 8, unit, "muted", "middle")
    for index, (row, short) in enumerate(zip(rows, names, strict=True)):
        top = frame.top + pitch * index
        label = svg.text(chart.root, frame.left - 10, top + 17, short, "ink", "end")
        if short != row.name:
            ET.SubElement(label, "title").text = svg.writable(row.name)
        svg.bar(chart.root, frame.left, top + 3, across.at(row.before) - frame.left, 9, "fill-dense")
        svg.bar(chart.root, frame.left, top + 13, across.at(row.after) - frame.left, 9, "fill-pruned")
        before, after = f"{row.before:.{places}f}", f"{row.after:.{places}f}"
        change = before if before == after else f"{before} \u2192 {after}"
        svg.text(chart.root, WIDTH - 16, top + 17, change, "ink", "end")
    return chart


def _columns(root: ET.Element, across: Scale, frame: Box) -> None:
    values = svg.ticks(across.lo, across.hi)
    for value, label in zip(values, svg.tick_labels(values), strict=True):
        svg.line(root, across.at(value), frame.top, across.at(value), frame.bottom, "grid")
        svg.text(root, across.at(value), frame.bottom + 17, label, "muted", "middle")
    svg.line(root, frame.left, frame.bottom, frame.right, frame.bottom, "axis")


def _key(root: ET.Element, x: float, y: float, entries: Sequence[tuple[str, str, str]]) -> None:
    for style, shape, words in entries:
        svg.marker(root, x + 6, y - 4.5, shape, style, 5)
        svg.text(root, x + 17, y, words, "ink")
        x += svg.text_width(words) + 40


def _latency_name(report: Report) -> str:
    return "latency" if report.target.measured else "latency (analytic, NOT measured)"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
