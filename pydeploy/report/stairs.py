"""The stairs of a layer: its latency over output channels, one line per number of input channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from pydeploy.files import replacing, write_text
from pydeploy.report import svg
from pydeploy.report.svg import LIGHT, Drawing, Scale

WIDTH, HEIGHT = 860, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 800, 16, 370
STYLES = (("pruned", "circle"), ("quantized", "square"), ("other", "diamond"), ("dense", "triangle"))
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


def stairs(title: str, lines: Lines) -> Drawing:
    """Medians with p10 to p90; straight lines between them only lead the eye."""
    steps = [step for line in lines.values() for step in line]
    drawing = svg.drawing("stairs", title, f"Latency in microseconds over output channels of {title}.", WIDTH, HEIGHT)
    across, up = _scales(steps)
    root = drawing.root
    _grid(root, across, up)
    for (name, line), (style, shape) in zip(lines.items(), STYLES, strict=False):
        places = [(across.at(step.width), up.at(step.median_us)) for step in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        ET.SubElement(root, "polyline", {"points": path, "class": f"line-{style}", "fill": "none"})
        for step, (x, y) in zip(line, places, strict=True):
            svg.line(root, x, up.at(step.p10_us), x, up.at(step.p90_us), f"line-{style}")
            svg.marker(root, x, y, shape, f"fill-{style}", 4)
        svg.text(root, places[-1][0] + 8, places[-1][1] + 4, name, "ink halo")
    svg.text(root, (LEFT + RIGHT) / 2, BOTTOM + 44, "output channels", "muted", "middle")
    svg.text(root, LEFT, TOP - 4, "microseconds", "muted")
    return drawing


def _scales(steps: Sequence[Step]) -> tuple[Scale, Scale]:
    widest, slowest = max(step.width for step in steps), max(step.p90_us for step in steps)
    return Scale(0.0, widest * 1.02, LEFT, RIGHT - 60), Scale(0.0, max(slowest, 1e-9) * 1.05, BOTTOM, TOP)


def _grid(root: ET.Element, across: Scale, up: Scale) -> None:
    columns, rows = svg.ticks(across.lo, across.hi, 10), svg.ticks(up.lo, up.hi)
    for value, label in zip(columns, svg.tick_labels(columns), strict=True):
        svg.line(root, across.at(value), TOP, across.at(value), BOTTOM, "grid")
        svg.text(root, across.at(value), BOTTOM + 18, label, "muted", "middle")
    for value, label in zip(rows, svg.tick_labels(rows), strict=True):
        svg.line(root, LEFT, up.at(value), RIGHT, up.at(value), "grid")
        svg.text(root, LEFT - 8, up.at(value) + 4.5, label, "muted", "end")


def write(path: Path, title: str, lines: Lines) -> None:
    """Write the chart as the file's suffix says: .svg, .html or .png."""
    if path.suffix == ".png":
        _png(path, title, lines)
        return
    drawing = stairs(title, lines)
    page = f"<!doctype html><meta charset='utf-8'><title>{title}</title>{drawing.standalone()}"
    write_text(path, drawing.standalone() if path.suffix == ".svg" else page)


def _png(path: Path, title: str, lines: Lines) -> None:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, HEIGHT + 40), LIGHT["back"])
    pen = ImageDraw.Draw(image)
    across, up = _scales([step for line in lines.values() for step in line])
    pen.text((16, 10), title, fill=LIGHT["ink"])

    def y_of(value: float) -> float:
        return up.at(value) + 40

    for value in svg.ticks(across.lo, across.hi, 10):
        pen.line([(across.at(value), TOP + 40), (across.at(value), BOTTOM + 40)], fill=LIGHT["grid"])
        pen.text((across.at(value) - 8, BOTTOM + 46), f"{value:g}", fill=LIGHT["muted"])
    for value in svg.ticks(up.lo, up.hi):
        pen.line([(LEFT, y_of(value)), (RIGHT, y_of(value))], fill=LIGHT["grid"])
        pen.text((LEFT - 50, y_of(value) - 6), f"{value:g}", fill=LIGHT["muted"])
    pen.text(((LEFT + RIGHT) / 2 - 40, BOTTOM + 62), "output channels, microseconds", fill=LIGHT["muted"])
    for (name, line), (style, _) in zip(lines.items(), STYLES, strict=False):
        places = [(across.at(step.width), y_of(step.median_us)) for step in line]
        pen.line(places, fill=LIGHT[style], width=2)
        for step, (x, y) in zip(line, places, strict=True):
            pen.line([(x, y_of(step.p10_us)), (x, y_of(step.p90_us))], fill=LIGHT[style])
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=LIGHT[style])
        pen.text((places[-1][0] + 8, places[-1][1] - 6), name, fill=LIGHT["ink"])
    with replacing(path) as partial, partial.open("wb") as stream:
        image.save(stream, format="PNG")
