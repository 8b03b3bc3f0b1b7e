"""Operators of convolution networks on integers: each takes inputs, attributes and the number of outputs, and gives outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pydeploy.errors import DataError
from pydeploy.quant.integer.functions import FUNCTIONS
from pydeploy.quant.integer.moves import MOVES
from pydeploy.quant.integer.values import NARROW, Attributes, Inputs, Integers, Operator, Value, common, integers

_LEVELS, _COARSE = 2**9, 2**11
"""Largest magnitudes that a layer reads: of what a pair restored, and where its weights stay in float."""


def _pair(inputs: Inputs) -> list[Integers]:
    known = next((one for one in inputs if isinstance(one, Integers)), None)
    return [integers(one, known) for one in inputs[:2]]


def _windows(x: NDArray[np.int64], kernel: Sequence[int], attributes: Attributes, fill: int = 0) -> NDArray[np.int64]:
    """``(N, C, *places, *kernel)``: what the kernel sees at each place."""
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or attributes.get("ceil_mode", 0):
        raise DataError("auto_pad and ceil_mode are not known here")
    count = len(kernel)
    pads, strides = attributes.get("pads", [0] * 2 * count), attributes.get("strides", [1] * count)
    dilations = attributes.get("dilations", [1] * count)
    around = [(0, 0), (0, 0), *zip(pads[:count], pads[count:], strict=True)]
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    seen = sliding_window_view(np.pad(x, around, constant_values=fill), reach, axis=tuple(range(2, 2 + count)))
    places, inside = [slice(None, None, step) for step in strides], [slice(None, None, step) for step in dilations]
    return seen[(slice(None), slice(None), *places, *inside)]


def _with_bias(values: NDArray[np.int64], scale: NDArray[np.float64], bound: int, bias: Any, axis: int) -> Integers:
    if bias is None:
        return Integers(values, scale, bound)
    shape = [-1 if place == axis else 1 for place in range(values.ndim)]
    each = np.broadcast_to(scale, [1 if n != axis else values.shape[axis] for n in range(values.ndim)]).ravel()
    steps = bias.values if isinstance(bias, Integers) else np.rint(bias / each).astype(np.int64)
    return Integers(values + steps.reshape(shape), scale, bound + int(np.abs(steps).max(initial=0)))


def _weights(x: Value, w: Value, axis: int) -> tuple[Integers, Integers]:
    """Input and weights of a layer. Weights that the file leaves in float get as many bits as the sums have room for."""
    x = integers(x).even()
    if isinstance(w, Integers):
        return (x if x.bound <= _LEVELS else x.on(float(x.scale) * x.bound / _LEVELS)), w
    x = x if x.bound <= _COARSE else x.on(float(x.scale) * x.bound / _COARSE)
    others = tuple(place for place in range(w.ndim) if place != axis)
    most = min(2.0**30 / (x.bound * math.prod(w.shape[place] for place in others)), NARROW)
    if most < 2**6:
        raise DataError("its weights stay in float, and its sums leave no room for them; give it pairs")
    scale = np.abs(w).astype(np.float64).max(axis=others, keepdims=True) / math.floor(most)
    scale = np.where(scale > 0, scale, 1.0)
    return x, Integers(np.rint(w / scale).astype(np.int64), scale, math.floor(most))


def _conv(inputs: Inputs, attributes: Attributes, _count: int) -> Sequence[Value]:
    x, w = _weights(inputs[0], inputs[1], 0)
    groups, rank = attributes.get("group", 1), w.values.ndim - 2
    seen = _windows(x.values, w.values.shape[2:], attributes)
    parts = [np.tensordot(one, filters, ([1, *range(2 + rank, 2 + 2 * rank)], range(1, 2 + rank)))
             for one, filters in zip(np.split(seen, groups, 1), np.split(w.values, groups, 0), strict=True)]  # fmt: skip
    sums = np.moveaxis(np.concatenate(parts, -1), -1, 1)
    bound = x.bound * int(np.abs(w.values).sum(axis=tuple(range(1, 2 + rank))).max())
    scale = x.scale * (w.scale if w.scale.size == 1 else w.scale.reshape(1, -1, *[1] * rank))
    return [_with_bias(sums, scale, bound, inputs[2] if len(inputs) > 2 else None, 1)]


def _conv_transpose(inputs: Inputs, attributes: Attributes, _count: int) -> Sequence[Value]:
    """Every value is spread over the output by its filter; then the borders are cut."""
    x, w = _weights(inputs[0], inputs[1], 1)
    groups, (rows, columns) = attributes.get("group", 1), w.values.shape[2:]
    (up, across), pads = attributes.get("strides", [1, 1]), attributes.get("pads", [0] * 4)
    more = attributes.get("output_padding", [0, 0])
    plain = list(attributes.get("dilations", [1, 1])) == [1, 1] and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
    if not plain or "output_shape" in attributes:
        raise DataError("dilations, output_shape and auto_pad are not known here")
    n, _, height, width = x.values.shape
    outs = w.values.shape[1]
    full = np.zeros(
        (n, outs * groups, (height - 1) * up + rows + more[0], (width - 1) * across + columns + more[1]), np.int64
    )
    for group, (part, filters) in enumerate(
        zip(np.split(x.values, groups, 1), np.split(w.values, groups, 0), strict=True)
    ):
        own = full[:, group * outs : (group + 1) * outs]
        for i in range(rows):
            for j in range(columns):
                spread = np.moveaxis(np.tensordot(part, filters[:, :, i, j], ([1], [0])), -1, 1)
                own[:, :, i : i + (height - 1) * up + 1 : up, j : j + (width - 1) * across + 1 : across] += spread
    cut = full[:, :, pads[0] : full.shape[2] - pads[2], pads[1] : full.shape[3] - pads[3]]
    bound = x.bound * int(np.abs(w.values).sum(axis=(0, 2, 3)).max())
    each = w.scale if w.scale.size == 1 else np.tile(w.scale.ravel(), groups).reshape(1, -1, 1, 1)
    scale = x.scale * each
    return [_with_bias(cut, scale, bound, inputs[2] if len(inputs) > 2 else None, 1)]


def _gemm(inputs: Inputs, attributes: Attributes, _count: int) -> Sequence[Value]:
    rank = np.ndim(inputs[1].values if isinstance(inputs[1], Integers) else inputs[1])
    x, w = _weights(inputs[0], inputs[1], 0 if attributes.get("transB", 0) else rank - 1)
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if alpha <= 0 or attributes.get("transA", 0):
        raise DataError("transA and an alpha that is not above 0 are not known here")
    weights, scale = (w.values.T, w.scale.reshape(1, -1)) if attributes.get("transB", 0) else (w.values, w.scale)
    bound = x.bound * int(np.abs(weights).sum(axis=-2).max())
    scale = x.scale * (w.scale if w.scale.size == 1 else scale.reshape(-1))
    bias = inputs[2] if len(inputs) > 2 else None
    if bias is not None and beta != alpha:  # in steps of the sums before alpha
        values = bias.values if isinstance(bias, Integers) else np.asarray(bias, np.float64)
        added = values * (beta / alpha)
        bias = Integers(np.rint(added).astype(np.int64), scale, 0) if isinstance(bias, Integers) else added
    sums = _with_bias(x.values @ weights, scale, bound, bias, x.values.ndim - 1)
    return [replace(sums, scale=sums.scale * alpha)]


def _clip(
    inputs: Inputs, attributes: Attributes, _count: int, ends: tuple[float, float] | None = None
) -> Sequence[Value]:
    x = integers(inputs[0])
    if ends is None:
        given = [float(one) if one is not None else None for one in (*inputs[1:3], None, None)][:2]
        low, high = (given[0] if given[0] is not None else attributes.get("min", -math.inf),
                     given[1] if given[1] is not None else attributes.get("max", math.inf))  # fmt: skip
    else:
        low, high = ends
    limits = [np.clip(np.rint(end / x.scale), -x.bound, x.bound).astype(np.int64) for end in (low, high)]
    return [x.moved(np.clip(x.values, *limits))]


def _function(
    inputs: Inputs, attributes: Attributes, _count: int, of: Callable[..., NDArray[np.float64]]
) -> Sequence[Value]:
    """By a table over all values of 16 bits, whose results have 16 bits."""
    x = integers(inputs[0]).narrow()
    known = of(np.arange(-x.bound, x.bound + 1) * float(x.scale), attributes)
    scale = float(np.abs(known).max()) / NARROW or 1.0
    table = np.rint(known / scale).astype(np.int64)
    return [Integers(table[np.clip(x.values, -x.bound, x.bound) + x.bound], np.asarray(scale, np.float64), NARROW)]


def _add(inputs: Inputs, _attributes: Attributes, _count: int, sign: int = 1) -> Sequence[Value]:
    a, b = common(_pair(inputs))
    return [Integers(a.values + sign * b.values, a.scale, a.bound + b.bound)]


def _mul(inputs: Inputs, _attributes: Attributes, _count: int) -> Sequence[Value]:
    a, b = (one.narrow() for one in _pair(inputs))
    return [Integers(a.values * b.values, a.scale * b.scale, a.bound * b.bound)]


def _max_pool(inputs: Inputs, attributes: Attributes, _count: int) -> Sequence[Value]:
    x, kernel = integers(inputs[0]), attributes["kernel_shape"]
    seen = _windows(x.values, kernel, attributes, fill=-x.bound - 1)
    return [x.moved(seen.max(axis=tuple(range(-len(kernel), 0))))]


def _average_pool(inputs: Inputs, attributes: Attributes, _count: int) -> Sequence[Value]:
    """Sums; where borders have fewer values under the kernel, all are brought to one denominator."""
    kernel = attributes["kernel_shape"]
    axes, area = tuple(range(-len(kernel), 0)), math.prod(kernel)
    x = integers(inputs[0]).even().with_room(area * area)
    sums = _windows(x.values, kernel, attributes).sum(axis=axes)
    if attributes.get("count_include_pad", 0):
        return [Integers(sums, x.scale / area, x.bound * area)]
    counts = _windows(np.ones((1, 1, *x.values.shape[2:]), np.int64), kernel, attributes).sum(axis=axes)
    whole = math.lcm(*map(int, np.unique(counts)))
    return [Integers(sums * (whole // counts), x.scale / whole, x.bound * whole)]


def _mean(inputs: Inputs, attributes: Attributes, _count: int) -> Sequence[Value]:
    """Over all places, as GlobalAveragePool or ReduceMean."""
    x = integers(inputs[0])
    axes = attributes.get("axes", inputs[1].tolist() if len(inputs) > 1 else range(2, x.values.ndim))
    axes = tuple(axis % x.values.ndim for axis in axes)
    if x.scale.size > 1 and axes != tuple(range(2, x.values.ndim)):
        x = x.even()
    keep, count = bool(attributes.get("keepdims", 1)), math.prod(x.values.shape[axis] for axis in axes)
    x = (x if keep else x.even()).with_room(count)
    return [Integers(x.values.sum(axis=axes, keepdims=keep), x.scale / count, x.bound * count)]


OPERATORS: Mapping[str, Operator] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _gemm,
    "Relu": partial(_clip, ends=(0.0, math.inf)), "Clip": _clip, "Add": _add, "Sub": partial(_add, sign=-1), "Mul": _mul,
    **{name: partial(_function, of=of) for name, of in FUNCTIONS.items()},
    "MaxPool": _max_pool, "AveragePool": _average_pool, "GlobalAveragePool": _mean, "ReduceMean": _mean, **MOVES,
}  # fmt: skip
