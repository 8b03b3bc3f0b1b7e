"""Numbers that modules keep of their widths: ``self.width = 26``, and in the forward ``x.split(self.width, 1)``.

Such a number fixes a size in the code, so a trial cut fails there. Where an integer of the module, or a list of them, equals
the number of channels that the failing operator needs, it is made to follow the cut, in all modules of that class. The next
trial shows whether that was the cause; what still fails is frozen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from pydeploy.prune.structure.layout import FIXED, UNUSED, Labels
from pydeploy.prune.structure.operators import KINDS
from pydeploy.prune.structure.state import Tracer
from pydeploy.prune.structure.tape import Call, Tape, Value
from pydeploy.prune.surgery.module_numbers import listed

_PARTS = -1
"""Instead of the number of one count: the sizes of all parts of a split, or of all axes."""
_ROUNDS = 2


def learn(tracer: Tracer, model: nn.Module, call: Call) -> bool:
    """Let numbers of the module that runs `call` follow the cut; False when there is nothing left to try."""
    decisions, turn = tracer.decisions, tracer.decisions.rounds.get(call.site, 0)
    decisions.rounds[call.site] = turn + 1
    options = _options(tracer, model.get_submodule(_owner(model, call.path)), call) if turn < _ROUNDS else {}
    chosen = {name: found[min(turn, len(found) - 1)] for name, found in options.items()}
    if not chosen or chosen == decisions.numbers.get(call.site):
        decisions.numbers.pop(call.site, None)
        return False
    decisions.numbers[call.site] = chosen
    return True


def _owner(model: nn.Module, path: str) -> str:
    """The module whose code gives an operator its sizes: the innermost one on `path` that is not PyTorch's own."""
    while path and type(model.get_submodule(path)).__module__.startswith("torch."):
        path = path.rpartition(".")[0]
    return path


def followed(tracer: Tracer, model: nn.Module, tape: Tape) -> dict[str, list[Labels]]:
    """``{module.attribute: channels that it counts}``, a list of as many as the attribute has items."""
    found: dict[str, list[Labels]] = {}
    for call in tape.calls if tracer.decisions.numbers else ():
        for name, which in tracer.decisions.numbers.get(call.site, {}).items():
            counted = _parts(tracer, call) if which == _PARTS else _counts(tracer, call)[which : which + 1]
            owner = _owner(model, call.path)
            value = vars(model.get_submodule(owner)).get(name)
            if counted and [len(labels) for labels in counted] == (value if isinstance(value, list) else listed(value)):
                found.setdefault(f"{owner}.{name}".lstrip("."), counted)
    return found


def _options(tracer: Tracer, module: nn.Module, call: Call) -> dict[str, list[int]]:
    """Attributes of `module` that equal one of the operator's counts, and which they equal."""
    if type(module).__module__.startswith("torch."):
        return {}
    sizes = [len(labels) for labels in _counts(tracer, call)]
    parts = [len(labels) for labels in _parts(tracer, call)]
    options: dict[str, list[int]] = {}
    for name, value in vars(module).items():
        if type(value) is int and value > 1 and value in sizes:
            options[name] = [number for number, size in enumerate(sizes) if size == value]
        elif type(value) in (list, tuple) and len(value) > 1 and list(value) == parts:
            options[name] = [_PARTS]
    return options


def _counts(tracer: Tracer, call: Call) -> list[Labels]:
    """Channels whose number the operator may have been given, the most likely ones first."""
    source: Any = call.args[0] if call.args else None
    layout = tracer.layout(source)
    found = _parts(tracer, call)
    if layout is not None and call.op == "slice" and (call.args[1] or 0) % source.rank == layout.axis:
        start = (call.args[2] or 0) % source.shape[layout.axis]
        end = start + call.outs[0].shape[layout.axis]
        found += [layout.atoms[:start], layout.atoms[:end], layout.atoms[start:end]]
    if layout is not None and (zeros := layout.atoms == UNUSED).any():
        weights = [labels for value in call.inputs[1:] for labels in _on_axes(tracer, value).values()]
        found += [labels[zeros] for labels in weights if len(labels) == len(zeros)]
    return [*found, *(labels for value in (*call.inputs, *call.outs) for labels in _on_axes(tracer, value).values())]


def _parts(tracer: Tracer, call: Call) -> list[Labels]:
    """The channels in each part of a split, or along each axis of a reshaped tensor."""
    layout = tracer.layout(call.args[0]) if call.args else None
    if KINDS.get(call.op) in ("view", "expand") and len(call.outs) == 1:
        known = _on_axes(tracer, call.outs[0])
        return [known.get(axis, np.full(size, FIXED, dtype=np.int64)) for axis, size in enumerate(call.outs[0].shape)]
    if KINDS.get(call.op) != "split" or layout is None:
        return []
    if sum(out.shape[layout.axis] for out in call.outs) != len(layout.atoms):
        return []
    return [
        _on_axes(tracer, out).get(layout.axis, np.full(out.shape[layout.axis], FIXED, dtype=np.int64))
        for out in call.outs
    ]


def _on_axes(tracer: Tracer, value: Value) -> dict[int, Labels]:
    """Channels along the axes of a value, also of one that is made of parameters."""
    layout, view = tracer.layouts.get(value), tracer.views.get(value)
    found = {} if layout is None else {layout.axis: layout.atoms}
    for axis, origins in enumerate(view.axes if view is not None else ()):
        for origin in origins:
            table = tracer.atoms.places.get((origin.param, origin.dim))
            if table is not None and (table >= 0).any():
                found[axis] = np.where(origin.entries < 0, FIXED, table[origin.entries])
    return found
