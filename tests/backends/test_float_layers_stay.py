"""What a file leaves in float between two Q/DQ pairs is computed in float, and what has pairs all around is one integer layer.

ONNX Runtime's own pass for float biases also rounds float weights, unasked.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_nets import residual
from pydeploy.backends.base import open_backend
from pydeploy.onnxfile.execute import as_written
from pydeploy.onnxfile.integer_biases import integer_biases

STEP = 16 / 250  # of the grid of what comes out
KINDS = ("conv", "depthwise", "gemm", "matmul", "transposed")


def between_pairs(kind: str, rng: np.random.Generator, path: Path, *, bias: bool) -> dict[str, np.ndarray]:
    """One float layer with a pair before and behind it, its weights of very different size by output; a feed for it."""
    shape = (1, 8, 6, 6) if kind in ("conv", "depthwise", "transposed") else (4, 8)
    size = {
        "conv": (6, 8, 3, 3),
        "depthwise": (8, 1, 3, 3),
        "gemm": (6, 8),
        "matmul": (8, 6),
        "transposed": (8, 6, 2, 2),
    }[kind]
    weight = (rng.standard_normal(size) * 10.0 ** rng.uniform(-2, 0, size)).astype(np.float32)
    outputs = 8 if kind == "depthwise" else 6
    values = {"w": weight, "s": np.float32(0.02), "z": np.uint8(120), "t": np.float32(STEP), "u": np.uint8(128)}
    inputs = ["x_dq", "w"]
    if bias and kind != "matmul":
        values["b"] = rng.standard_normal(outputs).astype(np.float32)
        inputs.append("b")
    operation, attributes = {
        "conv": ("Conv", {"pads": [1] * 4}),
        "depthwise": ("Conv", {"pads": [1] * 4, "group": 8}),
        "gemm": ("Gemm", {"transB": 1}),
        "matmul": ("MatMul", {}),
        "transposed": ("ConvTranspose", {"strides": [2, 2]}),
    }[kind]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "s", "z"], ["x_dq"]),
        helper.make_node(operation, inputs, ["y"], name="layer", **attributes),
        helper.make_node("QuantizeLinear", ["y", "t", "u"], ["y_q"]),
        helper.make_node("DequantizeLinear", ["y_q", "t", "u"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model, strict_mode=True), path)
    return {"x": rng.uniform(-2, 2, shape).astype(np.float32)}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_float_layer_between_pairs_stays_float(kind: str, bias: bool, tmp_path: Path) -> None:
    backend = open_backend("onnxruntime", precision="int8", batch=1 if kind not in ("gemm", "matmul") else 4, threads=1)
    for seed in range(4):
        path = tmp_path / f"{seed}.onnx"
        feeds = between_pairs(kind, np.random.default_rng([seed, KINDS.index(kind)]), path, bias=bias)
        (expected,) = as_written(path, 1).run(["out"], feeds)
        with backend.open(backend.build(path, path.with_suffix(".engine"))) as session:
            found = session.run(feeds)["out"]
        # In float, sums in another order move few values, by one step of the output's grid.
        steps = np.abs(found - expected) / STEP
        assert steps.max() < 1.01
        assert (steps > 0.5).mean() < 0.01


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_layers_with_float_biases_between_pairs_are_integer_layers(seed: int, unsigned: bool, tmp_path: Path) -> None:
    source = residual(tmp_path / "net.onnx", qdq=True, unsigned=unsigned, weight_bits=7, seed=seed)
    backend = open_backend("onnxruntime", precision="int8", threads=1)
    engine = backend.build(source, tmp_path / "net.engine")
    with backend.open(engine) as session:
        feeds = {"image": np.random.default_rng(seed).uniform(-1, 1, session.inputs[0].shape).astype(np.float32)}
        found = next(iter(session.run(feeds).values()))
    (expected,) = as_written(source, 1).run(None, feeds)
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()
    # No float weights are here: the runtime, left to itself with its own pass, makes the same layers of it.
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "own.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    own, ours = (Counter(node.op_type for node in onnx.load(path).graph.node)
                 for path in (tmp_path / "own.onnx", engine.path))  # fmt: skip
    assert (own["QLinearConv"], own["QLinearAdd"]) == (ours["QLinearConv"], ours["QLinearAdd"])
    assert ours["QLinearConv"] == 4 or not unsigned


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_an_integer_bias_is_the_float_one_to_half_a_step(seed: int, per_channel: bool) -> None:
    rng = np.random.default_rng(seed)
    model = quantized_layer(rng, per_channel=per_channel, bias=rng.standard_normal(6).astype(np.float32))
    changed = integer_biases(model)
    onnx.checker.check_model(changed, full_check=True)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in changed.graph.initializer}
    (restore,) = [node for node in changed.graph.node if node.input[0].endswith("_int32")]
    integers, scale = held[restore.input[0]], held[restore.input[1]]
    np.testing.assert_allclose(scale, held["s"] * held["ws"].reshape(scale.shape), rtol=1e-6)
    assert np.all(np.abs(integers * scale.astype(np.float64) - held["b"]) <= 0.5001 * scale)
    feeds = {"x": rng.uniform(-2, 2, (1, 8, 6, 6)).astype(np.float32)}
    (plain,), (other,) = (as_written(one, 1).run(None, feeds) for one in (model, changed))
    assert np.abs(plain - other).max() <= 1.01 * STEP


def test_a_bias_in_a_constant_node_counts_as_well() -> None:
    model = quantized_layer(np.random.default_rng(0), per_channel=True, bias=np.ones(6, np.float32))
    written = onnx.ModelProto()
    written.CopyFrom(model)
    del written.graph.initializer[:], written.graph.node[:]
    written.graph.node.extend(
        helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer
    )
    written.graph.node.extend(model.graph.node)
    changed = integer_biases(written)
    onnx.checker.check_model(changed, full_check=True)
    assert any(node.input[0].endswith("_int32") for node in changed.graph.node if node.input)


@pytest.mark.parametrize("bias", [np.full(6, 1e9, np.float32), np.full(6, np.nan, np.float32)])
def test_a_bias_that_fits_no_integer_stays(bias: np.ndarray) -> None:
    model = quantized_layer(np.random.default_rng(0), per_channel=True, bias=bias)
    assert integer_biases(model) is model


def quantized_layer(rng: np.random.Generator, *, per_channel: bool, bias: np.ndarray) -> onnx.ModelProto:
    """A convolution between pairs with int8 weights and a float bias."""
    weight = rng.integers(-127, 128, (6, 8, 3, 3)).astype(np.int8)
    scales = (rng.uniform(1e-4, 1e-2, 6) if per_channel else np.array(3e-3)).astype(np.float32)
    values = {"w": weight, "ws": scales, "wz": np.zeros(scales.shape, np.int8), "b": bias,
              "s": np.float32(0.02), "z": np.uint8(120), "t": np.float32(STEP), "u": np.uint8(128)}  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "s", "z"], ["x_dq"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["w_dq"], axis=0),
        helper.make_node("Conv", ["x_dq", "w_dq", "b"], ["y"], name="layer", pads=[1] * 4),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "t", "u"], ["y_q"]),
        helper.make_node("DequantizeLinear", ["y_q", "t", "u"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 8, 6, 6))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, (1, 6, 6, 6))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
