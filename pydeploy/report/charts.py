"""The report's four charts. Each returns None where the report lacks what it would show.

Times are drawn in milliseconds for networks and microseconds for layers, metrics in percent or their unit. Where the target
is analytic, the axis says that nothing was measured.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any
from xml.etree.ElementTree import Element

from pydeploy.report.drawing import HEAD, LIGHT, Chart, axes, shortened, styled, svg, text_width
from pydeploy.report.labels import Box, place
from pydeploy.report.schema import Latency, Report
from pydeploy.report.verdict import milliseconds, ms_places
from pydeploy.tasks.metric import Metric

WIDTH = 680
_MARKERS = {"dense": "s", "quantized": "D", "mixed": "D", "other": "^"}
"""Series differ without colour as well; all others are circles."""
_LONGEST_NAME = 26
_LIMIT = {"color": LIGHT["budget"], "linestyle": (0, (4, 3)), "linewidth": 1.5, "gid": "budget"}
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Point:
    """One engine in the plane of latency (ms) and metric."""

    name: str
    series: str
    latency_us: Latency
    value: float
    metric: Metric

    @property
    def ms(self) -> float:
        return self.latency_us.median / 1000

    @property
    def shown(self) -> float:
        """The value as it is drawn: shares in percent."""
        return self.metric.scale * self.value

    @property
    def goodness(self) -> float:
        """Higher is better."""
        return self.value if self.metric.better == "higher" else -self.value

    @property
    def label(self) -> str:
        return shortened(self.name, 34) + (" (disturbed)" if self.latency_us.disturbed else "")


def points(report: Report) -> list[Point]:
    """All measured engines: the run's own first, then those that they are compared with."""
    metric, present = report.metric, report.models.present
    own = [Point(f"{n}, {m.precision}", n, m.latency_us, m.value, metric) for n, m in present.items()]
    return own + [Point(c.name, "other", c.latency_us, c.value, metric) for c in report.candidates]


def frontier(shown: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both latency and metric, from fast to slow."""
    best: list[Point] = []
    for point in sorted(shown, key=lambda p: (p.latency_us.median, -p.goodness)):
        if not best or point.goodness > best[-1].goodness:
            best.append(point)
    return best


def all_charts(report: Report) -> dict[str, Chart]:
    """The charts that this report has data for, by file name stem, in reading order; none without matplotlib.

    Nothing is drawn before a chart's markup is asked for.
    """
    if importlib.util.find_spec("matplotlib") is None:
        _LOG.warning(
            "the report has no charts, because matplotlib is missing: pip install matplotlib, then 'pydeploy report'"
        )
        return {}
    found = (pareto(report), rounds(report), widths(report), layers(report))
    return {one.name: one for one in found if one is not None}


def pareto(report: Report) -> Chart:
    """The metric against latency: every engine with its p10 to p90, the Pareto front, the budget as a line."""
    shown, title = points(report), f"{report.metric.title} against latency"
    listed = "; ".join(f"{p.name}: {p.ms:.3f} ms, {p.metric.text(p.value)}" for p in shown)
    told = f"Scatter plot of {len(shown)} engines. {listed}."
    return Chart("pareto", title, told, partial(_draw_pareto, report, shown, title))


def _draw_pareto(report: Report, shown: Sequence[Point], title: str) -> Element:
    height = 420
    with styled(WIDTH, height, title) as figure:
        frame = Box(64, 30, WIDTH - 20, height - 56)
        plane = axes(figure, frame.left, frame.top, frame.right, frame.bottom)
        plane.set_xlim(*_spread([p.latency_us.p10 / 1000 for p in shown] + [p.latency_us.p90 / 1000 for p in shown]
                                + [report.budget_us / 1000]))  # fmt: skip
        values = [p.shown for p in shown]
        # A span of at least one point (or a hundredth of the values), so that noise is not drawn as a difference.
        span, least = max(values) - min(values), 1.0 if report.metric.share else 0.01 * max(*map(abs, values), 1e-9)
        spare = max(0.18 * span, (least - span) / 2, 0.1 * least)
        plane.set_ylim(min(values) - spare, max(values) + spare)
        plane.set_xlabel(
            f"{_latency_name(report)}, ms (batch {report.target.batch}); whiskers from p10 to p90", labelpad=10
        )
        plane.set_title(
            report.metric.label, loc="left", fontsize=plane.xaxis.label.get_size(), color=LIGHT["muted"], pad=6
        )
        plane.axvline(report.budget_us / 1000, **_LIMIT)
        best = frontier(shown)
        plane.step([p.ms for p in best], [p.shown for p in best], where="post", color=LIGHT["muted"], gid="front",
                   linestyle=(0, (1, 3)), linewidth=1.5)  # fmt: skip
        _name_budget(plane, report)
        _name_points(plane, shown, best, frame, height + HEAD)
        for point in shown:
            _draw_point(plane, point)
        return svg(figure)


def _spread(edges: Sequence[float]) -> tuple[float, float]:
    """From zero, where lengths compare best, unless all engines are about as fast: that would hide what differs."""
    low, high = min(edges), max(edges)
    if low > 0.6 * high:
        pad = 0.06 * (high - low) or 0.06 * high
        return max(0.0, low - pad), high + pad
    return 0.0, 1.06 * high


def _draw_point(plane: Any, point: Point) -> None:
    colour, ring = LIGHT[point.series], point.series == "other"
    spread = [[point.ms - point.latency_us.p10 / 1000], [point.latency_us.p90 / 1000 - point.ms]]
    plane.errorbar(
        [point.ms], [point.shown], xerr=spread, color=colour, fmt="none", elinewidth=1.5, capsize=4, zorder=3
    )
    plane.plot([point.ms], [point.shown], _MARKERS.get(point.series, "o"), color=colour, markersize=11, zorder=5,
               markerfacecolor=LIGHT["back"] if ring else colour, gid=f"point-{point.series}")  # fmt: skip


def _name_budget(plane: Any, report: Report) -> None:
    words = f"budget {milliseconds(report.budget_us, ms_places(report.budget_us))} ms"
    x = report.budget_us / 1000
    left = plane.transData.transform((x, 0))[0] + text_width(words) > WIDTH
    plane.annotate(words, (x, 1), (0, 6), xycoords=("data", "axes fraction"), textcoords="offset points",
                   color=LIGHT["budget"], ha="right" if left else "center")  # fmt: skip


def _name_points(plane: Any, shown: Sequence[Point], best: Sequence[Point], frame: Box, height: float) -> None:
    """Names beside the points, where they hide neither each other nor points, whiskers, the front or the budget."""

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = plane.transData.transform((x, y))
        return float(across), float(height - HEAD - up)

    where = [at(p.ms, p.shown) for p in shown]
    bars = [Box(at(p.latency_us.p10 / 1000, 0)[0], y - 5, at(p.latency_us.p90 / 1000, 0)[0], y + 5)
            for p, (_, y) in zip(shown, where, strict=True)]  # fmt: skip
    fences = [Box(line - 2, frame.top, line + 2, frame.bottom) for line in (at(plane.lines[0].get_xdata()[0], 0)[0],)]
    named = [(x, y, p.label) for p, (x, y) in zip(shown, where, strict=True)]
    for point, (x, y), label in zip(shown, where, place(named, [*bars, *fences, *_steps([at(p.ms, p.shown) for p in best])],
                                                        frame), strict=True):  # fmt: skip
        if label.distant:
            near = min(max(x, label.box.left), label.box.right)
            end = label.box.bottom - 2 if label.box.bottom < y else label.box.top + 4
            plane.annotate("", (x, height - HEAD - y), (near, height - HEAD - end), xycoords="figure points",
                           textcoords="figure points", arrowprops={"arrowstyle": "-", "color": LIGHT["muted"], "linewidth": 0.75,
                                                                   "shrinkA": 0, "shrinkB": 0})  # fmt: skip
        plane.annotate(label.words, (label.x, height - HEAD - label.baseline), xycoords="figure points", va="baseline",
                       ha={"start": "left", "middle": "center", "end": "right"}[label.anchor], zorder=4,
                       weight="bold" if point.series != "other" else "normal", gid=f"label-{point.series}")  # fmt: skip


def _steps(places: Sequence[tuple[float, float]]) -> list[Box]:
    """The steps of the front, as thin boxes for labels to keep off."""
    boxes: list[Box] = []
    for (x0, y0), (x1, y1) in pairwise(places):
        boxes += [Box(x0, y0 - 1, x1, y0 + 1), Box(x1 - 1, y1, x1 + 1, y0)]
    return boxes


def rounds(report: Report) -> Chart | None:
    """Predicted (ring) against measured (dot) latency, one row per plan, with the prediction error."""
    if not report.rounds:
        return None
    title = "Predicted against measured latency"
    told = "; ".join(f"round {r.number}: predicted {r.predicted_us / 1000:.3f}, measured {r.measured_us / 1000:.3f} ms"
                     for r in report.rounds)  # fmt: skip
    return Chart("rounds", title, f"One row per plan. {told}.", partial(_draw_rounds, report, title))


def _draw_rounds(report: Report, title: str) -> Element:
    pitch = 34
    # Each round has a speed and so a budget of its own: shares of it can be drawn beside one line, times cannot.
    shares = all(r.limit_us for r in report.rounds)
    scales = [100 / r.limit_us if shares and r.limit_us else 1 / 1000 for r in report.rounds]
    limit = 100.0 if shares else report.budget_us / 1000
    pairs = [(r.predicted_us * x, r.measured_us * x) for r, x in zip(report.rounds, scales, strict=True)]
    values = [value for pair in pairs for value in pair] + [limit]
    pad = max(0.12 * (max(values) - min(values)), 0.02 * max(values))
    with styled(WIDTH, 92 + pitch * len(pairs), title) as figure:
        rows = _rows(figure, 84, WIDTH - 150, 44, pitch, [f"round {r.number}" for r in report.rounds])
        rows.set_xlim(min(values) - pad, max(values) + pad)
        rows.set_xlabel(f"{_latency_name(report)}, {'% of the budget in that round' if shares else 'ms'}")
        rows.axvline(limit, **_LIMIT)
        rows.annotate("budget", (limit, 1), (0, 6), xycoords=("data", "axes fraction"), textcoords="offset points",
                      color=LIGHT["budget"], ha="center")  # fmt: skip
        for at, pair in enumerate(pairs):
            # The ring is larger, so that it stays visible around a dot at the same place.
            rows.plot(pair, [at, at], color=LIGHT["pruned"], linewidth=1.5)
            rows.plot(
                pair[:1],
                [at],
                "o",
                color=LIGHT["pruned"],
                markerfacecolor=LIGHT["back"],
                markersize=15,
                gid=f"predicted-{at}",
            )
            rows.plot(pair[1:], [at], "o", color=LIGHT["pruned"], markersize=9, gid=f"measured-{at}")
        verdicts = ["disturbed" if r.disturbed else "met" if r.met else "missed" for r in report.rounds]
        _column(
            rows,
            "prediction error",
            [f"{100 * r.error:+.1f} %, {told}" for r, told in zip(report.rounds, verdicts, strict=True)],
        )
        how = "measured" if report.target.measured else "analytic, not measured"
        _key(rows, [("predicted", {"markerfacecolor": LIGHT["back"], "markersize": 11}), (how, {"markersize": 9})])
        return svg(figure)


def widths(report: Report) -> Chart | None:
    """Output channels of every layer, before and after; of every group where no layers are listed."""
    if report.layers:
        rows = [_Row(layer.name, layer.cout_before, layer.cout_after) for layer in report.layers]
    else:
        rows = [_Row(group.name, group.before, group.after) for group in report.groups]
    return _paired("widths", "Layer widths before and after", "channels", rows, 0)


def layers(report: Report) -> Chart | None:
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

    def change(self, places: int) -> str:
        before, after = f"{self.before:.{places}f}", f"{self.after:.{places}f}"
        return before if before == after else f"{before} \u2192 {after}"


def _paired(name: str, title: str, unit: str, rows: Sequence[_Row], places: int) -> Chart | None:
    """Two bars a row, the upper one before and the lower one after, with both numbers at the right."""
    if not rows:
        return None
    total = f"In sum {sum(r.before for r in rows):.{places}f} before and {sum(r.after for r in rows):.{places}f} after"
    told = f"Paired bars for {len(rows)} layers, in {unit}. {total}."
    return Chart(name, title, told, partial(_draw_paired, title, unit, rows, places))


def _draw_paired(title: str, unit: str, rows: Sequence[_Row], places: int) -> Element:
    names = [shortened(row.name, _LONGEST_NAME) for row in rows]
    left = min(200, max(map(text_width, names)) + 24)
    with styled(WIDTH, 78 + 26 * len(rows), title) as figure:
        plane = _rows(figure, left, WIDTH - 130, 34, 26, names)
        plane.set_xlim(0, 1.02 * max(max(r.before, r.after) for r in rows) or 1.0)
        plane.set_xlabel(unit, labelpad=2)
        for at, row in enumerate(rows):
            plane.barh(at - 0.19, row.before, 0.35, color=LIGHT["dense"])[0].set_gid(f"before-{at}")
            plane.barh(at + 0.19, row.after, 0.35, color=LIGHT["pruned"])[0].set_gid(f"after-{at}")
        _column(plane, "", [row.change(places) for row in rows])
        _key(plane, [("before", {"marker": "s", "color": LIGHT["dense"]}), ("after", {"marker": "s"})])
        return svg(figure)


def _rows(figure: Any, left: float, right: float, top: float, pitch: float, names: Sequence[str]) -> Any:
    """Axes with one named row of `pitch` units for each of `names`, from the top down."""
    plane = axes(figure, left, top, right, top + pitch * len(names))
    plane.set_ylim(len(names) - 0.5, -0.5)
    plane.set_yticks(range(len(names)), names, color=LIGHT["ink"])
    plane.grid(visible=False, axis="y")
    return plane


def _column(plane: Any, head: str, cells: Sequence[str]) -> None:
    """A text at the right end of every row, and one above them."""
    edge = {"xycoords": ("figure points", "data"), "ha": "right", "va": "center"}
    for at, words in enumerate(cells):
        plane.annotate(words, (WIDTH - 16, at), annotation_clip=False, **edge)
    plane.annotate(head, (WIDTH - 16, 1), (0, 6), xycoords=("figure points", "axes fraction"), textcoords="offset points",
                   ha="right", color=LIGHT["muted"])  # fmt: skip


def _key(plane: Any, entries: Sequence[tuple[str, dict[str, Any]]]) -> None:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], linestyle="none", **{"marker": "o", "color": LIGHT["pruned"], "markersize": 9, **look})
             for _, look in entries]  # fmt: skip
    figure = plane.figure
    top = 1 - (HEAD + 2) / (figure.get_size_inches()[1] * 72)
    figure.legend(marks, [words for words, _ in entries], loc="upper left", frameon=False, ncols=len(entries),
                  bbox_to_anchor=(plane.get_position().x0, top), borderaxespad=0, handletextpad=0.2, columnspacing=1.4)  # fmt: skip


def _latency_name(report: Report) -> str:
    return "latency" if report.target.measured else "latency (analytic, NOT measured)"
