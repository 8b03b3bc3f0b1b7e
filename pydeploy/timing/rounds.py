"""Timing that notices when it was disturbed: `Watch` judges a stretch of work, `interleave` repeats what was disturbed.

* Two signs of other load: the share of the cores' time that went to others (Linux, from ``/proc/stat``, steal
  included), and a fixed piece of work (`pydeploy._core.reference_kernel_us`) that takes longer than at its best.
* Networks that are compared run in many short rounds, in turns, so that slow drift reaches them alike.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pydeploy.timing.records import Timing, Turn

T = TypeVar("T")
Timer = Callable[[int], NDArray[np.float64]]
"""Wall times of n runs in microseconds, such as ``lambda n: session.time(feeds, n)``."""

STAT = Path("/proc/stat")
TICK_S = 0.01  # /proc/stat counts in hundredths of a second on every architecture that Linux runs on
FOREIGN_LIMIT = 0.10
"""Share of the usable cores' time spent by others above which a round counts as disturbed."""
DRIFT_LIMIT = 0.15
"""Slowdown of the reference kernel against its best above which a round counts as disturbed."""
KERNEL_REPEATS = 20  # about a tenth of a millisecond: long against a clock's step, short against a round
KERNEL_TRIES = 5
TURN_US = 50_000.0
"""How long each engine's turn lasts where engines are compared with each other; see `runs_of`."""
MOST_RUNS = 1000


@dataclass(frozen=True, slots=True)
class Load:
    """What a `Watch` saw."""

    foreign_share: float
    """Share of the usable cores' time that others took, less what the coarse counters cannot tell."""
    kernel_us: float
    """Time of the reference kernel, the slower of before and after."""
    best_us: float
    """Its best time seen so far."""

    @property
    def kernel_drift(self) -> float:
        """Relative slowdown of the reference kernel."""
        return self.kernel_us / self.best_us - 1.0

    @property
    def severity(self) -> float:
        """Orders loads; above 1 a round counts as disturbed."""
        return max(self.foreign_share / FOREIGN_LIMIT, self.kernel_drift / DRIFT_LIMIT)

    @property
    def disturbed(self) -> bool:
        return self.severity > 1.0

    @property
    def contended(self) -> bool:
        """Whether others had a noticeable share of the cores, whatever the reference kernel says."""
        return self.foreign_share > FOREIGN_LIMIT


def reference_kernel_us() -> float:
    """Time of the compiled reference kernel in microseconds; the median of a few tries, so one interrupt is no sign."""
    from pydeploy import _core

    return median(_core.reference_kernel_us(KERNEL_REPEATS) for _ in range(KERNEL_TRIES))


class Watch:
    """Judges stretches of work: `start`, then `stop` returns the `Load` in between."""

    def __init__(
        self,
        *,
        stat: Path = STAT,
        cores: Sequence[int] | None = None,
        own_s: Callable[[], float] = time.process_time,
        wall_s: Callable[[], float] = time.monotonic,
        kernel_us: Callable[[], float] = reference_kernel_us,
    ) -> None:
        self._stat = stat
        self._cores = _usable() if cores is None else tuple(cores)
        self._own_s = own_s
        self._wall_s = wall_s
        self._kernel_us = kernel_us
        self.best_us = self._before_us = float("inf")
        self._began = (0.0, 0.0, 0.0)

    def start(self) -> None:
        self._before_us = self._kernel()
        self._began = self._clocks()

    def stop(self) -> Load:
        wall, own, busy = (now - then for now, then in zip(self._clocks(), self._began, strict=True))
        slowest = max(self._before_us, self._kernel())
        # Each core's counter may be one tick off.
        foreign = max(0.0, busy - own - TICK_S * len(self._cores))
        share = foreign / (wall * len(self._cores)) if wall > 0 and self._cores else 0.0
        return Load(min(share, 1.0), slowest, self.best_us)

    def _kernel(self) -> float:
        taken = self._kernel_us()
        self.best_us = min(self.best_us, taken)
        return taken

    def _clocks(self) -> tuple[float, float, float]:
        return self._wall_s(), self._own_s(), busy_s(self._stat, self._cores)


def unwatched() -> Watch:
    """A watch that never sees any load: for latencies that are computed, not measured."""
    return Watch(cores=(), kernel_us=lambda: 1.0)


def _usable() -> tuple[int, ...]:
    return tuple(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ()


def busy_s(stat: Path, cores: Sequence[int]) -> float:
    """Seconds that `cores` have spent on anything but idling since boot, stolen time included; 0 without a `stat`.

    Fields of ``/proc/stat`` (proc(5)): user nice system idle iowait irq softirq steal guest guest_nice; the last two
    are contained in the first two.
    """
    try:
        lines = stat.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    names = {f"cpu{core}" for core in cores}
    rows = [line.split() for line in lines if line.split(maxsplit=1)[:1] and line.split(maxsplit=1)[0] in names]
    return TICK_S * sum(int(row[i]) for row in rows for i in (1, 2, 3, 6, 7, 8) if i < len(row))


@dataclass(frozen=True)
class Rounds(Generic[T]):
    """Results of the rounds that were kept, and how quiet the machine was."""

    results: tuple[T, ...]
    disturbed: bool
    """True when too few quiet rounds came about; the least disturbed ones fill up then."""
    condition: Mapping[str, float]
    """Median ``foreign_share`` and ``kernel_drift`` of the kept rounds, and how many were ``repeated``."""
    every: tuple[tuple[T, bool], ...] = ()
    """Results of all rounds in their order, and whether each was quiet."""


@dataclass(frozen=True)
class Samples:
    """What was measured of one network: wall times in microseconds, one array per kept round."""

    rounds_us: tuple[NDArray[np.float64], ...]
    disturbed: bool
    condition: Mapping[str, float] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()
    """One per round, those that were not kept included."""

    @cached_property
    def timing(self) -> Timing:
        """The distribution over all kept rounds, and the turns of all."""
        return replace(Timing.of(np.concatenate(self.rounds_us), disturbed=self.disturbed), turns=self.turns)


def quiet_rounds(
    measure: Callable[[], T],
    *,
    rounds: int,
    retries: int,
    patience_s: float = math.inf,
    watch: Watch | None = None,
    on_round: Callable[[int, int, Load], None] | None = None,
) -> Rounds[T]:
    """Results of `rounds` calls of `measure`, each on a quiet machine if at most `retries` further calls allow it.

    No further call is begun after `patience_s`. `on_round` is told (rounds kept, rounds wanted, load) after each call.
    """
    watch = watch or Watch()
    until = time.monotonic() + patience_s
    loads: list[Load] = []
    results: list[T] = []
    quiet = 0
    while quiet < rounds and len(loads) < rounds + (retries if time.monotonic() < until else 0):
        watch.start()
        results.append(measure())
        loads.append(watch.stop())
        # A faster kernel shows that earlier rounds were slow: they are judged again.
        loads = [replace(load, best_us=watch.best_us) for load in loads]
        quiet = sum(not load.disturbed for load in loads)
        if on_round is not None:
            on_round(max(quiet, len(loads) - retries), rounds, loads[-1])
    ranked = sorted(range(len(loads)), key=lambda index: max(1.0, loads[index].severity))
    kept = sorted(ranked[:rounds])
    condition = {
        "foreign_share": float(np.median([loads[index].foreign_share for index in kept])),
        "kernel_drift": float(np.median([loads[index].kernel_drift for index in kept])),
        "repeated": float(len(loads) - rounds),
    }
    every = tuple((result, not load.disturbed) for result, load in zip(results, loads, strict=True))
    return Rounds(tuple(results[index] for index in kept), quiet < rounds, condition, every)


def interleave(
    timers: Mapping[str, Timer],
    *,
    rounds: int = 10,
    runs: int = 20,
    turn_us: float = 0.0,
    warmup: int = 10,
    retries: int | None = None,
    patience_s: float = math.inf,
    watch: Watch | None = None,
    on_round: Callable[[int, int, Load], None] | None = None,
) -> dict[str, Samples]:
    """Samples of every timer from `rounds` rounds, in each of which all timers take their turn with `runs` runs or more.

    A turn has as many runs as take `turn_us`. A round that other load disturbed is measured again, at most `retries`
    times in all (as often as there are rounds by default) and not after `patience_s`. Every second round goes in the
    opposite order. The first run of a turn finds the caches full of another network's data and is dropped.
    """
    counts = {name: runs_of(timer(warmup), runs, turn_us) for name, timer in timers.items()}
    order = list(timers)

    def one_round() -> dict[str, NDArray[np.float64]]:
        order.reverse()
        return {name: timers[name](counts[name] + 1)[1:] for name in order}

    kept = quiet_rounds(one_round, rounds=rounds, retries=rounds if retries is None else retries, patience_s=patience_s,
                        watch=watch, on_round=on_round)  # fmt: skip
    return {
        name: Samples(
            tuple(result[name] for result in kept.results), kept.disturbed, kept.condition,
            tuple(Turn(float(result[name].mean()), calm) for result, calm in kept.every),
        )
        for name in timers
    }  # fmt: skip


def runs_of(once_us: NDArray[np.float64], least: int, turn_us: float) -> int:
    """How many runs of an engine that took `once_us` make a turn of `turn_us`: at least `least`, at most `MOST_RUNS`.

    Engines of a comparison get turns of equal length, long against the slices in which a system shares out a core: beside
    two processes that wanted both cores, a small network of 0.4 ms was found to take 0.10 of a large one's time in turns of
    50 ms (0.11 to 0.12 alone), and 0.17 in turns of as many runs.
    """
    shortest_us = max(float(np.percentile(once_us, 25)), 1e-3)
    return max(least, min(MOST_RUNS, math.ceil(turn_us / shortest_us)))
