"""Mixed precision: sensitivities against direct computation, and the choice against brute force."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

import quant_nets as nets
from pydeploy.errors import ConfigError, DataError
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.mixed import LayerOption, choose, conversion_us, neighbours, sensitivity
from pydeploy.quant.qdq import quantize
from pydeploy.quant.styles import STYLES

LAYERS = ["stem", "block.conv1", "block.conv2", "fc"]
times = st.floats(0, 100).map(lambda x: round(x, 2))
shares = st.integers(0, 64).map(lambda x: x / 64)  # sums are exact, so that a limit is met or not


def saved(options: list[LayerOption], edges: dict[tuple[str, str], float], int8: set[str]) -> float:
    gain = sum(option.gain_us for option in options if option.name in int8)
    return gain - sum(us for (a, b), us in edges.items() if (a in int8) != (b in int8))


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[LayerOption], dict[tuple[str, str], float], float]:
    count = draw(st.integers(1, 6))
    options = [LayerOption(f"l{i}", draw(times), draw(times), draw(shares)) for i in range(count)]
    pairs = [(f"l{i}", f"l{j}") for i in range(count) for j in range(i + 1, count)] + [("outside", "l0")]
    edges = {pair: draw(times) / 5 for pair in draw(st.lists(st.sampled_from(pairs), unique=True, max_size=6))}
    return options, edges, draw(st.one_of(shares, st.just(float("inf"))))


@given(problems())
@settings(max_examples=80)
def test_the_choice_is_the_best_of_all(problem: tuple[list[LayerOption], dict[tuple[str, str], float], float]) -> None:
    options, edges, limit = problem
    best = -np.inf
    for bits in itertools.product([False, True], repeat=len(options)):
        chosen = {option.name for option, bit in zip(options, bits, strict=True) if bit}
        if sum(option.error for option in options if option.name in chosen) <= limit:
            best = max(best, saved(options, edges, chosen))
    found = choose(options, edges, limit)
    assert found.saved_us == pytest.approx(best, abs=1e-6)
    assert saved(options, edges, set(found.int8)) == pytest.approx(best, abs=1e-6)
    assert found.error <= limit * (1 + 1e-9)


def test_greedy_would_be_wrong() -> None:
    """The best gain per error leaves no room for the two that together gain more."""
    options = [LayerOption("a", 11, 0, 0.5), LayerOption("b", 10, 0, 0.5), LayerOption("c", 13, 0, 0.6)]
    assert choose(options, {}, 1.0).int8 == ("a", "b")
    # And a float layer between two int8 ones converts twice: better int8 although it gains nothing itself.
    chain = [LayerOption("a", 10, 5, 0), LayerOption("b", 5, 6, 0), LayerOption("c", 10, 5, 0)]
    assert choose(chain, {("a", "b"): 2.0, ("b", "c"): 2.0}, 0.0).int8 == ("a", "b", "c")
    assert choose(chain, {("a", "b"): 0.1, ("b", "c"): 0.1}, 0.0).int8 == ("a", "c")


@pytest.mark.parametrize("style", STYLES)
def test_sensitivity_is_the_error_with_one_layer_quantized(tmp_path: Path, style: str) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    feeds = nets.random_feeds(path)
    ranges = calibrate(path, feeds, observer="minmax")
    found = sensitivity(path, ranges, feeds, LAYERS, style=style, threads=1)
    assert list(found) == LAYERS
    original = nets.run(path, feeds, optimize=False).astype(np.float64)
    for layer in LAYERS:
        rest = [name for name in [*LAYERS, "add", "pool"] if name != layer]
        quantize(path, ranges, tmp_path / "one.onnx", style=style, exclude=rest)
        apart = nets.run(tmp_path / "one.onnx", feeds, optimize=False) - original
        assert found[layer] == pytest.approx(np.square(apart).sum() / np.square(original).sum(), rel=1e-6)
        assert 0 < found[layer] < 1e-2
    # Errors add up: all layers together are within a factor of two of the sum.
    quantize(path, ranges, tmp_path / "all.onnx", style=style)
    total = (
        np.square(nets.run(tmp_path / "all.onnx", feeds, optimize=False) - original).sum() / np.square(original).sum()
    )
    assert 0.5 < total / sum(found.values()) < 2.0


@pytest.mark.parametrize("style", STYLES)
def test_sensitivity_is_the_files_whatever_the_processor(tmp_path: Path, style: str) -> None:
    """Bright maps and weights of one sign: integer layers without VNNI would cut sums off. The reference has no such layers."""
    first, second = nets.conv("a", "x", "c", 16, 16), nets.conv("b", "r", "d", 16, 16)
    for node, weights in (first, second):
        weights[f"{node.name}.weight"][:] = np.abs(weights[f"{node.name}.weight"])
    relu, relu2 = (nets.NODE("Relu", [a], [b], name=f"relu_{a}") for a, b in ("cr", "de"))
    last = nets.conv("last", "e", "y", 16, 4)
    path = nets.save(tmp_path / "net.onnx", [first, relu, second, relu2, last], {"x": [1, 16, 8, 8]}, ["y"])
    feeds = [{"x": np.abs(feed["x"])} for feed in nets.random_feeds(path, 4)]
    ranges = calibrate(path, feeds, observer="minmax")
    found = sensitivity(path, ranges, feeds, ["a", "b"], style=style, threads=1)

    def reference(source: Path) -> nets.Array:
        evaluator = ReferenceEvaluator(str(source))
        return np.concatenate([evaluator.run(None, feed)[0] for feed in feeds]).astype(np.float64)

    original = reference(path)
    for layer, rest in (("a", "b"), ("b", "a")):
        quantize(path, ranges, tmp_path / "one.onnx", style=style, exclude=[rest, "last", "relu_c", "relu_d"])
        apart = reference(tmp_path / "one.onnx") - original
        assert found[layer] == pytest.approx(np.square(apart).sum() / np.square(original).sum(), rel=0.02)


def test_neighbours_and_their_values(tmp_path: Path) -> None:
    assert neighbours(nets.residual(tmp_path / "net.onnx")) == {
        ("stem", "block.conv1"): 1024.0, ("block.conv1", "block.conv2"): 1024.0, ("stem", "fc"): 16.0, ("block.conv2", "fc"): 16.0,
    }  # fmt: skip


def test_conversion_time_explains_what_the_sum_does_not() -> None:
    options = [LayerOption("a", 10, 4, 0), LayerOption("b", 10, 4, 0), LayerOption("c", 10, 4, 0)]
    values = {("a", "b"): 100.0, ("b", "c"): 300.0}
    # 30 us in float; b alone int8 gains 6 and converts 400 values at 0.01 us each.
    assert conversion_us(options, values, ["b"], 30.0, 28.0) == pytest.approx(0.01)
    assert conversion_us(options, values, ["b"], 30.0, 20.0) == 0.0
    assert conversion_us(options, values, ["a", "b", "c"], 30.0, 20.0) == 0.0


def test_bad_input(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    ranges = calibrate(path, nets.random_feeds(path, count=2))
    with pytest.raises(DataError, match="no samples"):
        sensitivity(path, ranges, [], LAYERS, style="openvino")
    with pytest.raises(ConfigError, match="the limit on the error is -1"):
        choose([LayerOption("a", 1, 0, 0)], {}, -1.0)
    assert choose([], {}, 1.0).int8 == ()
