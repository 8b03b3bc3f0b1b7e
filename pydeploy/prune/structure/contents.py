"""What is known of the contents of values: equal entries, zeros, zeros where channels are removed.

Constants made to a computed size (``torch.zeros(y.shape)``) have no channels of their own, and still go with any cut when all
their entries are equal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pydeploy.prune.structure.layout import Layout
from pydeploy.prune.structure.moves import MOVES, axis_maps
from pydeploy.prune.structure.operators import ALIKE, EVEN, FILLED, KINDS, ZEROS
from pydeploy.prune.structure.params import ParamView
from pydeploy.prune.structure.tape import Call, Value
from pydeploy.prune.structure.zeros import stays_zero


@dataclass
class Contents:
    """Facts about values, by value."""

    uniform: set[Value] = field(default_factory=set)
    """Equal entries everywhere."""
    nothing: set[Value] = field(default_factory=set)
    """Zeros everywhere."""
    silent: set[Value] = field(default_factory=set)
    """Zero where channels are silenced, so that sums over channels do not miss them."""
    repeated: dict[Value, set[int]] = field(default_factory=dict)
    """Axes along which one entry is repeated, to a computed size."""

    def note(self, call: Call, layouts: Mapping[Value, Layout], views: Mapping[Value, ParamView]) -> None:
        """Facts about the results of a call, once their layouts are known."""
        inputs = call.inputs
        if call.op in ALIKE or (call.op in EVEN and inputs and all(value in self.uniform for value in inputs)):
            self.uniform.update(call.outs)
        filled = call.op in FILLED and call.args[FILLED[call.op]] == 0
        if call.op in ZEROS or filled or (self.nothing and stays_zero(call.op, call.args, self.nothing.__contains__)):
            self.nothing.update(call.outs)
        self._note_repeated(call)
        labelled = [out for out in call.outs if out in layouts]
        if labelled and (stays_zero(call.op, call.args, self._silent) or self._layer(call, views)):
            self.silent.update(labelled)

    def _note_repeated(self, call: Call) -> None:
        kind = KINDS.get(call.op, "")
        known = self.repeated.get(call.inputs[0], set()) if len(call.inputs) == 1 else set()
        if kind in MOVES and (known or kind in ("expand", "repeat")):
            source = call.inputs[0]
            for out, how in zip(call.outs, axis_maps(call.op, call.args, call.outs) or (), strict=False):
                self.repeated[out] = how.repeated(source.shape, known)
        elif known and call.op in EVEN and call.inputs[0].shape == call.outs[0].shape:
            self.repeated[call.outs[0]] = known

    def _silent(self, value: Value) -> bool:
        return value in self.silent or value in self.nothing

    def _layer(self, call: Call, views: Mapping[Value, ParamView]) -> bool:
        """Whether channels of a layer's result are zero when its parameters are."""
        if call.op not in ("convolution", "native_batch_norm"):
            return False
        made_of = [value for value in call.args[1:3] if value is not None and value not in self.nothing]
        enough = len(made_of) == 2 or (call.op == "convolution" and bool(made_of))
        return enough and all(value in views and views[value].zero for value in made_of)

    def forget(self, values: Collection[Value]) -> None:
        """Something was written into the memory of `values`."""
        for facts in (self.uniform, self.nothing, self.silent):
            facts.difference_update(values)
        for value in values:
            self.repeated.pop(value, None)
