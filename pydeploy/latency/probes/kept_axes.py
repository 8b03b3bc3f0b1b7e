"""Which entries of every tensor of an ONNX file stay when parameters are cut, and the constants that follow: one rule per operator.

What stays of a computed tensor comes from what stays of the tensors that it is computed from, entry by entry, beginning at
the parameters, of which the graph of the traced model tells it. So the target of a reshape or the sizes of a split are
not guessed from shapes: two axes of one length are told apart. An operator without a rule keeps its axes; should that
contradict the cut shapes, shape inference says so with the node's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pydeploy.latency.probes.kept_moves import MOVES, moved
from pydeploy.latency.probes.sites import ALL, Array, Cut, Kept, Shape, Site, Tangled, count, taken


def follow(site: Site) -> Cut:
    """Outputs and constants of a node, from what stays of its inputs. Raises `Tangled`."""
    rule = RULES.get(site.kind, _reduce if site.kind.startswith("Reduce") else _alike)
    if not any(site.kept) and not site.wanted:
        return Cut([ALL] * len(site.outputs))
    return rule(site)


def _alike(site: Site) -> Cut:
    """Axes that are as long as those of the first computed input are these."""
    source, kept = site.inputs[site.data], site.kept[site.data]
    outs = [{axis: which for axis, which in kept.items() if source is not None and shape is not None
             and len(shape) == len(source) and shape[axis] == source[axis]} for shape in site.outputs]  # fmt: skip
    read = site.wanted if not kept and source is not None and source == site.outputs[0] else ALL
    return Cut(outs, wanted={site.data: read} if read else {})


def _elementwise(site: Site) -> Cut:
    """Operands are broadcast, axes align from the right; constants as long as a cut axis are cut with it."""
    shape = site.outputs[0]
    if shape is None:
        return Cut([ALL] * len(site.outputs))
    out: dict[int, NDArray[np.bool_]] = {}
    for given, kept in zip(site.inputs, site.kept, strict=True):
        for axis, which in kept.items() if given is not None else ():
            out.setdefault(axis + len(shape) - len(given or ()), which)
    changes: dict[int, Array] = {}
    wanted: dict[int, Kept] = {}
    for index, (given, constant) in enumerate(zip(site.inputs, site.constants, strict=True)):
        own = {axis - len(shape) + len(given or ()): which for axis, which in (out or site.wanted).items()}
        met = {axis: which for axis, which in own.items()
               if given is not None and axis >= 0 and given[axis] == len(which) and axis not in site.kept[index]}  # fmt: skip
        if met and constant is None:
            wanted[index] = met
        elif met and constant is not None and not site.kept[index]:
            changes[index] = taken(constant, met)
    return Cut([out] * len(site.outputs), changes, wanted=wanted)


def _per_channel(site: Site) -> Cut:
    """One value per channel (axis 1), as in normalization layers."""
    which = site.kept[0].get(1)
    changes = {i: constant[which] for i, constant in enumerate(site.constants)
               if which is not None and constant is not None and not site.kept[i] and constant.shape == which.shape}  # fmt: skip
    groups = site.attributes.get("num_groups", 1)
    left = which.reshape(groups, -1).any(1).sum() if which is not None and groups > 1 else groups
    return Cut(
        [site.kept[0], *[ALL] * (len(site.outputs) - 1)], changes, {} if left == groups else {"num_groups": int(left)}
    )


def _layer_norm(site: Site) -> Cut:
    rank = len(site.inputs[0] or ())
    changes: dict[int, Array] = {}
    for index, constant in enumerate(site.constants):
        if constant is not None and not site.kept[index]:
            own = {axis - (rank - constant.ndim): which for axis, which in site.kept[0].items()}
            changes[index] = taken(constant, {a: w for a, w in own.items() if a >= 0 and constant.shape[a] == len(w)})
    return Cut([site.kept[0], *[ALL] * (len(site.outputs) - 1)], changes)


def _convolution(site: Site) -> Cut:
    """Outputs of the weight, with their biases; a depthwise weight that is no parameter follows its input."""
    data, weight, groups = site.kept[0], site.kept[1], int(site.attributes.get("group", 1))
    shape, constant, which = site.inputs[1] or (1, 1), site.constants[1], data.get(1)
    changes: dict[int, Array] = {}
    attributes: dict[str, int | list[int]] = {}
    if constant is not None and not weight and which is not None and groups == len(which):
        out = np.repeat(which, len(constant) // groups if site.kind != "ConvTranspose" else constant.shape[1])
        changes[1] = constant[out if site.kind != "ConvTranspose" else which]
        attributes["group"] = int(which.sum())
    elif site.kind != "ConvTranspose":
        out = weight.get(0, np.ones(shape[0], dtype=np.bool_))
    elif 1 in weight or 0 not in weight or groups != shape[0]:
        out = np.tile(weight.get(1, np.ones(shape[1], dtype=np.bool_)), groups)
    else:
        out = np.repeat(weight[0], shape[1])
    place = 3 if site.kind == "DeformConv" else 2
    bias = site.constant(place)
    if bias is not None and not site.kept[place] and len(bias) == len(out):
        changes[place] = bias[out]
    read = weight.get(1) if groups == 1 and site.kind == "Conv" else None
    wanted = {0: {1: read}} if read is not None and (which is None or (which != read).any()) else {}
    return Cut([ALL if out.all() else {1: out}], changes, attributes, wanted)


def _inner(index: int, shape: Shape | None) -> int:
    """The axis of an operand of a product that is summed over."""
    rank = len(shape or ())
    return rank - 1 if index == 0 else max(rank - 2, 0)


def _matmul(site: Site) -> Cut:
    """``(..., n, k) @ (..., k, m)``; a constant that is no parameter is cut where it is summed over."""
    out, shapes = site.outputs[0], [shape for shape in site.inputs if shape is not None]
    if out is None or len(shapes) < 2:
        return Cut([ALL])
    kept: dict[int, NDArray[np.bool_]] = {}
    summed: dict[int, NDArray[np.bool_]] = {}
    for index, shape in enumerate(shapes):
        inner = _inner(index, shape)
        for axis, which in site.kept[index].items():
            if axis == inner:
                summed[index] = which
            else:
                kept.setdefault(axis + len(out) - len(shape), which)
    changes: dict[int, Array] = {}
    wanted: dict[int, Kept] = {}
    for index, (constant, given) in enumerate(zip(site.constants, shapes, strict=True)):
        if 1 - index in summed and index not in summed:
            inner = _inner(index, given)
            if constant is not None:
                changes[index] = taken(constant, {inner: summed[1 - index]})
            else:
                wanted[index] = {inner: summed[1 - index]}
    return Cut([kept], changes, wanted=wanted)


def _gemm(site: Site) -> Cut:
    left, right = site.kept[:2]
    rows, columns = int(site.attributes.get("transA", 0)), 1 - int(site.attributes.get("transB", 0))
    found = {0: left.get(rows), 1: right.get(columns)}
    kept = {axis: which for axis, which in found.items() if which is not None}
    changes: dict[int, Array] = {}
    constant, which = site.constants[1], left.get(1 - rows)
    if constant is not None and 1 - columns not in right and which is not None:
        changes[1] = taken(constant, {1 - columns: which})
    bias = site.constant(2)
    if bias is not None and not site.kept[2]:
        own = {axis - 2 + bias.ndim: which for axis, which in kept.items()}
        changes[2] = taken(bias, {a: w for a, w in own.items() if a >= 0 and bias.shape[a] == len(w)})
    return Cut([kept], changes)


def _reduce(site: Site) -> Cut:
    rank = len(site.inputs[0] or ())
    given = site.numbers(1, "axes" if site.kind.startswith("Reduce") else "axis")
    if given is None and site.kind.startswith("Arg"):
        given = [0]
    gone = {axis % rank for axis in (range(rank) if given is None else given)}
    stays = [axis for axis in range(rank) if axis not in gone]
    place = {axis: axis if int(site.attributes.get("keepdims", 1)) else stays.index(axis) for axis in stays}
    return Cut([{place[axis]: which for axis, which in site.kept[0].items() if axis in place}] * len(site.outputs))


def _concat(site: Site) -> Cut:
    """Parts side by side; of constant ones stays what the layers that read them take."""
    shape = site.outputs[0]
    if shape is None:
        return Cut([ALL])
    axis = int(site.attributes["axis"]) % len(shape)
    sizes = [(part or shape)[axis] for part in site.inputs]
    ends = np.cumsum([0, *sizes]).tolist()
    changes: dict[int, Array] = {}
    wanted: dict[int, Kept] = {}
    pieces = []
    others: dict[int, NDArray[np.bool_]] = {a: w for kept in site.kept for a, w in kept.items() if a != axis}
    for index, (kept, (begin, end)) in enumerate(zip(site.kept, pairwise(ends), strict=True)):
        constant, own = site.constants[index], dict(kept)
        read = others | ({axis: site.wanted[axis][begin:end]} if axis in site.wanted else {})
        if not kept and constant is not None:
            own = read
            changes |= {index: taken(constant, own)} if own else {}
        elif not kept and read:
            wanted[index] = read
        pieces.append(own.get(axis, np.ones(end - begin, dtype=np.bool_)))
    along = np.concatenate(pieces)
    return Cut([others | ({} if along.all() else {axis: along})], changes, wanted=wanted)


def _space_to_depth(site: Site) -> Cut:
    which, size = site.kept[0].get(1), int(site.attributes["blocksize"])
    return Cut([ALL if which is None else {1: np.tile(which, size * size)}])


def _depth_to_space(site: Site) -> Cut:
    which, area = site.kept[0].get(1), int(site.attributes["blocksize"]) ** 2
    if which is None:
        return Cut([ALL])
    rows = which.reshape(-1, area).T if site.attributes.get("mode") == "CRD" else which.reshape(area, -1)
    if (rows != rows[:1]).any():
        raise Tangled
    return Cut([{1: rows[0]}])


def _resize(site: Site) -> Cut:
    """``Resize(data, roi, scales, sizes)``: target sizes of axes that are cut follow."""
    sizes, kept = site.constant(3), site.kept[0]
    if sizes is None or len(sizes) != len(site.inputs[0] or ()):
        return _alike(site)
    new = [count(kept, axis, int(n)) for axis, n in enumerate(sizes)]
    return Cut([kept], {3: np.asarray(new, dtype=sizes.dtype)})


def _scatter(site: Site) -> Cut:
    """``ScatterND(data, indices, updates)``: what stays of the trailing axes of the updates stays of the data."""
    data, updates, constant = site.inputs[0] or (), site.inputs[2] or (), site.constants[0]
    offset = len(data) - len(updates)
    kept = {axis + offset: which for axis, which in site.kept[2].items() if axis + offset >= 0} | dict(site.kept[0])
    changes = {0: taken(constant, kept)} if constant is not None and not site.kept[0] else {}
    return Cut([kept], changes)


_BROADCAST = ("Add Sub Mul Div Pow Min Max Mean Sum PRelu Where Mod Greater GreaterOrEqual Less LessOrEqual Equal And Or Xor "
              "BitShift BitwiseAnd BitwiseOr BitwiseXor")  # fmt: skip
RULES: Mapping[str, Callable[[Site], Cut]] = {
    **dict.fromkeys(_BROADCAST.split(), _elementwise),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "GroupNormalization"), _per_channel),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_norm),
    **dict.fromkeys(MOVES, moved),
    **dict.fromkeys(("Conv", "ConvTranspose", "DeformConv"), _convolution),
    **dict.fromkeys(("ArgMax", "ArgMin"), _reduce),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Concat": _concat,
    "SpaceToDepth": _space_to_depth,
    "DepthToSpace": _depth_to_space,
    "Resize": _resize,
    "ScatterND": _scatter,
}
"""Rule of each operator; the others keep their axes."""
