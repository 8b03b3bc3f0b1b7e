"""Timing on a computer whose speed changes from second to second: every engine is timed between two runs of a reference.

* The reference is an engine itself (the dense network), so it slows down with what the measured engines use: vector
  and matrix units that a neighbour shares, caches, memory. A scalar kernel does not see those.
* A `Unit` is one engine's turn: reference, engine, reference. It counts when both reference times lie at the
  reference's level and nobody else had the cores. What it measured is scaled to that level.
* The level is the speed that prevails, not the best ever seen: a shared processor may run its matrix units at 40 % for
  minutes, and layers suffer unequally then. Away from the level the engines wait; if it does not come back in time,
  the caller may take what prevails for the new one (`Pace.adopt_level`).
* Turns go on until each engine has enough units that count and the median's confidence interval is narrow, or until
  a limit; what did not get there is flagged, never dropped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pydeploy.timing.records import Timing, Turn, median_interval
from pydeploy.timing.rounds import Timer, Watch, runs_of

T = TypeVar("T")

TOLERANCE = 0.12
"""How far a reference time may lie from the level."""
REFERENCE_RUNS = 2  # at least, after one that finds the caches full of another engine's data
READING_US = 2000.0
"""A reading takes at least this long (and at most `MOST_RUNS` runs): a single run of a small network says little."""
MOST_RUNS = 50
READINGS = 12
"""The level is the median of this many readings of the reference."""
LEAST = 3
"""Fewer units than this that count, and the result is flagged as disturbed."""
SURVEY_S = 3.0
PAUSE_S = 0.1
REST_S = 0.5
"""A computer is at rest when nobody else has the cores for this long: the system's counters are too coarse for less."""


@dataclass(frozen=True)
class Unit(Generic[T]):
    """One turn of one engine."""

    value: T
    before_us: float
    after_us: float
    contended: bool = False
    """Others had more of the cores than `clock.FOREIGN_LIMIT` while this turn's pass ran."""

    @property
    def reference_us(self) -> float:
        return (self.before_us + self.after_us) / 2.0


@dataclass(frozen=True)
class Kept(Generic[T]):
    """The units of one engine that were kept, each with the factor that scales its times to the level."""

    values: tuple[T, ...]
    factors: tuple[float, ...]
    disturbed: bool = False
    """True when too few units counted; the nearest to the level stand in for them."""
    rejected: int = 0
    """Units that did not count."""
    units: tuple[tuple[Unit[T], bool], ...] = ()
    """All units in their order, and whether each counted."""


@dataclass(frozen=True, slots=True)
class StopRule:
    """When to stop: after `rounds` units that count and an interval below `precision`, or `most` units, or `patience_s`."""

    rounds: int
    most: int
    precision: float
    patience_s: float


@dataclass(frozen=True, slots=True)
class Waits:
    """How long a computer is watched until its level is told (None: `SURVEY_S`), and the time between looks while it is away."""

    survey_s: float | None = None
    pause_s: float = PAUSE_S


@dataclass
class Pace:
    """The reference and its level. Obtained from `Pace.survey`, or `Pace.still` for computed latencies."""

    timer: Timer | None
    level_us: float
    runs: int = REFERENCE_RUNS
    waits: Waits = Waits()
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=READINGS))

    @classmethod
    def survey(
        cls, timer: Timer, known_us: float | None = None, patience_s: float = 0.0, waits: Waits | None = None
    ) -> Pace:
        """The level is `known_us` if the computer comes near it within `patience_s`, else what prevails for seconds.

        A known level that is there from the start needs no more than the readings that show it.
        """
        once = float(timer(REFERENCE_RUNS + 1).min())
        runs, waits = int(np.clip(READING_US / max(once, 1e-3), REFERENCE_RUNS, MOST_RUNS)), waits or Waits()
        pace, began = cls(timer, known_us or 1.0, runs, waits), time.monotonic()
        until = began + (SURVEY_S if waits.survey_s is None else waits.survey_s)

        def found() -> bool:
            return known_us is not None and pace.at_level

        while len(pace._recent) < READINGS or (not found() and time.monotonic() < until):
            pace.read()
        while known_us is not None and not pace.at_level and time.monotonic() < began + patience_s:
            time.sleep(waits.pause_s)
            pace.read()
        if not found():
            pace.adopt_level()
        return pace

    @classmethod
    def still(cls) -> Pace:
        """A reference that never changes."""
        return cls(None, 1.0)

    def read(self) -> float:
        """The reference's time now."""
        now = 1.0 if self.timer is None else float(np.median(self.timer(self.runs + 1)[1:]))
        self._recent.append(now)
        return now

    def adopt_level(self) -> None:
        """What prevails now becomes the level."""
        self.level_us = float(np.median(self._recent))

    def rests(self, watch: Watch, known_us: float | None, patience_s: float) -> bool:
        """Whether within `patience_s` nobody else has the cores and the reference takes `known_us` (None: whatever it takes).

        That is the level then; otherwise the level stays as it was.
        """
        before_us, until = self.level_us, time.monotonic() + patience_s
        while True:
            watch.start()
            began = time.monotonic()
            while len(self._recent) < READINGS or time.monotonic() < began + REST_S:
                self.read()
            quiet = not watch.stop().contended
            self.level_us = float(np.median(self._recent)) if known_us is None else known_us
            if quiet and self.at_level:
                return True
            self.level_us = before_us
            if time.monotonic() >= until:
                return False
            time.sleep(self.waits.pause_s)
            self._recent.clear()

    def near(self, reference_us: float) -> bool:
        """Whether a reference time lies at the level."""
        return abs(reference_us / self.level_us - 1.0) <= TOLERANCE

    @property
    def at_level(self) -> bool:
        """Whether the reference is mostly at its level now."""
        return self.near(float(np.median(self._recent)))

    def counts(self, unit: Unit[T]) -> bool:
        """Whether the reference was at its level before and after the unit, and nobody else had the cores."""
        return not unit.contended and self._distance(unit) <= TOLERANCE

    def _distance(self, unit: Unit[T]) -> float:
        return max(abs(one / self.level_us - 1.0) for one in (unit.before_us, unit.after_us))

    def select(self, units: Sequence[Unit[T]], least: int) -> Kept[T]:
        """The units that count; where there are fewer than `least`, the nearest to the level."""
        counting = [unit for unit in units if self.counts(unit)]
        disturbed = len(counting) < min(least, LEAST)
        chosen = sorted(units, key=self._distance)[:least] if disturbed else counting
        factors = tuple(self.level_us / unit.reference_us for unit in chosen)
        values = tuple(unit.value for unit in chosen)
        every = tuple((unit, self.counts(unit)) for unit in units)
        return Kept(values, factors, disturbed=disturbed, rejected=len(units) - len(counting), units=every)


def take_turns(
    measures: Mapping[str, Callable[[], T]],
    pace: Pace,
    stop: StopRule,
    *,
    watch: Watch,
    narrow: Callable[[Kept[T]], bool] | None = None,
    together: bool = False,
) -> dict[str, Kept[T]]:
    """The kept units of every engine. `narrow` says whether an engine's units suffice (by default their number does).

    Every second pass goes in the opposite order. Engines that are done drop out, unless all stay `together` to be
    compared pass by pass. Away from the level nothing is measured until the level or the end of the patience comes; then
    whatever is missing is measured as it is.
    """
    units: dict[str, list[Unit[T]]] = {name: [] for name in measures}
    until = time.monotonic() + stop.patience_s

    def finished(name: str) -> bool:
        if len(units[name]) >= stop.most:
            return True
        kept = pace.select(units[name], stop.rounds)
        return not kept.disturbed and len(kept.values) >= stop.rounds and (narrow is None or narrow(kept))

    backwards = False
    while pending := [name for name in measures if not finished(name)]:
        late = time.monotonic() > until
        if late and min(len(units[name]) for name in pending) >= stop.rounds:
            break
        running = list(measures) if together else pending
        _pass(running[::-1] if backwards else running, measures, pace, watch, units, until)
        backwards = not backwards
    return {name: pace.select(found, stop.rounds) for name, found in units.items()}


def _pass(
    names: Sequence[str], measures: Mapping[str, Callable[[], T]], pace: Pace, watch: Watch,
    units: Mapping[str, list[Unit[T]]], until: float,
) -> None:  # fmt: skip
    watch.start()
    before, turns = pace.read(), []
    for name in names:
        while not pace.near(before) and time.monotonic() < until:
            time.sleep(pace.waits.pause_s)
            before = pace.read()
        value = measures[name]()
        after = pace.read()
        turns.append((name, value, before, after))
        before = after
    contended = watch.stop().contended
    for name, value, first, last in turns:
        units[name].append(Unit(value, first, last, contended=contended))


def time_in_turns(
    timers: Mapping[str, Timer], pace: Pace, *, runs: int, stop: StopRule, watch: Watch, turn_us: float = 0.0
) -> dict[str, Timing]:
    """Every engine's latency at the reference's level: the median over its units' medians, and its interval.

    With a `turn_us`, turns last at least that long, all engines take part in every pass, and the timings hold their turns:
    they can be compared with each other (`ratio`).
    """
    counts = {name: runs_of(timer(runs), runs, turn_us) if turn_us else runs for name, timer in timers.items()}

    def turn(timer: Timer, runs: int) -> Callable[[], NDArray[np.float64]]:
        return lambda: timer(runs + 1)[1:]

    def narrow(kept: Kept[NDArray[np.float64]]) -> bool:
        return timing_of(kept).interval <= stop.precision

    measures = {name: turn(timer, counts[name]) for name, timer in timers.items()}
    kept = take_turns(measures, pace, stop, watch=watch, narrow=narrow, together=turn_us > 0)
    timings = {name: timing_of(one) for name, one in kept.items()}
    if not turn_us:
        return timings
    return {name: replace(timings[name], turns=tuple(Turn(float(unit.value.mean()), calm) for unit, calm in one.units))
            for name, one in kept.items()}  # fmt: skip


def timing_of(kept: Kept[NDArray[np.float64]]) -> Timing:
    """The distribution over all kept units; runs of one unit share their fate, so the interval counts units."""
    scaled = [value * factor for value, factor in zip(kept.values, kept.factors, strict=True)]
    medians = np.array([np.median(one) for one in scaled])
    return Timing.of(np.concatenate(scaled), disturbed=kept.disturbed).centred(
        float(np.median(medians)), median_interval(medians)
    )
