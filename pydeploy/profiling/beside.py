"""One engine's latency beside a reference engine's, until the ratio is known: what stays the same from day to day."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.base import Backend, Engine
from pydeploy.profiling.profile import random_feeds
from pydeploy.timing.ratio import Ratio, pairs, ratio
from pydeploy.timing.records import Timing, Turn
from pydeploy.timing.rounds import TURN_US, Samples, Watch, interleave, unwatched

RUNS = 3
"""Runs in a turn at least; engines that are quick run for `TURN_US`."""
ROUNDS, LOADINGS = 20, 3
"""Rounds for which engines stay loaded, and how often they are loaded before the ratio's interval is looked at."""
PRECISION = 0.015
"""Half the width of the interval, relative to the ratio, that ends the rounds."""
PATIENCE_S = 60.0
"""No further rounds are begun after this."""


@dataclass(frozen=True)
class Beside:
    """What was measured of an engine and of its reference, in turns."""

    ours: Timing
    reference: Timing

    @property
    def ratio(self) -> Ratio:
        """How many times as long the engine takes as the reference."""
        return ratio(self.ours, self.reference)

    @property
    def reference_us(self) -> float:
        """What the reference took: the median over the rounds that count."""
        return float(np.median([other.us for _, other in self._pairs]))

    @property
    def rounds_us(self) -> list[float]:
        """The engine's time in every round that counts, as it would be had the reference taken `reference_us` in all."""
        return [one.us / other.us * self.reference_us for one, other in self._pairs]

    @property
    def known(self) -> bool:
        """Whether the ratio's interval is as narrow as `PRECISION`."""
        found = self.ratio
        return (
            found.low is not None and found.high is not None and found.high - found.low <= 2 * PRECISION * found.value
        )

    @property
    def _pairs(self) -> Sequence[tuple[Turn, Turn]]:
        return pairs(self.ours, self.reference)[0]


def measure_beside(
    ours: tuple[Backend, Engine],
    reference: tuple[Backend, Engine],
    *,
    rounds: int = ROUNDS,
    patience_s: float | None = None,
    enough: Callable[[Ratio], bool] | None = None,
) -> Beside:
    """Time both engines in turns until their ratio is known to `PRECISION`, or the patience (`PATIENCE_S`) ends.

    The rounds end by the width of the ratio's interval, never by its value, so stopping does not move it; but `enough`, where
    it is given, decides instead, such as that a limit lies outside of the interval. Every `rounds` rounds the engines are
    loaded anew, so that what one loading happens to be like (where its memory lies) is among what the interval covers.
    """
    (backend, engine), (other, second) = ours, reference
    measured = backend.target().measured
    watch, until = (
        Watch() if measured else unwatched(),
        time.monotonic() + (PATIENCE_S if patience_s is None else patience_s),
    )
    turn_us = TURN_US if measured else 0.0
    taken: list[dict[str, Samples]] = []
    while True:
        with backend.open(engine) as a, other.open(second) as b:
            timers = {
                "ours": partial(a.time, random_feeds(a.inputs)),
                "reference": partial(b.time, random_feeds(b.inputs)),
            }
            taken.append(interleave(timers, rounds=rounds, runs=RUNS, turn_us=turn_us, retries=0, watch=watch))
        found = Beside(*(_joined([one[name] for one in taken]) for name in timers))
        seen = len(taken) >= LOADINGS and (found.known if enough is None else enough(found.ratio))
        if seen or time.monotonic() > until:
            return found


def _joined(samples: Sequence[Samples]) -> Timing:
    """All rounds of several measurements as one."""
    every: list[NDArray[np.float64]] = [us for one in samples for us in one.rounds_us]
    turns = tuple(turn for one in samples for turn in one.turns)
    return replace(Timing.of(np.concatenate(every), disturbed=any(one.disturbed for one in samples)), turns=turns)
