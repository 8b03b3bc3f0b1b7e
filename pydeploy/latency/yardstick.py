"""A small network whose time tells how fast a machine is at the moment: what other engines are held against.

It is the same in every process and on every machine: made here from a seed, 117 million multiply-accumulates in
convolutions, as in the stages of a residual network.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pydeploy.backends.base import Backend, Engine
from pydeploy.files import replacing
from pydeploy.latency.probes.quantized import int8_transform, needs_pairs

WIDTH, SIZE, LAYERS = 64, 28, 4
FORMAT, OPERATORS = 8, 17
"""Versions of ONNX's file format and operator set: fixed, so that the file is the same whatever writes it."""


def network(batch: int = 1) -> onnx.ModelProto:
    """Float32 images ``(batch, 64, 28, 28)`` to ``(batch, 64, 28, 28)`` through four 3x3 convolutions with ReLU."""
    random = np.random.default_rng(0)
    nodes, weights, value = [], [], "image"
    for index in range(LAYERS):
        spread = np.sqrt(2.0 / (9 * WIDTH))
        kernel = (random.standard_normal((WIDTH, WIDTH, 3, 3)) * spread).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"weight{index}"))
        nodes.append(helper.make_node("Conv", [value, f"weight{index}"], [f"conv{index}"], name=f"conv{index}",
                                      kernel_shape=[3, 3], pads=[1, 1, 1, 1]))  # fmt: skip
        value = f"relu{index}"
        nodes.append(helper.make_node("Relu", [f"conv{index}"], [value], name=value))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, WIDTH, SIZE, SIZE]) for name in ("image", value)
    ]
    graph = helper.make_graph(nodes, "yardstick", ends[:1], ends[1:], weights)
    return helper.make_model(graph, ir_version=FORMAT, opset_imports=[helper.make_opsetid("", OPERATORS)])


def build(backend: Backend, folder: Path) -> Engine:
    """The engine of `network` for `backend`, in `folder`; quantized where the backend's precision asks for it."""
    with tempfile.TemporaryDirectory(prefix="pydeploy-") as scratch:
        model, plain = network(backend.batch), Path(scratch) / "float.onnx"
        onnx.save(model, plain)
        if needs_pairs(backend):
            model = int8_transform(plain, backend.name, Path(scratch), backend.threads)(model)
        source = folder / "yardstick.onnx"
        with replacing(source) as partial:
            onnx.save(model, partial)
    return backend.build(source, folder / "yardstick.engine")
