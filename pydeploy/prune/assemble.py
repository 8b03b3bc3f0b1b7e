"""From atoms to groups: the last step of `trace`, where channel atoms become a `Graph`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from pydeploy.graph import Extent, Graph, Group, Op, Slice
from pydeploy.prune.layout import Atoms, Labels
from pydeploy.prune.propagate import RawOp, Tracer


@dataclass(frozen=True)
class Limits:
    """What the user asks of groups."""

    exclude: Sequence[str] = ()
    """Patterns (``*``, ``?``) of layer names whose output channels must stay."""
    min_width: int = 1
    align: int | Mapping[str, int] = 1
    """Multiple that kept widths must be of; by pattern of group names, or one for all."""

    def alignment(self, name: str) -> int:
        if isinstance(self.align, int):
            return self.align
        return next((n for pattern, n in self.align.items() if fnmatchcase(name, pattern)), 1)


@dataclass(frozen=True)
class Assembly:
    """The graph, and for each atom the number of its group (-1: none)."""

    graph: Graph
    home: Labels
    rank: Labels
    """Number of each atom's channel within its group."""

    def with_numbers(self, atoms: Atoms, numbers: Mapping[str, Sequence[Labels]]) -> Assembly:
        """The same with the numbers of modules that count prunable channels."""
        counted = {place: tuple(_extent(labels, len(labels), atoms, self.home, self.graph.groups) for labels in lists)
                   for place, lists in numbers.items()}  # fmt: skip
        cut = {place: extents for place, extents in counted.items() if any(extent.terms for extent in extents)}
        return replace(self, graph=replace(self.graph, numbers=cut)) if cut else self


def assemble(tracer: Tracer, params: Mapping[str, tuple[int, ...]], learnable: int, inputs: tuple[tuple[int, ...], ...],
             limits: Limits) -> Assembly:  # fmt: skip
    """Group atoms that appear in the same places, name the groups and express every layer's widths by them."""
    atoms = tracer.atoms
    makers: dict[int, str] = {}
    for op in tracer.ops:
        for root in np.unique(atoms.roots(op.outgoing)).tolist():
            makers.setdefault(root, op.layer)
    reasons, notes = atoms.why()
    reasons = {**_excluded(tracer, limits.exclude), **reasons}
    home, rank = np.full((2, atoms.count), -1, dtype=np.int64)
    groups: list[Group] = []
    names: Counter[str] = Counter()
    for roots, slices in _members(atoms, reasons, notes, makers):
        layer = makers[int(roots[0])]
        names[layer] += 1
        name = layer if names[layer] == 1 else f"{layer}#{names[layer]}"
        reason = reasons.get(int(roots[0]), "" if len(roots) > 1 else "its channels only exist together")
        home[roots], rank[roots] = len(groups), np.arange(len(roots))
        groups.append(Group(name, len(roots), slices, reason, min(limits.min_width, len(roots)),
                            1 if reason else limits.alignment(name), notes.get(int(roots[0]), "")))  # fmt: skip
    layers = tuple(
        _op(op, name, atoms, home, groups) for op, name in zip(tracer.ops, _op_names(tracer.ops), strict=True)
    )
    return Assembly(Graph(tuple(groups), layers, params, learnable, inputs), home, rank)


def _excluded(tracer: Tracer, patterns: Sequence[str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for op in tracer.ops:
        for pattern in patterns:
            if fnmatchcase(op.layer, pattern):
                found.update(dict.fromkeys(tracer.atoms.roots(op.outgoing).tolist(), f"excluded by '{pattern}'"))
    return found


def _members(
    atoms: Atoms, reasons: Mapping[int, str], notes: Mapping[int, str], makers: Mapping[int, str]
) -> list[tuple[Labels, tuple[Slice, ...]]]:
    """Atoms with the same places, reason and note, in order of birth, with the slices that they occupy."""
    if not atoms.places:
        return []
    places = list(atoms.places)
    labels = [atoms.roots(found) for found in atoms.places.values()]
    root = np.concatenate(labels)
    place = np.repeat(np.arange(len(places)), [len(found) for found in labels])
    entry = np.concatenate([np.arange(len(found)) for found in labels])
    order = np.lexsort((entry, place, root))
    order = order[root[order] >= 0]
    root, place, entry = root[order], place[order], entry[order]
    starts = np.flatnonzero(np.diff(root, prepend=-1))
    families: dict[tuple[bytes, str, str], list[int]] = defaultdict(list)
    ends = np.append(starts[1:], len(root))
    for at, end in zip(starts.tolist(), ends.tolist(), strict=True):
        atom = int(root[at])
        if atom in makers:
            families[place[at:end].tobytes(), reasons.get(atom, ""), notes.get(atom, "")].append(at)
    found_groups = []
    for (key, _, _), family in families.items():
        own = np.frombuffer(key, dtype=np.int64)
        table = entry[np.asarray(family)[:, None] + np.arange(len(own))]
        for first, last in _regular_runs(table):
            found_groups.append(
                (root[np.asarray(family[first:last])], _slices([places[p] for p in own], table[first:last]))
            )
    return sorted(found_groups, key=lambda found: int(found[0][0]))


def _regular_runs(table: Labels) -> list[tuple[int, int]]:
    """Runs of channels whose entries advance by one constant step per column; mostly one run."""
    steps = np.diff(table, axis=0)
    runs, first = [], 0
    while first < len(table):
        last = first + 1
        if last < len(table) and (steps[first] > 0).all():
            odd = np.flatnonzero((steps[first:] != steps[first]).any(axis=1))
            last = first + 1 + (int(odd[0]) if len(odd) else len(table) - first - 1)
        runs.append((first, last))
        first = last
    return runs


def _slices(places: Sequence[tuple[str, int]], table: Labels) -> tuple[Slice, ...]:
    """Where the channels of one group lie; adjacent columns of one parameter and dim are one slice."""
    result: list[Slice] = []
    column = 0
    while column < len(places):
        end = column + 1
        while end < len(places) and places[end] == places[column] and (table[:, end] == table[:, end - 1] + 1).all():
            end += 1
        step = int(table[1, column] - table[0, column]) if len(table) > 1 else end - column
        result.append(Slice(*places[column], int(table[0, column]), end - column, step))
        column = end
    return tuple(result)


def _op_names(ops: Sequence[RawOp]) -> list[str]:
    """Layer names; a layer that runs again gets ':2', ':3', ..."""
    seen: Counter[str] = Counter()
    names = []
    for op in ops:
        seen[op.layer] += 1
        names.append(op.layer if seen[op.layer] == 1 else f"{op.layer}:{seen[op.layer]}")
    return names


def _op(op: RawOp, name: str, atoms: Atoms, home: NDArray[np.int64], groups: Sequence[Group]) -> Op:
    cin = _extent(op.incoming, op.cin, atoms, home, groups)
    cout = _extent(op.outgoing, len(op.outgoing), atoms, home, groups)
    return Op(name, op.kind, op.weight, cin, cout, op.h, op.w, tail="+".join(op.tail), **op.facts)


def _extent(
    labels: Labels | None, total: int, atoms: Atoms, home: NDArray[np.int64], groups: Sequence[Group]
) -> Extent:
    """How many of `total` channels there are, by the widths of the groups that they are in."""
    if labels is None:
        return Extent(total)
    own = home[atoms.roots(labels[labels >= 0])]
    counts = Counter(own.tolist())  # in order of first occurrence
    terms = tuple((n, count // groups[n].width) for n, count in counts.items() if n >= 0 and not groups[n].frozen)
    fixed = total - sum(repeat * groups[n].width for n, repeat in terms)
    return Extent(fixed, tuple((groups[n].name, repeat) for n, repeat in terms))
