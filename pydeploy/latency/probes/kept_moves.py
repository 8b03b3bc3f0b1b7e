"""What stays where an operator of ONNX only moves entries, and the shapes, sizes and places that it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.latency.probes.sites import ALL, Array, Cut, Kept, Shape, Site, Tangled, count, taken
from pydeploy.prune.axis_maps import NEW, AxisMap, Moved, Regrouped


def carried(how: AxisMap | _Gathered, kept: Kept, shape: Shape) -> Kept:
    """What stays of the result of a move, which has `shape` while nothing is cut."""
    out: dict[int, NDArray[np.bool_]] = {}
    grids: dict[tuple[int, ...], NDArray[np.bool_]] = {}
    for axis, which in kept.items():
        axes, grid = how.carry(axis, which)
        if grid.ndim != len(axes) or not (grid.ndim or grid):
            raise Tangled
        grids[axes] = np.asarray(grids[axes] & grid if axes in grids else grid, dtype=np.bool_)
    for axes, grid in grids.items():
        along = [grid.any(tuple(i for i in range(grid.ndim) if i != at)) for at in range(grid.ndim)]
        if grid.sum() != np.prod([which.sum() for which in along]):
            raise Tangled
        out |= {axis: np.asarray(which) for axis, which in zip(axes, along, strict=True) if not which.all()}
    return {axis: which for axis, which in out.items() if len(which) == shape[axis]}


def moved(site: Site) -> Cut:
    source, shapes = site.inputs[0], [shape for shape in site.outputs if shape is not None]
    if source is None or len(shapes) != len(site.outputs):
        return Cut([ALL] * len(site.outputs))
    maps, kept = _MAPS[site.kind](site, source, shapes), site.kept[0]
    outs = [carried(how, kept, shape) for how, shape in zip(maps, shapes, strict=True)]
    if site.kind == "Expand":  # to a size that only its readers know
        first = len(shapes[0]) - len(source)
        spread = {at for at, n in enumerate(shapes[0]) if at < first or source[at - first] != n}
        outs = [{**{axis: which for axis, which in site.wanted.items() if axis in spread}, **outs[0]}]
    return Cut(outs, _TARGETS[site.kind](site, source, outs) if site.kind in _TARGETS else {})


def _identity(source: Shape, *taken_: tuple[int, Any]) -> Moved:
    return Moved(tuple(range(len(source))), taken_)


def _regroup(_site: Site, source: Shape, shapes: Sequence[Shape]) -> list[AxisMap]:
    return [_identity(source) if source == shapes[0] or 0 in source else Regrouped(source, shapes[0])]


def _transpose(site: Site, source: Shape, _shapes: Sequence[Shape]) -> list[AxisMap]:
    return [Moved(tuple(site.attributes.get("perm", range(len(source))[::-1])))]


def _squeeze(site: Site, source: Shape, _shapes: Sequence[Shape]) -> list[AxisMap]:
    given = site.numbers(1, "axes")
    gone = {a % len(source) for a in given} if given is not None else {a for a, n in enumerate(source) if n == 1}
    return [Moved(tuple(a for a in range(len(source)) if a not in gone))]


def _unsqueeze(site: Site, source: Shape, shapes: Sequence[Shape]) -> list[AxisMap]:
    rank = len(shapes[0])
    new = {a % rank for a in site.numbers(1, "axes") or ()}
    old = iter(range(len(source)))
    return [Moved(tuple(NEW if a in new else next(old) for a in range(rank)))]


def _expand(_site: Site, source: Shape, shapes: Sequence[Shape]) -> list[AxisMap]:
    return [Moved((*(NEW,) * (len(shapes[0]) - len(source)), *range(len(source))))]


def _tile(site: Site, source: Shape, _shapes: Sequence[Shape]) -> list[AxisMap]:
    times = site.numbers(1, "repeats") or [1] * len(source)
    return [_identity(source, *((a, np.tile(np.arange(n), times[a])) for a, n in enumerate(source)))]


def _split(site: Site, source: Shape, shapes: Sequence[Shape]) -> list[AxisMap]:
    axis = int(site.attributes.get("axis", 0)) % len(source)
    ends = np.cumsum([0, *(shape[axis] for shape in shapes)]).tolist()
    return [_identity(source, (axis, slice(begin, end))) for begin, end in pairwise(ends)]


def _slices(site: Site, source: Shape) -> list[tuple[int, slice]]:
    begins, ends = site.numbers(1, "starts") or [], site.numbers(2, "ends") or []
    axes, steps = site.numbers(3, "axes") or list(range(len(begins))), site.numbers(4, "steps") or [1] * len(begins)
    found = []
    for axis, begin, end, step in zip(axes, begins, ends, steps, strict=True):
        stop = None if step < 0 and end < -source[axis] else end
        found.append((axis % len(source), slice(begin, stop, step)))
    return found


def _slice(site: Site, source: Shape, _shapes: Sequence[Shape]) -> list[AxisMap]:
    return [_identity(source, *_slices(site, source))]


@dataclass(frozen=True, slots=True)
class _Gathered:
    """Chosen entries of one axis take its place, along `rank` axes; None: chosen by what is computed."""

    axis: int
    rank: int
    indices: Array | None

    def carry(self, axis: int, along: Array) -> tuple[tuple[int, ...], Array]:
        if axis != self.axis:
            return ((axis if axis < self.axis else axis + self.rank - 1),), along
        return tuple(range(axis, axis + self.rank)), along[self.indices] if self.indices is not None else along


def _gather(site: Site, source: Shape, shapes: Sequence[Shape]) -> list[_Gathered]:
    indices = site.constant(1)
    axis, rank = int(site.attributes.get("axis", 0)) % len(source), len(shapes[0]) - len(source) + 1
    return [_Gathered(axis, rank, None if indices is None else indices.astype(np.int64))]


_MAPS: Mapping[str, Callable[[Site, Shape, Sequence[Shape]], Sequence[AxisMap | _Gathered]]] = {
    "Reshape": _regroup,
    "Flatten": _regroup,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Tile": _tile,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
}
"""Where operators that only move entries move them."""


def _new_shape(site: Site, _source: Shape, outs: Sequence[Kept]) -> Mapping[int, Array]:
    """The target of a reshape or an expansion, as long as what stays."""
    target, shape, kept = site.constant(1), site.outputs[0] or (), outs[0]
    if target is None or not kept:
        return {}
    first = len(shape) - len(target)
    new = [
        int(n) if n == -1 or first + i not in kept else count(kept, first + i, shape[first + i])
        for i, n in enumerate(target)
    ]
    zeros = [i for i, n in enumerate(new) if n == 0]  # "as the input's axis of that number"
    for i in zeros:
        new[i] = count(site.kept[0], i, (site.inputs[0] or ())[i])
    return {1: np.asarray(new, dtype=target.dtype)}


def _new_sizes(site: Site, source: Shape, outs: Sequence[Kept]) -> Mapping[int, Array]:
    """Sizes of the parts of a split."""
    axis, sizes = int(site.attributes.get("axis", 0)) % len(source), site.constant(1)
    new = [count(kept, axis, (shape or ())[axis]) for kept, shape in zip(outs, site.outputs, strict=True)]
    return {} if sizes is None else {1: np.asarray(new, dtype=sizes.dtype)}


def _new_ends(site: Site, source: Shape, _outs: Sequence[Kept]) -> Mapping[int, Array]:
    """Where a slice begins and ends, counted in entries that stay."""
    begins, ends = site.constant(1), site.constant(2)
    if begins is None or ends is None:
        return {}
    new = np.array(begins), np.array(ends)
    for number, (axis, which) in enumerate(_slices(site, source)):
        mask = site.kept[0].get(axis)
        if mask is not None and (which.step or 1) > 0:
            first, last, _ = which.indices(source[axis])
            new[0][number], new[1][number] = int(mask[:first].sum()), int(mask[: max(first, last)].sum())
    return {1: new[0], 2: new[1]}


def _new_indices(site: Site, source: Shape, outs: Sequence[Kept]) -> Mapping[int, Array]:
    """Chosen entries, those that stay, by their new numbers."""
    axis, indices = int(site.attributes.get("axis", 0)) % len(source), site.constant(1)
    mask = site.kept[0].get(axis)
    if indices is None or mask is None:
        return {}
    chosen = taken(indices, {at - axis: which for at, which in outs[0].items() if axis <= at < axis + indices.ndim})
    return {1: (np.cumsum(mask) - 1)[chosen].astype(indices.dtype)}


_TARGETS: Mapping[str, Callable[[Site, Shape, Sequence[Kept]], Mapping[int, Array]]] = {
    "Reshape": _new_shape,
    "Expand": _new_shape,
    "Split": _new_sizes,
    "Slice": _new_ends,
    "Gather": _new_indices,
}
"""Constants of these that follow."""
MOVES = frozenset(_MAPS)
