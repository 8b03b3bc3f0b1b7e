"""Which channel each entry of a tensor belongs to: the bookkeeping under `trace`.

A *channel atom* is born for every output of a convolution or linear layer. A tensor's layout is an integer array
that broadcasts to the tensor's shape: entry ``-1`` belongs to no channel, any other number is an atom. Rules move
layouts through operators with NumPy's own reshape and transpose. Atoms that must live or die together are united.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
"""Atom of each entry; one axis per tensor axis, length 1 where the atom does not depend on that axis."""


@dataclass
class Atoms:
    """Union-find over channel atoms, the reasons why some are frozen, and where each lies in the parameters."""

    parent: list[int] = field(default_factory=list)
    reason: dict[int, str] = field(default_factory=dict)
    places: dict[tuple[str, int], Labels] = field(default_factory=dict)
    """Atom of every entry along (parameter, dim); -1 where no channel lies."""

    def fresh(self, count: int) -> Labels:
        """`count` new atoms, shape ``(count,)``."""
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def find(self, atom: int) -> int:
        """The representative of the set that `atom` is in."""
        root = atom
        while self.parent[root] != root:
            root = self.parent[root]
        while self.parent[atom] != root:
            self.parent[atom], atom = root, self.parent[atom]
        return root

    def roots(self, labels: Labels) -> Labels:
        """Representatives of all `labels`; -1 stays -1."""
        flat = [self.find(int(a)) if a >= 0 else -1 for a in labels.ravel()]
        return np.asarray(flat, dtype=np.int64).reshape(labels.shape)

    def unite(self, left: Labels, right: Labels) -> None:
        """Unite entry by entry (shapes broadcast). An atom that meets an entry without a channel is frozen."""
        left, right = np.broadcast_arrays(left, right)
        pairs = np.unique(np.stack([left.ravel(), right.ravel()], axis=1), axis=0)
        for a, b in pairs.tolist():
            if a >= 0 and b >= 0:
                self._join(a, b)
            elif a >= 0 or b >= 0:
                self.freeze(np.asarray([max(a, b)]), "combined with values that are not channels")

    def _join(self, a: int, b: int) -> None:
        low, high = sorted((self.find(a), self.find(b)))
        if low == high:
            return
        self.parent[high] = low
        why = self.reason.pop(high, None)
        if why is not None:
            self.reason.setdefault(low, why)

    def freeze(self, labels: Labels, reason: str) -> None:
        """Forbid pruning of all atoms in `labels`; the first reason is kept."""
        for atom in np.unique(labels).tolist():
            if atom >= 0:
                self.reason.setdefault(self.find(atom), reason)

    def place(self, param: str, dim: int, atoms: Labels) -> None:
        """Note that entry ``i`` along `dim` of `param` belongs to ``atoms[i]``; a second note unites."""
        known = self.places.get((param, dim))
        if known is None:
            self.places[param, dim] = atoms.astype(np.int64, copy=True)
        else:
            self.unite(known, atoms)


def channel_axis(labels: Labels) -> int | None:
    """The only axis along which `labels` vary, or None when there are several or none."""
    axes = [axis for axis, size in enumerate(labels.shape) if size > 1]
    return axes[0] if len(axes) == 1 else None


def unlabelled(rank: int) -> Labels:
    """The layout of a tensor without channels."""
    return np.full((1,) * rank, -1, dtype=np.int64)


def has_channels(labels: Labels) -> bool:
    return bool((labels >= 0).any())


def reshaped(labels: Labels, before: tuple[int, ...], after: tuple[int, ...]) -> Labels | None:
    """Layout after a reshape, or None where a channel axis is split (its factors would be frozen into the code)."""
    shape_in: list[int] = []
    shape_out: list[int] = []
    for inner, outer in blocks(before, after):
        labelled = any(labels.shape[axis] > 1 for axis in inner)
        many = [axis for axis in outer if after[axis] > 1]
        same = [before[a] for a in inner if before[a] > 1] == [after[a] for a in many]
        if labelled and len(many) > 1 and not same:
            return None
        shape_in += [before[axis] if labelled else 1 for axis in inner]
        shape_out += [after[axis] if labelled else 1 for axis in outer]
    return np.broadcast_to(labels, shape_in).reshape(shape_out)


def blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes with equal products that a reshape maps onto each other.

    >>> blocks((2, 3, 4, 5), (2, 12, 5))
    [([0], [0]), ([1, 2], [1]), ([3], [2])]
    """
    result: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        inner, outer = list(range(i, min(i + 1, len(before)))), list(range(j, min(j + 1, len(after))))
        i, j = i + len(inner), j + len(outer)
        left, right = _product(before, inner), _product(after, outer)
        while left != right:
            if left < right and i < len(before):
                inner.append(i)
                i += 1
            else:
                outer.append(j)
                j += 1
            left, right = _product(before, inner), _product(after, outer)
        result.append((inner, outer))
    return result


def _product(shape: tuple[int, ...], axes: list[int]) -> int:
    return int(np.prod([shape[axis] for axis in axes], dtype=np.int64))
