"""Q/DQ files computed with integers only: fixed-point factors against exact fractions, the interpreter against ONNX Runtime."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import quant_nets as nets
import quant_zoo as zoo
from oracle import randomize
from pydeploy.errors import DataError
from pydeploy.export import export
from pydeploy.models import build
from pydeploy.onnxfile.execute import as_written
from pydeploy.onnxfile.load import read_model
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.half import to_half
from pydeploy.quant.integer.fixed_point import factor, times
from pydeploy.quant.integer.interpreter import Interpreter
from pydeploy.quant.qdq import quantize

STYLES = ("onnxruntime", "openvino", "tensorrt")


@given(st.integers(-(2**31), 2**31 - 1), st.floats(1e-12, 1e6))
@settings(max_examples=400, deadline=None)
def test_a_factor_multiplies(value: int, real: float) -> None:
    """Off by one half each for the two roundings, and by what 31 bits of the factor lose; at most the ends of int32."""
    mantissa, exponent = factor(real)
    assert 2**30 <= int(mantissa) < 2**31
    found = int(times(np.array(value), mantissa, exponent))
    exact = value * Fraction(real)
    if abs(exact) > 2**31 or (exponent > 0 and abs(value) << int(exponent) >= 2**31):
        assert abs(found) <= 2**31
        assert found * value >= 0
    else:
        assert abs(found - exact) <= 1 + abs(exact) / 2**31


def test_halves_are_rounded_as_gemmlowp_rounds_them() -> None:
    """Of the upper half: up; of the division by a power of two: away from zero."""
    half, quarter = factor(0.5), factor(0.25)
    assert half == (2**30, 0)
    np.testing.assert_array_equal(times(np.array([1, -1, 3, -3]), *half), [1, 0, 2, -1])
    np.testing.assert_array_equal(times(np.array([2, -2, 6, -6, 1, -1]), *quarter), [1, -1, 2, -2, 1, 0])


def int8(path: Path, style: str) -> Path:
    ranges = calibrate(path, nets.random_feeds(path, 6), observer="minmax", style=style, threads=1, few=0)
    out = path.with_name("int8.onnx")
    quantize(path, ranges, out, style=style, min_channels=1)
    return out


def judge(path: Path, count: int = 2) -> None:
    """Every pair is within one step of ONNX Runtime's, given the same levels before it; the outputs differ by rounding."""
    model = read_model(path).whole()
    stored = {tensor.name for tensor in model.graph.initializer}
    levels = [
        node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in stored
    ]
    outputs = [value.name for value in model.graph.output]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in levels)
    session, mine = as_written(model, 1), Interpreter(path)
    moved = total = 0
    for feed in nets.random_feeds(path, count, seed=5):
        theirs = dict(zip([*outputs, *levels], session.run([*outputs, *levels], feed), strict=True))
        found = mine.levels(feed, {name: theirs[name] for name in levels})
        for name in levels:
            assert found[name].dtype == theirs[name].dtype
            off = np.abs(found[name].astype(int) - theirs[name].astype(int))
            assert off.max() <= 1, name
            moved, total = moved + int((off > 0).sum()), total + off.size
        for name, values in mine.run(feed).items():
            assert np.linalg.norm(values - theirs[name]) < 0.03 * np.linalg.norm(theirs[name])
            assert values.any()
    assert moved < 0.1 * total


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("place", "block"), list(enumerate(zoo.BLOCKS)), ids=str)
def test_blocks(tmp_path: Path, place: int, block: str, style: str) -> None:
    act = zoo.ACTIVATIONS[(place + STYLES.index(style)) % len(zoo.ACTIVATIONS)]
    judge(int8(zoo.build(tmp_path / "net.onnx", block, act), style))


@pytest.mark.parametrize("style", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("name", ["resnet8", "mobilenet_small"])
def test_networks_of_the_zoo(name: str, style: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomize(build(name, width=16).eval())
    judge(int8(export(model, torch.randn(1, 3, 16, 16), tmp_path / "net.onnx"), style), 1)


def test_a_typed_file(tmp_path: Path) -> None:
    """What is not int8 is float16 there, scales included: the integers between the pairs stay the same."""
    to_half(int8(zoo.build(tmp_path / "net.onnx", "residual", "relu"), "tensorrt"), tmp_path / "typed.onnx")
    judge(tmp_path / "typed.onnx")


def test_what_has_no_integer_form_is_one_error(tmp_path: Path) -> None:
    conv = nets.conv("conv", "x", "y", 3, 16)
    path = nets.save(tmp_path / "net.onnx", [conv], {"x": [1, 3, 8, 8]}, ["y"])
    (feed,) = nets.random_feeds(path, 1)
    with pytest.raises(DataError, match=r"'conv' \(Conv\) has no integer form: it reads floats; give it a pair"):
        Interpreter(path).run(feed)
    path = nets.save(
        tmp_path / "soft.onnx", [conv, nets.NODE("Softmax", ["y"], ["z"], name="soft")], {"x": [1, 3, 8, 8]}, ["z"]
    )
    with pytest.raises(DataError, match=r"no integer form of Softmax is known \('soft'\)"):
        Interpreter(path)
    big = onnx.load(
        int8(
            nets.save(tmp_path / "net.onnx", [conv, nets.conv("end", "y", "z", 16, 8)], {"x": [1, 3, 8, 8]}, ["z"]),
            "onnxruntime",
        )
    )
    bias = next(tensor for tensor in big.graph.initializer if tensor.name == "conv.bias_int32")
    bias.CopyFrom(numpy_helper.from_array(np.full(16, 2**31 - 1, np.int32), bias.name))
    onnx.save(big, tmp_path / "big.onnx")
    with pytest.raises(DataError, match="a sum does not fit into 32 bits"):
        Interpreter(tmp_path / "big.onnx").run(feed)
