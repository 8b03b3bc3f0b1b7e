"""Write a report's renderings: Markdown for a terminal, one HTML file that needs nothing else, the charts as files.

* Nothing is loaded from anywhere: style and charts are in the page. Its content policy allows that one style, by its hash, and
  forbids everything else: scripts, pictures, styles inside of elements.
* All text is data: escaped by the template engine in HTML, by the XML writer in SVG, by `in_line` in Markdown.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from pydeploy.files import write_text
from pydeploy.report.charts import all_charts
from pydeploy.report.drawing import DARK, LIGHT, Chart, css
from pydeploy.report.listings import Listing, all_listings, explained
from pydeploy.report.schema import Report
from pydeploy.report.usage import told, usage
from pydeploy.report.verdict import doubtful, headline, milliseconds, ms_places, shown_model, speedup

CHART_FILES = ("pareto.svg", "rounds.svg", "widths.svg", "layers.svg")
"""Charts written beside the report, each where the report has data for it."""


def render(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write ``report.md``, ``report.html`` and the charts into `folder`; returns the paths of the first two.

    Charts of an earlier report that this one has no data for are removed. Raises `DataError` when `folder`
    cannot be written.
    """
    folder = Path(folder)
    charts = all_charts(report)
    markdown, page = folder / "report.md", folder / "report.html"
    write_text(markdown, to_markdown(report, charts))
    write_text(page, to_html(report, charts, _pictures(report, folder)))
    for name in CHART_FILES:
        chart = charts.get(name.removesuffix(".svg"))
        if chart is None:
            (folder / name).unlink(missing_ok=True)
        else:
            write_text(folder / name, chart.standalone())
    return markdown, page


def to_markdown(report: Report, charts: dict[str, Chart]) -> str:
    """The report as Markdown whose tables are aligned in plain text as well."""
    environment = _environment(autoescape=False)
    return str(environment.get_template("report.md.j2").render(**_context(report), charts=charts))


def to_html(report: Report, charts: dict[str, Chart], pictures: dict[str, str] | None = None) -> str:
    """The report as one HTML page; `pictures` are those of the samples, by file, as data URIs."""
    return _page("report.html.j2", charts, **_context(report), tiles=tiles(report), pictures=pictures or {})


def _pictures(report: Report, folder: Path) -> dict[str, str]:
    """The samples' pictures that lie in the folder, and nowhere else."""
    found = {}
    for one in report.samples:
        path = (folder / one.file).resolve()
        if path.is_relative_to(folder.resolve()) and path.suffix == ".png" and path.is_file():
            found[one.file] = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return found


def chart_page(chart: Chart) -> str:
    """One chart as an HTML page of its own."""
    return _page("chart.html.j2", {chart.name: chart}, chart=chart)


def _page(template: str, charts: dict[str, Chart], **context: Any) -> str:
    from markupsafe import Markup

    environment = _environment(autoescape=True)
    rules = environment.get_template("report.css").render()
    style = f"{rules}\n{css(LIGHT)}\n@media screen and (prefers-color-scheme: dark) {{\n{css(DARK)}\n}}\n"
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # Safe without escaping: written by the XML writer, and literal style rules.
    drawn = {name: Markup(chart.inline()) for name, chart in charts.items()}
    page = environment.get_template(template).render(context, charts=drawn, style=Markup(style), style_hash=allowed)
    return str(page)


def tiles(report: Report) -> list[tuple[str, str, str]]:
    """The key figures of the shown engine: name, value, comparison."""
    name, dense, metric = shown_model(report), report.models.dense, report.metric
    result = report.models.present[name]
    places = ms_places(dense.latency_us.median, result.latency_us.median)
    ratio, _, direction = speedup(result.latency_us.ratio_to(dense.latency_us)).partition(" ")
    kind = "Latency" if report.target.measured else "Latency (analytic, NOT measured)"
    before = f"dense {milliseconds(dense.latency_us.median, places)} ms"
    shown = [
        (kind, f"{milliseconds(result.latency_us.median, places)} ms", before),
        ("Speed", ratio, f"{direction} {'as' if direction == 'as fast' else 'than'} dense"),
        (metric.title, metric.text(result.value), metric.change(dense.value, result.value)),
        ("Parameters", f"{100 * result.params / max(dense.params, 1):.0f} %", "of dense"),
        ("MACs", f"{100 * result.macs / max(dense.macs, 1):.0f} %", "of dense"),
    ]
    error = report.prediction_error
    return shown if error is None else [*shown, ("Prediction error", f"{100 * error:.1f} %", "last round")]


def in_line(words: object) -> str:
    """Text that Markdown shows as it is: one line, no markup, no HTML, no table separators."""
    flat = " ".join(str(words).split())
    return re.sub(r"([\\`*<\[\]|])", r"\\\1", flat)


def code_block(words: str) -> str:
    """An indented code block; unlike a fenced one its content cannot end it."""
    return "\n".join(f"    {line}" for line in words.splitlines())


def markdown_grid(grid: Listing) -> str:
    """A table with padded columns."""
    bold = [tuple(f"**{in_line(cell)}**" if cell and row in grid.strong else in_line(cell) for cell in cells)
            for row, cells in enumerate(grid.rows)]  # fmt: skip
    lines = [tuple(map(in_line, grid.heads)), *bold]
    sizes = [max(3, *(len(cells[column]) for cells in lines)) for column in range(len(grid.heads))]

    def joined(cells: tuple[str, ...]) -> str:
        columns = zip(cells, sizes, grid.numeric, strict=True)
        padded = [cell.rjust(size) if right else cell.ljust(size) for cell, size, right in columns]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (size - 1) + ":" if right else "-" * size for size, right in zip(sizes, grid.numeric, strict=True)]
    return "\n".join([joined(lines[0]), f"| {' | '.join(rule)} |", *map(joined, lines[1:])])


def _context(report: Report) -> dict[str, Any]:
    return {
        "report": report,
        "headline": headline(report),
        "tables": all_listings(report),
        "explained": explained(report),
        "config": json.dumps(report.config, indent=2, ensure_ascii=False, default=str),
        "verdict": "disturbed" if doubtful(report) else "met" if report.met else "missed",
        "analytic": not report.target.measured,
        "ship": told(report),
        "usage": usage(report, Path(report.shipped)),
    }


@cache
def _environment(*, autoescape: bool) -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("pydeploy.report")
    made = Environment(
        loader=loader,
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    if not autoescape:
        made.filters.update(line=in_line, grid=markdown_grid, code=code_block)
    return made
