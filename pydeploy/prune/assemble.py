"""From atoms to groups: the last step of `trace`, where channel atoms become a `Graph`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pydeploy.graph import Extent, Graph, Group, Op, Slice
from pydeploy.prune.layout import Atoms, Labels


@dataclass
class RawOp:
    """A recorded layer, its channels still as atoms."""

    kind: str
    weight: str
    incoming: Labels | None
    outgoing: Labels
    cin: int
    h: int
    w: int
    facts: Mapping[str, Any]
    tail: list[str] = field(default_factory=list)

    @property
    def layer(self) -> str:
        return self.weight.removesuffix(".weight")


def assemble(atoms: Atoms, ops: Sequence[RawOp], params: Mapping[str, tuple[int, ...]], learnable: int,
             inputs: tuple[tuple[int, ...], ...], min_width: int) -> Graph:  # fmt: skip
    """Group atoms that appear in the same places, name the groups and express every layer's widths by them."""
    maker = {root: op.layer for op in reversed(ops) for root in atoms.roots(op.outgoing).tolist()}
    groups: list[Group] = []
    home: dict[int, str] = {}
    names: Counter[str] = Counter()
    for roots, positions in _members(atoms):
        slices = _slices(positions)
        reason = atoms.reason.get(roots[0], "") or ("" if slices else "channels lie in an irregular pattern")
        layer = maker.get(roots[0], "parameters")
        names[layer] += 1
        name = layer if names[layer] == 1 else f"{layer}#{names[layer]}"
        groups.append(Group(name, len(roots), slices or (), reason, min_width=min(min_width, len(roots))))
        home.update(dict.fromkeys(roots, name))
    prunable = {group.name: group.width for group in groups if not group.frozen}
    layers = tuple(_op(op, name, atoms, home, prunable) for op, name in zip(ops, _op_names(ops), strict=True))
    return Graph(tuple(groups), layers, params, learnable, inputs)


Positions = Mapping[tuple[str, int], list[int]]
"""Entries along each (parameter, dim) that one atom occupies."""


def _members(atoms: Atoms) -> list[tuple[list[int], list[Positions]]]:
    """Atoms with the same places and the same reason for being frozen, in order of birth, with their positions."""
    positions: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, labels in atoms.places.items():
        for at, root in enumerate(atoms.roots(labels).tolist()):
            if root >= 0:
                positions[root][place].append(at)
    families: dict[Any, list[int]] = defaultdict(list)
    for root in sorted(positions):
        counts = tuple((place, len(entries)) for place, entries in positions[root].items())
        families[counts, atoms.reason.get(root, "")].append(root)
    return [(roots, [positions[root] for root in roots]) for roots in families.values()]


def _slices(positions: Sequence[Positions]) -> tuple[Slice, ...] | None:
    """Where the atoms of one group lie, or None when the pattern is not offset + i*step + repeat."""
    result: list[Slice] = []
    for param, dim in positions[0]:
        found = _regular(np.asarray([p[param, dim] for p in positions], dtype=np.int64))
        if found is None:
            return None
        result += [Slice(param, dim, *numbers) for numbers in found]
    return tuple(result)


def _regular(positions: Labels) -> list[tuple[int, int, int]] | None:
    """(offset, repeat, step) of each run of adjacent entries; `positions` has shape ``(channels, entries)``."""
    entries = positions.shape[1]
    starts = [0] + [j for j in range(1, entries) if (positions[:, j] != positions[:, j - 1] + 1).any()]
    result = []
    for j, end in zip(starts, [*starts[1:], entries], strict=True):
        first = positions[:, j]
        steps = np.unique(np.diff(first))
        if len(steps) > 1 or (len(steps) == 1 and steps[0] <= 0):
            return None
        result.append((int(first[0]), end - j, int(steps[0]) if len(steps) else end - j))
    return result


def _op_names(ops: Sequence[RawOp]) -> list[str]:
    """Layer names; a layer that runs again gets ':2', ':3', ..."""
    seen: Counter[str] = Counter()
    names = []
    for op in ops:
        seen[op.layer] += 1
        names.append(op.layer if seen[op.layer] == 1 else f"{op.layer}:{seen[op.layer]}")
    return names


def _op(op: RawOp, name: str, atoms: Atoms, home: Mapping[int, str], prunable: Mapping[str, int]) -> Op:
    def extent(labels: Labels | None, total: int) -> Extent:
        if labels is None:
            return Extent(total)
        counts = Counter(home.get(int(root), "") for root in atoms.roots(labels))
        terms = tuple((group, counts[group] // prunable[group]) for group in counts if group in prunable)
        return Extent(total - sum(repeat * prunable[group] for group, repeat in terms), terms)

    return Op(name, op.kind, op.weight, extent(op.incoming, op.cin), extent(op.outgoing, len(op.outgoing)), op.h, op.w,
              tail="+".join(op.tail), **op.facts)  # fmt: skip
