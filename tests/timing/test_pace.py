"""`pydeploy.timing.reference`: on a simulated computer that changes speed, turns recover what an engine takes at one speed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from pydeploy.timing.reference import (
    LEAST,
    READINGS,
    Kept,
    Pace,
    StopRule,
    Unit,
    Waits,
    take_turns,
    time_in_turns,
    timing_of,
)
from pydeploy.timing.rounds import Load, Watch, unwatched

LIMITS = StopRule(rounds=6, most=60, precision=0.02, patience_s=5.0)


@dataclass
class Computer:
    """Runs engines of known cost; `slowdown(t)` says how much slower everything is at simulated time t (seconds)."""

    slowdown: object
    noise: float = 0.01
    now_s: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def engine(self, cost_us: float, sensitivity: float = 1.0):
        def timer(n: int) -> np.ndarray:
            found = []
            for _ in range(n):
                factor = 1 + (self.slowdown(self.now_s) - 1) * sensitivity
                found.append(cost_us * factor * math.exp(self.rng.normal(0, self.noise)))
                self.now_s += found[-1] / 1e6
            return np.array(found)

        return timer


AT_ONCE = Waits(survey_s=0.0, pause_s=0.0)


def survey(computer: Computer) -> Pace:
    return Pace.survey(computer.engine(10_000.0), waits=AT_ONCE)


def test_drift_reaches_engine_and_reference_alike() -> None:
    computer = Computer(lambda t: 1 + 0.08 * math.sin(t))
    pace = survey(computer)
    timers = {"a": computer.engine(4000.0), "b": computer.engine(900.0)}
    found = time_in_turns(timers, pace, runs=5, stop=LIMITS, watch=unwatched())
    for name, cost in (("a", 4000.0), ("b", 900.0)):
        assert found[name].median_us / pace.level_us == pytest.approx(cost / 10_000.0, rel=0.02)
        assert found[name].interval <= 0.02
        assert not found[name].disturbed


def test_slow_phases_do_not_count_even_where_they_change_the_ratio() -> None:
    # The reference gets 2.5 times as slow (matrix units shared), the engine only 1.5 times: their ratio is off then.
    computer = Computer(lambda t: 2.5 if t % 2 > 1 else 1.0)
    pace = survey(computer)
    engine = computer.engine(3000.0, sensitivity=1 / 3)
    found = time_in_turns({"a": engine}, pace, runs=5, stop=LIMITS, watch=unwatched())["a"]
    assert pace.level_us == pytest.approx(10_000.0, rel=0.03)
    assert found.median_us == pytest.approx(3000.0, rel=0.02)
    assert not found.disturbed


def test_the_level_is_what_prevails_and_adopt_level_takes_what_prevails_now() -> None:
    computer = Computer(lambda t: 2.0 if t < 1.0 else 1.0)
    pace = survey(computer)
    assert pace.level_us == pytest.approx(20_000.0, rel=0.03)
    while computer.now_s < 2.0:
        pace.read()
    assert not pace.at_level
    pace.adopt_level()
    assert pace.level_us == pytest.approx(10_000.0, rel=0.03)


def test_a_known_level_is_kept_where_the_computer_comes_near_it() -> None:
    same = Computer(lambda t: 1.05)
    assert Pace.survey(same.engine(10_000.0), 10_000.0, waits=AT_ONCE).level_us == 10_000.0
    later = Computer(lambda t: 2.0 if t < 1.0 else 1.0)
    assert Pace.survey(later.engine(10_000.0), 10_000.0, 60.0, AT_ONCE).level_us == 10_000.0
    never = Computer(lambda t: 2.0)
    assert Pace.survey(never.engine(10_000.0), 10_000.0, waits=AT_ONCE).level_us == pytest.approx(20_000.0, rel=0.03)


def test_a_known_level_that_is_there_is_surveyed_by_few_readings() -> None:
    calls: list[int] = []
    computer = Computer(lambda t: 1.05)
    engine = computer.engine(10_000.0)
    Pace.survey(lambda n: (calls.append(n), engine(n))[1], 10_000.0, 60.0, Waits(survey_s=30.0))
    assert len(calls) == 1 + READINGS


def test_what_never_comes_to_the_level_is_flagged_not_dropped() -> None:
    computer = Computer(lambda t: 3.0)
    pace = Pace(computer.engine(10_000.0), 10_000.0, waits=AT_ONCE)
    stop = StopRule(rounds=4, most=8, precision=0.02, patience_s=0.0)
    found = time_in_turns({"a": computer.engine(3000.0)}, pace, runs=5, stop=stop, watch=unwatched())["a"]
    assert found.disturbed
    assert found.n == 20
    assert found.median_us == pytest.approx(3000.0, rel=0.02)  # scaled to the level


class Busy(Watch):
    """Others have half of the cores during the first `passes` passes."""

    def __init__(self, passes: int) -> None:
        self.passes = passes

    def start(self) -> None:
        self.passes -= 1

    def stop(self) -> Load:
        return Load(0.5 if self.passes >= 0 else 0.0, 1.0, 1.0)


def test_contended_passes_are_repeated() -> None:
    calls: list[int] = []
    kept = take_turns({"a": lambda: calls.append(1)}, Pace.still(), LIMITS, watch=Busy(3))["a"]
    assert (len(calls), len(kept.values), kept.rejected, kept.disturbed) == (9, 6, 3, False)
    kept = take_turns({"a": lambda: None}, Pace.still(), StopRule(4, 6, 0.02, 1.0), watch=Busy(99))["a"]
    assert (len(kept.values), kept.rejected, kept.disturbed) == (4, 6, True)


def test_rounds_stop_at_the_precision_or_at_the_most() -> None:
    computer = Computer(lambda t: 1.0, noise=0.0)
    exact = time_in_turns({"a": computer.engine(3000.0)}, survey(computer), runs=5, stop=LIMITS, watch=unwatched())["a"]
    assert (exact.n, exact.interval) == (30, 0.0)
    noisy = Computer(lambda t: 1.0, noise=0.5)
    pace = Pace(lambda n: np.ones(n), 1.0)
    stop = StopRule(6, 9, 0.001, 5.0)
    found = time_in_turns({"a": noisy.engine(3000.0)}, pace, runs=5, stop=stop, watch=unwatched())["a"]
    assert found.n == 45
    assert found.interval > 0.001


def test_the_interval_counts_units_not_runs() -> None:
    values = tuple(np.full(100, 100.0 + step) for step in range(-5, 6))
    found = timing_of(Kept(values, (1.0,) * 11))
    assert found.median_us == 100.0
    assert found.interval == pytest.approx(1.96 * 1.2533 * 1.4826 * 3 / math.sqrt(11) / 100)


def test_fewer_than_the_least_that_count_is_disturbed() -> None:
    pace = Pace(None, 100.0)
    good = [Unit(1, 100.0, 105.0)] * (LEAST - 1)
    bad = [Unit(2, 150.0, 100.0), Unit(3, 100.0, 100.0, contended=True)]
    kept = pace.select([*good, *bad], 4)
    assert (kept.disturbed, kept.rejected) == (True, 2)
    assert pace.select([*good, *good], 4).values == (1, 1, 1, 1)
