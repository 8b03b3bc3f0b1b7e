"""Layouts and parameter origins move through the calls of a tape, one rule per operator."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pydeploy.prune.structure.decisions import Decisions
from pydeploy.prune.structure.layout import FIXED, Layout, Unknown
from pydeploy.prune.structure.operators import FOLDED
from pydeploy.prune.structure.params import derived, whole
from pydeploy.prune.structure.rules import RULES
from pydeploy.prune.structure.state import Tracer
from pydeploy.prune.structure.tape import Call, Tape, Value
from pydeploy.prune.structure.used import used

_LOG = logging.getLogger(__name__)


def follow(tape: Tape, decisions: Decisions) -> Tracer:
    """The state after all calls of `tape`; what comes out at the end is frozen."""
    tracer = Tracer(decisions, used=used(tape))
    writes = _Writes(tracer, tape)
    for run in tape.runs:
        tracer.batch = run.example.batch
        for index in range(run.begin, run.end):
            tracer.call = tape.calls[index]
            _step(tracer, writes, index, tracer.call)
        tracer.timed = tracer.timed or len(tracer.ops)
    for value in tape.outputs:
        tracer.freeze(value, "model output")
    for value, reason in tape.outside:
        tracer.freeze(value, reason)
    return tracer


def _step(tracer: Tracer, writes: _Writes, index: int, call: Call) -> None:
    for value in call.inputs:
        if value.param and value not in tracer.views:
            tracer.views[value] = whole(value)
    count = len(tracer.ops)
    try:
        if not _params_only(tracer, call):
            _apply(tracer, call)
    except Unknown as unknown:
        _give_up(tracer, call, str(unknown))
    except Exception as fault:
        _LOG.exception(
            "a fault in pydeploy's rule for %s, which therefore stays whole; please report it", call.location
        )
        _give_up(tracer, call, f"a fault in pydeploy's rule ({fault!r})")
    tracer.contents.note(call, tracer.layouts, tracer.views)
    writes.account(index, call)
    if index in tracer.decisions.pairs:
        found = (tracer.layouts.get(value) for value in (*call.inputs, *call.outs))
        tracer.pairs += [layout.atoms for layout in found if layout is not None]
    stop = tracer.decisions.blocked.get(index)
    for value in (*call.inputs, *call.outs) if stop else ():
        tracer.freeze(value, f"{call.location}: {stop}")
    if len(tracer.ops) == count and tracer.ops and call.op not in FOLDED:
        tracer.ops[-1].tail.append(call.op)


def _params_only(tracer: Tracer, call: Call) -> bool:
    """Follow parameters through the views and the arithmetic that layers do on them before use."""
    views, layouts = tracer.views, tracer.layouts
    if not any(v in views for v in call.inputs) or any(v in layouts for v in call.inputs) or not call.outs:
        return False
    made = derived(call.op, views, call.args, call.outs)
    views.update(made)
    return bool(made)


def _apply(tracer: Tracer, call: Call) -> None:
    rule = RULES.get(call.op)
    if rule is None:
        if any(v in tracer.layouts or v in tracer.views for v in call.inputs):
            raise Unknown("no rule for this operator")
        return
    tracer.bound.clear()
    made = rule(tracer, call)
    for value in call.inputs:
        if value in tracer.views and value not in tracer.bound:
            tracer.bind(value, {})
    results: Sequence[Layout | None] = [made] if made is None or isinstance(made, Layout) else made
    for out, layout in zip(call.outs, results, strict=False):
        _set(tracer, out, layout)


def _set(tracer: Tracer, out: Value, layout: Layout | None) -> None:
    if layout is None or not (layout.atoms != FIXED).any():
        return
    if len(layout.atoms) != out.shape[layout.axis]:
        raise Unknown(f"{len(layout.atoms)} channels on an axis of {out.shape[layout.axis]}")
    if len(layout.atoms) == 1:
        tracer.atoms.freeze(layout.atoms, "the only channel")
        return
    tracer.layouts[out] = layout


def _give_up(tracer: Tracer, call: Call, why: str) -> None:
    """Freeze every channel and parameter that went in; what came out carries none."""
    for value in call.inputs:
        tracer.freeze(value, f"{call.location}: {why}")
    for out in call.outs:
        tracer.layouts.pop(out, None)
        tracer.views.pop(out, None)


_PARTLY = "writes into a part of another tensor; make a new one instead (torch.cat, torch.where)"


@dataclass
class _Writes:
    """Which values share memory, to tell writes into a part of a tensor from those into a whole one."""

    tracer: Tracer
    tape: Tape
    last_read: dict[Value, int] = field(init=False)
    """Number of the last call that reads a value."""
    parts: dict[Value, list[Value]] = field(default_factory=dict)
    """Views so far, by the value whose memory they share."""
    wholes: set[Value] = field(default_factory=set)
    """What operators made in place of whole tensors."""

    def __post_init__(self) -> None:
        self.last_read = {value: index for index, call in enumerate(self.tape.calls) for value in call.inputs}
        self.last_read |= dict.fromkeys(self.tape.outputs, len(self.tape.calls))

    def account(self, index: int, call: Call) -> None:
        """Writing channels into a part of another tensor: the whole keeps no account of them, so they must stay. The same for the
        parts of a tensor that is written as a whole, where they are read again.
        """
        if call.written and call.outs and not self._harmless(index, call, call.written[0], call.outs[0]):
            for value in (*call.inputs, call.outs[0], call.written[0].base):
                if value is not None:
                    self.tracer.freeze(value, f"{call.location}: {_PARTLY}")
        for out in call.outs:
            if out.base is not None:
                self.parts.setdefault(out.base, []).append(out)

    def _harmless(self, index: int, call: Call, before: Value, after: Value) -> bool:
        owner = before.base or before
        parts = self.parts.get(owner, ())
        self.tracer.contents.forget({owner, *parts} - {after})
        if before.base is None or before in self.wholes:
            self.wholes.add(after)
            if all(self.last_read.get(part, -1) <= index for part in parts):
                return True
        layouts, views = self.tracer.layouts, self.tracer.views
        old, new = layouts.get(before), layouts.get(after)
        same = old is new or (
            old is not None and new is not None and old.axis == new.axis and np.array_equal(old.atoms, new.atoms)
        )
        return same and not any(value in views for value in call.inputs if value is not before)
