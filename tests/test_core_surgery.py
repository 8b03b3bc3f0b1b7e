from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pydeploy import _core

DTYPES = ["bool", "int8", "float16", "float32", "float64", "int64", "complex64", "complex128"]


def gathered(array, entries):
    """NumPy's answer: one take per dimension."""
    for dim, index in enumerate(entries):
        if index is not None:
            array = np.take(array, index, axis=dim)
    return array


@st.composite
def jobs(draw):
    shape = draw(npst.array_shapes(min_dims=0, max_dims=5, max_side=7))
    dtype = draw(st.sampled_from(DTYPES))
    array = (np.arange(np.prod(shape, dtype=int)) % 251).reshape(shape).astype(dtype)
    entries = [
        draw(
            st.none()
            | st.lists(st.integers(0, size - 1), min_size=1, max_size=9).map(lambda picks: np.array(picks, np.int64))
        )
        for size in shape
    ]
    return array, entries


@given(st.lists(jobs(), max_size=5), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_gather_equals_numpy_for_any_shape_dtype_and_entries(many, threads):
    results = _core.gather_many(many, threads)
    assert len(results) == len(many)
    for (array, entries), result in zip(many, results, strict=True):
        expected = gathered(array, entries)
        assert result.dtype == expected.dtype
        assert result.shape == expected.shape
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("threads", [0, 1, 2, 7])
@pytest.mark.parametrize(
    "shape",
    [(300, 200, 3, 3), (90, 80, 5, 5), (90, 80, 7, 7), (2000, 1000), (100_003,), (64, 1, 7, 7), (8, 4, 5000), (3,) * 8],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_large_arrays_are_split_among_threads_without_a_seam(shape, threads):
    rng = np.random.default_rng(0)
    array = rng.standard_normal(shape).astype(np.float32)
    entries = [np.sort(rng.permutation(n)[: max(1, n // 2)]) if n > 3 else None for n in shape]
    (result,) = _core.gather_many([(array, entries)], threads)
    np.testing.assert_array_equal(result, gathered(array, entries))


def test_the_source_is_not_changed_and_the_result_is_its_own():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    before = array.copy()
    (whole,) = _core.gather_many([(array, [None, None])])
    whole[:] = -1
    np.testing.assert_array_equal(array, before)


def test_whole_dimensions_of_length_zero_stay():
    (result,) = _core.gather_many([(np.zeros((0, 3), np.float32), [None, np.array([2, 0])])])
    assert result.shape == (0, 2)


ARRAY = np.zeros((4, 5), np.float32)
BAD_VALUES = {
    "entry too large": ([(ARRAY, [None, None]), (ARRAY, [None, np.array([0, 5])])], "job 1, dim 1: index 5"),
    "negative entry": ([(ARRAY, [np.array([-1]), None])], "job 0, dim 0: index -1"),
    "no entry": ([(ARRAY, [np.array([], np.int64), None])], "job 0, dim 0: the index is empty"),
    "wrong rank": ([(ARRAY, [None])], "job 0: expected one index .* 2 dimensions, got 1"),
    "strided": ([(ARRAY[:, ::2], [None, None])], "job 0: the array must be C-contiguous"),
    "12-byte items": ([(ARRAY.astype("S12"), [None, None])], "1, 2, 4, 8 or 16 bytes, not 12"),
    "9 dimensions": ([(np.zeros((1,) * 9), [None] * 9)], "at most 8 dimensions, not 9"),
    "entry of an empty dimension": ([(np.zeros((0, 2)), [np.array([0]), None])], "index 0 is outside 0..0"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_wrong_values_name_job_dimension_and_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        _core.gather_many(arguments)


BAD_TYPES = {
    "int32 index": ([(ARRAY, [np.array([0], np.int32), None])], "job 0, dim 0: the index must be .* int64"),
    "list index": ([(ARRAY, [[0], None])], "job 0, dim 0: the index"),
    "strided index": ([(ARRAY, [np.arange(4)[::2], None])], "job 0, dim 0: the index"),
    "objects": ([(np.array([[None]]), [None, None])], "holds Python objects"),
    "no array": ([([1.0], [None])], "job 0 holds no NumPy array"),
    "no pair": ([ARRAY], "job 0 must be a pair"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_TYPES.values(), ids=BAD_TYPES)
def test_wrong_types_are_refused_not_converted(arguments, message):
    with pytest.raises(TypeError, match=message):
        _core.gather_many(arguments)


def test_nothing_is_started_for_a_negative_number_of_threads():
    with pytest.raises(ValueError, match="threads must be 0"):
        _core.gather_many([(ARRAY, [None, None])], threads=-1)


def test_concurrent_calls_do_not_disturb_each_other():
    rng = np.random.default_rng(1)
    array = rng.standard_normal((256, 128, 3, 3)).astype(np.float32)
    picks = [np.sort(rng.permutation(256)[:100]) for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda pick: _core.gather_many([(array, [pick, None, None, None])])[0], picks))
    for pick, result in zip(picks, results, strict=True):
        np.testing.assert_array_equal(result, array[pick])


@st.composite
def slicings(draw):
    """Groups with slices on axes, as a concat (offset), a flatten (repeat) and a shuffle (step) make them."""
    widths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    kept = [np.array(sorted(draw(st.sets(st.integers(0, w - 1), min_size=1))), np.int64) for w in widths]
    sizes, slices = [], []
    for axis in range(draw(st.integers(1, 4))):
        end = draw(st.integers(0, 3))
        for group in draw(st.permutations(range(len(widths))))[: draw(st.integers(1, len(widths)))]:
            repeat = draw(st.integers(1, 4))
            step = repeat + draw(st.integers(0, 3))
            slices.append((group, axis, end, repeat, step))
            end += (widths[group] - 1) * step + repeat
        sizes.append(end + draw(st.integers(0, 3)))
    return widths, kept, sizes, slices


def test_an_axis_that_is_one_group_keeps_its_channels_in_ascending_order():
    whole, twice = _core.kept_entries(
        np.array([6, 6]),
        [np.array([4, 0, 4]), np.array([0, 1])],
        np.array([6, 6]),
        np.array([(0, 0, 0, 1, 1), (0, 1, 0, 1, 1), (1, 1, 0, 1, 1)]),
    )
    np.testing.assert_array_equal(whole, [0, 4])
    np.testing.assert_array_equal(twice, [0])


@given(slicings())
@settings(max_examples=150, deadline=None)
def test_kept_entries_equal_numpy_masks(case):
    widths, kept, sizes, slices = case
    masks = [np.ones(size, bool) for size in sizes]
    for group, axis, offset, repeat, step in slices:
        for channel in set(range(widths[group])) - set(kept[group].tolist()):
            masks[axis][offset + channel * step : offset + channel * step + repeat] = False
    found = _core.kept_entries(np.array(widths), kept, np.array(sizes), np.array(slices))
    for mask, entries in zip(masks, found, strict=True):
        np.testing.assert_array_equal(entries, np.flatnonzero(mask))


@pytest.mark.parametrize(
    ("widths", "kept", "slices", "message"),
    [
        ([4], [[4]], [(0, 0, 0, 1, 1)], "group 0: channel 4 is outside 0..4"),
        ([4], [[-1]], [(0, 0, 0, 1, 1)], "channel -1"),
        ([4], [[0]], [(0, 0, 7, 1, 1)], "slice 0: its entries lie outside an axis of 10"),
        ([4], [[0]], [(0, 0, 0, 1, 2**62)], "outside an axis"),
        ([4], [[0]], [(0, 0, 0, 0, 1)], "outside an axis"),
        ([4], [[0]], [(1, 0, 0, 1, 1)], "no such group or axis"),
        ([4], [[0]], [(0, 3, 0, 1, 1)], "no such group or axis"),
        ([4, 4], [[0]], [(0, 0, 0, 1, 1)], "2 groups, got 1"),
    ],
)
def test_slices_that_do_not_fit_are_refused(widths, kept, slices, message):
    picks = [np.array(channels, np.int64) for channels in kept]
    with pytest.raises(ValueError, match=message):
        _core.kept_entries(np.array(widths), picks, np.array([10]), np.array(slices, np.int64))
