"""Retyping a model in place: every node that may becomes half precision, with Casts where the types of two nodes differ."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pydeploy.onnxfile.control_flow import DOMAIN
from pydeploy.onnxfile.load import opset_of
from pydeploy.onnxfile.nodes import new_name

PAIRS = ("QuantizeLinear", "DequantizeLinear")
SMALLEST_SCALE = 2.0**-20
_MADE_FLOAT = frozenset({"Cast", "DequantizeLinear", "ConstantOfShape"})
"""Nodes without float inputs whose output type can be chosen."""


def node_name(node: onnx.NodeProto) -> str:
    """Its name, or that of its first output."""
    return str(node.name or node.output[0])


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX type of every tensor of the graph that declares one."""
    graph = model.graph
    found = {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.value_info, *graph.output]}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


@dataclass
class Converter:
    """A model being retyped in place: node by node in execution order, Casts where the types of two nodes differ."""

    model: onnx.ModelProto
    half: int
    keep_io: bool
    kept: dict[str, str]
    converted: list[str] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    types: dict[str, int] = field(default_factory=dict)
    """Types that tensors have by now."""
    casts: dict[tuple[str, int], str] = field(default_factory=dict)
    stored: dict[str, onnx.TensorProto] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def convert(self) -> None:
        """Retype everything."""
        graph = self.model.graph
        self.types = element_types(self.model)
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.names.update([*self.types, *(node_name(node) for node in graph.node)])
        was_float = {name for name, kind in self.types.items() if kind == TensorProto.FLOAT}
        ends = {value.name for value in graph.output}
        halves = self._choose(was_float)
        if not self.keep_io:
            self._retype(value for value in graph.input if value.name in was_float and value.name not in self.stored)
        for node in graph.node:
            self._node(node, halves, was_float, ends if self.keep_io else set())
        if not self.keep_io:
            self._retype(value for value in graph.output if self.types.get(value.name) == self.half)
        used = {name for node in self.nodes for name in node.input} | ends
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(tensor for name, tensor in self.stored.items() if name in used)

    def _retype(self, values: Iterable[onnx.ValueInfoProto]) -> None:
        for value in values:
            value.type.tensor_type.elem_type = self.half
            self.types[value.name] = self.half

    def _choose(self, was_float: set[str]) -> set[str]:
        """Nodes that become half. A pair stays with the layers that read it."""
        graph, halves = self.model.graph, set[str]()
        readers: dict[str, list[str]] = {}
        for node in reversed(graph.node):
            name = node_name(node)
            reading = {reader for tensor in node.output for reader in readers.get(tensor, [])}
            touched = was_float.intersection([*node.input, *node.output])
            # A pair is as its readers are: all of them float32 (the Q of such a DQ included) keep it float32.
            if node.op_type in PAIRS and reading and not reading & halves:
                pass
            elif touched and name not in self.kept:
                reason = self._obstacle(node, was_float)
                if reason:
                    self.kept[name] = reason
                else:
                    halves.add(name)
            for tensor in node.input:
                readers.setdefault(tensor, []).append(name)
        order = {node_name(node): index for index, node in enumerate(graph.node)}
        self.converted = sorted(halves, key=order.__getitem__)
        self.kept = dict(sorted(self.kept.items(), key=lambda item: order[item[0]]))
        return halves

    def _obstacle(self, node: onnx.NodeProto, was_float: set[str]) -> str:
        if node.domain == DOMAIN:
            return "it is control flow, whose bodies stay float32"
        floats = [t for t in node.input if t in was_float]
        if not floats and node.op_type not in _MADE_FLOAT:
            return f"{node.op_type} makes float32 from other types"
        if not any(self._allows(node, index, side) for side in ("inputs", "outputs") for index in range(8)):
            return f"{node.op_type} has no half-precision form in opset {opset_of(self.model)}"
        return ""

    def _allows(self, node: onnx.NodeProto, index: int, side: Literal["inputs", "outputs"]) -> bool:
        """Whether ONNX allows the half type for this input or output of the node."""
        try:
            schema = onnx.defs.get_schema(node.op_type, opset_of(self.model), node.domain)
        except onnx.defs.SchemaError:
            return False
        formal = schema.inputs if side == "inputs" else schema.outputs
        if not formal or (
            index >= len(formal) and formal[-1].option != onnx.defs.OpSchema.FormalParameterOption.Variadic
        ):
            return False
        text = "tensor(float16)" if self.half == TensorProto.FLOAT16 else "tensor(bfloat16)"
        return text in formal[min(index, len(formal) - 1)].types

    def _node(self, node: onnx.NodeProto, halves: set[str], was_float: set[str], ends: set[str]) -> None:
        is_half = node_name(node) in halves
        for index, tensor in enumerate(node.input):
            if tensor in was_float:
                wanted = self.half if is_half and self._allows(node, index, "inputs") else TensorProto.FLOAT
                node.input[index] = self._as(tensor, wanted, scale=node.op_type in PAIRS and index == 1)
        if is_half and node.op_type in PAIRS:
            self._fit_stored_integers(node)
        if is_half and node.op_type in ("Cast", "ConstantOfShape"):
            self._retype_attribute(node)
        behind: list[onnx.NodeProto] = []
        for index, tensor in enumerate(node.output):
            if tensor not in was_float:
                continue
            self.types[tensor] = self.half if is_half and self._allows(node, index, "outputs") else TensorProto.FLOAT
            if tensor in ends and self.types[tensor] == self.half:
                inner = self._unique(f"{tensor}_half")
                node.output[index] = inner
                self.types[inner] = self.half
                behind.append(self._cast(inner, tensor, TensorProto.FLOAT))
                self.casts[tensor, self.half], self.types[tensor] = inner, TensorProto.FLOAT
        self.nodes += [node, *behind]

    def _unique(self, name: str) -> str:
        return new_name(name, self.names)

    def _cast(self, source: str, target: str, kind: int) -> onnx.NodeProto:
        return helper.make_node("Cast", [source], [target], name=self._unique(f"{target}_Cast"), to=kind)

    def _as(self, tensor: str, kind: int, *, scale: bool) -> str:
        """The name under which `tensor` exists with the wanted type."""
        if tensor not in self.stored and self.types[tensor] == kind:
            return tensor
        if kind == TensorProto.FLOAT and tensor in self.stored:
            return tensor
        if (tensor, kind) not in self.casts:
            name = self._unique(f"{tensor}_{'half' if kind == self.half else 'float'}")
            if tensor in self.stored:
                values = numpy_helper.to_array(self.stored[tensor])
                self.stored[name] = half_tensor(np.maximum(values, SMALLEST_SCALE) if scale else values, name, kind)
            else:
                self.nodes.append(self._cast(tensor, name, kind))
            self.casts[tensor, kind], self.types[name] = name, kind
        return self.casts[tensor, kind]

    def _fit_stored_integers(self, node: onnx.NodeProto) -> None:
        """Stored int8 weights whose scale had to be raised are rounded anew, so that their values stay."""
        integers = self.stored.get(node.input[0])
        before = next((t for (t, _), name in self.casts.items() if name == node.input[1]), "")
        if integers is None or integers.data_type != TensorProto.INT8 or before not in self.stored:
            return
        scales = numpy_helper.to_array(self.stored[before]).astype(np.float64)
        if (scales >= SMALLEST_SCALE).all():
            return
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        values = numpy_helper.to_array(integers)
        along = (
            scales.reshape([-1 if i == axis % values.ndim else 1 for i in range(values.ndim)])
            if scales.ndim
            else scales
        )
        fitted = np.rint(values * np.minimum(along / SMALLEST_SCALE, 1.0)).astype(np.int8)
        name = self._unique(f"{integers.name}_half")
        self.stored[name] = numpy_helper.from_array(fitted, name)
        node.input[0] = name

    def _retype_attribute(self, node: onnx.NodeProto) -> None:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = self.half
            if node.op_type == "ConstantOfShape" and attribute.name == "value":
                attribute.t.CopyFrom(half_tensor(numpy_helper.to_array(attribute.t), "", self.half))


def half_tensor(values: NDArray[Any], name: str, kind: int) -> onnx.TensorProto:
    """`values` rounded to the nearest float16 or bfloat16 (ties to even), as an ONNX tensor."""
    tensor = TensorProto(name=name, data_type=kind, dims=values.shape)
    single = np.ascontiguousarray(values, dtype=np.float32)
    if kind == TensorProto.FLOAT16:
        tensor.raw_data = single.astype("<f2").tobytes()
    else:
        bits = single.view(np.uint32).astype(np.uint64)
        tensor.raw_data = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return tensor
