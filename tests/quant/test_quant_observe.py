from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pydeploy._core import Histogram
from pydeploy.errors import ConfigError, DataError, Mismatch
from pydeploy.quant.observe import OBSERVERS, PERCENTILE, Ranges, Seen, observe

Values = NDArray[np.float32]


def seen(values: Values, bins: int = 4096, samples: int = 1) -> Seen:
    found = Seen(Histogram(bins))
    for part in np.array_split(np.ascontiguousarray(values, dtype=np.float32), samples):
        found.histogram.update(part)
        found.extremes.append((float(part.min()), float(part.max())))
    return found


def sample(kind: str) -> Values:
    rng = np.random.default_rng(5)
    values: dict[str, Callable[[], Any]] = {
        "normal": lambda: rng.normal(size=20000),
        "relu": lambda: np.maximum(rng.normal(size=20000), 0),
        "outlier": lambda: np.append(rng.normal(size=20000), 40.0),
        "heavy-tail": lambda: rng.laplace(size=20000) ** 3,
        "never-positive": lambda: -np.abs(rng.normal(size=20000)),
    }
    return np.asarray(values[kind](), dtype=np.float32)


KINDS = ["normal", "relu", "outlier", "heavy-tail", "never-positive"]


def kl_threshold(counts: NDArray[np.uint64], width: float, levels: int) -> float:
    """The entropy threshold by its definition, one candidate after the other."""
    counts = counts[: np.flatnonzero(counts)[-1] + 1].astype(np.float64)
    counts[0] = counts[1]
    best, threshold = np.inf, len(counts) * width
    for size in range(levels, len(counts) + 1):
        reference = counts[:size].copy()
        reference[-1] += counts[size:].sum()
        group = np.arange(size) * levels // size
        filled = counts[:size] > 0
        total, members = np.bincount(group, counts[:size], levels), np.bincount(group, filled, levels)
        candidate = np.where(filled, (total / np.maximum(members, 1))[group], 0.0)
        p, q = reference / reference.sum(), candidate / candidate.sum()
        if (q[p > 0] == 0).any():
            continue
        divergence = float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))
        if divergence <= best + 1e-10:
            best, threshold = min(best, divergence), size * width
    return threshold


def fake_quant_error(values: Values, threshold: float, steps: int) -> float:
    scale = threshold / steps
    return float(np.mean((np.clip(np.rint(values / scale), -steps, steps) * scale - values) ** 2))


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_is_exact(kind: str) -> None:
    values = sample(kind)
    assert observe(seen(values), "minmax") == (values.min(), values.max())


@pytest.mark.parametrize("kind", KINDS)
def test_moving_average_is_the_mean_of_the_samples_extremes(kind: str) -> None:
    values = sample(kind)[:20000].reshape(50, 400)
    expected = values.min(axis=1).astype(np.float64).mean(), values.max(axis=1).astype(np.float64).mean()
    assert observe(seen(values, samples=50), "moving_average") == pytest.approx(expected, rel=1e-14)


def test_moving_average_forgets_the_order_to_the_last_bit() -> None:
    values = (sample("heavy-tail") * np.float32(1e-3)).reshape(100, 200)
    shuffled = np.random.default_rng(1).permutation(values)
    assert observe(seen(values, samples=100), "moving_average") == observe(
        seen(shuffled, samples=100), "moving_average"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_percentile_agrees_with_numpy_to_one_bin(kind: str) -> None:
    values = sample(kind)
    counts = seen(values)
    lo, hi = observe(counts, "percentile")
    expected = np.percentile(np.abs(values), PERCENTILE, method="inverted_cdf")
    assert max(-lo, hi) == pytest.approx(expected, abs=1.01 * counts.histogram.bin_width)


@pytest.mark.parametrize("unsigned", [False, True], ids=["int8", "uint8"])
@pytest.mark.parametrize("kind", KINDS)
def test_entropy_agrees_with_its_definition(kind: str, *, unsigned: bool) -> None:
    found = seen(sample(kind), bins=512)
    counts = found.histogram
    one_sided = kind in ("relu", "never-positive")
    levels = 256 if unsigned and one_sided else 128
    lo, hi = observe(found, "entropy", unsigned=unsigned)
    for side, values, end in ((counts.negative, -sample(kind), -lo), (counts.positive, sample(kind), hi)):
        magnitudes = values[values > 0]
        if not len(magnitudes):
            assert end == 0 or kind == "never-positive"
            continue
        expected = kl_threshold(side, counts.bin_width, levels)
        if (apart := magnitudes[magnitudes >= counts.bin_width]).size:
            floor = np.percentile(apart, 99, method="inverted_cdf")
            expected = max(expected, (np.floor(floor / counts.bin_width) + 1) * counts.bin_width)
        assert end == pytest.approx(min(expected, magnitudes.max()), rel=1e-6)


@given(slope=st.floats(0.001, 0.3), spread=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_a_narrow_side_does_not_clip_the_other(slope: float, spread: float, seed: int) -> None:
    """A leaky ReLU: the positive side is half of a normal distribution and has to be treated as such."""
    values = np.random.default_rng(seed).normal(0, spread, 5000).astype(np.float32)
    leaky = np.where(values < 0, np.float32(slope) * values, values)
    assert observe(seen(leaky), "entropy")[1] == observe(seen(values[values > 0]), "entropy")[1]


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_as_good_as_a_scan_of_the_raw_values(kind: str) -> None:
    values = sample(kind)
    lo, hi = observe(seen(values), "mse")
    largest = float(np.abs(values).max())
    best = min(fake_quant_error(values, largest * share, 127) for share in np.linspace(0.02, 1, 99))
    assert fake_quant_error(values, max(-lo, hi), 127) <= 1.02 * best


@pytest.mark.parametrize("name", OBSERVERS)
@example(data=[0.0, 1e-40])
@given(data=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60))
def test_intervals_are_finite_ascending_and_within_what_was_seen(name: str, data: list[float]) -> None:
    values = np.array(data, np.float32)
    lo, hi = observe(seen(values, bins=256), name)
    assert np.isfinite([lo, hi]).all()
    assert values.min() <= lo or lo == pytest.approx(values.min())
    assert hi <= values.max() or hi == pytest.approx(values.max())
    assert lo <= hi


@pytest.mark.parametrize(("name", "limit"), [("percentile", 10.0), ("entropy", 10.0), ("mse", 39.0)])
def test_an_outlier_is_clipped(name: str, limit: float) -> None:
    # Squared errors weigh one value at 40 heavily: clipping it to 10 costs more than a coarser grid for all others.
    _, hi = observe(seen(sample("outlier")), name)
    assert 3 < hi < limit


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "mostly-zero"])
def test_entropy_never_clips_the_bulk_of_values_far_from_zero(*, sparse: bool) -> None:
    # Where hardly a value is near zero the divergence of the smallest candidates is zero: they hold nothing to lose.
    values = np.random.default_rng(0).normal(1.0, 0.1, 300).astype(np.float32)
    values = np.append(values, np.zeros(100000, np.float32)) if sparse else values
    assert observe(seen(values), "entropy")[1] >= np.percentile(values[:300], 98)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 3.5, -2.0], ids=["zero", "positive", "negative"])
def test_a_constant_is_covered_as_it_is(name: str, value: float) -> None:
    assert observe(seen(np.full(10, value, np.float32)), name) == (value, value)


@pytest.mark.parametrize("name", ["minmax", "moving_average", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("value", [4.47, -4.47, 3e-7, -1e5])
def test_what_is_almost_constant_is_almost_covered(name: str, value: float) -> None:
    data = np.nextafter(np.float32(value), np.float32(0)) * np.array([1, 1 + 3e-7, 1 + 1e-4], np.float32)
    for unsigned in (False, True):
        lo, hi = observe(seen(data), name, unsigned=unsigned)
        assert data.min() <= lo <= hi <= data.max()


def test_one_sided_tensors_stay_one_sided() -> None:
    assert observe(seen(sample("relu")), "entropy")[0] == 0
    assert observe(seen(sample("never-positive")), "entropy")[1] <= 0


def test_unknown_observer_and_empty_histogram() -> None:
    with pytest.raises(ConfigError, match=r"unknown observer 'entrop' .did you mean 'entropy'"):
        observe(seen(sample("normal")), "entrop")
    with pytest.raises(DataError, match="no values were observed"):
        observe(Seen(), "minmax")


RANGES = Ranges({"a": (-0.1, 0.30000001192092896), "b": (0.0, 1e-40)}, "mse", "m" * 64, "d" * 64, 12, unsigned=True)


def test_ranges_survive_json_exactly(tmp_path: Path) -> None:
    RANGES.save(tmp_path / "ranges.json")
    assert Ranges.load(tmp_path / "ranges.json") == RANGES


def test_missing_tensor_names_the_nearest() -> None:
    with pytest.raises(Mismatch, match="lack tensor 'c'"):
        RANGES["c"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, "schema 9"),
        ({"tensors": {"a": [1.0, 0.0]}}, "'a' is .1.0, 0.0."),
        ({"tensors": {"a": [None, 0.0]}}, "not a ranges file"),
        ({"tensors": {"a": [0.0]}}, "not a ranges file"),
        ({"tensors": []}, "not a ranges file"),
        ({"count": "many"}, "not a ranges file"),
    ],
    ids=["schema", "descending", "null", "short", "list", "count"],
)
def test_damaged_ranges_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Ranges.from_json({**RANGES.to_json(), **change})


def test_missing_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    with pytest.raises(DataError, match="does not exist"):
        Ranges.load(path)
    path.write_text(json.dumps(RANGES.to_json())[:40])
    with pytest.raises(DataError, match="truncated"):
        Ranges.load(path)
    path.write_text("[1]")
    with pytest.raises(DataError, match="not a ranges file"):
        Ranges.load(path)
    RANGES.save(path)
    data = json.loads(path.read_text())
    del data["observer"]
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="observer"):
        Ranges.load(path)


def test_ranges_are_immutable() -> None:
    with pytest.raises(AttributeError):
        RANGES.count = 3  # type: ignore[misc]
    assert replace(RANGES, count=3).count == 3
