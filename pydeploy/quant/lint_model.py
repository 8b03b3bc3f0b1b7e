"""What the rules of the lint read, and what they say: `Finding`, `Model`, and questions that several of them ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from pydeploy.onnxfile.nodes import QUANTIZE, RESTORE, label
from pydeploy.quant.styles import Style


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong at one layer."""

    severity: Literal["error", "warning"]
    layer: str
    """Name of the ONNX node."""
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: '{self.layer}': {self.text}"


@dataclass(frozen=True)
class Model:
    """What the checks read."""

    graph: gs.Graph
    opset: int
    style: Style
    types: Mapping[str, int]
    """Element types of tensors, as far as known."""
    fused: Mapping[int, int]
    """By id of a residual addition: which input comes from the layer that it is fused into."""

    def producer(self, tensor: gs.Tensor, op: str = "") -> gs.Node | None:
        """The node that computes `tensor`, if there is one (of type `op`)."""
        node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
        return node if node is not None and op in ("", node.op) else None

    def pair_behind(self, tensor: gs.Tensor) -> gs.Node | None:
        """The QuantizeLinear whose restored values `tensor` holds."""
        restorer = self.producer(tensor, RESTORE)
        return None if restorer is None else self.producer(restorer.inputs[0], QUANTIZE)


def element_types(proto: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(proto).graph
    found = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.value_info, *graph.output]}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def error(node: gs.Node, text: str) -> Finding:
    return Finding("error", label(node), text)


def warning(node: gs.Node, text: str) -> Finding:
    return Finding("warning", label(node), text)


def older(model: Model, node: gs.Node, text: str, price: str) -> Finding:
    """An error, unless the parser is that of TensorRT for RTX: it takes the file at a price."""
    return warning(node, f"{text}; TensorRT for RTX takes it, but {price}") if model.style.lax else error(node, text)


def weight_of(model: Model, node: gs.Node) -> gs.Constant | None:
    """The stored tensor that this Q or DQ node works on, if it does."""
    data = node.inputs[0]
    if not isinstance(data, gs.Constant) and node.op == RESTORE and (before := model.producer(data, QUANTIZE)):
        data = before.inputs[0]
    return data if isinstance(data, gs.Constant) else None


def integers(model: Model, node: gs.Node) -> int:
    """Element type of the integers that a Q or DQ node writes or reads."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    default = node.attrs.get("output_dtype", TensorProto.UINT8) if node.op == QUANTIZE else TensorProto.INT8
    return int(default if zero is None else model.types.get(zero.name, TensorProto.INT8))


def scale_value(node: gs.Node) -> float | None:
    scale = node.inputs[1]
    return float(np.asarray(scale.values).ravel()[0]) if isinstance(scale, gs.Constant) and scale.values.size else None
