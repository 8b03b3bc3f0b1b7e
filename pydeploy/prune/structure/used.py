"""Which calls of a recording an engine runs: those on the way from the model's inputs to its outputs.

Exporters and runtimes drop a layer whose result nobody reads, and compute once what depends on parameters alone. Such layers
cost no time.
"""

from __future__ import annotations

from pydeploy.prune.structure.operators import random
from pydeploy.prune.structure.tape import Tape, Value


def used(tape: Tape) -> set[int]:
    """`id` of every call that is run: its result reaches an output, and comes from more than parameters and constants."""
    constant = _constant(tape)
    live = {_memory(value) for value in (*tape.deployed, *(value for value, _ in tape.outside))}
    found: set[int] = set()
    for call in reversed(tape.calls):
        # A call without tensors gives a number, which may decide the path.
        if not call.outs or any(_memory(value) in live for value in (*call.outs, *call.written)):
            live.update(_memory(value) for value in call.inputs)
            if id(call) not in constant:
                found.add(id(call))
    return found


def _memory(value: Value) -> Value:
    """Views and results of in-place operators stand for the tensor whose memory they share."""
    return value.base or value


def _constant(tape: Tape) -> set[int]:
    """Calls on parameters and on what was made of them alone."""
    values: set[Value] = set()
    calls: set[int] = set()
    for call in tape.calls:
        if not random(call.op) and all(value.param or value in values for value in call.inputs) and not call.written:
            values.update(call.outs)
            calls.add(id(call))
        else:
            values.difference_update(_memory(value) for value in call.written)
    return calls
