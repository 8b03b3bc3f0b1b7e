"""From atoms to groups: the last step of `trace`, where channel atoms become a `Graph`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pydeploy.errors import ConfigError, nearest
from pydeploy.graph import Extent, Graph, Group, Op, Slice
from pydeploy.guests.patterns import matches
from pydeploy.prune.structure.layout import UNUSED, Atoms, Labels
from pydeploy.prune.structure.state import RawOp, Tracer


@dataclass(frozen=True)
class WidthRules:
    """What the user asks of groups."""

    exclude: Sequence[str] = ()
    """Patterns (``*``, ``?``) of layer names whose output channels must stay."""
    min_width: int = 1
    align: int | Mapping[str, int] = 1
    """Multiple that kept widths must be of; by pattern of group names, or one for all."""

    def alignment(self, name: str) -> int:
        if isinstance(self.align, int):
            return self.align
        return next((n for pattern, n in self.align.items() if matches(name, pattern)), 1)

    def require(self, groups: Sequence[str]) -> None:
        """`ConfigError` for a pattern of `align` that no group's name matches."""
        for pattern in self.align if isinstance(self.align, Mapping) else ():
            if not any(matches(name, pattern) for name in groups):
                raise ConfigError(f"align: no group matches '{pattern}'{nearest(pattern, groups)}")


@dataclass(frozen=True)
class Assembly:
    """The graph, and for each atom the number of its group (-1: none)."""

    graph: Graph
    home: Labels
    rank: Labels
    """Number of each atom's channel within its group."""

    def with_numbers(self, atoms: Atoms, numbers: Mapping[str, Sequence[Labels]]) -> Assembly:
        """The same with the numbers of modules that count prunable channels."""
        counted = {place: tuple(extent_of(labels, len(labels), atoms, self.home, self.graph.groups) for labels in lists)
                   for place, lists in numbers.items()}  # fmt: skip
        cut = {place: extents for place, extents in counted.items() if any(extent.terms for extent in extents)}
        return replace(self, graph=replace(self.graph, numbers={**self.graph.numbers, **cut})) if cut else self


def assemble(tracer: Tracer, params: Mapping[str, tuple[int, ...]], learnable: int, inputs: tuple[tuple[int, ...], ...],
             rules: WidthRules) -> Assembly:  # fmt: skip
    """Group atoms that appear in the same places, name the groups and express every layer's widths by them."""
    atoms = tracer.atoms
    makers = _makers(tracer)
    frozen, texts = atoms.why()
    _exclude(tracer, rules.exclude, frozen, texts)
    noted, notes = atoms.remarks()
    paired = np.zeros(atoms.count, dtype=np.bool_)
    for labels in tracer.pairs:
        paired[atoms.roots(labels[labels >= 0])] = True
    home, rank = np.full((2, atoms.count), -1, dtype=np.int64)
    groups: list[Group] = []
    names: Counter[str] = Counter()
    for roots, slices in _members(atoms, makers, frozen, noted):
        first = int(roots[0])
        layer = tracer.ops[makers[first]].layer
        names[layer] += 1
        name = layer if names[layer] == 1 else f"{layer}#{names[layer]}"
        reason = texts[frozen[first]] if frozen[first] >= 0 else ""
        reason = reason or ("" if len(roots) > 1 else "its channels only exist together")
        note = notes[noted[first]] if noted[first] >= 0 else ""
        home[roots], rank[roots] = len(groups), np.arange(len(roots))
        least = min(max(rules.min_width, 2 if paired[roots].any() else 1), len(roots))
        align = 1 if reason else rules.alignment(name)
        groups.append(Group(name, len(roots), slices, reason, least, align, note))
    rules.require([group.name for group in groups])
    timed = tracer.ops[: tracer.timed]
    ran = [op for op in timed if op.used]
    layers = tuple(_op(op, name, atoms, home, groups) for op, name in zip(ran, _op_names(ran), strict=True))
    idle = tuple(dict.fromkeys(op.layer for op in timed if op.layer not in {other.layer for other in ran}))
    return Assembly(Graph(tuple(groups), layers, params, learnable, inputs, idle=idle), home, rank)


def _makers(tracer: Tracer) -> Labels:
    """Number of the first layer that makes each representative; -1: none."""
    makers = np.full(tracer.atoms.count, -1, dtype=np.int64)
    for number in reversed(range(len(tracer.ops))):
        makers[tracer.atoms.roots(tracer.ops[number].outgoing)] = number
    return makers


def _exclude(tracer: Tracer, patterns: Sequence[str], frozen: Labels, texts: list[str]) -> None:
    """Give outputs of layers that match a pattern that reason, where there is none yet; `ConfigError` where none matches."""
    names = [op.layer for op in tracer.ops]
    for pattern in reversed(patterns):
        if not any(matches(name, pattern) for name in names):
            inside = f" (did you mean '{pattern}.*'?)" if any(name.startswith(f"{pattern}.") for name in names) else ""
            raise ConfigError(f"no layer matches '{pattern}', which is excluded{inside or nearest(pattern, names)}")
        texts.append(f"excluded by '{pattern}'")
        for op in tracer.ops:
            if matches(op.layer, pattern):
                roots = tracer.atoms.roots(op.outgoing)
                frozen[roots[frozen[roots] < 0]] = len(texts) - 1


def _members(atoms: Atoms, makers: Labels, frozen: Labels, noted: Labels) -> list[tuple[Labels, tuple[Slice, ...]]]:
    """Atoms with the same places, reason and note, in order of birth, with the slices that they occupy."""
    if not atoms.places:
        return []
    places = list(atoms.places)
    labels = [atoms.roots(found) for found in atoms.places.values()]
    root = np.concatenate(labels)
    place = np.repeat(np.arange(len(places)), [len(found) for found in labels])
    entry = np.concatenate([np.arange(len(found)) for found in labels])
    made = root >= 0
    made[made] = makers[root[made]] >= 0
    order = np.lexsort((entry[made], place[made], root[made]))
    root, place, entry = (column[made][order] for column in (root, place, entry))
    families: dict[tuple[bytes, int, int], list[Labels]] = defaultdict(list)
    for begins, length in _alike(root, place, frozen, noted):
        first = int(begins[0])
        atom = int(root[first])
        families[place[first : first + length].tobytes(), int(frozen[atom]), int(noted[atom])].append(begins)
    found_groups = []
    for (key, _, _), begin in families.items():
        own, family = np.frombuffer(key, dtype=np.int64), np.concatenate(begin)
        table = entry[family[:, None] + np.arange(len(own))]
        for first, last in _regular_runs(table):
            found_groups.append((root[family[first:last]], _slices(atoms, [places[p] for p in own], table[first:last])))
    return sorted(found_groups, key=lambda found: int(found[0][0]))


def _alike(root: Labels, place: Labels, frozen: Labels, noted: Labels) -> Iterator[tuple[Labels, int]]:
    """Runs of successive atoms with the same places, reason and note: where each atom's rows begin, and how many it has."""
    begins = np.flatnonzero(np.diff(root, prepend=-1))
    lengths = np.diff(begins, append=len(root))
    following = np.arange(len(root)) + np.repeat(lengths, lengths)
    same_place = place == place[np.minimum(following, len(root) - 1)]
    same = np.logical_and.reduceat(same_place, begins)[:-1] if len(begins) else same_place
    atom = root[begins]
    for column in (lengths, frozen[atom], noted[atom]):
        same &= column[1:] == column[:-1]
    starts = np.flatnonzero(np.concatenate([[True], ~same])) if len(begins) else begins
    for first, last in zip(starts.tolist(), [*starts[1:].tolist(), len(begins)], strict=False):
        yield begins[first:last], int(lengths[first])


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


def _slices(atoms: Atoms, places: Sequence[tuple[str, int]], table: Labels) -> tuple[Slice, ...]:
    """Where the channels of one group lie; adjacent columns of one parameter and dim are one slice."""
    result: list[Slice] = []
    column = 0
    while column < len(places):
        end = column + 1
        while end < len(places) and places[end] == places[column] and (table[:, end] == table[:, end - 1] + 1).all():
            end += 1
        step = int(table[1, column] - table[0, column]) if len(table) > 1 else end - column
        roles = atoms.roles_of(*places[column], table[:, column:end])
        result.append(Slice(*places[column], int(table[0, column]), end - column, step, roles))
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
    cin = extent_of(_zeros_as_read(op, atoms), op.cin, atoms, home, groups)
    cout = extent_of(op.outgoing, len(op.outgoing), atoms, home, groups)
    return Op(name, op.kind, op.weight, cin, cout, op.h, op.w, tail="+".join(op.tail), **op.facts)


def _zeros_as_read(op: RawOp, atoms: Atoms) -> Labels | None:
    """Inputs that are zeros are as many as the weight has."""
    table = atoms.places.get((op.weight, int(op.kind != "conv_transpose")))
    if op.incoming is None or table is None or len(table) != len(op.incoming):
        return op.incoming
    return np.where(op.incoming == UNUSED, table, op.incoming)


def extent_of(
    labels: Labels | None, total: int, atoms: Atoms, home: NDArray[np.int64], groups: Sequence[Group]
) -> Extent:
    """How many of `total` channels there are, by the widths of the groups that they are in."""
    if labels is None:
        return Extent(total)
    own = home[atoms.roots(labels[labels >= 0])]
    counts: Counter[int] = Counter()  # in order of first occurrence
    if len(own) and (own == own[0]).all():
        counts[int(own[0])] = len(own)
    else:
        begins = np.flatnonzero(np.diff(own, prepend=-2))
        for n, count in zip(own[begins].tolist(), np.diff(begins, append=len(own)).tolist(), strict=True):
            counts[n] += count
    terms = tuple((n, count // groups[n].width) for n, count in counts.items() if n >= 0 and not groups[n].frozen)
    fixed = total - sum(repeat * groups[n].width for n, repeat in terms)
    return Extent(fixed, tuple((groups[n].name, repeat) for n, repeat in terms))
