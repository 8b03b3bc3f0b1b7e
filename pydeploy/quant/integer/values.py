"""Tensors of the interpreter: integers with a scale that no arithmetic on the data touches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pydeploy.errors import DataError
from pydeploy.quant.integer.fixed_point import Int64s, factor, times

_BITS = 29
"""Of sums over several scales: two values fit into 31 bits."""
NARROW = 2**15 - 1


@dataclass(frozen=True)
class Integers:
    """``values * scale`` is what a float network holds here."""

    values: Int64s
    scale: NDArray[np.float64]
    """One, or an array that broadcasts over `values` (one a channel)."""
    bound: int
    """No sample makes a magnitude larger than this."""

    @property
    def real(self) -> NDArray[np.float64]:
        """As the float network has it."""
        found: NDArray[np.float64] = self.values * self.scale
        return found

    def on(self, scale: float) -> Integers:
        """The same values as multiples of one other scale, by fixed-point factors."""
        if self.scale.size == 1 and float(self.scale.reshape(())) == scale:
            return self
        bound = int(self.bound * float(self.scale.max()) / scale) + 1
        return Integers(times(self.values, *factor(self.scale / scale)), np.asarray(scale, np.float64), bound)

    def even(self) -> Integers:
        """With one scale for all channels."""
        return self if self.scale.size == 1 else common([self])[0]

    def narrow(self) -> Integers:
        """In 16 bits, with one scale."""
        even = self.even()
        return even if even.bound <= NARROW else even.on(float(even.scale) * even.bound / (NARROW - 1))

    def with_room(self, count: int) -> Integers:
        """So coarse that a sum of `count` values fits into 32 bits."""
        if self.bound * count < 2**_BITS:
            return self
        even = self.even()
        return even.on(float(even.scale) * (even.bound + 1) * count / 2.0**_BITS)

    def moved(self, values: Any) -> Integers:
        """Other places of the same values; one scale holds for all."""
        return replace(self, values=np.asarray(values, np.int64))


def common(parts: list[Integers]) -> list[Integers]:
    """All on one scale, as fine as sums of them allow in 32 bits."""
    if len({part.scale.tobytes() for part in parts}) == 1 and parts[0].scale.size == 1:
        return parts
    largest = sum(part.bound * float(part.scale.max()) for part in parts)
    return [part.on(largest / 2.0**_BITS) for part in parts]


Value: TypeAlias = "Integers | NDArray[Any]"
"""Integers with a scale; or an array: levels, a stored tensor, an input."""
Inputs = Sequence[Any]
Attributes = Mapping[str, Any]
Operator = Callable[[Inputs, Attributes, int], Sequence[Value]]


def integers(value: Value, like: Integers | None = None) -> Integers:
    """`value`; a stored float tensor beside `like` in steps of 16 bits."""
    if isinstance(value, Integers):
        return value
    if like is None or not np.issubdtype(value.dtype, np.floating):
        raise DataError("it reads floats; give it a pair")
    top = float(np.abs(value).max(initial=0.0))
    scale = top / NARROW or 1.0
    return Integers(np.rint(value / scale).astype(np.int64), np.asarray(scale, np.float64), NARROW)
