"""Shapes of all values of an ONNX model, node by node, and the contents of those that depend on shapes and constants alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from pydeploy.latency.probes.sites import Shape

Array = NDArray[Any]
Tensors = dict[str, onnx.TensorProto]
"""Initializers by name."""
_STEERING = 1024
"""Only shapes, sizes and the like steer shape inference; they are far shorter than this."""
_FOLDED = 1 << 22
"""Constants that are computed have at most so many entries."""
_KEEP = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Random", "Bernoulli", "Multinomial")
"""Beginnings of operators that are never computed ahead."""


class NodeShapes:
    """What is known so far of the values of a model; call `step` for its nodes in order."""

    def __init__(self, model: onnx.ModelProto, tensors: Tensors) -> None:
        self.model, self.tensors = model, tensors
        self.versions = {entry.domain: entry.version for entry in model.opset_import}
        self.types = {value.name: value.type for value in model.graph.input}
        self.types |= {name: tensor_type(tensor) for name, tensor in tensors.items()}
        self.values: dict[str, Array] = {}
        """Whole numbers that are computed from shapes."""

    def shape(self, name: str) -> Shape | None:
        """Static shape, or None where a dimension is unknown."""
        return shape_of(self.types.get(name))

    def value(self, name: str) -> Array | None:
        """Contents of a constant, or of what is computed from shapes."""
        known = self.values.get(name)
        return known if known is not None or name not in self.tensors else numpy_helper.to_array(self.tensors[name])

    def step(self, node: onnx.NodeProto) -> None:
        """Types of a node's outputs; unknown where an input's type or the operator is. Raises `shape_inference.InferenceError`."""
        names = [name for name in node.input if name]
        if any(name not in self.types for name in names) or not onnx.defs.has(node.op_type, node.domain):
            return
        schema = onnx.defs.get_schema(node.op_type, self.versions[node.domain], node.domain)
        steering = {name: self.tensors[name] for name in names if name in self.tensors and self._short(name)}
        steering |= {name: numpy_helper.from_array(self.values[name], name) for name in names if name in self.values}
        self.types |= shape_inference.infer_node_outputs(
            schema, node, {name: self.types[name] for name in names}, steering,
            opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version,
        )  # fmt: skip
        shape = self.shape(node.input[0]) if node.op_type == "Shape" else None
        if shape is not None:
            first, last = (
                next((a.i for a in node.attribute if a.name == name), end)
                for name, end in (("start", 0), ("end", len(shape)))
            )
            self.values[node.output[0]] = np.asarray(shape[first:last], dtype=np.int64)
        elif names and any(name in self.values for name in names) and all(name in steering for name in names):
            arrays = {name: numpy_helper.to_array(steering[name]) for name in names}
            self.values |= {
                name: array for name, array in computed(self.model, node, arrays).items() if array.dtype.kind == "i"
            }

    def _short(self, name: str) -> bool:
        return int(np.prod(self.tensors[name].dims)) <= _STEERING


def fold(model: onnx.ModelProto, tensors: Tensors, parameters: Collection[str]) -> NodeShapes:
    """Compute what depends on constants alone, besides `parameters` and what is made of them: it becomes a constant. Returns the
    shapes of all values.
    """
    shapes = NodeShapes(model, tensors)
    kept = []
    for node in model.graph.node:
        arrays = _constants(node, shapes, parameters)
        found = computed(model, node, arrays) if arrays is not None else {}
        if found:
            tensors |= {name: numpy_helper.from_array(array, name) for name, array in found.items()}
            shapes.types |= {name: tensor_type(tensors[name]) for name in found}
            continue
        kept.append(node)
        shapes.step(node)
    nodes = [
        onnx.NodeProto.FromString(node.SerializeToString()) for node in kept
    ]  # clearing a list of protobuf frees its members
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return shapes


def _constants(node: onnx.NodeProto, shapes: NodeShapes, parameters: Collection[str]) -> dict[str, Array] | None:
    """The inputs of a node that can be computed ahead."""
    names = [name for name in node.input if name]
    if node.op_type.startswith(_KEEP) or not names or any(a.HasField("g") or a.graphs for a in node.attribute):
        return None
    if node.op_type == "CastLike" and names[1] in shapes.types:  # of the second one only the type counts
        kind = shapes.types[names[1]].tensor_type.elem_type
        like = np.zeros(1, onnx.helper.tensor_dtype_to_np_dtype(kind))
        names, extra = names[:1], {names[1]: like}
    else:
        extra = {}
    if any(name not in shapes.tensors or name in parameters for name in names):
        return None
    return {name: numpy_helper.to_array(shapes.tensors[name]) for name in names} | extra


def computed(model: onnx.ModelProto, node: onnx.NodeProto, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """What a node gives for these inputs; nothing where the reference cannot tell, or where it is large."""
    ends = [onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in arrays.items()]  # fmt: skip
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "one", ends, outputs)
    alone = onnx.helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    try:
        found: Any = ReferenceEvaluator(alone).run(None, dict(arrays))
    except Exception:
        return {}
    results = {value.name: np.asarray(array) for value, array in zip(outputs, found, strict=True)}
    return results if sum(array.size for array in results.values()) <= _FOLDED else {}


def tensor_type(tensor: onnx.TensorProto) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))


def shape_of(kind: onnx.TypeProto | None) -> Shape | None:
    """Static shape, or None where a dimension is unknown."""
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None
