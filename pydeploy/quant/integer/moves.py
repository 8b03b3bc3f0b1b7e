"""Operators that move values without computing, or between neighbours: joining, splitting, reshaping, resizing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pydeploy.errors import DataError
from pydeploy.quant.integer.values import Attributes, Inputs, Integers, Operator, Value, common, integers


def _concat(inputs: Inputs, attributes: Attributes, _count: int) -> Sequence[Value]:
    parts = common([integers(one).even() for one in inputs])
    joined = np.concatenate([part.values for part in parts], attributes["axis"])
    return [Integers(joined, parts[0].scale, max(part.bound for part in parts))]


def _reshape(inputs: Inputs, attributes: Attributes, _count: int) -> Sequence[Value]:
    x = integers(inputs[0]).even()
    copied = not attributes.get("allowzero", 0)
    shape = [x.values.shape[place] if copied and not size else size for place, size in enumerate(inputs[1].tolist())]
    return [x.moved(x.values.reshape(shape))]


def _flatten(inputs: Inputs, attributes: Attributes, _count: int) -> Sequence[Value]:
    x, axis = integers(inputs[0]).even(), attributes.get("axis", 1)
    return [x.moved(x.values.reshape(math.prod(x.values.shape[:axis]), -1))]


def _transpose(inputs: Inputs, attributes: Attributes, _count: int) -> Sequence[Value]:
    x = integers(inputs[0]).even()
    return [x.moved(x.values.transpose(attributes.get("perm")))]


def _axes(inputs: Inputs, attributes: Attributes) -> tuple[int, ...]:
    return tuple(attributes["axes"] if "axes" in attributes else inputs[1].tolist())


def _squeeze(inputs: Inputs, attributes: Attributes, _count: int) -> Sequence[Value]:
    x = integers(inputs[0]).even()
    return [x.moved(x.values.squeeze(_axes(inputs, attributes)))]


def _unsqueeze(inputs: Inputs, attributes: Attributes, _count: int) -> Sequence[Value]:
    x = integers(inputs[0]).even()
    return [x.moved(np.expand_dims(x.values, _axes(inputs, attributes)))]


def _slice(inputs: Inputs, _attributes: Attributes, _count: int) -> Sequence[Value]:
    x = integers(inputs[0]).even()
    starts, ends = inputs[1].tolist(), inputs[2].tolist()
    axes, steps = (None if one is None else one.tolist() for one in (*inputs[3:], None, None)[:2])
    place = [slice(None)] * x.values.ndim
    each = zip(starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True)
    for start, end, axis, step in each:
        if step < 1:
            raise DataError("steps below 1 are not known here")
        place[axis] = slice(start, end, step)
    return [x.moved(x.values[tuple(place)])]


def _split(inputs: Inputs, attributes: Attributes, count: int) -> Sequence[Value]:
    x, axis = integers(inputs[0]).even(), attributes.get("axis", 0)
    sizes = attributes.get("split", inputs[1].tolist() if len(inputs) > 1 and inputs[1] is not None else [])
    size = -(-x.values.shape[axis] // count)
    ends = np.cumsum(sizes)[:-1] if len(sizes) else range(size, x.values.shape[axis], size)
    return [x.moved(part) for part in np.split(x.values, list(ends), axis)]


def _resize(inputs: Inputs, attributes: Attributes, _count: int) -> Sequence[Value]:
    """Nearest neighbours at whole factors; linear in between, by the whole numbers that the weights have in common."""
    x = integers(inputs[0]).even()
    sizes = x.values.shape
    if len(inputs) > 3 and inputs[3] is not None:
        asked = inputs[3].tolist()
    else:
        asked = [math.floor(size * float(by)) for size, by in zip(sizes, np.asarray(inputs[2]), strict=True)]
    mode, places = attributes.get("mode", b"nearest"), attributes.get("coordinate_transformation_mode", b"half_pixel")
    for axis, (size, wanted) in enumerate(zip(sizes, asked, strict=True)):
        if wanted == size:
            continue
        if mode == b"linear":
            x = _between(x, axis, wanted, places)
        elif mode == b"nearest" and wanted % size == 0:
            x = x.moved(x.values.repeat(wanted // size, axis))
        else:
            raise DataError("only linear interpolation, and nearest neighbours at whole factors, are known here")
    return [x]


def _between(x: Integers, axis: int, wanted: int, places: bytes) -> Integers:
    """Linear interpolation along one axis: two neighbours by weights that are whole multiples of one fraction."""
    size, out = x.values.shape[axis], np.arange(wanted)
    if places == b"align_corners":
        over, whole = out * (size - 1), max(wanted - 1, 1)
    elif places == b"asymmetric":
        over, whole = out * size, wanted
    elif places in (b"half_pixel", b"pytorch_half_pixel") and wanted > 1:
        over, whole = (2 * out + 1) * size - wanted, 2 * wanted
    else:
        raise DataError(f"places of {places.decode()} are not known here")
    over = np.clip(over, 0, (size - 1) * whole)
    shared = math.gcd(whole, *map(int, over % whole))
    first, second, whole = over // whole, over % whole // shared, whole // shared
    x = x.with_room(whole)
    shape = [-1 if place == axis else 1 for place in range(x.values.ndim)]
    near, far = x.values.take(first, axis), x.values.take(np.minimum(first + 1, size - 1), axis)
    values = near * (whole - second).reshape(shape) + far * second.reshape(shape)
    return Integers(values, x.scale / whole, x.bound * whole)


def _same(inputs: Inputs, _attributes: Attributes, _count: int) -> Sequence[Value]:
    """Also of Cast: between float types the integers stay."""
    return [inputs[0]]


MOVES: Mapping[str, Operator] = {
    "Concat": _concat, "Reshape": _reshape, "Flatten": _flatten, "Transpose": _transpose, "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze, "Slice": _slice, "Split": _split, "Resize": _resize,
    "Identity": _same, "Dropout": _same, "Cast": _same,
}  # fmt: skip
