"""How a matplotlib figure becomes a chart of ours: one style, and SVG that needs nothing else.

* Texts stay texts, escaped by the XML writer; names are never read as mathematics.
* Parts with a name (matplotlib's ``gid``) carry it as ``data-part``; nothing else refers to anything, so that several
  charts fit into one page.
* A file of its own has the light colours. Inside a page colours are classes, to which `css` gives the page's.
* The same figure gives the same bytes: no dates, no versions, no random names.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FONT_PX = 13
"""Text height in drawing units."""
HEAD = 40
"""Height of the title, which a page leaves out."""

LIGHT = {"back": "#ffffff", "ink": "#1f2328", "muted": "#59636e", "grid": "#e4e7eb", "dense": "#78828d",
         "pruned": "#0b62c4", "unquantized": "#4a5fa5", "half": "#0a7d6c", "quantized": "#b35900", "mixed": "#8a6d00",
         "other": "#7a3fb5", "budget": "#c4314b"}  # fmt: skip
DARK = {"back": "#14171c", "ink": "#e6e9ee", "muted": "#a3adb8", "grid": "#2c323b", "dense": "#8b95a1",
        "pruned": "#6cb0ff", "unquantized": "#9fb0f0", "half": "#4fd1bd", "quantized": "#ffa657", "mixed": "#e3c34b",
        "other": "#c7a3ff", "budget": "#ff8492"}  # fmt: skip

_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
_NAMES = {colour: name for name, colour in LIGHT.items()}
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""
_STYLE: Any = {
    "axes.edgecolor": LIGHT["muted"], "axes.facecolor": "none", "axes.formatter.useoffset": False, "axes.spines.left": False,
    "axes.spines.right": False, "axes.spines.top": False, "axes.axisbelow": True, "axes.grid": True,
    "axes.labelcolor": LIGHT["muted"], "axes.labelsize": FONT_PX, "axes.xmargin": 0, "axes.ymargin": 0, "figure.dpi": 72,
    "figure.facecolor": LIGHT["back"], "font.size": FONT_PX, "grid.color": LIGHT["grid"], "grid.linewidth": 1,
    "svg.fonttype": "none", "svg.hashsalt": "pydeploy", "text.color": LIGHT["ink"], "text.parse_math": False,
    "text.usetex": False, "xtick.labelcolor": LIGHT["muted"], "xtick.major.size": 0, "xtick.major.pad": 6,
    "ytick.labelcolor": LIGHT["muted"], "ytick.major.size": 0, "ytick.major.pad": 6,
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A chart with a title and a description for screen readers; drawn when its markup is first asked for, and only once."""

    name: str
    title: str
    description: str
    draw: Callable[[], ET.Element]
    """Returns what `svg` does."""

    @cached_property
    def root(self) -> ET.Element:
        """The drawing. Raises `ImportError` where matplotlib is missing."""
        return self.draw()

    def inline(self) -> str:
        """Markup to put into an HTML page whose style holds `css`."""
        root = self._described()
        width, height = root.attrib.pop("width"), float(root.attrib.pop("height"))
        root.set("viewBox", f"0 {HEAD} {width} {_number(height - HEAD)}")
        for parent in root.iter():
            for child in [one for one in parent if one.get("data-part") in ("title", "background")]:
                parent.remove(child)
        for element in root.iter():
            _classes(element)
        return ET.tostring(root, encoding="unicode")

    def standalone(self) -> str:
        """A whole file: background, visible title, its own colours."""
        return ET.tostring(self._described(), encoding="unicode") + "\n"

    def _described(self) -> ET.Element:
        copy = ET.fromstring(ET.tostring(self.root))  # noqa: S314 (written here)
        for place, (tag, words) in enumerate((("title", self.title), ("desc", self.description))):
            element = ET.Element(tag, {"id": f"{self.name}-{tag}"})
            element.text = writable(words)
            copy.insert(place, element)
        about = {
            "xmlns": _SVG,
            "class": "chart",
            "role": "img",
            "aria-labelledby": f"{self.name}-title {self.name}-desc",
        }
        copy.attrib.update(about)
        return copy


def css(palette: Mapping[str, str]) -> str:
    """Style rules that give a chart's classes their colours; only for elements inside ``.chart``."""
    return "\n".join(
        f".chart .fill-{name} {{ fill: {colour}; }} .chart .stroke-{name} {{ stroke: {colour}; }}"
        for name, colour in palette.items()
    )


@contextmanager
def styled(width: int, height: int, title: str) -> Iterator[Figure]:
    """An empty figure of `width` x `height` units below its title; whatever draws on it belongs inside.

    Users' own matplotlib settings have no effect. Raises `ImportError` where matplotlib is missing.
    """
    if "MPLCONFIGDIR" not in os.environ:  # its list of fonts is a cache; nothing is written to ~/.config
        os.environ["MPLCONFIGDIR"] = str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "matplotlib")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's font is another one
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width / 72, (height + HEAD) / 72))
        figure.patch.set_gid("background")
        figure.text(16 / width, 1 - 27 / (height + HEAD), title, weight="bold", gid="title")
        yield figure


def axes(figure: Figure, left: float, top: float, right: float, bottom: float) -> Any:
    """Axes over the box that these units from the figure's left and from below its title span."""
    width, height = (float(one) * 72 for one in figure.get_size_inches())
    found = figure.add_axes(
        (left / width, (height - HEAD - bottom) / height, (right - left) / width, (bottom - top) / height)
    )
    found.xaxis.set_major_locator(_locator())
    found.yaxis.set_major_locator(_locator())
    return found


def _locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10])


def svg(figure: Figure) -> ET.Element:
    """The finished figure as the root element of an SVG file."""
    from matplotlib.text import Text

    for words in figure.findobj(Text):
        words.set_text(writable(words.get_text()))
    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ET.fromstring(written.getvalue())  # noqa: S314 (written by matplotlib)
    shapes = {shape.get("id", ""): shape for defs in root.iter(f"{{{_SVG}}}defs") for shape in defs}
    return _plain(root, shapes)


def _plain(element: ET.Element, shapes: Mapping[str, ET.Element]) -> ET.Element:
    """A copy without references, style attributes, foreign names and what is not drawn."""
    tag = element.tag.removeprefix(f"{{{_SVG}}}")
    made = ET.Element(tag, _attributes(element))
    made.text = element.text if tag == "text" else None
    for child in element:
        inner = child.tag.removeprefix(f"{{{_SVG}}}")
        if inner == "use":
            made.append(_stamped(child, shapes[child.attrib[_HREF].removeprefix("#")]))
        elif inner in ("g", "path", "text"):
            drawn = _plain(child, shapes)
            if len(drawn) or inner != "g":
                made.append(drawn)
    if tag == "svg":
        made.attrib = {"viewBox": element.attrib["viewBox"], "width": element.attrib["viewBox"].split()[2],
                       "height": element.attrib["viewBox"].split()[3], "stroke-linejoin": "round", "font-family": _FONTS}  # fmt: skip
    if made.get("data-part", "").startswith("label"):
        for text in made.iter("text"):  # no line may hide a letter
            text.attrib.update({"paint-order": "stroke", "stroke": LIGHT["back"], "stroke-width": "4"})
    return made


def _stamped(use: ET.Element, shape: ET.Element) -> ET.Element:
    """The marker that `use` puts somewhere, put there."""
    place = {"transform": f"translate({use.get('x', '0')} {use.get('y', '0')})"}
    return ET.Element("path", {"d": shape.attrib["d"], **_attributes(shape), **_attributes(use), **place})


def _attributes(element: ET.Element) -> dict[str, str]:
    """What is drawn, as attributes: a page's content policy forbids styles inside of elements."""
    kept = ("d", "transform", "x", "y") if element.tag == f"{{{_SVG}}}text" else ("d", "transform")
    found = {key: value for key in kept if (value := element.get(key, "")) and not value.startswith("rotate(-0 ")}
    if (part := element.get("id")) and "_" not in part and element.tag == f"{{{_SVG}}}g":
        found["data-part"] = part
    for rule in element.get("style", "").split(";"):
        key, _, value = (word.strip() for word in rule.partition(":"))
        if key == "font":  # [weight] size family
            *weight, size = value.partition("px")[0].split()
            found["font-size"] = size
            if weight:
                found["font-weight"] = weight[-1]
        elif key and key != "font-family":
            found[key] = value.removesuffix("px")
    return found


def _classes(element: ET.Element) -> None:
    """Colours of the palette become classes."""
    found = [f"{key}-{_NAMES[element.attrib.pop(key)]}" for key in ("fill", "stroke") if element.get(key) in _NAMES]
    if found:
        element.set("class", " ".join(found))


def writable(words: str) -> str:
    """`words` with every character that XML cannot hold shown as a replacement character."""
    return _UNWRITABLE.sub("\ufffd", words)


def shortened(words: str, most: int) -> str:
    """`words` in one line, its middle replaced by an ellipsis where it is longer than `most` characters."""
    words = " ".join(writable(words).split())
    if len(words) <= most:
        return words
    tail = (most - 1) * 2 // 3
    return f"{words[: most - 1 - tail]}\u2026{words[-tail:]}"


def text_width(words: str, size: float = FONT_PX) -> float:
    """Estimated width of `words`; which font the reader has is unknown, so a little more than an average letter each."""
    wide, narrow = set("mwMW@%"), set("iljt.,:;|'! ")
    return size * sum(0.85 if c.isupper() or c in wide else 0.34 if c in narrow else 0.58 for c in words)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
