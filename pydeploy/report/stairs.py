"""The stairs of a layer: its latency over output channels, one line per number of input channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

from pydeploy.files import replacing, write_text
from pydeploy.report.drawing import LIGHT, Chart, axes, styled, svg
from pydeploy.report.page import chart_page

WIDTH, HEIGHT = 860, 440
STYLES = (("pruned", "o"), ("quantized", "s"), ("other", "D"), ("dense", "^"))
MOST = len(STYLES)
"""Lines that can be told apart in one chart."""


@dataclass(frozen=True, slots=True)
class Step:
    """One measured width."""

    width: int
    median_us: float
    p10_us: float
    p90_us: float


Lines = Mapping[str, Sequence[Step]]
"""Measured widths in ascending order, by the line's name."""


def stairs(title: str, lines: Lines) -> Chart:
    """Medians with p10 to p90; straight lines between them only lead the eye."""
    told = f"Latency in microseconds over output channels of {title}."
    return Chart("stairs", title, told, partial(_drawn, title, lines))


def _drawn(title: str, lines: Lines, png: Path | None = None) -> ET.Element:
    """The drawing, written to the file `png` as well."""
    steps = [step for line in lines.values() for step in line]
    with styled(WIDTH, HEIGHT, title) as figure:
        plane = axes(figure, 70, 28, WIDTH - 120, HEIGHT - 56)
        plane.set_xlim(0, 1.02 * max(step.width for step in steps))
        plane.set_ylim(0, 1.05 * max(*(step.p90_us for step in steps), 1e-9))
        plane.set_xlabel("output channels", labelpad=8)
        plane.set_title("microseconds", loc="left", fontsize=plane.xaxis.label.get_size(), color=LIGHT["muted"], pad=6)
        for (name, line), (style, marker) in zip(lines.items(), STYLES, strict=False):
            spread = [[s.median_us - s.p10_us for s in line], [s.p90_us - s.median_us for s in line]]
            places = [s.width for s in line], [s.median_us for s in line]
            plane.errorbar(*places, yerr=spread, color=LIGHT[style], elinewidth=1.5, fmt="none")
            plane.plot(*places, color=LIGHT[style], marker=marker, markersize=7, linewidth=1.5, gid=f"line-{style}")
            plane.annotate(name, (places[0][-1], places[1][-1]), (8, -4), textcoords="offset points",
                           annotation_clip=False, gid=f"label-{style}")  # fmt: skip
        if png is not None:
            figure.savefig(png, format="png", dpi=144, metadata={"Software": None})
        return svg(figure)


def write(path: Path, title: str, lines: Lines) -> None:
    """Write the chart as the file's suffix says: .svg, .html or .png."""
    if path.suffix == ".png":
        with replacing(path) as unfinished:
            _drawn(title, lines, unfinished)
        return
    drawn = stairs(title, lines)
    write_text(path, drawn.standalone() if path.suffix == ".svg" else chart_page(drawn))
