"""Weights of an ONNX file: float32, or of a Q/DQ file int8 with scales, zero points, int32 biases and fixed-point factors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from pydeploy.errors import DataError
from pydeploy.onnxfile.load import read_model
from pydeploy.onnxfile.nodes import QUANTIZE, RESTORE, WEIGHTED, channel_axis, label, new_name
from pydeploy.onnxfile.prepare import import_graph, prepare
from pydeploy.quant.integer.fixed_point import factor
from pydeploy.quant.weights.records import Grid, Layer, Tensor, Weights

_KEPT = (
    "strides",
    "pads",
    "dilations",
    "kernel_shape",
    "group",
    "output_padding",
    "transB",
    "auto_pad",
    "alpha",
    "beta",
)
_LARGEST = 2**31 - 1


def of_onnx(path: Path, *, fold_bn: bool = False) -> Weights:
    """Layers with weights in execution order; `fold_bn` folds batch norms that a float file still has.

    What belongs to no layer (such as scales of norms) follows in the order of its readers.
    Raises `DataError` for a file without weights.
    """
    source = read_model(Path(path))
    quantized = any(node.op_type in (QUANTIZE, RESTORE) for node in source.model.graph.node)
    graph = prepare(source) if fold_bn and not quantized else import_graph(source)
    collected = _Collected(graph)
    for node in graph.nodes:
        if node.op in WEIGHTED and len(node.inputs) > 1:
            collected.layer(node)
    for node in graph.nodes:
        if node.op not in (QUANTIZE, RESTORE, *WEIGHTED):
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant) and np.issubdtype(tensor.values.dtype, np.floating):
                    collected.float_tensor(tensor)
    if not collected.tensors:
        raise DataError(f"{path} holds no weights")
    return Weights(tuple(collected.tensors.values()), tuple(collected.layers))


class _Collected:
    """What was found so far."""

    def __init__(self, graph: gs.Graph) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.layers: list[Layer] = []
        self._ends = {tensor.name for tensor in graph.outputs}
        self._names: set[str] = set()

    def add(self, tensor: Tensor) -> str:
        """The name under which it is kept: its own, or another where that is a tensor of other contents (a tied bias)."""
        name, number = tensor.name, 0
        while name in self.tensors and not _same(self.tensors[name], tensor):
            number += 1
            name = f"{tensor.name}_{number}"
        self.tensors.setdefault(name, replace(tensor, name=name))
        return name

    def float_tensor(self, tensor: gs.Constant) -> str:
        return self.add(Tensor(tensor.name, np.asarray(tensor.values, np.float32)))

    def stored_levels(self, restorer: gs.Node, axis: int) -> str:
        levels, scales, zeros = _levels(restorer, axis)
        return self.add(Tensor(_origin(restorer), levels, _tuple(scales), tuple(map(int, zeros)), axis))

    def layer(self, node: gs.Node) -> None:
        name = new_name(label(node), self._names)
        attributes = {key: value for key, value in node.attrs.items() if key in _KEPT}
        restorers = [_restorer(tensor) for tensor in node.inputs[:2]]
        if restorers[0] is not None and restorers[1] is not None:
            self._integer_layer(node, name, attributes, restorers[0], restorers[1])
            return
        parts = {}
        if restorers[1] is not None:  # integers that a float layer reads, restored
            parts["weight"] = self.stored_levels(restorers[1], channel_axis(node))
        for part, tensor in zip(("weight", "bias"), node.inputs[1:], strict=False):
            if isinstance(_float(tensor), gs.Constant) and part not in parts:
                parts[part] = self.float_tensor(_float(tensor))
        if parts:
            self.layers.append(Layer(name, node.op, parts, attributes))

    def _integer_layer(
        self, node: gs.Node, name: str, attributes: dict[str, Any], given: gs.Node, stored: gs.Node
    ) -> None:
        axis = channel_axis(node)
        levels, scales, _ = _levels(stored, axis)
        incoming = _grid(given)
        sums = incoming.scale * scales  # of int32 sums, one a channel or one for all
        parts = {"weight": self.stored_levels(stored, axis)}
        alpha = attributes.get("alpha", 1.0)  # Gemm: alpha * sums + beta * bias
        if alpha <= 0:
            raise DataError(f"'{name}' has alpha {alpha:g}; integers take one above 0")
        channels = levels.shape[axis] * (attributes.get("group", 1) if node.op == "ConvTranspose" else 1)
        each = np.tile(sums, channels // sums.size)
        if len(node.inputs) > 2 and node.inputs[2].name:
            restorer, bias = _restorer(node.inputs[2]), _float(node.inputs[2])
            given_steps = restorer.inputs[0].values if restorer is not None else bias.values / each
            integers = np.rint(given_steps * (attributes.get("beta", 1.0) / alpha))
            kept = np.clip(integers, -_LARGEST, _LARGEST).astype(np.int32)
            own = _origin(restorer).removesuffix("_int32") if restorer is not None else bias.name
            parts["bias"] = self.add(Tensor(own, kept, _tuple(sums), (0,) * sums.size))
        quantizer, limits = self._rounded(node)
        if quantizer is None:
            self.layers.append(Layer(name, node.op, parts, attributes, incoming))
            return
        outgoing = _grid(quantizer)
        mantissa, exponent = factor(alpha * each / outgoing.scale)
        parts["multiplier"] = self.add(Tensor(f"{name}.multiplier", mantissa.astype(np.int32)))
        parts["exponent"] = self.add(Tensor(f"{name}.exponent", exponent.astype(np.int32)))
        ends = np.iinfo(outgoing.dtype)
        low, high = (
            float(np.clip(np.rint(end / outgoing.scale) + outgoing.zero_point, ends.min, ends.max)) for end in limits
        )
        self.layers.append(Layer(name, node.op, parts, attributes, incoming, outgoing, int(low), int(high)))

    def _rounded(self, node: gs.Node) -> tuple[gs.Node | None, tuple[float, float]]:
        """The QuantizeLinear that alone reads what a layer writes, past Relu and Clip, and the limits that these set."""
        low, high = -np.inf, np.inf
        tensor = node.outputs[0]
        while len(tensor.outputs) == 1 and tensor.name not in self._ends:
            reader = tensor.outputs[0]
            if reader.op == QUANTIZE and np.size(reader.inputs[1].values) == 1:
                return reader, (low, high)
            if reader.op not in ("Relu", "Clip"):
                break
            ends = [
                float(one.values) if isinstance(one, gs.Constant) else None
                for one in [*reader.inputs[1:], None, None][:2]
            ]
            low = max(low, 0.0 if reader.op == "Relu" else low if ends[0] is None else ends[0])
            high = high if ends[1] is None else min(high, ends[1])
            tensor = reader.outputs[0]
        return None, (low, high)


def _same(one: Tensor, other: Tensor) -> bool:
    alike = one.values.dtype == other.values.dtype and one.scale == other.scale
    return alike and np.array_equal(one.values, other.values)


def _restorer(tensor: gs.Tensor) -> gs.Node | None:
    node = tensor.inputs[0] if tensor.inputs else None
    return node if node is not None and node.op == RESTORE else None


def _float(tensor: gs.Tensor) -> gs.Tensor:
    """The stored float tensor behind `tensor`, past Identity."""
    while tensor.inputs and tensor.inputs[0].op == "Identity":
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _levels(restorer: gs.Node, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[Any]]:
    """Integers of a weight, with its scales and zero points; rounded here where the file rounds at run time."""
    data, scales = restorer.inputs[0], np.atleast_1d(restorer.inputs[1].values).astype(np.float64)
    zeros = np.atleast_1d(restorer.inputs[2].values) if len(restorer.inputs) > 2 else np.zeros(scales.size, np.int8)
    if isinstance(data, gs.Constant):
        return data.values, scales, zeros
    quantizer = data.inputs[0]
    if quantizer.op != QUANTIZE or not isinstance(quantizer.inputs[0], gs.Constant):
        raise DataError(f"the weight '{data.name}' is computed; export the model again")
    values = quantizer.inputs[0].values
    along = [-1 if place == axis and scales.size > 1 else 1 for place in range(values.ndim)]
    steps = np.rint(values / scales.reshape(along)) + zeros.astype(np.int64).reshape(along)
    ends = np.iinfo(zeros.dtype)
    return np.clip(steps, ends.min, ends.max).astype(zeros.dtype), scales, zeros


def _origin(restorer: gs.Node) -> str:
    """The name of the float tensor that was quantized."""
    data = restorer.inputs[0]
    if not isinstance(data, gs.Constant):
        return str(data.inputs[0].inputs[0].name)
    return str(data.name).removesuffix("_int8")


def _grid(node: gs.Node) -> Grid:
    zero = node.inputs[2].values if len(node.inputs) > 2 else np.zeros((), np.uint8)
    return Grid(float(np.ravel(node.inputs[1].values)[0]), int(np.ravel(zero)[0]), zero.dtype.name)


def _tuple(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(map(float, values))
