"""Which channel each entry of a tensor belongs to: the bookkeeping under `trace`.

A *channel atom* is born for every output of a convolution or linear layer. A tensor has at most one labelled axis:
its `Layout` holds that axis and the atom of every entry along it. Rules move layouts through operators. Atoms that
must live or die together are united (union-find, all operations on whole arrays).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pydeploy.graph import ROLES
from pydeploy.prune.axis_maps import AxisMap

Labels = NDArray[np.int64]
"""Atom of each entry along one axis; `FIXED` where no channel lies."""

FIXED = -1
"""Entry that belongs to no channel and always stays."""
UNUSED = -2
"""Entry of a parameter that no operator has read so far; entry of an activation that is zero whatever is cut."""


class Unknown(Exception):
    """A rule cannot promise that channels stay independent; the text says why."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The labelled axis of a tensor and the atom of every entry along it."""

    axis: int
    atoms: Labels


@dataclass
class Atoms:
    """Union-find over channel atoms, the reasons why some are frozen, and where each lies in the parameters."""

    parent: Labels = field(default_factory=lambda: _own_parents(1024))
    """The last two entries are those of the negative labels, which indexing from the end finds."""
    count: int = 0
    frozen: list[tuple[Labels, str]] = field(default_factory=list)
    """(atoms, reason), in order."""
    notes: list[tuple[Labels, str]] = field(default_factory=list)
    """(atoms, why cutting them changes the other channels' values)."""
    places: dict[tuple[str, int], Labels] = field(default_factory=dict)
    """Atom of every entry along (parameter, dim), or `FIXED`, or `UNUSED`."""
    roles: dict[tuple[str, int], NDArray[np.uint8]] = field(default_factory=dict)
    """What operators take every entry along (parameter, dim) for: bit i for ``ROLES[i]`` of `pydeploy.graph`."""

    def fresh(self, count: int) -> Labels:
        """`count` new atoms, shape ``(count,)``."""
        first, self.count = self.count, self.count + count
        if self.count + 2 > len(self.parent):
            grown = _own_parents(2 * self.count + 2)
            grown[:first] = self.parent[:first]
            self.parent = grown
        return np.arange(first, self.count, dtype=np.int64)

    def roots(self, labels: Labels) -> Labels:
        """Representatives of all `labels`; negative labels stay."""
        found = self.parent[labels]
        while True:
            further = self.parent[found]
            if (further == found).all():
                return found
            self.parent[labels] = found = further

    def unite(self, left: Labels, right: Labels) -> None:
        """Unite entry by entry (shapes broadcast). An atom that meets an entry without a channel is frozen."""
        left, right = np.broadcast_arrays(left, right)
        lone = (left < 0) != (right < 0)
        if lone.any():
            self.freeze(np.maximum(left, right)[lone], "combined with values that are not channels")
        both = (left >= 0) & (right >= 0)
        left, right = left[both], right[both]
        while len(left):
            a, b = self.roots(left), self.roots(right)
            apart = a != b
            if not apart.any():
                return
            left, right, a, b = left[apart], right[apart], a[apart], b[apart]
            np.minimum.at(self.parent, np.maximum(a, b), np.minimum(a, b))

    def balance(self, left: Labels, right: Labels) -> None:
        """Unite until equally many entries of `left` and of `right` stay, whatever is removed.

        A channel that lies in both is balanced as far as it does. The rest meets its equals, most frequent ones first, so a
        shuffled stream that is cut into halves again and again keeps more groups than if entries were united in pairs.
        """
        kinds, first, inverse = np.unique(
            self.roots(np.concatenate([left, right])), return_index=True, return_inverse=True
        )
        surplus = np.bincount(inverse, np.repeat([1.0, -1.0], [len(left), len(right)])).astype(np.int64)
        order = np.lexsort((first, -np.abs(surplus)))
        kinds, surplus = kinds[order], surplus[order]
        self.unite(np.repeat(kinds, np.maximum(surplus, 0)), np.repeat(kinds, np.maximum(-surplus, 0)))

    def freeze(self, labels: Labels, reason: str) -> None:
        """Forbid pruning of all atoms in `labels`; the first reason is kept."""
        atoms = labels[labels >= 0]
        if len(atoms):
            self.frozen.append((np.unique(atoms), reason))

    def place(self, param: str, dim: int, size: int, entries: Labels, atoms: Labels) -> None:
        """Note that entry ``entries[i]`` of `dim` of `param` belongs to ``atoms[i]`` (``entries[i] < 0``: none does).

        A second note unites; an entry that is `FIXED` in one use and a channel in another freezes.
        """
        used = atoms != UNUSED
        if not used.all():
            entries, atoms = entries[used], atoms[used]
        real = entries >= 0
        if not real.all():
            self.freeze(atoms[~real], "combined with values that are not channels")
            entries, atoms = entries[real], atoms[real]
        table = self.places.get((param, dim))
        if table is None:
            table = self.places[param, dim] = np.full(size, UNUSED, dtype=np.int64)
            table[entries] = atoms
        else:
            known = table[entries]
            used = known != UNUSED
            if used.any():
                self.unite(known[used], atoms[used])
            table[entries] = np.where(used & (known >= 0), known, atoms)
        again = table[entries]
        if (again != atoms).any():  # one entry may occur several times
            self.unite(again, atoms)

    def read_as(self, param: str, dim: int, size: int, entries: Labels, role: str) -> None:
        """Note what an operator takes these entries for (``entries[i] < 0``: none lies there)."""
        table = self.roles.setdefault((param, dim), np.zeros(size, dtype=np.uint8))
        table[entries[entries >= 0]] |= np.uint8(1 << ROLES.index(role))

    def roles_of(self, param: str, dim: int, entries: Labels) -> tuple[str, ...]:
        """All roles of any of these entries."""
        table = self.roles.get((param, dim))
        bits = 0 if table is None else int(np.bitwise_or.reduce(table[entries], axis=None))
        return tuple(role for i, role in enumerate(ROLES) if bits >> i & 1)

    def why(self) -> tuple[Labels, list[str]]:
        """Number of every representative's text about freezing (-1: none), and the texts."""
        return self._texts(self.frozen)

    def remarks(self) -> tuple[Labels, list[str]]:
        """The same for notes."""
        return self._texts(self.notes)

    def _texts(self, told: Sequence[tuple[Labels, str]]) -> tuple[Labels, list[str]]:
        numbers = np.full(self.count, -1, dtype=np.int64)
        texts = list(dict.fromkeys(text for _, text in told))
        place = {text: number for number, text in enumerate(texts)}
        for atoms, text in reversed(told):
            numbers[self.roots(atoms[atoms >= 0])] = place[text]
        return numbers, texts


def _own_parents(size: int) -> Labels:
    parents = np.arange(size, dtype=np.int64)
    parents[FIXED], parents[UNUSED] = FIXED, UNUSED
    return parents


Choose = Callable[[Sequence[int]], int]
"""Picks the axis that stays free where a reshape splits a channel axis into several."""


def moved(atoms: Atoms, layout: Layout, how: AxisMap, choose: Choose) -> Layout:
    """Layout after entries were moved. Where a channel axis is split, all but one of the new axes keep their sizes: channels are
    united along those.
    """
    axes, grid = how.carry(layout.axis, layout.atoms)
    if not axes:
        raise Unknown("takes single channels")
    if len(axes) > 1:
        return along_one_axis(atoms, grid, axes, choose)
    return layout if grid is layout.atoms and axes[0] == layout.axis else Layout(axes[0], np.ascontiguousarray(grid))


def along_one_axis(atoms: Atoms, grid: Labels, axes: Sequence[int], choose: Choose) -> Layout:
    """`grid` holds the atom of every entry over `axes`; unite until the atoms depend on one axis only."""
    roots = atoms.roots(grid)
    varying = [i for i in range(grid.ndim) if (roots != roots.take([0], axis=i)).any()]
    if not varying:
        varying = [i for i in range(grid.ndim) if grid.shape[i] > 1][:1] or [0]
    free = varying[0] if len(varying) == 1 else varying[choose([axes[i] for i in varying])]
    first = tuple(slice(None) if i == free else slice(0, 1) for i in range(grid.ndim))
    if len(varying) > 1:
        atoms.unite(grid, grid[first])
    return Layout(axes[free], np.ascontiguousarray(grid[first].ravel()))
