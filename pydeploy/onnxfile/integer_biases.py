"""The same Q/DQ model with int32 biases where a layer between pairs has a float one: what integer kernels add.

An integer layer adds its bias as an int32 multiple of (input scale x weight scale), a rounding far below that of any output.
Runtimes fuse a layer only where its bias is written so, or rewrite it, and more than it, themselves.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pydeploy.onnxfile.nodes import QUANTIZE, RESTORE, new_name, stored

_LAYERS = ("Conv", "Gemm")
_FUSED = ("Relu", "Clip")
"""Activations that runtimes fuse into the layer before them."""
_LARGEST = 2**31 - 1


def integer_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with an int32 bias and its scale for each float bias between pairs; `model` itself where there is none."""
    chosen = _chosen(model.graph)
    if not chosen:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output, node.name)}
    taken |= {tensor.name for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(graph.node):
        if index in chosen:
            integers, scale = chosen[index]
            names = [
                new_name(f"{node.input[2]}_{part}", taken) for part in ("int32", "scale", "zero_point", "restored")
            ]
            zero = np.zeros(scale.shape, np.int32)
            graph.initializer.extend(
                numpy_helper.from_array(values, name)
                for values, name in zip((integers, scale, zero), names[:3], strict=True)
            )
            nodes.append(
                helper.make_node(RESTORE, names[:3], names[3:], name=new_name(f"{names[3]}_node", taken), axis=0)
            )
            node.input[2] = names[3]
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return changed


def _chosen(graph: onnx.GraphProto) -> dict[int, tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """By the layer's place: its bias in integers, and their scale."""
    held = stored(graph)
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    ends = {value.name for value in graph.output}

    def scale_of(name: str) -> NDArray[np.float64] | None:
        node = makers.get(name)
        if node is None or node.op_type != RESTORE or node.input[1] not in held:
            return None
        return numpy_helper.to_array(held[node.input[1]]).astype(np.float64)

    def quantized(name: str) -> bool:
        after = readers.get(name, [])
        if len(after) != 1 or name in ends:
            return False
        return after[0].op_type == QUANTIZE or (after[0].op_type in _FUSED and quantized(after[0].output[0]))

    found = {}
    for index, node in enumerate(graph.node):
        if node.op_type not in _LAYERS or len(node.input) < 3 or node.input[2] not in held:
            continue
        bias, of_input, of_weight = held[node.input[2]], scale_of(node.input[0]), scale_of(node.input[1])
        plain = all(attribute.f == 1.0 for attribute in node.attribute if attribute.name in ("alpha", "beta"))
        if bias.data_type != TensorProto.FLOAT or len(bias.dims) != 1 or not plain or not quantized(node.output[0]):
            continue
        if of_input is None or of_weight is None or of_input.size != 1 or of_weight.size not in (1, bias.dims[0]):
            continue
        scale = (of_input.reshape(()) * of_weight.reshape(() if of_weight.size == 1 else -1)).astype(np.float32)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            integers = np.rint(numpy_helper.to_array(bias).astype(np.float64) / scale)
        if np.all(np.abs(integers) <= _LARGEST):  # NaN and infinity (a scale of 0) are not
            found[index] = (integers.astype(np.int32), scale)
    return found
