"""Latencies of whole engines, measured so that they may be compared, on a computer that others use as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from pydeploy.backends.base import Backend, Engine
from pydeploy.profiling.profile import random_feeds, time_engines
from pydeploy.timing.ratio import ratio
from pydeploy.timing.records import Timing
from pydeploy.timing.reference import Pace, StopRule, Waits, time_in_turns
from pydeploy.timing.rounds import TURN_US, Timer, Watch

ROUNDS, RUNS = 15, 30
"""Rounds and runs a round at least, wherever engines are compared with each other."""
PRECISION, PATIENCE_S = 0.01, 15.0
"""Where a level is kept: the confidence interval that ends the rounds, and how long to wait for the level."""
TRIES = 2
"""How often engines are measured, the first time included, while other load disturbs them."""

Engines = Mapping[str, tuple[Backend, Engine]]
"""Engines by their names in a comparison, each with the backend that runs it."""


def measure_engines(engines: Engines) -> dict[str, Timing]:
    """Latency of several engines, taken in turns so that they may be compared."""
    return {name: samples.timing for name, samples in time_engines(engines, rounds=ROUNDS, runs=RUNS).items()}


def measure_at_level(
    engines: Engines, level_us: float | None, *, patience_s: float | None = None, waits: Waits | None = None,
    watch: Callable[[], Watch] | None = None,
) -> dict[str, Timing]:  # fmt: skip
    """Latency of several engines, each timed between two runs of the one named ``dense`` (see `pydeploy.timing.reference`).

    A computer whose cores are at times shared runs large and small networks at other ratios then: the state in which the
    dense engine takes `level_us`, as it did for the table, is waited for, `patience_s` (15) at most; where it does not come,
    what prevails counts. `watch` makes what notices other load.
    What other load disturbed is measured again, `TRIES` times in all; the least disturbed measurement is kept.
    """
    if not any(backend.target().measured for backend, _ in engines.values()):
        return measure_engines(engines)
    found: list[dict[str, Timing]] = []
    patience_s = PATIENCE_S if patience_s is None else patience_s
    with _timers(engines) as timers:
        while not found or (len(found) < TRIES and _disturbed(found[-1])):
            pace = Pace.survey(timers["dense"], level_us, patience_s, waits)
            stop = StopRule(ROUNDS, 3 * ROUNDS, PRECISION, patience_s)
            found.append(time_in_turns(timers, pace, runs=RUNS, stop=stop, watch=(watch or Watch)(), turn_us=TURN_US))
    return min(reversed(found), key=_disturbed)


def _disturbed(times: Mapping[str, Timing]) -> int:
    """How many of these engines cannot be compared with the dense one without other load."""
    return sum(ratio(timing, times["dense"]).disturbed for timing in times.values())


@contextmanager
def _timers(engines: Engines) -> Iterator[dict[str, Timer]]:
    """All engines open."""
    with ExitStack() as stack:
        timers: dict[str, Timer] = {}
        for name, (backend, engine) in engines.items():
            session = stack.enter_context(backend.open(engine))
            timers[name] = partial(session.time, random_feeds(session.inputs))
        yield timers


def prevailing_us(
    backend: Backend, dense: Engine, level_us: float, patience_s: float | None = None, waits: Waits | None = None
) -> float:
    """`level_us` where the dense engine takes about as long within `patience_s` (15), else what it takes now."""
    with _timers({"dense": (backend, dense)}) as timers:
        patience_s = PATIENCE_S if patience_s is None else patience_s
        return Pace.survey(timers["dense"], level_us, patience_s, waits).level_us


def comes_to_rest(backend: Backend, dense: Engine, level_us: float | None, patience_s: float) -> bool:
    """Whether within `patience_s` nobody else has the cores and the dense engine takes `level_us` (None: whatever it takes)."""
    if not backend.target().measured:
        return True
    with _timers({"dense": (backend, dense)}) as timers:
        return Pace(timers["dense"], level_us or 1.0).rests(Watch(), level_us, patience_s)
