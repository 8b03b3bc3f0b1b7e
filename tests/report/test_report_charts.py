"""Charts: scales, label placement, the Pareto front, and well-formed accessible drawings."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pydeploy.report import Layer
from pydeploy.report.charts import all_charts, frontier, points
from pydeploy.report.labels import Box, place
from pydeploy.report.svg import DARK, LIGHT, Scale, css, shortened, tick_labels, ticks
from report_factory import CPU, candidate, latency, model, models, sample

SVG = "{http://www.w3.org/2000/svg}"
CHARTS = ("pareto", "rounds", "widths", "layers")


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 10))
def test_ticks_are_round_evenly_spaced_and_inside(lo: float, span: float, most: int) -> None:
    hi = lo + span
    assume(hi - lo > 1e-9 * max(abs(lo), abs(hi)))
    values = ticks(lo, hi, most)
    assert len(values) <= most
    assert all(lo - 1e-6 * span <= value <= hi + 1e-6 * span for value in values)
    for (a, b), (c, d) in pairwise(list(pairwise(values))):
        assert b - a == pytest.approx(d - c, rel=1e-3, abs=1e-9 * max(abs(lo), abs(hi)))


@given(st.floats(0, 1000), st.floats(1e-3, 1e4))
def test_tick_labels_differ_and_read_back(lo: float, span: float) -> None:
    values = ticks(lo, lo + span)
    labels = tick_labels(values)
    assert len(set(labels)) == len(values)
    for value, label in zip(values, labels, strict=True):
        assert float(label) == pytest.approx(value, rel=1e-6, abs=1e-6 * span)


def test_scale_maps_its_ends_to_the_frame() -> None:
    scale = Scale(2.0, 4.0, 100.0, 300.0)
    assert [scale.at(value) for value in (2.0, 3.0, 4.0)] == [100.0, 200.0, 300.0]


@given(st.text(max_size=80), st.integers(3, 40))
def test_shortened_names_fit_and_keep_their_ends(words: str, most: int) -> None:
    short = shortened(words, most)
    assert len(short) <= most
    assert short == words or (short[0] == words[0] and short[-1] == words[-1])


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
            and other.accuracy >= point.accuracy
            and (other.latency_us.median, other.accuracy) != (point.latency_us.median, point.accuracy)
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
def test_a_file_of_its_own_carries_background_style_and_title(name: str) -> None:
    chart = all_charts(sample())[name]
    root = ET.fromstring(chart.standalone())
    background = root.find(f"{SVG}rect")
    assert background is not None
    assert background.get("fill") == LIGHT["back"]
    assert root.findtext(f"{SVG}style") == css(LIGHT)
    assert chart.title in [element.text for element in root.findall(f"{SVG}text")]
    assert "var(" not in chart.standalone()


@pytest.mark.parametrize("name", CHARTS)
def test_everything_drawn_lies_inside_the_drawing(name: str) -> None:
    chart = all_charts(sample())[name]
    for element in ET.fromstring(chart.inline()).iter():
        for key in ("x", "x1", "x2", "cx"):
            assert 0 <= float(element.get(key, "0")) <= chart.width
        for key in ("y", "y1", "y2", "cy"):
            assert 0 <= float(element.get(key, "0")) <= chart.height


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
    name = '<script>alert("x")</script>\x00\x1b&'
    rows = tuple(replace(layer, name=name) for layer in sample().layers)
    report = sample(candidates=(candidate(name, "x", 500.0, 0.93),), layers=rows)
    for chart in all_charts(report).values():
        root = ET.fromstring(chart.standalone())
        assert not list(root.iter(f"{SVG}script"))


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
