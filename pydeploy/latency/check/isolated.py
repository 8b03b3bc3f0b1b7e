"""Layers timed as one-layer networks: what most published tables hold, kept here only to be compared with.

A lone layer pays for layout conversions that a network does not have, and lacks what a network fuses into it; on
OpenVINO the sum over ResNet-18 is several times the network's latency.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pydeploy.backends.base import Backend
from pydeploy.graph import Graph, Op, OpKey, Widths
from pydeploy.latency.probes.quantized import int8_transform, needs_pairs
from pydeploy.profiling.profile import random_feeds
from pydeploy.timing.reference import Pace, Unit
from pydeploy.timing.rounds import Watch

RUNS = 10
OPSET = 17


def isolated_us(
    graph: Graph, plans: Iterable[Widths], backend: Backend, folder: Path, pace: Pace, watch: Watch
) -> tuple[Mapping[OpKey, float], frozenset[OpKey]]:
    """Median latency in microseconds of every layer of `plans` as a network of its own, after a warm-up.

    The reference of `pace` is read between the layers, and each layer's time is scaled to its level. Beside the times
    stand the layers during which others had the cores or the reference was away from its level.
    """
    layers: dict[OpKey, Op] = {}
    for plan in plans:
        layers.update(zip(graph.keys(plan), graph.ops, strict=True))
    found: dict[OpKey, float] = {}
    loud: set[OpKey] = set()
    before_us = pace.read()
    for key, op in layers.items():
        taken_us, contended = _time(key, op, graph, backend, folder, watch)
        unit = Unit(taken_us, before_us, pace.read(), contended=contended)
        found[key] = taken_us * pace.level_us / unit.reference_us
        loud |= set() if pace.counts(unit) else {key}
        before_us = unit.after_us
    return found, frozenset(loud)


def _time(key: OpKey, op: Op, graph: Graph, backend: Backend, folder: Path, watch: Watch) -> tuple[float, bool]:
    """The layer's latency, and whether others had the cores while it was timed (building it takes all of them)."""
    source = folder / "layer.onnx"
    onnx.save(_model(key, op, graph, backend.batch), source)
    if needs_pairs(backend):
        onnx.save(int8_transform(source, backend.int8_style, folder, backend.threads)(onnx.load(source)), source)
    with backend.open(backend.build(source, folder / "layer.engine")) as session:
        feeds = random_feeds(session.inputs)
        session.time(feeds, 2)
        watch.start()
        taken_us = float(np.median(session.time(feeds, RUNS)))
        return taken_us, watch.stop().contended


def _model(key: OpKey, op: Op, graph: Graph, batch: int) -> onnx.ModelProto:
    """The layer, and a ReLU where its tail has one."""
    rng = np.random.default_rng(0)
    taken, inner = _input_shape(key, op, graph, batch), key.cin // key.groups
    if key.kind == "conv":
        weight = rng.standard_normal((key.cout, inner, *key.kernel)).astype(np.float32)
        pads = [d * (k - 1) // 2 for k, d in zip(key.kernel, key.dilation, strict=True)]
        node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="layer", group=key.groups, kernel_shape=key.kernel,
                                strides=key.stride, dilations=key.dilation, pads=[*pads, *pads])  # fmt: skip
    else:
        weight = rng.standard_normal((key.cin, key.cout)).astype(np.float32)
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer")
    nodes = [node]
    if "relu" in key.tail.lower() or "clip" in key.tail.lower():
        nodes.append(helper.make_node("Relu", ["y"], ["z"], name="activation"))
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.zeros(key.cout, np.float32), "b")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, taken)]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
    made = helper.make_graph(nodes, "layer", inputs, outputs, constants)
    return onnx.shape_inference.infer_shapes(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    )


def _input_shape(key: OpKey, op: Op, graph: Graph, batch: int) -> list[int]:
    if key.kind != "conv":
        return [batch, key.cin]
    height, width = key.h * key.stride[0], key.w * key.stride[1]
    # A layer that reads the network's input has its size, which the stride alone does not tell.
    if not op.cin.terms and graph.inputs and len(graph.inputs[0]) == 4 and graph.inputs[0][1] == key.cin:
        height, width = graph.inputs[0][2:]
    return [batch, key.cin, height, width]
