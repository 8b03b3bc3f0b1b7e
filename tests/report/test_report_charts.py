"""Charts: label placement, the Pareto front, what is drawn where, and well-formed accessible drawings."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pydeploy.report import Layer, charts, render
from pydeploy.report.charts import WIDTH, all_charts, frontier, points
from pydeploy.report.drawing import DARK, HEAD, LIGHT, css, shortened, writable
from pydeploy.report.labels import Box, place
from pydeploy.report.page import to_markdown
from pydeploy.report.stairs import Step, write
from report_factory import CPU, candidate, latency, model, models, sample

SVG = "{http://www.w3.org/2000/svg}"
CHARTS = ("pareto", "rounds", "widths", "layers")


@given(st.text(max_size=80), st.integers(3, 40))
def test_shortened_names_fit_and_keep_their_ends(words: str, most: int) -> None:
    short = shortened(words, most)
    line = " ".join(writable(words).split())
    assert len(short) <= most
    assert short == line or len(line) > most
    assert not short or (short[0], short[-1]) == (writable(words).split()[0][0], writable(words).split()[-1][-1])


FRAME = Box(0, 0, 600, 400)


@given(st.lists(st.tuples(st.floats(0, 600), st.floats(0, 400)), min_size=1, max_size=6))
def test_labels_stay_inside_the_frame(where: list[tuple[float, float]]) -> None:
    labels = place([(x, y, f"engine {i}") for i, (x, y) in enumerate(where)], [], FRAME)
    assert all(label.box.outside(FRAME) < 1e-6 for label in labels)


def test_labels_of_points_at_one_place_do_not_overlap() -> None:
    labels = place([(300.0, 200.0, f"engine {i}") for i in range(8)], [], FRAME)
    assert all(one.box.overlap(other.box) == 0 for one, other in combinations(labels, 2))
    assert any(label.distant for label in labels)


def test_frontier_against_its_definition() -> None:
    shown = points(sample())
    best = frontier(shown)
    for point in shown:
        beaten = any(
            other.latency_us.median <= point.latency_us.median
            and other.value >= point.value
            and (other.latency_us.median, other.value) != (point.latency_us.median, point.value)
            for other in shown
        )
        assert (point not in best) == beaten
    assert [p.name for p in best] == ["joint 0.36", "quantized, int8", "Torch-Pruning 50 %, 16", "joint 0.70"]


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_well_formed_and_described(name: str) -> None:
    chart = all_charts(sample())[name]
    for markup in (chart.inline(), chart.standalone()):
        root = ET.fromstring(markup)
        named = {element.get("id"): element.text for element in root if element.tag in (f"{SVG}title", f"{SVG}desc")}
        assert set(named) == {f"{name}-title", f"{name}-desc"}
        assert all(named.values())
        assert root.get("aria-labelledby", "").split() == list(named)
        assert root.get("role") == "img"


@pytest.mark.parametrize("name", CHARTS)
def test_a_file_of_its_own_carries_background_colours_and_title(name: str) -> None:
    chart = all_charts(sample())[name]
    found = parts(chart.standalone())
    assert found["background"][0].get("fill") == LIGHT["back"]
    assert found["title"][0].text == chart.title
    drawn = [
        element for element in ET.fromstring(chart.standalone()).iter() if element.tag in (f"{SVG}path", f"{SVG}text")
    ]
    colours = {element.get(key) for element in drawn for key in ("fill", "stroke")} - {None, "none"}
    assert colours <= set(LIGHT.values())


@pytest.mark.parametrize("name", CHARTS)
def test_inside_a_page_colours_are_classes_of_both_palettes(name: str) -> None:
    root = ET.fromstring(all_charts(sample())[name].inline())
    assert not {"background", "title"} & set(parts(ET.tostring(root, encoding="unicode")))
    assert root.get("viewBox", "").split()[:3] == ["0", str(HEAD), str(WIDTH)]
    used = {name for element in root.iter() for name in element.get("class", "").split()} - {"chart"}
    for palette in (LIGHT, DARK):
        rules = css(palette)
        assert all(f".chart .{name} {{" in rules for name in used)
    for element in root.iter():
        assert not {"style", "href", "clip-path"} & set(element.attrib)
        assert not [value for value in element.attrib.values() if value.startswith("#") or "url(" in value]


def test_the_same_report_gives_the_same_bytes_whatever_matplotlib_is_set_to() -> None:
    import matplotlib

    before = {name: chart.standalone() for name, chart in all_charts(sample()).items()}
    with matplotlib.rc_context(
        {"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path", "lines.linewidth": 9}
    ):
        after = {name: chart.standalone() for name, chart in all_charts(sample()).items()}
    assert after == before


@pytest.mark.parametrize("name", CHARTS)
def test_everything_drawn_lies_inside_the_drawing(name: str) -> None:
    root = ET.fromstring(all_charts(sample())[name].standalone())
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    seen = 0
    for element in root.iter():
        at = (
            [float(one) for one in re.findall(r"-?[\d.]+", element.get("transform", ""))]
            if element.tag == f"{SVG}path"
            else []
        )
        across, up = at if len(at) == 2 else (0.0, 0.0)
        corners = [float(one) for one in re.findall(r"-?\d[\d.]*", element.get("d", ""))]
        places = [
            *zip(corners[::2], corners[1::2], strict=True),
            (float(element.get("x", 0)), float(element.get("y", 0))),
        ]
        for x, y in places:
            assert -0.01 <= x + across <= width + 0.01
            assert -0.01 <= y + up <= height + 0.01
        seen += len(places)
    assert seen > 20


def parts(markup: str) -> dict[str, list[ET.Element]]:
    """What is drawn of each named part: paths and texts, in order."""
    named = [element for element in ET.fromstring(markup).iter() if element.get("data-part")]
    return {element.get("data-part", ""): [one for one in element.iter() if one.tag in (f"{SVG}path", f"{SVG}text")]
            for element in named}  # fmt: skip


def centres(name: str, part: str, **changes: object) -> list[tuple[float, float]]:
    """Where the markers of a part lie, in drawing units."""
    drawn = [element for element in ET.fromstring(all_charts(sample(**changes))[name].standalone()).iter()
             if element.get("data-part") == part]  # fmt: skip
    found = [one.get("transform", "") for element in drawn for one in element.iter(f"{SVG}path")]
    places = [[float(number) for number in re.findall(r"-?[\d.]+", text)] for text in found if text]
    return [(x, y) for x, y in places]


def test_points_lie_where_their_numbers_say() -> None:
    """Against a straight line through the two outermost engines, in both directions; the budget's line as well."""
    report = sample()
    shown = [p for p in points(report) if p.series == "other"]
    places = centres("pareto", "point-other")
    assert len(places) == len(shown)
    for values, at in (
        ([p.ms for p in shown], [x for x, _ in places]),
        ([p.shown for p in shown], [y for _, y in places]),
    ):
        slope, start = np.polyfit(values, at, 1)
        np.testing.assert_allclose(np.array(values) * slope + start, at, atol=0.01)
        if values[0] == shown[0].ms:
            path = parts(all_charts(report)["pareto"].standalone())["budget"][0].get("d", "")
            assert float(path.split()[1]) == pytest.approx(report.budget_us / 1000 * slope + start, abs=0.01)


def test_bars_are_as_long_as_their_numbers() -> None:
    report = sample()
    found = parts(all_charts(report)["layers"].standalone())
    timed = [layer for layer in report.layers if layer.before_us is not None]

    def length(name: str) -> float:
        corners = [float(one) for one in re.findall(r"-?\d[\d.]*", found[name][0].get("d", ""))]
        return max(corners[::2]) - min(corners[::2])

    unit = length("before-0") / timed[0].before_us
    for at, layer in enumerate(timed):
        assert length(f"before-{at}") == pytest.approx(unit * layer.before_us, abs=0.01)
        assert length(f"after-{at}") == pytest.approx(unit * layer.after_us, abs=0.01)


def texts(name: str, **changes: object) -> list[str]:
    root = ET.fromstring(all_charts(sample(**changes))[name].inline())
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_the_pareto_names_every_engine_and_the_budget() -> None:
    found = texts("pareto")
    assert {"dense, fp32", "pruned, fp32", "quantized, int8", "uniform 0.5", "budget 0.551 ms"} <= set(found)


def test_a_disturbed_point_is_marked() -> None:
    engines = models(pruned=model(531.7, 0.9334, latency_us=latency(531.7, disturbed=True)))
    assert "pruned, fp32 (disturbed)" in texts("pareto", models=engines)


def test_rounds_show_error_and_verdict() -> None:
    assert {"-6.5 %, missed", "+3.5 %, met"} <= set(texts("rounds"))


def test_widths_and_layers_show_both_numbers() -> None:
    assert "32 \u2192 20" in texts("widths")
    assert "188.2 \u2192 72.9" in texts("layers")


@pytest.mark.parametrize("name", ["pareto", "rounds", "layers"])
def test_an_analytic_target_is_named_on_the_axis(name: str) -> None:
    assert any("analytic, not measured" in words.lower() for words in texts(name, target=replace(CPU, measured=False)))
    assert not any("analytic" in words for words in texts(name))


def test_absent_data_draws_no_chart() -> None:
    assert list(all_charts(sample(rounds=(), layers=(), groups=()))) == ["pareto"]
    untimed = tuple(replace(layer, before_us=None, after_us=None) for layer in sample().layers)
    assert list(all_charts(sample(layers=untimed))) == ["pareto", "rounds", "widths"]


def test_group_widths_stand_in_for_layers() -> None:
    assert {"stage1", "stage3", "32 \u2192 20"} <= set(texts("widths", layers=()))


def test_extreme_values_are_drawn() -> None:
    engine = model(1000.0, 0.5)
    same = models(dense=engine, pruned=engine, quantized=engine)
    idle = (
        Layer(name="a", kind="conv", cin_before=1, cin_after=1, cout_before=1, cout_after=1, before_us=0, after_us=0),
    )
    far = (candidate("slow", "x", 9e6, 0.0), candidate("exact", "x", 1.0, 1.0))
    for report in (sample(models=same, candidates=(), budget_us=1000.0), sample(layers=idle), sample(candidates=far)):
        for chart in all_charts(report).values():
            assert "nan" not in chart.inline().lower().split()
            ET.fromstring(chart.standalone())


def test_hostile_names_stay_text() -> None:
    name = '<script>alert("x")</script>\x00\x1b&$\\frac{1}{2}$'
    rows = tuple(replace(layer, name=name) for layer in sample().layers)
    report = sample(candidates=(candidate(name, "x", 500.0, 0.93),), layers=rows)
    for chart in all_charts(report).values():
        root = ET.fromstring(chart.standalone())
        assert not list(root.iter(f"{SVG}script"))
        assert not [element for element in root.iter() if [key for key in element.attrib if key.startswith("on")]]
    assert any("$" in words and "frac" in words for words in texts("pareto", candidates=report.candidates))


@pytest.mark.parametrize("suffix", [".svg", ".html", ".png"])
def test_stairs_of_hostile_names(tmp_path: Path, suffix: str) -> None:
    name = "</title><script>alert(1)</script>\x1b$"
    lines = {f"cin={n}{name}": [Step(8 * i, 9.0 * i, 8.0 * i, 11.0 * i) for i in range(1, n)] for n in (3, 5)}
    write(tmp_path / f"a{suffix}", name, lines)
    write(tmp_path / f"b{suffix}", name, lines)
    written = (tmp_path / f"a{suffix}").read_bytes()
    assert written == (tmp_path / f"b{suffix}").read_bytes()
    if suffix == ".png":
        with Image.open(tmp_path / "a.png") as image:
            assert image.size == (1720, 960)
    else:
        assert b"<script" not in written
        assert b"&lt;script&gt;" in written


def test_a_chart_is_drawn_once_and_only_where_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Markdown needs the names of the charts alone; the page and the files share one drawing."""
    drawn: list[object] = []
    original = charts.svg
    monkeypatch.setattr(charts, "svg", lambda figure: (drawn.append(figure), original(figure))[1])
    found = all_charts(sample())
    assert "pareto.svg" in to_markdown(sample(), found)
    assert not drawn
    render(sample(), tmp_path)
    assert len(drawn) == len(CHARTS)


def test_a_missing_matplotlib_leaves_a_report_without_charts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    markdown, page = render(sample(), tmp_path)
    assert ".svg" not in markdown.read_text()
    assert "<svg" not in page.read_text()
    assert "pip install matplotlib" in caplog.text


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two ``#rrggbb`` colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_are_readable_on_their_background(palette: dict[str, str]) -> None:
    for name in ("ink", "muted", "budget"):
        assert contrast(palette[name], palette["back"]) >= 4.5
    for name in ("dense", "pruned", "quantized", "other"):
        assert contrast(palette[name], palette["back"]) >= 3
