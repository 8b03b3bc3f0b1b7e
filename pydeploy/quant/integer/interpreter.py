"""An interpreter of Q/DQ files for convolution networks that computes with integers only: int32 sums, fixed-point factors.

An oracle: what a processor without floating point makes of the file, whichever runtime's style it is in. Between the pairs a
tensor is integers with a scale that is known beforehand; a pair multiplies by the ratio of two scales (`fixed_point`). Sums of
several scales are made on one that leaves them room in 32 bits; functions such as Sigmoid are tables over 16 bits. Floats are
met at the inputs, which are rounded, and at outputs without a pair, which are scaled.
Results differ from a float runtime's by at most one step a pair: where a value lies near the middle of two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from pydeploy.backends.base import Feeds
from pydeploy.errors import DataError
from pydeploy.onnxfile.load import read_model
from pydeploy.onnxfile.nodes import QUANTIZE, RESTORE, stored
from pydeploy.quant.integer.fixed_point import INT32
from pydeploy.quant.integer.operators import OPERATORS
from pydeploy.quant.integer.values import Integers, Value

Levels = NDArray[np.integer[Any]]
"""What a QuantizeLinear writes: int8 or uint8."""


class Interpreter:
    """A Q/DQ file, ready to be run. Raises `DataError` for a file that it cannot run, naming the node."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        model = read_model(self.path).whole()
        self._graph = model.graph
        self._held = {name: numpy_helper.to_array(tensor) for name, tensor in stored(self._graph).items()}
        for node in self._graph.node:
            if node.op_type not in (QUANTIZE, RESTORE, "Constant", *OPERATORS):
                raise DataError(f"{path}: no integer form of {node.op_type} is known ('{node.name}')")

    def run(self, feeds: Feeds) -> dict[str, NDArray[np.float64]]:
        """The outputs by name, scaled."""
        found = self._computed(feeds, {})[0]
        return {value.name: _scaled(found[value.name]) for value in self._graph.output}

    def levels(self, feeds: Feeds, instead: Mapping[str, Levels] | None = None) -> dict[str, Levels]:
        """What every QuantizeLinear of an activation writes, by its output's name.

        What stands in `instead` is what its readers get in its place: with another runtime's values, each pair is judged alone.
        """
        return self._computed(feeds, instead or {})[1]

    def _computed(self, feeds: Feeds, instead: Mapping[str, Levels]) -> tuple[dict[str, Value], dict[str, Levels]]:
        values: dict[str, Value] = {**self._held, **feeds}
        written: dict[str, Levels] = {}
        for node in self._graph.node:
            if node.op_type == "Constant":
                continue
            inputs = [values[name] if name else None for name in node.input]
            try:
                outputs = self._node(node, inputs)
            except (DataError, ValueError, AttributeError, TypeError) as error:
                raise DataError(f"{self.path}: '{node.name}' ({node.op_type}) has no integer form: {error}") from None
            if node.op_type == QUANTIZE and node.input[0] not in self._held:
                written[node.output[0]] = outputs[0]
                outputs = [instead.get(node.output[0], outputs[0])]
            values.update(zip(node.output, outputs, strict=False))
        return values, written

    def _node(self, node: onnx.NodeProto, inputs: list[Any]) -> Sequence[Any]:
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type == QUANTIZE:
            return [_quantized(*inputs[:3], axis=attributes.get("axis", 1))]
        if node.op_type == RESTORE:
            return [_restored(*inputs[:3], axis=attributes.get("axis", 1))]
        operator: Callable[..., Sequence[Any]] = OPERATORS[node.op_type]
        outputs = operator(inputs, attributes, len(node.output))
        for output in outputs:
            if isinstance(output, Integers) and output.values.size and np.abs(output.values).max() > INT32[1]:
                raise DataError("a sum does not fit into 32 bits")
        return outputs


def _quantized(given: Value, scale: NDArray[Any], zero: NDArray[Any] | None = None, *, axis: int) -> Levels:
    """The levels of a tensor: of floats by rounding half to even as ONNX says, of integers by fixed-point factors."""
    zero = np.zeros(scale.shape, np.uint8) if zero is None else zero
    ends = np.iinfo(zero.dtype)
    if isinstance(given, Integers):
        if scale.size != 1:
            raise DataError("an activation with several scales")
        steps = given.on(float(scale.reshape(()))).values
    else:
        steps = np.rint(given / _along(scale, axis, given.ndim)).astype(np.int64)
    shifted = steps + _along(zero.astype(np.int64), axis, steps.ndim)
    levels: Levels = np.clip(shifted, ends.min, ends.max).astype(zero.dtype)
    return levels


def _restored(levels: Levels, scale: NDArray[Any], zero: NDArray[Any] | None = None, *, axis: int) -> Integers:
    shift = 0 if zero is None else _along(zero.astype(np.int64), axis, levels.ndim)
    ends = np.iinfo(levels.dtype.name)
    return Integers(
        levels.astype(np.int64) - shift, _along(scale.astype(np.float64), axis, levels.ndim), ends.max - ends.min
    )


def _along(values: NDArray[Any], axis: int, rank: int) -> NDArray[Any]:
    """One value a channel, so that it broadcasts; one value as it is."""
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if place == axis % rank else 1 for place in range(rank)])


def _scaled(value: Value) -> NDArray[np.float64]:
    return value.real if isinstance(value, Integers) else np.asarray(value, np.float64)
