"""The same Q/DQ model with uint8 in place of int8 activations: every integer and its zero point are 128 higher.

OpenVINO (2026.4) computes int8 maps wrongly behind a Concat where the processor has no AMX, and turns them into uint8
everywhere else. Done beforehand it costs nothing and is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from pydeploy.onnxfile.nodes import QUANTIZE, RESTORE, new_name, stored

_SHIFT = 128

Stored = Mapping[str, NDArray[Any]]


def unsigned(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes the same from uint8 activations; `model` itself where none of them is int8.

    Changed are pairs whose integers go from QuantizeLinear to DequantizeLinear and nowhere else; weights stay int8.
    """
    held = _held(model.graph)
    signed = _signed(model.graph, held)
    if not signed:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | set(held)
    for node in graph.node:
        integers = {QUANTIZE: node.output, RESTORE: node.input}.get(node.op_type, [""])[0]
        if integers in signed:
            zero = _zero_point(node, held)
            assert zero is not None
            name = new_name(f"{node.input[1]}_unsigned_zero_point", taken)
            graph.initializer.append(numpy_helper.from_array((zero.astype(np.int16) + _SHIFT).astype(np.uint8), name))
            node.input[:] = [*node.input[:2], name]
            kept = [attribute for attribute in node.attribute if attribute.name != "output_dtype"]
            del node.attribute[:]
            node.attribute.extend(kept)
    del graph.value_info[:]  # they hold the types that were
    return changed


def _held(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """Tensors of type int8 that the file holds, by name."""
    return {
        name: numpy_helper.to_array(tensor)
        for name, tensor in stored(graph).items()
        if tensor.data_type == TensorProto.INT8
    }


def _zero_point(node: onnx.NodeProto, held: Stored) -> NDArray[Any] | None:
    """The int8 zero point of a Q or DQ node; None where it has another type or is computed."""
    if len(node.input) > 2 and node.input[2]:
        return held.get(node.input[2])
    signed = node.op_type == RESTORE or any(
        a.name == "output_dtype" and a.i == TensorProto.INT8 for a in node.attribute
    )
    return np.zeros((), np.int8) if signed else None


def _signed(graph: onnx.GraphProto, held: Stored) -> set[str]:
    """Names of int8 activations that DequantizeLinear alone reads."""
    constant = {tensor.name for tensor in graph.initializer}
    found: set[str] = set()
    for node in graph.node:
        if all(name in constant for name in node.input if name):
            constant.update(node.output)
        elif node.op_type == QUANTIZE and node.input[0] not in constant and _zero_point(node, held) is not None:
            found.add(node.output[0])
    for node in graph.node:
        plain = node.op_type == RESTORE and _zero_point(node, held) is not None
        found.difference_update(node.input[1:] if plain else node.input)
    return found - {value.name for value in graph.output}
