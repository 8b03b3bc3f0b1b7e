"""Engines are compared in the state of the computer in which the table was measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from pydeploy.profiling.engines import measure_at_level, prevailing_us
from pydeploy.timing.reference import Waits

AT_ONCE = Waits(survey_s=0.0, pause_s=0.0)


class Computer:
    """Every 40 calls one core is lost for 40: the large network then takes twice as long, the small one as long as before."""

    def __init__(self) -> None:
        self.calls = 0

    def time(self, fast_us: float, slow_us: float, runs: int) -> np.ndarray:
        self.calls += 1
        return np.full(runs, slow_us if self.calls // 40 % 2 else fast_us)

    def engine(self, fast_us: float, slow_us: float):
        @contextmanager
        def opened(_engine: object) -> Iterator[object]:
            yield SimpleNamespace(inputs=(), time=lambda _feeds, runs: self.time(fast_us, slow_us, runs))

        return SimpleNamespace(target=lambda: SimpleNamespace(measured=True), open=opened), None


@pytest.mark.parametrize(("level_us", "dense_us", "plan_us"), [(1000.0, 1000.0, 600.0), (2000.0, 2000.0, 600.0)])
def test_the_state_of_the_table_is_waited_for(level_us: float, dense_us: float, plan_us: float) -> None:
    computer = Computer()
    engines = {"dense": computer.engine(1000.0, 2000.0), "plan": computer.engine(600.0, 600.0)}
    times = measure_at_level(engines, level_us, patience_s=15.0, waits=AT_ONCE)
    assert times["dense"].median_us == pytest.approx(dense_us)
    assert times["plan"].median_us == pytest.approx(plan_us, rel=1e-6)
    assert not times["plan"].disturbed


def test_what_prevails_counts_where_the_state_does_not_come() -> None:
    computer = Computer()
    engines = {"dense": computer.engine(1500.0, 1500.0), "plan": computer.engine(600.0, 600.0)}
    times = measure_at_level(engines, 1000.0, patience_s=0.2, waits=AT_ONCE)
    assert times["dense"].median_us == pytest.approx(1500.0)
    assert times["plan"].median_us == pytest.approx(600.0)


@pytest.mark.parametrize(("level_us", "found_us"), [(1000.0, 1000.0), (1050.0, 1050.0), (3000.0, 1500.0)])
def test_the_speed_of_the_table_is_kept_where_the_computer_comes_near_it(level_us: float, found_us: float) -> None:
    fast_us = 1500.0 if found_us == 1500.0 else 1000.0
    backend, engine = Computer().engine(fast_us, fast_us)
    assert prevailing_us(backend, engine, level_us, 0.2, AT_ONCE) == pytest.approx(found_us)
