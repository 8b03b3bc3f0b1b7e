"""Int8 engines compute what their files say: blocks of detectors, segmenters and classifiers, against the same file on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import quant_nets as nets
import quant_zoo as zoo
from pydeploy.backends.base import Backend, open_backend
from pydeploy.onnxfile.unsigned import unsigned
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.lint import lint
from pydeploy.quant.qdq import quantize
from pydeploy.quant.styles import processor

AMX = "avx2 avx512f avx512_vnni amx_int8"
Outputs = list[nets.Array]


def outputs(path: Path, feeds: list[dict[str, nets.Array]], *, optimize: bool = True) -> Outputs:
    """Every output of the file on ONNX Runtime, all samples in a row."""
    loaded = nets.session(path, optimize=optimize)
    return [np.concatenate(found) for found in zip(*(loaded.run(None, feed) for feed in feeds), strict=True)]


def engine_outputs(backend: Backend, path: Path, feeds: list[dict[str, nets.Array]]) -> Outputs:
    engine = backend.build(path, path.with_suffix(".engine"))
    with backend.open(engine) as session:
        runs = [[value.copy() for value in session.run(feed).values()] for feed in feeds]
    return [np.concatenate(found) for found in zip(*runs, strict=True)]


def error(wanted: Outputs, found: Outputs) -> float:
    return max(float(np.linalg.norm(w - f) / np.linalg.norm(w)) for w, f in zip(wanted, found, strict=True))


PAIRED = [(block, zoo.ACTIVATIONS[(index + shift) % len(zoo.ACTIVATIONS)])
          for index, block in enumerate(zoo.BLOCKS) for shift in (0, 2)]  # fmt: skip
"""Every block with two activations, every activation with three blocks."""


@pytest.mark.parametrize("style", ["onnxruntime", "openvino", "tensorrt"])
@pytest.mark.parametrize(("block", "act"), PAIRED, ids=str)
def test_an_engine_is_as_right_as_its_file(tmp_path: Path, block: str, act: str, style: str) -> None:
    runtime = "onnxruntime" if style == "onnxruntime" else "openvino"
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="needs the extra 'openvino'")
    backend = open_backend(runtime, precision="int8", threads=1)
    path = zoo.build(tmp_path / "net.onnx", block, act)
    out = tmp_path / "q.onnx"
    ranges = calibrate(path, nets.random_feeds(path, 40), observer="minmax", threads=1)
    report = quantize(path, ranges, out, style=style, target=backend.target(), min_channels=1)
    assert len(report.quantized) > len(report.skipped)
    feeds = nets.random_feeds(path, 4, seed=5)
    original, file = outputs(path, feeds), outputs(out, feeds)
    lost = error(original, file)
    assert lost < (0.03 if report.weight_top == 127 else 0.05)
    assert error(original, engine_outputs(backend, out, feeds)) < 1.3 * lost


def joined(path: Path, *, act: str = "none", kernel: int = 3) -> Path:
    """Two maps, concatenated, read by a convolution."""
    net = zoo.Net(act)
    x = net.join(net.conv("x", 16), net.conv("x", 16))
    return net.save(path, net.conv(x, 16, kernel, act="relu"))


@pytest.mark.openvino
@pytest.mark.parametrize("on", [AMX, "avx2 avx512f avx512_vnni"], ids=["amx", "vnni"])
@pytest.mark.parametrize("act", zoo.ACTIVATIONS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_file_for_openvino_is_right_on_every_processor(tmp_path: Path, act: str, kernel: int, on: str) -> None:
    """Also where OpenVINO reads it without the backend, and on a processor that it was not made for."""
    ov = pytest.importorskip("openvino")
    path = joined(tmp_path / "net.onnx", act=act, kernel=kernel)
    feeds = nets.random_feeds(path, 16)
    out = tmp_path / "q.onnx"
    target = processor("openvino", on)
    report = quantize(path, calibrate(path, feeds, observer="minmax"), out, style="openvino", target=target)
    assert lint(out, "openvino") == ()
    if open_backend("openvino").target().saturates:
        pytest.skip("8 bits of weights saturate here: for such processors the file would have 7")
    compiled = ov.Core().compile_model(str(out), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    original, file = outputs(path, feeds), outputs(out, feeds)
    assert len(report.quantized) == 3
    assert error(original, [np.concatenate([compiled(feed)[0].copy() for feed in feeds])]) < 1.3 * error(original, file)


@pytest.mark.parametrize(("block", "act"), PAIRED[::3], ids=str)
def test_unsigned_is_the_same_to_the_last_bit(tmp_path: Path, block: str, act: str) -> None:
    path, out = zoo.build(tmp_path / "net.onnx", block, act), tmp_path / "q.onnx"
    feeds = nets.random_feeds(path, 4)
    quantize(path, calibrate(path, feeds, observer="minmax"), out, style="tensorrt", min_channels=1)
    before = onnx.load(out)
    after = unsigned(before)
    assert before == onnx.load(out)
    onnx.checker.check_model(after, full_check=True)
    types = {tensor.name: tensor.data_type for tensor in after.graph.initializer}
    stored = set(types)
    quantizers = [node for node in after.graph.node if node.op_type == "QuantizeLinear"]
    for node in quantizers:
        assert types[node.input[2]] == (onnx.TensorProto.INT8 if node.input[0] in stored else onnx.TensorProto.UINT8)
    onnx.save(after, tmp_path / "unsigned.onnx")
    for one, two in zip(
        outputs(out, feeds, optimize=False), outputs(tmp_path / "unsigned.onnx", feeds, optimize=False), strict=True
    ):
        assert np.array_equal(one, two)
    assert unsigned(after) is after


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_unsigned_for_all_ways_to_write_a_pair(data: st.DataObject) -> None:
    """Zero points that are absent, nodes, shared with weights or not zero; integers that something else reads as well."""
    draw = data.draw
    zero = np.int8(draw(st.sampled_from([0, 0, 5, -128, 127])))
    kind = draw(st.sampled_from(["initializer", "node", "absent"])) if zero == 0 else "initializer"
    opset = 21 if kind == "absent" else 13
    given_zero = [] if kind == "absent" else ["zero"]
    nodes, stored = [], [numpy_helper.from_array(np.float32(0.05), "scale")]
    if kind == "initializer":
        stored.append(numpy_helper.from_array(zero, "zero"))
    elif kind == "node":
        nodes.append(helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(zero)))
    attributes = {"output_dtype": onnx.TensorProto.INT8} if kind == "absent" else {}
    read_elsewhere = draw(st.sampled_from(["no", "max", "output"]))
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    stored.append(numpy_helper.from_array(weight, "w"))
    nodes += [helper.make_node("QuantizeLinear", ["x", "scale", *given_zero], ["q"], **attributes),
              helper.make_node("DequantizeLinear", ["q", "scale", *given_zero], ["d"]),
              helper.make_node("DequantizeLinear", ["q", "scale", *given_zero], ["e"]),
              helper.make_node("QuantizeLinear", ["w", "scale", *given_zero], ["wq"], **attributes),
              helper.make_node("DequantizeLinear", ["wq", "scale", *given_zero], ["wd"]),
              helper.make_node("MatMul", ["d", "wd"], ["m"]), helper.make_node("Add", ["m", "e"], ["y"])]  # fmt: skip
    ends = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3, 4])]
    if read_elsewhere == "max":
        nodes.append(helper.make_node("Cast", ["q"], ["r"], to=onnx.TensorProto.FLOAT))
        ends.append(helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, [3, 4]))
    if read_elsewhere == "output":
        ends.append(helper.make_tensor_value_info("q", onnx.TensorProto.INT8, [3, 4]))
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [3, 4])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, ends, stored),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )
    after = unsigned(model)
    assert (after is model) == (read_elsewhere != "no")
    onnx.checker.check_model(after, full_check=True)
    x = np.random.default_rng(1).normal(0, 4, (3, 4)).astype(np.float32)
    runs = [nets.ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
            for m in (model, after)]  # fmt: skip
    for one, two in zip(*runs, strict=True):
        assert np.array_equal(one, two)


def test_lint_names_the_join_that_openvino_computes_wrongly(tmp_path: Path) -> None:
    path, out = joined(tmp_path / "net.onnx"), tmp_path / "q.onnx"
    ranges = calibrate(path, nets.random_feeds(path), observer="minmax")
    quantize(path, ranges, out, style="tensorrt", min_channels=1)
    (finding,) = lint(out, "openvino")
    join = next(node.name for node in onnx.load(out).graph.node if node.op_type == "Concat")
    assert (finding.severity, finding.layer) == ("error", join)
    assert "int8 maps" in finding.text
    assert "uint8" in finding.text
    assert lint(out, "tensorrt") == ()
    onnx.save(unsigned(onnx.load(out)), out)
    assert lint(out, "openvino") == ()


@pytest.mark.parametrize("block", zoo.BLOCKS)
def test_lint_finds_nothing_in_what_quantize_writes(tmp_path: Path, block: str) -> None:
    path, out = zoo.build(tmp_path / "net.onnx", block, "silu"), tmp_path / "q.onnx"
    ranges = calibrate(path, nets.random_feeds(path), observer="minmax")
    for sets in (AMX, "avx2 fma", ""):
        target = processor("openvino", sets) if sets else None
        quantize(path, ranges, out, style="openvino", target=target)
        assert [finding for finding in lint(out, "openvino") if finding.severity == "error"] == []
