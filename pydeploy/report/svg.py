"""Small pieces that the charts are drawn from: scales, ticks, text, and the two ways a drawing is written.

* Drawings are element trees, so every text is escaped by the XML writer and the result is well-formed.
* A drawing carries classes, no colours; `css` gives the colours. Inline in a page the page's style applies (light
  or dark); a file of its own carries the light style and a background, so that it is readable anywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree as ET

FONT_PX = 13
"""Text height in drawing units."""

LIGHT = {"back": "#ffffff", "ink": "#1f2328", "muted": "#59636e", "grid": "#e4e7eb", "dense": "#78828d",
         "pruned": "#0b62c4", "unquantized": "#4a5fa5", "half": "#0a7d6c", "quantized": "#b35900", "mixed": "#8a6d00",
         "other": "#7a3fb5", "budget": "#c4314b"}  # fmt: skip
DARK = {"back": "#14171c", "ink": "#e6e9ee", "muted": "#a3adb8", "grid": "#2c323b", "dense": "#8b95a1",
        "pruned": "#6cb0ff", "unquantized": "#9fb0f0", "half": "#4fd1bd", "quantized": "#ffa657", "mixed": "#e3c34b",
        "other": "#c7a3ff", "budget": "#ff8492"}  # fmt: skip

_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
_SERIES = ("dense", "pruned", "unquantized", "half", "quantized", "mixed", "other")
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""


@dataclass(frozen=True)
class Drawing:
    """A finished chart: `root` is an ``svg`` element with a title and a description for screen readers."""

    name: str
    title: str
    width: int
    height: int
    root: ET.Element

    def inline(self) -> str:
        """Markup to put into an HTML page whose style holds `css`."""
        return ET.tostring(self.root, encoding="unicode")

    def standalone(self) -> str:
        """A whole file: background, visible title, its own colours."""
        head = 40
        root = ET.Element("svg", {**self.root.attrib, "viewBox": f"0 0 {self.width} {self.height + head}"})
        root.set("width", str(self.width))
        root.set("height", str(self.height + head))
        described = [child for child in self.root if child.tag in ("title", "desc")]
        root.extend(deepcopy(described))
        ET.SubElement(root, "style").text = css(LIGHT)
        ET.SubElement(root, "rect", {"width": "100%", "height": "100%", "fill": LIGHT["back"]})
        text(root, 16, 27, self.title, "ink strong")
        body = ET.SubElement(root, "g", {"transform": f"translate(0 {head})"})
        body.extend(deepcopy([child for child in self.root if child not in described]))
        return ET.tostring(root, encoding="unicode") + "\n"


def css(palette: Mapping[str, str]) -> str:
    """Style rules that give a drawing's classes their colours; only for elements inside ``.chart``."""
    back, ink, muted, grid, budget = (palette[name] for name in ("back", "ink", "muted", "grid", "budget"))
    rules = [
        f".chart text {{ font: {FONT_PX}px {_FONTS}; fill: {ink}; font-variant-numeric: tabular-nums; }}",
        ".chart text.strong { font-weight: 600; }",
        f".chart text.muted {{ fill: {muted}; }} .chart text.budget {{ fill: {budget}; }}",
        f".chart text.halo {{ paint-order: stroke; stroke: {back}; stroke-width: 4px; stroke-linejoin: round; }}",
        f".chart .grid {{ stroke: {grid}; }} .chart .axis {{ stroke: {muted}; }}",
        f".chart .leader {{ stroke: {muted}; stroke-width: .75; }}",
        f".chart .front {{ stroke: {muted}; stroke-width: 1.5; stroke-dasharray: 1 4; stroke-linecap: round; }}",
        ".chart .front { fill: none; }",
        f".chart .limit {{ stroke: {budget}; stroke-width: 1.5; stroke-dasharray: 6 4; }}",
    ]
    for name in _SERIES:
        colour = palette[name]
        rules.append(
            f".chart .fill-{name} {{ fill: {colour}; }} .chart .line-{name} {{ stroke: {colour}; stroke-width: 1.5; }} "
            f".chart .ring-{name} {{ stroke: {colour}; stroke-width: 2; fill: {palette['back']}; }}"
        )
    return "\n".join(rules)


def drawing(name: str, title: str, description: str, width: int, height: int) -> Drawing:
    """An empty drawing of `width` x `height` units, to be filled through its `root`."""
    attributes = {"xmlns": "http://www.w3.org/2000/svg", "class": "chart", "viewBox": f"0 0 {width} {height}",
                  "role": "img", "aria-labelledby": f"{name}-title {name}-desc"}  # fmt: skip
    root = ET.Element("svg", attributes)
    ET.SubElement(root, "title", {"id": f"{name}-title"}).text = writable(title)
    ET.SubElement(root, "desc", {"id": f"{name}-desc"}).text = writable(description)
    return Drawing(name, title, width, height, root)


def writable(words: str) -> str:
    """`words` with every character that XML cannot hold shown as a replacement character."""
    return _UNWRITABLE.sub("\ufffd", words)


def text(parent: ET.Element, x: float, y: float, words: str, style: str = "ink", anchor: str = "start") -> ET.Element:
    """Text with its baseline at `y`; `anchor` is start, middle or end."""
    place = {"x": _number(x), "y": _number(y), "class": style, "text-anchor": anchor}
    element = ET.SubElement(parent, "text", place)
    element.text = writable(words)
    return element


def line(parent: ET.Element, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
    """A straight line."""
    ends = {"x1": _number(x1), "y1": _number(y1), "x2": _number(x2), "y2": _number(y2)}
    ET.SubElement(parent, "line", {**ends, "class": style})


def bar(parent: ET.Element, x: float, y: float, width: float, height: float, style: str) -> None:
    """A filled rectangle; a width above zero is always visible."""
    shown = max(width, 1.0) if width > 0 else 0.0
    size = {"x": _number(x), "y": _number(y), "width": _number(shown), "height": _number(height)}
    ET.SubElement(parent, "rect", {**size, "rx": "1.5", "class": style})


def marker(parent: ET.Element, x: float, y: float, shape: str, style: str, radius: float = 6) -> None:
    """A point: square, circle, diamond or triangle, so that series differ without colour as well."""
    corners = {
        "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
        "diamond": ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
        "triangle": ((0, -1.1), (1.05, 0.8), (-1.05, 0.8)),
    }
    if shape == "circle":
        centre = {"cx": _number(x), "cy": _number(y), "r": _number(radius), "class": style}
        ET.SubElement(parent, "circle", centre)
        return
    points = " ".join(f"{_number(x + radius * dx)},{_number(y + radius * dy)}" for dx, dy in corners[shape])
    ET.SubElement(parent, "polygon", {"points": points, "class": style})


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from values ``lo..hi`` to drawing units ``start..end``."""

    lo: float
    hi: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Drawing position of `value`."""
        return self.start + (value - self.lo) / (self.hi - self.lo) * (self.end - self.start)


def ticks(lo: float, hi: float, most: int = 6) -> list[float]:
    """At most `most` round values (1, 2, 2.5 or 5 times a power of ten apart) inside ``lo..hi``, ascending."""
    step = _round_step((hi - lo) / most)
    first = math.ceil(lo / step - 1e-9)
    last = math.floor(hi / step + 1e-9)
    return [index * step for index in range(first, last + 1)][:most]


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    # The tolerance keeps a span that is already a round multiple from jumping to the next step.
    return next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= least * (1 - 1e-9))


def tick_labels(values: list[float]) -> list[str]:
    """Labels with as many decimals as keep neighbours apart, the same for all."""
    step = min((b - a for a, b in pairwise(values)), default=abs(values[0]) or 1.0)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(round(step, places) - step) > 1e-6 * step:
        places += 1
    return [f"{value:.{places}f}" for value in values]


def text_width(words: str, size: float = FONT_PX) -> float:
    """Estimated width of `words`; no font is at hand, so a little more than an average letter each."""
    return (
        sum(
            0.85 if letter.isupper() or letter in "mwMW@%" else 0.34 if letter in "iljt.,:;|'! " else 0.58
            for letter in words
        )
        * size
    )


def shortened(words: str, most: int) -> str:
    """`words` with its middle replaced by an ellipsis where it is longer than `most` characters."""
    if len(words) <= most:
        return words
    tail = (most - 1) * 2 // 3
    return f"{words[: most - 1 - tail]}\u2026{words[-tail:]}"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
