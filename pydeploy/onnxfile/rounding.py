"""A model with and without the rounding that its precision asks for: how far the two are apart is what rounding explains.

* `smooth`: Q/DQ pairs on activations only clip, as far as their integers reach; weights stay as they are rounded.
* `rounded`: every float tensor is cast to half precision and back, stored ones too.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pydeploy.onnxfile.nodes import QUANTIZE, RESTORE, stored


def grid_ends(graph: onnx.GraphProto) -> dict[str, tuple[float, float]]:
    """Smallest and largest value behind each QuantizeLinear with one stored scale, by the name of its integers."""
    held = stored(graph)
    found = {}
    for node in graph.node:
        if node.op_type == QUANTIZE and node.input[0] not in held and node.input[1] in held:
            scale = numpy_helper.to_array(held[node.input[1]]).astype(np.float64)
            given = held.get(node.input[2]) if len(node.input) > 2 else None
            zero = np.zeros((), np.uint8) if given is None else numpy_helper.to_array(given)
            if scale.size == zero.size == 1 and zero.dtype.kind in "iu":
                limits = np.iinfo(zero.dtype)
                ends = [
                    (float(end) - float(zero.reshape(()))) * float(scale.reshape(()))
                    for end in (limits.min, limits.max)
                ]
                found[node.output[0]] = (ends[0], ends[1])
    return found


def smooth(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which pairs on activations clip and do not round."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    ends = grid_ends(graph)
    for node in graph.node:  # integers that something else reads stay
        if node.op_type != RESTORE:
            for name in node.input:
                ends.pop(name, None)
    for value in graph.output:
        ends.pop(value.name, None)
    for node in graph.node:
        if node.op_type == QUANTIZE and node.output[0] in ends:
            limits = [f"{node.output[0]}_{side}" for side in ("low", "high")]
            graph.initializer.extend(numpy_helper.from_array(np.array(end, np.float32), name)
                                     for end, name in zip(ends[node.output[0]], limits, strict=True))  # fmt: skip
            node.op_type = "Clip"
            node.input[:] = [node.input[0], *limits]
            del node.attribute[:]
        elif node.op_type == RESTORE and node.input[0] in ends:
            node.op_type = "Identity"
            node.input[:] = node.input[:1]
            del node.attribute[:]
    del graph.value_info[:]
    return changed


def rounded(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """A copy in which every float32 tensor is rounded to the half precision `kind`, but for inputs and scales of pairs."""
    changed = onnx.shape_inference.infer_shapes(model)
    graph = changed.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    scales = {name for node in graph.node if node.op_type in (QUANTIZE, RESTORE) for name in node.input[1:]}
    nodes: list[onnx.NodeProto] = []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in scales:
            values = numpy_helper.to_array(tensor)
            near = values.astype(helper.tensor_dtype_to_np_dtype(kind)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(near, tensor.name))
    for node in graph.node:
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name and types.get(name) == TensorProto.FLOAT and node.op_type != "Constant":
                node.output[place] = f"{name}_exact"
                nodes += [helper.make_node("Cast", [f"{name}_exact"], [f"{name}_half"], to=kind),
                          helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT)]  # fmt: skip
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    return changed
