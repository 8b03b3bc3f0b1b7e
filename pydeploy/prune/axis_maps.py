"""Where entries go when an operator only moves them, whatever lies along the axes. No torch: ONNX files are followed as well."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Entries = NDArray[Any]
"""One number or mark for every entry along an axis, or over several axes."""
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


def joined(part: int, sizes: Sequence[int], along: Entries, fill: int) -> Entries:
    """What lies `along` one part of a concatenation of `sizes` along its axis, and `fill` where the other parts lie."""
    begin = sum(sizes[:part])
    entries = np.full(sum(sizes), fill, dtype=along.dtype)
    entries[begin : begin + sizes[part]] = along
    return entries
