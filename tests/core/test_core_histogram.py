from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pydeploy import _core

floats = npst.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32))
halves = npst.arrays(np.float16, st.integers(0, 60), elements=st.floats(width=16))
powers = st.sampled_from([2, 4, 64, 4096])


def counted(bins, *batches):
    histogram = _core.Histogram(bins)
    for batch in batches:
        histogram.update(batch)
    return histogram


def contents(histogram):
    state = histogram.state()
    return {key: value.tolist() if isinstance(value, np.ndarray) else str(value) for key, value in state.items()}


def expected_width(largest, bins):
    width = 2.0**-126
    while bins * width <= largest:
        width *= 2
    return width


@given(floats | halves, powers)
@settings(max_examples=200, deadline=None)
def test_counts_equal_numpy(values, bins):
    histogram = counted(bins, values)
    finite = values[np.isfinite(values)].astype(np.float64)
    width = expected_width(np.abs(finite).max(initial=0.0), bins)
    edges = np.arange(bins + 1) * width
    assert histogram.bin_width == width
    assert histogram.bins == bins
    np.testing.assert_array_equal(histogram.positive, np.histogram(finite[finite >= 0], edges)[0])
    np.testing.assert_array_equal(histogram.negative, np.histogram(-finite[finite < 0], edges)[0])
    assert histogram.count == len(finite)
    assert histogram.nan_count == np.isnan(values).sum()
    assert histogram.inf_count == np.isinf(values).sum()
    if len(finite):
        assert (histogram.minimum, histogram.maximum) == (finite.min(), finite.max())
    else:
        assert np.isnan(histogram.minimum)
        assert np.isnan(histogram.maximum)


@given(floats, powers, st.randoms(use_true_random=False), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_batches_and_their_order_do_not_matter(values, bins, random, parts):
    shuffled = np.array(random.sample(list(values), len(values)), np.float32)
    whole = counted(bins, values)
    assert contents(counted(bins, *np.array_split(shuffled, parts))) == contents(whole)
    merged = _core.Histogram(bins)
    for part in np.array_split(shuffled, parts):
        merged.merge(counted(bins, part))
    assert contents(merged) == contents(whole)


@given(floats, powers)
@settings(deadline=None)
def test_state_survives_json_and_arrays(values, bins):
    histogram = counted(bins, values)
    state = histogram.state()
    assert contents(_core.Histogram.from_state(state)) == contents(histogram)
    as_arrays = {key: np.asarray(value) for key, value in state.items()}
    assert contents(_core.Histogram.from_state(as_arrays)) == contents(histogram)
    listed = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in state.items()}
    nulled = {key: None if value != value else value for key, value in listed.items()}
    assert contents(_core.Histogram.from_state(json.loads(json.dumps(nulled)))) == contents(histogram)


def test_many_threads_count_what_one_counts():
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(3_000_000) * 3).astype(np.float32).reshape(3, 1000, 1000)
    values[1, 5, 5] = 1e9
    values[2, 7] = np.nan
    one, many = _core.Histogram(), _core.Histogram()
    one.update(values, threads=1)
    many.update(values, threads=5)
    assert contents(one) == contents(many)
    assert one.nan_count == 1000


def test_every_half_is_read_exactly():
    halves = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    assert contents(counted(4096, halves)) == contents(counted(4096, halves.astype(np.float32)))


@pytest.mark.parametrize("bins", [2, 4096])
@pytest.mark.parametrize("part", [1, 15, 16, 33])
def test_sixteen_values_at_once_are_counted_like_one_by_one(bins, part):
    """Full vectors and what is left over take different paths where the processor has AVX-512."""
    rng = np.random.default_rng(part)
    values = (rng.standard_normal(1000) * 2.0 ** rng.integers(-140, 126, 1000)).astype(np.float32)
    values[::3] = 0.0
    values[1::9] = -0.0
    values[5:8] = [3.4e38, -3.4e38, 1e-45]
    whole = counted(bins, values)
    assert contents(counted(bins, *np.array_split(values, len(values) // part))) == contents(whole)
    assert whole.count == 1000
    assert whole.positive[0] >= 333


def spread(count, seed):
    """Values of every size that float32 has, zeros of both signs among them."""
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(count) * 2.0 ** rng.integers(-140, 126, count)).astype(np.float32)
    values[::3] = 0.0
    values[1::9] = -0.0
    values[2::101] = [3.4e38, -3.4e38][seed % 2]
    values[3::101] = np.float32(1e-45)
    return values


@pytest.mark.parametrize("exponent", [-126, -20, 0, 104, 126, 127])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 4096, 4099])
def test_portable_bins_are_numpys_bit_for_bit(portable, exponent, count):
    half = 1 << 24
    values = spread(count, count)
    values = values[np.abs(values.astype(np.float64)) < half * 2.0**exponent]
    exact = np.floor(np.abs(values.astype(np.float64)) / 2.0**exponent).astype(np.int64)
    expected = exact + np.where(values < 0, half, 0)
    np.testing.assert_array_equal(portable.bins(values, exponent, half), expected[expected != 0])


@given(floats, powers)
@settings(max_examples=100, deadline=None)
def test_portable_counts_are_the_same(portable, values, bins):
    """The counts of this processor, whatever it has, equal NumPy's (above); so do those without AVX-512."""
    assert portable.histogram(values, bins) == contents(counted(bins, values))


@pytest.mark.parametrize("bins", [2, 4096])
def test_portable_counts_of_many_values_are_numpys(portable, bins):
    values = spread(1_500_000, 0)
    values[7::50_000] = np.nan
    values[9::50_000] = -np.inf
    finite = values[np.isfinite(values)].astype(np.float64)
    edges = np.arange(bins + 1) * expected_width(np.abs(finite).max(), bins)
    for threads in (1, 2):
        found = portable.histogram(values, bins, threads)
        np.testing.assert_array_equal(found["positive"], np.histogram(finite[finite >= 0], edges)[0])
        np.testing.assert_array_equal(found["negative"], np.histogram(-finite[finite < 0], edges)[0])
        assert found == contents(counted(bins, values))


def test_updates_from_several_python_threads_all_count():
    rng = np.random.default_rng(3)
    batches = [(rng.standard_normal(5000) * 10.0 ** rng.integers(-3, 4)).astype(np.float32) for _ in range(40)]
    shared = _core.Histogram()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(shared.update, batches))
    assert contents(shared) == contents(counted(4096, *batches))


def test_merging_with_itself_doubles():
    histogram = counted(4, np.float32([1, -2, np.inf]))
    histogram.merge(histogram)
    assert histogram.count == 4
    assert histogram.inf_count == 2


@pytest.mark.parametrize("bins", [0, 1, 3, 4097, 1 << 25])
def test_bins_must_be_a_power_of_two(bins):
    with pytest.raises(ValueError, match=f"power of two in 2..16777216, not {bins}"):
        _core.Histogram(bins)


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros(3, np.int32), np.array([None])], ids=lambda v: str(v.dtype))
def test_other_dtypes_are_refused(values):
    with pytest.raises(TypeError):
        _core.Histogram().update(values)


def test_strided_values_are_refused():
    for dtype in (np.float32, np.float16):
        with pytest.raises(ValueError, match="C-contiguous"):
            _core.Histogram().update(np.zeros((4, 4), dtype)[:, ::2])


def test_histograms_of_different_size_do_not_merge():
    with pytest.raises(ValueError, match="cannot merge a histogram of 8 bins into one of 4"):
        _core.Histogram(4).merge(_core.Histogram(8))


GOOD = counted(4, np.float32([1.0, -3.0])).state()
BAD_STATES = {
    "other width": ({"exponent": 3}, "bin width"),
    "other halves": ({"negative": np.zeros(8, np.uint64)}, "8 and 4 bins"),
    "negative count": ({"negative": np.array([-1, 0, 0, 0])}, "negative or absurdly large"),
    "no extremes": ({"minimum": None, "maximum": None}, "contradict"),
    "empty but bounded": ({"negative": [0] * 4, "positive": [0] * 4}, "contradict"),
}


@pytest.mark.parametrize(("change", "message"), BAD_STATES.values(), ids=BAD_STATES)
def test_contradicting_states_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        _core.Histogram.from_state({**GOOD, **change})


@pytest.mark.parametrize("key", sorted(GOOD))
def test_incomplete_states_name_what_is_missing(key):
    with pytest.raises(ValueError, match=f"lacks '{key}'"):
        _core.Histogram.from_state({k: v for k, v in GOOD.items() if k != key})
