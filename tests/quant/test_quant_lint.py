"""What the CPU check finds in Q/DQ files: nothing in ours, and each rule's own violation by layer name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import quant_nets as nets
from pydeploy.errors import ConfigError, DataError
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.lint import Finding, lint
from pydeploy.quant.qdq import quantize
from pydeploy.quant.styles import STYLES

Change = Callable[[onnx.ModelProto], None]


def concat(path: Path) -> Path:
    parts = [nets.conv("a", "x", "c1", 3, 16), nets.NODE("Relu", ["c1"], ["r1"], name="relu"),
             nets.conv("b", "x", "c2", 3, 16, kernel=1), nets.NODE("Concat", ["r1", "c2"], ["j"], name="join", axis=1),
             nets.conv("d", "j", "y", 32, 16)]  # fmt: skip
    return nets.save(path, parts, {"x": [1, 3, 8, 8]}, ["y"])


def made(path: Path, style: str) -> Path:
    out = path.with_name(f"{path.stem}.{style}.onnx")
    quantize(path, calibrate(path, nets.random_feeds(path)), out, style=style)
    return out


@pytest.mark.parametrize("build", [nets.residual, nets.chain, concat])
@pytest.mark.parametrize("style", STYLES)
def test_our_files_have_no_findings(tmp_path: Path, build: Callable[[Path], Path], style: str) -> None:
    assert lint(made(build(tmp_path / "net.onnx"), style), style) == ()


def test_other_styles_are_not_for_tensorrt(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    texts = [finding.text for finding in lint(made(path, "onnxruntime")) if finding.severity == "error"]
    assert any("integers are uint8" in text for text in texts)
    assert any("quantized bias" in text for text in texts)
    assert lint(made(path, "openvino"))[0].severity == "error"


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def store(model: onnx.ModelProto, name: str, values: Any) -> None:
    """Replace, or add, a stored tensor."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), name))
            return
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


def add_pair(model: onnx.ModelProto, tensor: str, reader: str, scale: float = 0.5) -> None:
    """Put a pair between `tensor` and one of its readers."""
    store(model, f"{tensor}_s", np.float32(scale))
    store(model, f"{tensor}_z", np.int8(0))
    grid = [f"{tensor}_s", f"{tensor}_z"]
    pair = [helper.make_node("QuantizeLinear", [tensor, *grid], [f"{tensor}_Q"], name=f"{tensor}_Qn"),
            helper.make_node("DequantizeLinear", [f"{tensor}_Q", *grid], [f"{tensor}_D"], name=f"{tensor}_Dn")]  # fmt: skip
    place = next(i for i, n in enumerate(model.graph.node) if n.name == reader)
    target = model.graph.node[place]
    for index, name in enumerate(target.input):
        if name == tensor:
            target.input[index] = f"{tensor}_D"
    for new in reversed(pair):
        model.graph.node.insert(place, new)


def bypass(model: onnx.ModelProto, reader: str, index: int, tensor: str) -> None:
    node(model, reader).input[index] = tensor


def computed_scale(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Abs", ["x_scale"], ["x_scale_abs"], name="abs"))
    node(model, "x_QuantizeLinear").input[1] = "x_scale_abs"


def integer_bias(model: onnx.ModelProto) -> None:
    store(model, "b32", np.zeros(16, np.int32))
    store(model, "b32_scale", np.full(16, 0.1, np.float32))
    model.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["b32", "b32_scale"], ["b"], name="bias_dq", axis=0)
    )
    node(model, "stem").input[2] = "b"


def typed(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Cast", ["y"], ["y16"], name="cast", to=TensorProto.FLOAT16))
    model.graph.output.append(helper.make_tensor_value_info("y16", TensorProto.FLOAT16, [1, 10]))


CASES: dict[str, tuple[Change, Finding]] = {
    "asymmetric": (lambda m: store(m, "r0_zero_point", np.int8(3)), Finding("error", "r0_QuantizeLinear", "its zero point is 3")),
    "zero scale": (lambda m: store(m, "r0_scale", np.float32(0)), Finding("error", "r0_QuantizeLinear", "its smallest scale is 0")),
    "negative weight scale": (
        lambda m: store(m, "stem.weight_scale", np.linspace(-1, 1, 16).astype(np.float32)),
        Finding("error", "stem.weight_QuantizeLinear", "its smallest scale is -1"),
    ),
    "infinite scale": (
        lambda m: store(m, "stem.weight_scale", np.full(16, np.inf, np.float32)),
        Finding("error", "stem.weight_QuantizeLinear", "its smallest scale is inf"),
    ),
    "computed scale": (computed_scale, Finding("error", "x_QuantizeLinear", "its scale is computed")),
    "scales of an activation": (
        lambda m: (store(m, "r0_scale", np.full(16, 0.1, np.float32)), store(m, "r0_zero_point", np.zeros(16, np.int8)))[0],
        Finding("error", "r0_QuantizeLinear", "an activation has 16 scales"),
    ),
    "too few scales": (
        lambda m: (store(m, "fc.weight_scale", np.full(4, 0.1, np.float32)), store(m, "fc.weight_zero_point", np.zeros(4, np.int8)))[0],
        Finding("error", "fc.weight_QuantizeLinear", "it has 4 scales along axis 0 of a weight of shape [10, 16]"),
    ),
    "zero points of another size": (
        lambda m: store(m, "fc.weight_zero_point", np.zeros(3, np.int8)),
        Finding("error", "fc.weight_QuantizeLinear", "it has 10 scales and 3 zero points"),
    ),
    "integer bias": (integer_bias, Finding("error", "bias_dq", "it restores int32 (a quantized bias)")),
    "only the activation": (
        lambda m: bypass(m, "block.conv2", 1, "block.conv2.weight"),
        Finding("warning", "block.conv2", "only one of its inputs carries a pair, the weight does not"),
    ),
    "only the weight": (
        lambda m: bypass(m, "block.conv1", 0, "r0"),
        Finding("warning", "block.conv1", "only one of its inputs carries a pair, the activation does not"),
    ),
    "one scale for all channels": (
        lambda m: (store(m, "fc.weight_scale", np.float32(0.1)), store(m, "fc.weight_zero_point", np.int8(0)))[0],
        Finding("warning", "fc", "its weights have one scale"),
    ),
    "between layer and activation": (
        lambda m: add_pair(m, "c1", "relu1"),
        Finding("warning", "relu1", "a pair stands between 'block.conv1' and it"),
    ),
    "between layer and addition": (
        lambda m: add_pair(m, "c2", "add"),
        Finding("warning", "add", "a pair stands between 'block.conv2' and it"),
    ),
    "no pair on the skip input": (
        lambda m: bypass(m, "add", 1, "r0"),
        Finding("warning", "add", "its skip input carries no pair"),
    ),
    "two pairs in a row": (
        lambda m: add_pair(m, "r1_dq", "block.conv2"),
        Finding("warning", "r1_dq_Qn", "it quantizes what was just restored"),
    ),
    "two scales for one tensor": (
        lambda m: (bypass(m, "add", 1, "r0"), add_pair(m, "r0", "add"))[0],
        Finding("warning", "r0_Qn", "'r0' is quantized with different scales"),
    ),
    "float scales in a half network": (
        typed, Finding("warning", "x_DequantizeLinear", "its scale is float32 in a half-precision network: stem"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_rule_names_the_layer(tmp_path: Path, case: str) -> None:
    change, expected = CASES[case]
    path = made(nets.residual(tmp_path / "net.onnx"), "tensorrt")
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    found = [f for f in lint(path) if f.layer == expected.layer and f.text.startswith(expected.text)]
    assert [f.severity for f in found] == [expected.severity], [str(f) for f in lint(path)]


def test_unequal_scales_into_a_concat(tmp_path: Path) -> None:
    path = made(concat(tmp_path / "net.onnx"), "tensorrt")
    model = onnx.load(path)
    add_pair(model, "r1", "join", 0.5)
    onnx.save(model, path)
    assert [(f.layer, "share one scale" in f.text) for f in lint(path)] == [("join", True)]


def test_integer_operators_and_old_opsets(tmp_path: Path) -> None:
    weights = {"s": np.float32(0.1), "z": np.uint8(0), "w": np.ones((16, 3, 1, 1), np.uint8)}
    parts = [(nets.NODE("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"), weights),
             nets.NODE("ConvInteger", ["q", "w"], ["i"], name="integer"),
             nets.NODE("Cast", ["i"], ["y"], name="cast", to=TensorProto.FLOAT)]  # fmt: skip
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 3, 8, 8]}, ["y"], opset=12)
    found = {f.layer: f.text for f in lint(path)}
    assert "TensorRT has no ConvInteger" in found["integer"]
    assert "integers are uint8" in found["q"]


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        lint(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(DataError, match="not a valid ONNX file"):
        lint(tmp_path / "text.onnx")
    with pytest.raises(ConfigError, match="unknown quantization style"):
        lint(nets.residual(tmp_path / "net.onnx"), "tensort")


def test_a_float_model_has_no_findings(tmp_path: Path) -> None:
    assert lint(nets.residual(tmp_path / "net.onnx")) == ()
