"""What is known of the values of a tape: channel layouts, parameter origins, layers. Operator rules read and change it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import numpy as np

from pydeploy.prune.structure.contents import Contents
from pydeploy.prune.structure.decisions import FREE, Decisions
from pydeploy.prune.structure.layout import FIXED, UNUSED, Atoms, Labels, Layout, Unknown
from pydeploy.prune.structure.params import Origin, ParamView
from pydeploy.prune.structure.tape import Call, Site, Value


@dataclass
class RawOp:
    """A recorded layer, its channels still as atoms; `h`, `w` are the output's height and width."""

    kind: str
    weight: str
    incoming: Labels | None
    outgoing: Labels
    cin: int
    h: int
    w: int
    facts: Mapping[str, Any]
    used: bool
    """Engines run it (see `pydeploy.prune.structure.used`)."""
    tail: list[str] = field(default_factory=list)

    @property
    def layer(self) -> str:
        return self.weight.removesuffix(".weight")


NO_ROLES: Mapping[int, str] = {}
_NORMED = "a weight's norm or statistics run over its kept entries"
Bound = Labels | None | EllipsisType
Made = Layout | None | Sequence[Layout | None]
"""What a rule gives: the layout of the first result, or one of each."""


@dataclass
class Tracer:
    """What is known after some calls of a tape; rules read and change it."""

    decisions: Decisions
    batch: int = 1
    atoms: Atoms = field(default_factory=Atoms)
    ops: list[RawOp] = field(default_factory=list)
    layouts: dict[Value, Layout] = field(default_factory=dict)
    views: dict[Value, ParamView] = field(default_factory=dict)
    contents: Contents = field(default_factory=Contents)
    choices: dict[Site, int] = field(default_factory=dict)
    """Number of axes that could stay free, at each site where there were several."""
    call: Call | None = None
    bound: set[Value] = field(default_factory=set)
    """Inputs of this call whose parameters were placed."""
    pairs: list[Labels] = field(default_factory=list)
    """Channels of which two must stay."""
    norms: dict[Value, str] = field(default_factory=dict)
    """Steps of norms that are written out: inverse, normed, scaled."""
    timed: int = 0
    """How many of the layers ran in the first run: the ones that cost time, where they are used."""
    used: set[int] = field(default_factory=set)
    """`id` of every call on the way from the inputs to the outputs."""

    def freeze(self, value: Value, reason: str) -> None:
        layout, view = self.layouts.get(value), self.views.get(value)
        if layout is not None:
            self.atoms.freeze(layout.atoms, reason)
        for origin in view.origins if view is not None else ():
            self.freeze_origin(origin, reason)

    def freeze_origin(self, origin: Origin, reason: str) -> None:
        """A parameter used in an unknown way: whatever channels lie in it now or later must stay."""
        if not origin.param:
            return
        entries = np.unique(origin.entries[origin.entries >= 0])
        atoms = self.atoms.fresh(len(entries))
        self.atoms.freeze(atoms, reason)
        self.atoms.place(*origin.place, origin.size, entries, atoms)

    def layout(self, value: Any) -> Layout | None:
        return self.layouts.get(value) if isinstance(value, Value) else None

    def channels(self, value: Value, axis: int) -> Labels | None:
        """Atoms along `axis`, or None when the tensor has no channels. Raises when they lie elsewhere."""
        layout = self.layouts.get(value)
        if layout is None:
            return None
        if layout.axis != axis % value.rank:
            raise Unknown(f"channels lie on axis {layout.axis}, not {axis % value.rank}")
        return layout.atoms

    def bind(self, value: Value, on: Mapping[int, Bound], roles: Mapping[int, str] = NO_ROLES) -> None:
        """Channels `on` the axes of a tensor made of parameters (None: an axis that always stays whole; ``...``: one that meets
        zeros alone, so that any cut is right), and what the operator takes them for.
        """
        view = self.views.get(value)
        if view is None:
            raise Unknown("the weight is computed from something else than parameters")
        self.bound.add(value)
        where = self.call.location if self.call is not None else ""
        for axis, size in enumerate(value.shape):
            atoms = on.get(axis)
            if atoms is Ellipsis:
                continue
            if size > 1 and not view.axes[axis] and atoms is not None:
                raise Unknown("the weight is computed, its channels cannot be told apart")
            labels = np.full(size, FIXED, dtype=np.int64) if atoms is None else atoms
            for origin in view.axes[axis]:
                if origin.param and (size > 1 or origin.size > 1 or atoms is not None):
                    self.atoms.place(*origin.place, origin.size, origin.entries, labels)
                if origin.param and atoms is not None and axis in roles:
                    self.atoms.read_as(*origin.place, origin.size, origin.entries, roles[axis])
                note = origin.note or (_NORMED if origin.place in view.normed else "")
                if note and atoms is not None:
                    self.atoms.notes.append((labels, f"{where}: {note}"))
        self._place_alike(
            view, {o.place for axis, origins in enumerate(view.axes) if on.get(axis) is not None for o in origins}
        )
        for origin in view.lost:
            self.freeze_origin(origin, f"{where}: a weight mixes its entries")
        met = {origin.place for axis in view.axes for origin in axis}
        for origin in view.averaged:
            if origin.place not in met:
                self.freeze_origin(origin, f"{where}: a mean or deviation runs over a weight's entries")

    def _place_alike(self, view: ParamView, cut: set[tuple[str, int]]) -> None:
        """Unite entries that are summed over together: those of the dims of a weight that are `cut` (not its kernel's) with
        those of the vectors that it is multiplied by.
        """
        weights = {param for param, _ in cut}
        for group in view.alike:
            together = self.atoms.fresh(len(group[0].entries))
            for origin in group:
                if origin.place in cut or origin.param not in weights:
                    self.atoms.place(*origin.place, origin.size, origin.entries, together)

    def name(self, value: Value) -> str:
        """The first parameter that a weight is made of."""
        view = self.views.get(value)
        params = [origin.param for origin in view.origins if origin.param] if view is not None else []
        if not params:
            raise Unknown("the weight is no parameter")
        return value.param or params[0]

    def fresh(self, count: int) -> Labels:
        """New atoms; a single channel can never be removed."""
        atoms = self.atoms.fresh(count)
        if count == 1:
            self.atoms.freeze(atoms, "the only channel")
        return atoms

    def choose(self, axes: Sequence[int]) -> int:
        """Which of several axes of this call's result stays free: that of a ``-1``, else the middle one of three (query, key and
        value by heads by features), else the last. Trials turn the choice.
        """
        assert self.call is not None
        sizes = self.call.args[1] if len(self.call.args) > 1 and isinstance(self.call.args[1], list | tuple) else ()
        open_ends = [i for i, axis in enumerate(axes) if axis < len(sizes) and sizes[axis] == -1]
        first = [*open_ends, 1 if len(axes) == 3 else len(axes) - 1]
        order = list(dict.fromkeys([*first, *range(len(axes))]))
        self.choices[self.call.site] = max(self.choices.get(self.call.site, 0), len(axes))
        turn = self.decisions.turns.get(self.call.site, 0)
        return int(order[turn % len(axes)])

    def like(self, site: Site, number: int, parts: Sequence[Value], axis: int) -> Layout | None:
        """Channels along `axis` of part `number` of a concatenation: its own, or, where it is made of zeros, those that it follows
        according to trials; others may be cut as the weights that read them need it.
        """
        part = parts[number]
        if part in self.layouts or part not in self.contents.nothing:
            return self.layouts.get(part)
        chosen = self.decisions.zeros.get((site, number), [])[:1]
        followed = [self.layouts.get(parts[c] if isinstance(c, int) else c) for c in chosen if c != FREE]
        found = followed[0] if followed else None
        return Layout(axis, np.full(part.shape[axis], UNUSED, dtype=np.int64) if found is None else found.atoms)

    def record(self, kind: str, weight: str, incoming: Labels | None, outgoing: Labels, size: Sequence[int], cin: int,
               **facts: Any) -> None:  # fmt: skip
        """Note a layer; `size` is the output's (height, width), `cin` counts input channels that are no atoms, too."""
        self.ops.append(RawOp(kind, weight, incoming, outgoing, int(cin), int(size[0]), int(size[1]), facts,
                              id(self.call) in self.used))  # fmt: skip
