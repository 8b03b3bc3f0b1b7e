"""Timings and targets: distributions with checks, and a refusal to mix two targets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydeploy.errors import DataError, Mismatch
from pydeploy.timing.records import Profile, Target, Timing

TARGET = Target("cpu", "onnxruntime", "1.0", "fp32", 1, 2, {"cores": "2"})


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_timing_is_numpys_percentiles(samples: list[float]) -> None:
    timing = Timing.of(samples)
    assert (timing.p10_us, timing.median_us, timing.p90_us) == pytest.approx(
        tuple(np.percentile(samples, (10, 50, 90)))
    )
    assert timing.n == len(samples)
    assert Timing.from_json(timing.to_json()) == timing


@pytest.mark.parametrize("samples", [[], [float("nan")], [-1.0], [float("inf")]])
def test_impossible_samples_are_refused(samples: list[float]) -> None:
    with pytest.raises(DataError, match="finite, non-negative"):
        Timing.of(samples)


def test_targets_differ_by_name_of_the_fact() -> None:
    other = dataclasses.replace(TARGET, precision="int8", threads=1)
    with pytest.raises(Mismatch, match=r"precision: 'fp32' against 'int8'; threads: 2 against 1"):
        TARGET.require(other, "the table")
    TARGET.require(dataclasses.replace(TARGET), "the table")
    assert TARGET.fingerprint != other.fingerprint
    assert Target.from_json(TARGET.to_json()) == TARGET
    with pytest.raises(DataError, match="not a target"):
        Target.from_json({"device": "x"})


def test_an_analytic_target_says_so() -> None:
    assert "NOT measured" in str(dataclasses.replace(TARGET, measured=False))
    assert "NOT measured" not in str(TARGET)


def test_profile_round_trip() -> None:
    profile = Profile(TARGET, Timing.of([1.0, 2.0]), {"a": Timing.of([1.0])}, {"foreign_share": 0.0})
    assert Profile.from_json(profile.to_json()) == profile
    with pytest.raises(DataError, match="not a profile"):
        Profile.from_json({"target": {}})
