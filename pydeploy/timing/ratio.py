"""How many times as long one engine takes as another: the only place that divides two measured latencies.

* Both must have been timed in turns. The ratio is the median over rounds of what they took in the same round, so a slow
  minute reaches both alike; medians over all samples do not cancel it (`Timing.median_us` of a core that is shared at times
  is the fast mode for a small network and the slow one for a large one).
* A turn counts as a whole, its runs' times added up (`Turn.us`): beside a process that wants the same cores, most runs of a
  small network slip through between two slices and hardly any of a large one does, but their sums stay in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pydeploy.errors import DataError
from pydeploy.timing.records import Timing, Turn

LEAST = 6
"""Rounds for an interval: the least and the largest of six hold the median in 31 of 32 cases."""
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """One engine's latency over another's."""

    value: float
    """Median over the rounds."""
    low: float | None = None
    """Ends of the median's 95 % confidence interval; None for fewer than `LEAST` rounds."""
    high: float | None = None
    rounds: int = 0
    """0 where the engines were not timed in turns and `value` is the ratio of their medians."""
    disturbed: bool = False
    """True when other load was noticed in the rounds that this rests on."""

    def below(self, limit: float) -> bool:
        """Whether the ratio is smaller than `limit` by more than it may be off."""
        return self.high is not None and self.high < limit

    def over(self, earlier: Ratio) -> Ratio:
        """How many times an `earlier` ratio this one is; the interval holds whatever both intervals allow."""
        low, high = (
            None if ours is None or theirs is None else ours / theirs
            for ours, theirs in ((self.low, earlier.high), (self.high, earlier.low))
        )
        return Ratio(self.value / earlier.value, low, high, self.rounds, self.disturbed or earlier.disturbed)

    def known(self, limit: float) -> bool:
        """Whether the interval is narrow enough to tell this value from `limit` times it, with as much left for the other side."""
        return self.low is not None and self.high is not None and (self.high / self.low) ** 2 < limit

    def tells(self, limit: float) -> bool:
        """Whether `limit` lies outside of the interval."""
        return self.low is not None and self.high is not None and not self.low <= limit <= self.high

    def scaled(self, factor: float) -> Ratio:
        """The ratio and its interval multiplied by `factor`."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return replace(self, value=self.value * factor, low=low, high=high)

    @property
    def interval(self) -> str:
        """``95 % interval 0.41 to 0.52, 20 rounds``, or why there is none."""
        if self.low is None or self.high is None:
            return (
                f"{self.rounds} rounds, too few for an interval" if self.rounds else "not timed in turns, no interval"
            )
        return f"95 % interval {self.low:.3f} to {self.high:.3f}, {self.rounds} rounds"

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.interval}{', DISTURBED' if self.disturbed else ''})"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ratio:
        """Raises `DataError` unless `data` is what `to_json` writes."""
        try:
            low, high = (None if data[key] is None else float(data[key]) for key in ("low", "high"))
            return cls(float(data["value"]), low, high, int(data["rounds"]), bool(data["disturbed"]))
        except (KeyError, TypeError, ValueError):
            raise DataError("a ratio has 'value', 'low', 'high', 'rounds' and 'disturbed'; measure it again") from None


def ratio(ours: Timing, theirs: Timing) -> Ratio:
    """``ours / theirs`` of two engines that one measurement timed in turns.

    Which rounds count says `pairs`. Raises `DataError` for timings of different measurements.
    """
    disturbed = ours.disturbed or theirs.disturbed
    if not ours.turns or not theirs.turns:
        return Ratio(ours.median_us / theirs.median_us, disturbed=disturbed)
    used, every = pairs(ours, theirs)
    found = of_rounds([one.us / other.us for one, other in used])
    return replace(found, disturbed=disturbed or not every)


def pairs(ours: Timing, theirs: Timing) -> tuple[list[tuple[Turn, Turn]], bool]:
    """The rounds of two engines that count, each round's turns, and whether all of them were without other load.

    Rounds without other load count alone where there are `LEAST` of them, else all.
    """
    if len(ours.turns) != len(theirs.turns):
        raise DataError(
            f"latencies of {len(ours.turns)} and {len(theirs.turns)} rounds do not belong together; "
            "time both engines in one measurement"
        )
    both = list(zip(ours.turns, theirs.turns, strict=True))
    calm = [(one, other) for one, other in both if one.calm and other.calm]
    used = calm if len(calm) >= min(LEAST, len(both)) else both
    return used, len(used) <= len(calm)


def of_limit(ours: Timing, limit_us: float) -> Ratio:
    """The share that an engine takes of a latency that was not measured, by its median and the median's interval."""
    low, high = (ours.median_us * (1 + side * ours.interval) for side in (-1, 1))
    return Ratio(ours.median_us, low, high, len(ours.turns), ours.disturbed).scaled(1 / limit_us)


def of_rounds(ratios: Sequence[float]) -> Ratio:
    """The median of per-round ratios and its interval by order statistics, which asks nothing of their distribution.

    Of n independent rounds the median lies between the k-th least and the k-th largest with probability
    ``1 - 2 P(Binomial(n, 1/2) < k)``; k is the largest for which that is `CONFIDENCE` (Conover 1971, section 3.2).
    """
    ordered = np.sort(np.asarray(ratios, dtype=np.float64))
    rank = _rank(len(ordered))
    low, high = (float(ordered[rank - 1]), float(ordered[-rank])) if rank else (None, None)
    return Ratio(float(np.median(ordered)), low, high, len(ordered))


def _rank(count: int) -> int:
    """Which order statistics, counted from both ends, hold the median of `count` values; 0 where none do."""
    outside, rank = 0.0, 0
    while rank < count // 2:
        outside += math.comb(count, rank) / 2**count
        if 2 * outside > 1 - CONFIDENCE:
            break
        rank += 1
    return rank
