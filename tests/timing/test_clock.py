"""Noticing other load, and what is kept of rounds that were disturbed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydeploy.timing import rounds as clock
from pydeploy.timing.rounds import DRIFT_LIMIT, FOREIGN_LIMIT, Load, Watch, busy_s, interleave, quiet_rounds, unwatched

linux = pytest.mark.skipif(not clock.STAT.exists(), reason="only Linux tells how busy the cores were (/proc/stat)")


class Machine:
    """A computer of which the test sets every clock. Counters are in hundredths of a second, one row per core."""

    FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")

    def __init__(self, folder: Path, cores: int = 2) -> None:
        self.stat = folder / "stat"
        self.rows = [dict.fromkeys(self.FIELDS, 0) for _ in range(cores)]
        self.wall_s = self.own_s = 0.0
        self.kernel_us = 100.0
        self.spend()

    def spend(self, core: int = 0, *, own_s: float = 0.0, wall_s: float = 0.0, **ticks: int) -> None:
        for name, count in ticks.items():
            self.rows[core][name] += count
        self.own_s += own_s
        self.wall_s += wall_s
        lines = [f"cpu{i} " + " ".join(str(row[name]) for name in self.FIELDS) for i, row in enumerate(self.rows)]
        self.stat.write_text("cpu  9 9 9 9 9 9 9 9 9 9\n" + "\n".join(lines) + "\nintr 123 4 5\nctxt 9\n")

    def watch(self, cores: tuple[int, ...] = (0, 1)) -> Watch:
        return Watch(stat=self.stat, cores=cores, own_s=lambda: self.own_s, wall_s=lambda: self.wall_s,
                     kernel_us=lambda: self.kernel_us)  # fmt: skip


def test_quiet_machine(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    watch = machine.watch()
    watch.start()
    machine.spend(user=100, own_s=1.0, wall_s=1.0)
    machine.spend(core=1, idle=100)
    load = watch.stop()
    assert load == Load(0.0, 100.0, 100.0)
    assert not load.disturbed


@pytest.mark.parametrize("field", ["user", "nice", "system", "irq", "softirq", "steal"])
def test_time_of_others_counts(field: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    watch = machine.watch()
    watch.start()
    machine.spend(user=60, own_s=0.6, wall_s=1.0)
    machine.spend(core=1, **{field: 52})
    load = watch.stop()
    assert load.foreign_share == pytest.approx((0.52 - 0.02) / 2.0)  # two cores, one tick of doubt each
    assert load.disturbed


@pytest.mark.parametrize("field", ["idle", "iowait", "guest", "guest_nice"])
def test_idle_time_does_not_count_and_guests_not_twice(field: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    watch = machine.watch()
    watch.start()
    machine.spend(core=1, wall_s=1.0, **{field: 90})
    assert watch.stop().foreign_share == 0.0


def test_only_usable_cores_count(tmp_path: Path) -> None:
    machine = Machine(tmp_path, cores=12)
    watch = machine.watch(cores=(1,))
    watch.start()
    for core in (0, 2, 10, 11):  # cpu10 and cpu11 begin like cpu1
        machine.spend(core=core, user=100)
    machine.spend(wall_s=1.0)
    assert watch.stop().foreign_share == 0.0


def test_coarse_counters_do_not_raise_an_alarm_in_a_short_round(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    watch = machine.watch()
    watch.start()
    machine.spend(user=2, own_s=0.011, wall_s=0.011)
    machine.spend(core=1, user=1)
    assert not watch.stop().disturbed


@pytest.mark.parametrize(("later_us", "disturbed"), [(100.0, False), (114.0, False), (117.0, True), (300.0, True)])
def test_slower_reference_kernel(later_us: float, disturbed: bool, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    watch = machine.watch()
    watch.start()
    machine.kernel_us = later_us
    load = watch.stop()
    assert load.kernel_drift == pytest.approx(later_us / 100.0 - 1.0)
    assert load.disturbed is disturbed


def test_slow_before_the_work_counts_too(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    watch = machine.watch()
    watch.start()
    machine.kernel_us = 50.0
    assert watch.stop().kernel_drift == pytest.approx(1.0)


def test_without_proc_stat_only_the_kernel_judges(tmp_path: Path) -> None:
    watch = Watch(stat=tmp_path / "none", cores=(0,), kernel_us=lambda: 7.0)
    watch.start()
    assert watch.stop() == Load(0.0, 7.0, 7.0)


def test_unwatched_sees_nothing() -> None:
    watch = unwatched()
    watch.start()
    sum(range(100_000))
    assert not watch.stop().disturbed


@linux
def test_real_counters_advance_with_work() -> None:
    cores = range(4096)
    before, began = busy_s(clock.STAT, cores), time.process_time()
    while time.process_time() - began < 0.1:
        sum(range(1000))
    assert busy_s(clock.STAT, cores) - before > 0.05


def test_reference_kernel_runs() -> None:
    assert 0.0 < clock.reference_kernel_us() < 1e6


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    started = [
        subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


def spin(n: int) -> np.ndarray:
    """n stretches of about 2 ms of work each."""
    samples = np.empty(n)
    for index in range(n):
        start = time.perf_counter()
        while time.perf_counter() - start < 0.002:
            pass
        samples[index] = (time.perf_counter() - start) * 1e6
    return samples


@linux
def test_busy_neighbours_are_noticed() -> None:
    """The kernel is taken out, so that the counters alone must see it."""
    loads: list[Load] = []
    watch = Watch(kernel_us=lambda: 1.0)
    with busy_processes(2 * len(clock._usable())):
        found = interleave({"spin": spin}, rounds=2, runs=60, warmup=1, retries=1, watch=watch,
                           on_round=lambda _done, _all, load: loads.append(load))  # fmt: skip
    assert len(loads) == 3
    assert all(load.foreign_share > FOREIGN_LIMIT for load in loads)
    assert found["spin"].disturbed
    assert found["spin"].timing.disturbed
    assert found["spin"].condition["repeated"] == 1


class Script:
    """A watch whose loads are written down beforehand."""

    def __init__(self, shares: list[float], kernels: list[float] | None = None) -> None:
        self.loads = list(zip(shares, kernels or [100.0] * len(shares), strict=True))
        self.best_us = float("inf")

    def start(self) -> None:
        pass

    def stop(self) -> Load:
        share, kernel_us = self.loads.pop(0)
        self.best_us = min(self.best_us, kernel_us)
        return Load(share, kernel_us, self.best_us)


def counted(shares: list[float], rounds: int, retries: int, kernels: list[float] | None = None) -> clock.Rounds[int]:
    """Each round's result is its number."""
    calls = iter(range(len(shares)))
    return quiet_rounds(lambda: next(calls), rounds=rounds, retries=retries, watch=Script(shares, kernels))


def test_quiet_rounds_are_kept_as_they_come() -> None:
    kept = counted([0, 0, 0, 0.5], rounds=3, retries=9)
    assert kept.results == (0, 1, 2)
    assert not kept.disturbed
    assert kept.condition["repeated"] == 0


def test_disturbed_rounds_are_measured_again() -> None:
    kept = counted([0, 0.5, 0.01, 0.9, 0.02], rounds=3, retries=2)
    assert kept.results == (0, 2, 4)
    assert not kept.disturbed
    assert kept.condition["repeated"] == 2
    assert kept.condition["foreign_share"] == 0.01


def test_least_disturbed_rounds_fill_up_and_are_flagged() -> None:
    kept = counted([0.9, 0.2, 0, 0.3, 0.4], rounds=3, retries=2)
    assert kept.results == (1, 2, 3)
    assert kept.disturbed


def test_rounds_are_judged_again_when_the_kernel_proves_faster() -> None:
    kept = counted([0] * 4, rounds=2, retries=2, kernels=[150.0, 100.0, 101.0, 1.0])
    assert kept.results == (1, 2)
    assert not kept.disturbed


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.data())
def test_kept_rounds_are_the_quietest(shares: list[float], data: st.DataObject) -> None:
    rounds = data.draw(st.integers(1, len(shares)))
    kept = counted(shares, rounds, len(shares) - rounds)
    quiet = [index for index, share in enumerate(shares) if share <= FOREIGN_LIMIT]
    assert len(kept.results) == rounds
    assert list(kept.results) == sorted(kept.results)
    assert kept.disturbed == (len(quiet) < rounds)
    if kept.disturbed:
        assert set(quiet) <= set(kept.results)
        dropped = [share for index, share in enumerate(shares) if index not in kept.results]
        assert not dropped or min(dropped) >= max(shares[index] for index in kept.results)
    else:
        assert list(kept.results) == quiet[:rounds]


def test_progress_counts_up_to_the_rounds_wanted() -> None:
    told: list[tuple[int, int]] = []
    quiet_rounds(lambda: 0, rounds=3, retries=2, watch=Script([0, 0.5, 0.5, 0.5, 0.5]),
                 on_round=lambda done, wanted, _load: told.append((done, wanted)))  # fmt: skip
    assert told == [(1, 3), (1, 3), (1, 3), (2, 3), (3, 3)]


def test_timers_take_turns_in_changing_order() -> None:
    calls: list[tuple[str, int]] = []

    def timer(name: str, value: float) -> clock.Timer:
        def run(n: int) -> np.ndarray:
            calls.append((name, n))
            return np.array([1e6, *[value] * (n - 1)])  # the first run of a turn is slow

        return run

    found = interleave({"a": timer("a", 1), "b": timer("b", 2)}, rounds=2, runs=3, warmup=5, watch=unwatched())
    assert calls[:2] == [("a", 5), ("b", 5)]
    assert [name for name, _ in calls[2:]] in (["a", "b", "b", "a"], ["b", "a", "a", "b"])
    assert list(found) == ["a", "b"]
    assert [samples.tolist() for samples in found["b"].rounds_us] == [[2.0] * 3] * 2
    assert (found["a"].timing.n, found["a"].timing.median_us, found["a"].timing.p90_us) == (6, 1.0, 1.0)


def test_limits_are_what_the_documentation_says() -> None:
    assert Load(FOREIGN_LIMIT * 1.01, 1.0, 1.0).disturbed
    assert Load(0.0, 1.01 * (1 + DRIFT_LIMIT), 1.0).disturbed
    assert not Load(FOREIGN_LIMIT * 0.99, 0.99 * (1 + DRIFT_LIMIT), 1.0).disturbed
