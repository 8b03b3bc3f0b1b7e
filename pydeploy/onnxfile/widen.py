"""Half-precision models with everything inside in float32; inputs and outputs keep their types.

Ranges are observed, weights rounded and references computed in float32, so models are brought there first. Every value that
the half-precision file stores is a float32 value as well: nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pydeploy.onnxfile.control_flow import bodies
from pydeploy.onnxfile.nodes import new_name

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPES = frozenset({"to", "dtype", "output_dtype", "output_datatype"})
"""Attributes that name an element type."""


def is_half(model: onnx.ModelProto) -> bool:
    """Whether the model stores or takes anything in half precision."""
    graph = model.graph
    stored = any(tensor.data_type in HALVES for tensor in graph.initializer)
    return stored or any(value.type.tensor_type.elem_type in HALVES for value in (*graph.input, *graph.output))


def widen(model: onnx.ModelProto) -> None:
    """Make all half-precision tensors inside `model` float32; its inputs and outputs are cast."""
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {t.name for t in graph.initializer}
    taken |= {node.name for node in graph.node}
    before, behind = [], []
    renamed: dict[str, str] = {}
    for value in graph.input:
        if value.type.tensor_type.elem_type in HALVES:
            renamed[value.name] = new_name(f"{value.name}_float", taken)
            before.append(_cast(value.name, renamed[value.name], TensorProto.FLOAT, taken))
    for value in graph.output:
        if value.type.tensor_type.elem_type in HALVES:
            inner = renamed.get(value.name) or new_name(f"{value.name}_float", taken)
            renamed[value.name] = inner
            behind.append(_cast(inner, value.name, value.type.tensor_type.elem_type, taken))
    _widen_graph(graph, renamed)
    nodes = [*before, *graph.node, *behind]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _cast(source: str, target: str, kind: int, taken: set[str]) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=new_name(f"{target}_Cast", taken), to=kind)


def _widen_graph(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            if attribute.name in _TYPES and attribute.type == onnx.AttributeProto.INT and attribute.i in HALVES:
                attribute.i = TensorProto.FLOAT
        for body in bodies(node):
            _widen_values((*body.input, *body.output))
            _widen_graph(body, {old: new for old, new in renamed.items() if old not in _own(body)})
    for value in graph.output:
        if value.name in renamed and value.type.tensor_type.elem_type not in HALVES:
            value.name = renamed[value.name]
    del graph.value_info[:]


def _own(body: onnx.GraphProto) -> set[str]:
    made = {name for node in body.node for name in node.output}
    return made | {tensor.name for tensor in body.initializer} | {value.name for value in body.input}


def _widen_values(values: Iterable[onnx.ValueInfoProto]) -> None:
    for value in values:
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in HALVES:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
