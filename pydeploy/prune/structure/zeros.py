"""Which results are zero where arguments are: an operator's answer to channels that are silenced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydeploy.prune.structure.operators import BOUNDED, ZERO
from pydeploy.prune.structure.tape import Value, flat

Zero = Callable[[Value], bool]


def stays_zero(op: str, args: Sequence[Any], zero: Zero) -> bool:
    """Whether entries of the result are zero where those of the arguments that are `zero` are."""
    if op in ("mul", "div"):
        numerators = args[:1] if op == "div" else args[:2]
        return any(isinstance(arg, Value) and zero(arg) for arg in numerators)
    if op in ("add", "sub", "rsub"):
        return all(isinstance(arg, Value) and zero(arg) for arg in args[:2])
    if op == "pow":
        base, power = args[:2]
        return isinstance(base, Value) and zero(base) and isinstance(power, int | float) and power > 0
    if op in BOUNDED:
        low, high = _bounds(op, args)
        return zero(args[0]) and low <= 0 <= high
    if op == "constant_pad_nd":
        return zero(args[0]) and not args[2]
    if op not in ZERO:
        return False
    inputs = [leaf for leaf in flat(args) if isinstance(leaf, Value)]
    return bool(inputs) and all(map(zero, inputs))


def _bounds(op: str, args: Sequence[Any]) -> tuple[float, float]:
    """Limits of a clamp; one that is a tensor is unknown."""
    given = [arg if isinstance(arg, int | float) else float("nan") if arg is not None else None for arg in args[1:3]]
    low, high = (*given, None, None)[:2]
    if op == "clamp_max":
        low, high = None, low
    return (-float("inf") if low is None else low), (float("inf") if high is None else high)
