"""What a file leaves in float between two Q/DQ pairs is computed in float: ONNX Runtime may not round its weights unasked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pydeploy.backends.base import open_backend
from pydeploy.onnxfile.execute import as_written

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
