"""How far apart two engines' outputs are on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.base import Feeds, Session
from pydeploy.errors import DataError, Mismatch


@dataclass(frozen=True, slots=True)
class Difference:
    """Distance of one output of two engines, over all feeds that were compared."""

    output: str
    max_abs: float
    """Largest absolute difference of any entry."""
    relative_l2: float
    """``||a - b|| / ||a||`` with the first engine as reference (0 when both are zero, inf when only `a` is)."""
    cosine: float
    """``a.b / (||a|| ||b||)``; 1 when both are zero, 0 when one is."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences of all outputs, in the first engine's order."""

    feeds: int
    """How many sets of inputs were run."""
    outputs: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        return {"schema": 1, "feeds": self.feeds, "outputs": [difference.to_json() for difference in self.outputs]}


def compare(reference: Session, other: Session, feeds: Iterable[Feeds]) -> Comparison:
    """Run both engines on the same inputs and tell how far their outputs are apart.

    Raises `Mismatch` when their inputs or outputs differ in name, shape or dtype, `DataError` without any feeds.
    NaN in an output makes that output's figures NaN.
    """
    for side in ("inputs", "outputs"):
        mine, theirs = getattr(reference, side), getattr(other, side)
        if list(mine) != list(theirs):
            raise Mismatch(f"the engines' {side} differ ({list(mine)} against {list(theirs)}); compare like with like")
    sums = {spec.name: Sums() for spec in reference.outputs}
    count = 0
    for count, one in enumerate(feeds, start=1):  # noqa: B007 - the last count is read after the loop
        first, second = reference.run(one), other.run(one)
        sums = {name: so_far.plus(first[name], second[name]) for name, so_far in sums.items()}
    if count == 0:
        raise DataError("there is nothing to compare: no feeds were given")
    return Comparison(count, tuple(so_far.difference(name) for name, so_far in sums.items()))


@dataclass(frozen=True, slots=True)
class Sums:
    """Running sums over feeds, in float64."""

    max_abs: float = 0.0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    dd: float = 0.0

    def plus(self, first: NDArray[Any], second: NDArray[Any]) -> Sums:
        a, b = first.ravel().astype(np.float64), second.ravel().astype(np.float64)
        apart = a - b
        # np.maximum keeps NaN, which Python's max may drop.
        max_abs = float(np.maximum(self.max_abs, np.abs(apart).max(initial=0.0)))
        aa, bb, ab, dd = (float(np.dot(x, y)) for x, y in ((a, a), (b, b), (a, b), (apart, apart)))
        return Sums(max_abs, self.aa + aa, self.bb + bb, self.ab + ab, self.dd + dd)

    def difference(self, name: str) -> Difference:
        if self.aa == 0.0 or self.bb == 0.0:
            equal = self.aa == self.bb
            relative = float(np.sqrt(self.dd / self.aa)) if self.aa else (0.0 if equal else float("inf"))
            return Difference(name, self.max_abs, relative, 1.0 if equal else 0.0)
        cosine = self.ab / float(np.sqrt(self.aa) * np.sqrt(self.bb))
        return Difference(name, self.max_abs, float(np.sqrt(self.dd / self.aa)), float(np.clip(cosine, -1.0, 1.0)))
