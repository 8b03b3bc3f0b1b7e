"""Typed half-precision models: types, Casts, what stays float32, and the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

import quant_nets as nets
from pydeploy.errors import ConfigError, DataError
from pydeploy.onnxfile.retype import half_tensor
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.half import to_half
from pydeploy.quant.lint import lint
from pydeploy.quant.qdq import quantize

HALF = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def types_of(path: Path) -> dict[str, int]:
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in values} | {
        t.name: t.data_type for t in model.graph.initializer
    }


def nodes_of(path: Path) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in onnx.load(path).graph.node}


@given(arrays(np.float32, 7, elements=st.floats(-60000, 60000, width=32)))
def test_rounding_is_ieee(values: np.ndarray) -> None:
    tensor = half_tensor(values, "t", TensorProto.FLOAT16)
    assert np.array_equal(np.frombuffer(tensor.raw_data, "<f2"), values.astype(np.float16))
    tensor = half_tensor(values, "t", TensorProto.BFLOAT16)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    assert np.array_equal(np.frombuffer(tensor.raw_data, "<u2"), expected)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("keep_io", [True, False], ids=["float io", "half io"])
def test_everything_between_input_and_output_is_half(tmp_path: Path, dtype: str, *, keep_io: bool) -> None:
    path, out = nets.residual(tmp_path / "net.onnx"), tmp_path / "half.onnx"
    report = to_half(path, out, dtype=dtype, keep_io=keep_io)
    found, nodes = types_of(out), nodes_of(out)
    io = TensorProto.FLOAT if keep_io else HALF[dtype]
    assert (found["x"], found["y"]) == (io, io)
    assert {node.op_type for node in nodes.values()} == {
        "Conv",
        "Relu",
        "Add",
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    } | ({"Cast"} if keep_io else set())
    for node in nodes.values():
        if node.op_type != "Cast":
            assert {found[t] for t in [*node.input, *node.output]} == {HALF[dtype]}, node.name
    assert set(report.converted) == {node.name for node in nodes.values() if node.op_type != "Cast"}
    assert report.kept == {}


def test_the_numbers_are_those_of_rounded_weights_and_values(tmp_path: Path) -> None:
    """ONNX Runtime runs float16 on the CPU: against NumPy with weights and the input rounded, the rest in float32."""
    path, out = nets.residual(tmp_path / "net.onnx"), tmp_path / "half.onnx"
    to_half(path, out)
    rounded = onnx.load(path)
    for tensor in rounded.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(rounded, tmp_path / "rounded.onnx")
    feeds = nets.random_feeds(path)
    reference, original = nets.run(tmp_path / "rounded.onnx", feeds), nets.run(path, feeds)
    found = nets.run(out, feeds)
    assert found.dtype == np.float32
    # Each of seven layers rounds its result to 11 bits.
    assert np.abs(found - reference).max() < 7 * 2.0**-11 * np.abs(original).max()
    assert np.abs(found - original).max() > 0


@pytest.mark.openvino
@pytest.mark.parametrize("dtype", HALF)
def test_openvino_reads_typed_models(tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("openvino")
    path, out = nets.residual(tmp_path / "net.onnx"), tmp_path / "half.onnx"
    to_half(path, out, dtype=dtype)
    feeds = nets.random_feeds(path)
    compiled, original = nets.openvino_model(out), nets.run(path, feeds)
    found = np.concatenate([compiled(feed)[0] for feed in feeds])
    assert np.abs(found - original).max() < {"float16": 0.01, "bfloat16": 0.05}[dtype] * np.abs(original).max()


def in_half(path: Path, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    """ONNX's own slow evaluator, which rounds every result; ONNX Runtime skips Casts that undo each other."""
    evaluator = ReferenceEvaluator(str(path))
    with np.errstate(all="ignore"):
        return np.concatenate([evaluator.run(None, feed)[0] for feed in feeds])


def loud(path: Path, factor: float) -> Path:
    """A chain whose first layer makes values of about `factor`, and the second brings them back."""
    first, second = nets.conv("first", "x", "c", 3, 16), nets.conv("second", "a", "b", 16, 16, seed=3)
    first[1]["first.weight"] *= factor
    first[1]["first.bias"] *= factor
    second[1]["second.weight"] /= factor
    parts = [first, nets.NODE("Relu", ["c"], ["a"], name="act"), second, nets.NODE("Relu", ["b"], ["d"], name="act2"),
             nets.NODE("GlobalAveragePool", ["d"], ["p"], name="pool"), nets.NODE("Flatten", ["p"], ["f"], name="flatten"),
             nets.gemm("fc", "f", "y", 16, 4)]  # fmt: skip
    return nets.save(path, parts, {"x": [1, 3, 8, 8]}, ["y"])


def test_layers_that_overflow_stay_float32(tmp_path: Path) -> None:
    path, out = loud(tmp_path / "net.onnx", 40000.0), tmp_path / "half.onnx"
    feeds = nets.random_feeds(path)
    report = to_half(path, out, batches=feeds)
    assert set(report.kept) == {"first", "act", "second"}
    assert report.kept["first"].endswith("float16 ends at 65504")
    assert report.samples == len(feeds)
    found, original = in_half(out, feeds[:2]), nets.run(path, feeds)
    assert np.abs(found - original[:2]).max() < 0.01 * np.abs(original).max()
    # Without the samples nothing but the weights is known: the values overflow.
    to_half(path, out)
    assert not np.abs(in_half(out, feeds[:2]) - original[:2]).max() < 0.01 * np.abs(original).max()
    # bfloat16 reaches as far as float32.
    assert to_half(path, out, dtype="bfloat16", batches=feeds).kept == {}


def test_a_mean_whose_sum_overflows_stays_float32(tmp_path: Path) -> None:
    part = nets.conv("first", "x", "c", 3, 16)
    part[1]["first.weight"] *= 500
    parts = [
        part,
        nets.NODE("Relu", ["c"], ["a"], name="act"),
        nets.NODE("GlobalAveragePool", ["a"], ["y"], name="pool"),
    ]
    path, out = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 3, 32, 32]}, ["y"]), tmp_path / "half.onnx"
    report = to_half(path, out, batches=nets.random_feeds(path, count=4))
    assert list(report.kept) == ["pool"]
    assert "a sum of 1024 values" in report.kept["pool"]


def test_a_typed_int8_model_has_half_scales(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    feeds = nets.random_feeds(path)
    quantize(path, calibrate(path, feeds, observer="minmax"), tmp_path / "q.onnx", style="tensorrt")
    out = tmp_path / "typed.onnx"
    report = to_half(tmp_path / "q.onnx", out, batches=feeds)
    assert report.kept == {}
    found = types_of(out)
    for node in nodes_of(out).values():
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert found[node.input[1]] == TensorProto.FLOAT16
            assert found[node.input[2]] == TensorProto.INT8
    assert lint(out) == ()
    original, int8 = nets.run(path, feeds), nets.run(tmp_path / "q.onnx", feeds)
    assert np.abs(nets.run(out, feeds) - int8).max() < 0.03 * np.abs(original).max()


def test_pairs_of_layers_that_stay_float32_stay_so_too(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    feeds = nets.random_feeds(path)
    quantize(path, calibrate(path, feeds), tmp_path / "q.onnx", style="tensorrt")
    out = tmp_path / "typed.onnx"
    to_half(tmp_path / "q.onnx", out, keep=["fc"])
    to_half(tmp_path / "q.onnx", tmp_path / "by pattern.onnx", keep=["f?"])
    assert (tmp_path / "by pattern.onnx").read_bytes() == out.read_bytes()
    found, nodes = types_of(out), nodes_of(out)
    assert found[nodes["fc.weight_DequantizeLinear"].output[0]] == TensorProto.FLOAT
    assert found[nodes["m_DequantizeLinear"].output[0]] == TensorProto.FLOAT
    assert found[nodes["stem.weight_DequantizeLinear"].output[0]] == TensorProto.FLOAT16
    assert {f.layer for f in lint(out)} == {"fc.weight_DequantizeLinear", "m_DequantizeLinear"}


@pytest.mark.parametrize("style", ["tensorrt", "openvino"])
def test_tiny_scales_do_not_become_zero(tmp_path: Path, style: str) -> None:
    part = nets.conv("first", "x", "c", 3, 16)
    part[1]["first.weight"][4] *= 1e-7
    part[1]["first.weight"][5] *= 1e-3
    parts = [part, nets.NODE("Relu", ["c"], ["a"], name="act"), nets.conv("second", "a", "y", 16, 16)]
    path, out = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 3, 8, 8]}, ["y"]), tmp_path / "typed.onnx"
    feeds = nets.random_feeds(path)
    quantize(path, calibrate(path, feeds, observer="minmax"), tmp_path / "q.onnx", style=style)
    to_half(tmp_path / "q.onnx", out)
    scales = [
        numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer if t.name.startswith("first.weight_scale")
    ]
    assert scales[0].dtype == np.float16
    assert scales[0].min() >= 2.0**-20
    original = nets.run(path, feeds)
    assert np.abs(nets.run(out, feeds) - original).max() < 0.06 * np.abs(original).max()


def test_older_models_are_converted_where_the_type_needs_it(tmp_path: Path) -> None:
    path = nets.chain(tmp_path / "net.onnx", opset=13)
    feeds = nets.random_feeds(path)
    quantize(path, calibrate(path, feeds), tmp_path / "q.onnx", style="tensorrt")
    to_half(tmp_path / "q.onnx", tmp_path / "typed.onnx")
    assert onnx.load(tmp_path / "typed.onnx").opset_import[0].version == 19
    to_half(path, tmp_path / "float16.onnx")
    assert onnx.load(tmp_path / "float16.onnx").opset_import[0].version == 13
    to_half(path, tmp_path / "bfloat16.onnx", dtype="bfloat16")
    assert onnx.load(tmp_path / "bfloat16.onnx").opset_import[0].version == 22


def test_arguments_that_are_float32_by_definition_stay_so(tmp_path: Path) -> None:
    scales = {"scales": np.array([1, 1, 2, 2], np.float32)}
    parts = [nets.conv("a", "x", "c", 3, 16), (nets.NODE("Resize", ["c", "", "scales"], ["u"], name="up", mode="nearest"), scales),
             nets.conv("b", "u", "y", 16, 8)]  # fmt: skip
    path, out = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 3, 8, 8]}, ["y"]), tmp_path / "half.onnx"
    assert to_half(path, out).kept == {}
    found = types_of(out)
    assert found[nodes_of(out)["up"].input[2]] == TensorProto.FLOAT
    assert found["u"] == TensorProto.FLOAT16
    feeds = nets.random_feeds(path, count=2)
    assert np.abs(nets.run(out, feeds) - nets.run(path, feeds)).max() < 0.01 * np.abs(nets.run(path, feeds)).max()


def test_the_source_stays_and_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    before = path.read_bytes()
    to_half(path, tmp_path / "a.onnx")
    to_half(path, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert path.read_bytes() == before


def test_bad_input(tmp_path: Path) -> None:
    path, out = nets.residual(tmp_path / "net.onnx"), tmp_path / "half.onnx"
    with pytest.raises(ConfigError, match=r"unknown half-precision type 'float8' .*float16"):
        to_half(path, out, dtype="float8")
    with pytest.raises(ConfigError, match=r"cannot keep 'stm'.*did you mean 'stem'"):
        to_half(path, out, keep=["stm"])
    to_half(path, out)
    with pytest.raises(DataError, match="in half precision already"):
        to_half(out, tmp_path / "again.onnx")
    bad = [{"x": np.full((1, 3, 8, 8), np.nan, np.float32)}]
    with pytest.raises(DataError, match="holds NaN or infinity in float32"):
        to_half(path, out, batches=bad)
    assert not (tmp_path / "again.onnx").exists()
