"""Where entries go when an operator only moves them: one map of axes for each such operator.

`axis_maps` reads an operator's arguments once; what it returns carries whatever lies along an axis of the source to the
axes of the result: atoms of channels (`layout`) and entries of parameters (`params`) alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.prune.structure.operators import KINDS
from pydeploy.prune.structure.tape import Value

Entries = NDArray[np.int64]
"""One number for every entry along an axis, or over several axes."""
NEW = -1
"""Instead of an axis of the source: one along which the same is repeated."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Axes that change places, come and go, and of which entries are taken."""

    of: tuple[int, ...]
    """The source's axis that lies along each axis of the result, or `NEW`."""
    taken: tuple[tuple[int, Any], ...] = ()
    """(axis of the source, index of what is taken of it); of other axes all is."""

    def carry(self, axis: int, along: Entries) -> tuple[tuple[int, ...], Entries]:
        """What lies `along` an axis of the source: the axes of the result where it lies, and the entries over these.
        No axes: one entry of it is left, for all of the result.
        """
        for own, which in self.taken:
            if own == axis:
                along = np.asarray(along[which])
        return ((self.of.index(axis),) if axis in self.of else ()), along

    def repeated(self, shape: Sequence[int], before: Collection[int]) -> set[int]:
        """Axes of the result along which one entry is repeated, where the source has `shape` and repeats along `before`."""
        return {at for at, axis in enumerate(self.of) if axis == NEW or shape[axis] == 1 or axis in before}


@dataclass(frozen=True, slots=True)
class Regrouped:
    """Runs of axes that are split and merged in the order of memory: a reshape."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def carry(self, axis: int, along: Entries) -> tuple[tuple[int, ...], Entries]:
        """As `Moved.carry`."""
        inner, outer = next(block for block in blocks(self.before, self.after) if axis in block[0])
        if len(inner) == len(outer) == 1:
            return outer, along
        aligned = along.reshape([-1 if a == axis else 1 for a in inner])
        grid = np.broadcast_to(aligned, [self.before[a] for a in inner])
        return outer, grid.reshape([self.after[a] for a in outer])

    def repeated(self, shape: Sequence[int], before: Collection[int]) -> set[int]:
        """As `Moved.repeated`."""
        found = blocks(self.before, self.after)
        return {at for inner, outer in found if all(shape[a] == 1 or a in before for a in inner) for at in outer}


AxisMap = Moved | Regrouped
Blocks = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


@lru_cache(maxsize=4096)
def blocks(before: tuple[int, ...], after: tuple[int, ...]) -> Blocks:
    """Smallest runs of axes with equal products that a reshape maps onto each other; shapes have no axis of length 0.

    >>> blocks((2, 3, 4, 5), (2, 12, 5))
    (((0,), (0,)), ((1, 2), (1,)), ((3,), (2,)))
    """
    result = []
    i = j = 0
    while i < len(before) or j < len(after):
        ends = min(i + 1, len(before)), min(j + 1, len(after))
        while (left := prod(before[i : ends[0]])) != (right := prod(after[j : ends[1]])):
            forward = left < right and ends[0] < len(before)
            ends = (ends[0] + 1, ends[1]) if forward else (ends[0], ends[1] + 1)
        result.append((tuple(range(i, ends[0])), tuple(range(j, ends[1]))))
        i, j = ends
    return tuple(result)


def axis_maps(op: str, args: Sequence[Any], outs: Sequence[Value]) -> list[AxisMap] | None:
    """How each result lies in ``args[0]``; None where `op` does more than move entries."""
    make = _MAKERS.get(KINDS.get(op, ""))
    return None if make is None else make(args, outs)


def joined(part: int, sizes: Sequence[int], along: Entries, fill: int) -> Entries:
    """What lies `along` one part of a concatenation of `sizes` along its axis, and `fill` where the other parts lie."""
    begin = sum(sizes[:part])
    entries = np.full(sum(sizes), fill, dtype=np.int64)
    entries[begin : begin + sizes[part]] = along
    return entries


def _view(args: Sequence[Any], outs: Sequence[Value]) -> list[AxisMap] | None:
    before, after = args[0].shape, outs[0].shape
    if 0 in before:
        return None
    return [_all(args[0]) if before == after else Regrouped(before, after)]


def _all(source: Value, *taken: tuple[int, Any]) -> AxisMap:
    return Moved(tuple(range(source.rank)), taken)


def _squeeze(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap]:
    given = args[1] if len(args) > 1 and args[1] is not None else range(args[0].rank)
    asked = {axis % max(args[0].rank, 1) for axis in ([given] if isinstance(given, int) else given)}
    return [Moved(tuple(axis for axis, n in enumerate(args[0].shape) if n != 1 or axis not in asked))]


def _unsqueeze(args: Sequence[Any], outs: Sequence[Value]) -> list[AxisMap]:
    at = args[1] % outs[0].rank
    return [Moved((*range(at), NEW, *range(at, args[0].rank)))]


def _permute(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap]:
    return [Moved(tuple(axis % args[0].rank for axis in args[1]))]


def _transpose(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap]:
    axes = list(range(args[0].rank))
    one, two = (args[1], args[2]) if len(args) > 1 else (0, -1)
    if axes:
        axes[one], axes[two] = axes[two], axes[one]
    return [Moved(tuple(axes))]


def _expand(args: Sequence[Any], outs: Sequence[Value]) -> list[AxisMap]:
    source, out = args[0], outs[0]
    new = out.rank - source.rank
    of = (*(NEW,) * new, *range(source.rank))
    long = [axis for axis, n in enumerate(source.shape) if n != out.shape[axis + new]]
    return [Moved(of, tuple((axis, np.zeros(out.shape[axis + new], dtype=np.int64)) for axis in long))]


def _repeat(args: Sequence[Any], outs: Sequence[Value]) -> list[AxisMap]:
    source, new = args[0], outs[0].rank - args[0].rank
    times = args[1][new:]
    taken = [(axis, np.tile(np.arange(n), times[axis])) for axis, n in enumerate(source.shape) if times[axis] != 1]
    return [Moved((*(NEW,) * new, *range(source.rank)), tuple(taken))]


def _interleave(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap] | None:
    """``aten::repeat_interleave.self_int(self, repeats, dim)``; repeats that are computed are not followed."""
    source, repeats, axis = (*args, None, None)[:3]
    if not isinstance(source, Value) or not isinstance(repeats, int) or axis is None:
        return None
    own = axis % source.rank
    return [_all(source, (own, np.repeat(np.arange(source.shape[own]), repeats)))]


def _slice(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap]:
    source, axis, start, end, step = (*args, *(None,) * 4)[:5]
    return [_all(source, ((axis or 0) % source.rank, slice(start, end, 1 if step is None else step)))]


def _narrow(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap] | None:
    source, axis, start = args[0], args[1] % args[0].rank, args[2]
    if not isinstance(start, int):
        return None
    begin = start if start >= 0 else start + source.shape[axis]
    return [_all(source, (axis, slice(begin, begin + args[3])))]


def _split(args: Sequence[Any], outs: Sequence[Value]) -> list[AxisMap]:
    source, axis = args[0], (args[2] if len(args) > 2 else 0) % args[0].rank
    ends = np.cumsum([0, *(out.shape[axis] for out in outs)]).tolist()
    return [_all(source, (axis, slice(begin, end))) for begin, end in pairwise(ends)]


def _select(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap]:
    return [_without(args[0], args[1] % args[0].rank, args[2])]


def _unbind(args: Sequence[Any], outs: Sequence[Value]) -> list[AxisMap]:
    axis = (args[1] if len(args) > 1 else 0) % args[0].rank
    return [_without(args[0], axis, number) for number in range(len(outs))]


def _without(source: Value, axis: int, entry: int) -> AxisMap:
    return Moved(tuple(a for a in range(source.rank) if a != axis), ((axis, entry),))


def _flip(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap]:
    back = slice(None, None, -1)
    return [_all(args[0], *((axis % args[0].rank, back) for axis in args[1]))]


_MAKERS: Mapping[str, Callable[[Sequence[Any], Sequence[Value]], list[AxisMap] | None]] = {
    "view": _view,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "permute": _permute,
    "transpose": _transpose,
    "expand": _expand,
    "repeat": _repeat,
    "interleave": _interleave,
    "slice": _slice,
    "narrow": _narrow,
    "split": _split,
    "select": _select,
    "unbind": _unbind,
    "flip": _flip,
}
"""By kind of operator."""
MOVES = frozenset(_MAKERS)
"""Kinds of operators that only move entries."""
