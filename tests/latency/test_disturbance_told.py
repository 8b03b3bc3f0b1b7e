"""``table verify`` and ``profile`` count and say what other load disturbed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from latency_nets import squeeze_excite
from pydeploy.backends.base import open_backend
from pydeploy.cli.console import disturbance
from pydeploy.cli.table_verbs import _disturbance
from pydeploy.latency.check.isolated import isolated_us
from pydeploy.latency.check.verify import Errors, Pair, Verification
from pydeploy.timing.records import Profile, Timing
from pydeploy.timing.reference import Pace
from pydeploy.timing.rounds import Watch, unwatched

NO_ERRORS = Errors(0.0, 0.0, 1.0, 0)
TARGET = open_backend("null").target()


class Others(Watch):
    """A watch on a computer on which others take `shares` of the one core, stretch by stretch."""

    def __init__(self, folder: Path, shares: list[float]) -> None:
        self.stat, self.left, self.ticks, self.now_s = folder / "stat", list(shares), 0, 0.0
        super().__init__(stat=self.stat, cores=(0,), own_s=lambda: 0.0, wall_s=self._wall, kernel_us=lambda: 1.0)
        self.began = False

    def _wall(self) -> float:
        if self.began:  # the end of a stretch of ten seconds
            self.now_s, self.ticks = self.now_s + 10.0, self.ticks + round(1000 * self.left.pop(0))
        self.began = not self.began
        self.stat.write_text(f"cpu0 {self.ticks} 0 0 0 0 0 0 0 0 0\n")
        return self.now_s


class Readings:
    """A reference that takes what a list says, then as long as at its level."""

    def __init__(self, values: list[float]) -> None:
        self.left = list(values)

    def __call__(self, runs: int) -> NDArray[np.float64]:
        return np.full(runs, self.left.pop(0) if self.left else 1.0)


@settings(max_examples=25)
@given(st.data())
def test_isolated_layers_beside_other_load_are_counted(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("layers")
    _, graph = squeeze_excite()
    keys = list(dict.fromkeys(op.key(graph.widths) for op in graph.ops))
    shares = data.draw(st.lists(st.sampled_from([0.0, 0.05, 0.5]), min_size=len(keys), max_size=len(keys)))
    readings = data.draw(
        st.lists(st.sampled_from([1.0, 1.05, 1.5, 0.7]), min_size=len(keys) + 1, max_size=len(keys) + 1)
    )
    times, loud = isolated_us(graph, [{}], open_backend("null"), folder, Pace(Readings(readings), 1.0),
                              Others(folder, shares))  # fmt: skip
    off = [abs(one - 1) > 0.12 for one in readings]
    assert set(times) == set(keys)
    assert loud == {key for i, key in enumerate(keys) if shares[i] > 0.2 or off[i] or off[i + 1]}
    assert isolated_us(graph, [{}], open_backend("null"), folder, Pace.still(), unwatched())[1] == frozenset()


@given(st.lists(st.booleans(), max_size=9), st.integers(0, 9))
def test_verify_says_how_many_plans_and_layers_were_disturbed(flags: list[bool], layers: int) -> None:
    pairs = tuple(Pair({}, 1.0, 1.0, (1.0, 1.0), 0.0, flag, None, 1) for flag in flags)
    found = Verification(NO_ERRORS, NO_ERRORS, None, NO_ERRORS, pairs, 1.0, None, 1.0, 9, layers)
    said = _disturbance(found)
    assert found.to_json()["disturbed"] == sum(flags)
    assert (said == "") == (not any(flags) and layers == 0)
    assert not said or f" {sum(flags)} of {len(flags)} plans and {layers} of 9 isolated layers" in said


@given(st.booleans(), st.lists(st.booleans(), max_size=9))
def test_profile_says_how_many_layers_were_disturbed(whole: bool, flags: list[bool]) -> None:
    layers = {f"conv{i}": Timing(1, 1.0, 1.0, 1.0, flag) for i, flag in enumerate(flags)}
    said = disturbance(Profile(TARGET, Timing(1, 1.0, 1.0, 1.0, whole), layers))
    assert ("the whole network" in said) == whole
    assert (f"{sum(flags)} of {len(flags)} layers" in said) == any(flags)
    assert (said == "") == (not whole and not any(flags))
