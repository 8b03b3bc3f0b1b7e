from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydeploy import _core

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "float16", "int32", "uint32", "float32", "int64", "uint64", "float64",
          "complex64", "complex128", "longdouble", "S1", "S2", "S4", "V8", "M8[s]", ">f2", ">i4", ">f8"]  # fmt: skip
"""Every size of item, in every kind. bfloat16, which NumPy lacks, is cut as int16."""
MOST_ITEMS = 20_000


def gathered(array, entries):
    """NumPy's answer: one take per dimension."""
    for dim, index in enumerate(entries):
        if index is not None:
            array = np.take(array, index, axis=dim)
    return array


def distinct(shape, dtype):
    """An array whose neighbours differ in every byte, so that nothing can be taken from one place too far."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=int))
    bytes_ = np.random.default_rng(count).integers(0, 256, count * dtype.itemsize, np.uint8)
    if dtype.kind == "b":
        bytes_ &= 1
    return bytes_.view(dtype).reshape(shape)


@st.composite
def shapes(draw):
    """Any rank, a few dimensions up to 100 long, the others short."""
    shape = draw(st.lists(st.integers(1, 4), max_size=8))
    for dim in draw(st.sets(st.integers(0, max(0, len(shape) - 1)), max_size=2)) if shape else ():
        wide = draw(st.integers(1, 100))
        if np.prod(shape, dtype=int) // shape[dim] * wide <= MOST_ITEMS:
            shape[dim] = wide
    return tuple(shape)


@st.composite
def picks(draw, size):
    """What can be asked of a dimension: whole, an ascending part, anything in any order and as often, one, the last."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chosen = {
        "whole": lambda: None,
        "all, named": lambda: np.arange(size),
        "ascending": lambda: np.sort(rng.permutation(size)[: rng.integers(1, size + 1)]),
        "most": lambda: np.sort(rng.permutation(size)[: max(1, size * 3 // 4)]),
        "runs": lambda: np.flatnonzero(
            np.roll(np.repeat(rng.random(size) < 0.6, rng.integers(1, 5))[:size], rng.integers(4))
        ),
        "any order": lambda: rng.permutation(size)[: rng.integers(1, size + 1)],
        "repeated": lambda: rng.integers(0, size, rng.integers(1, 2 * size + 1)),
        "repeated in order": lambda: np.sort(rng.integers(0, size, rng.integers(1, 2 * size + 1))),
        "single": lambda: rng.integers(0, size, 1),
        "the last": lambda: np.array([size - 1]),
    }[draw(st.sampled_from(KINDS))]()
    return None if chosen is None else np.array(chosen if len(chosen) else [0], np.int64)


KINDS = [
    "whole",
    "all, named",
    "ascending",
    "most",
    "runs",
    "any order",
    "repeated",
    "repeated in order",
    "single",
    "the last",
]


@st.composite
def jobs(draw):
    shape = draw(shapes())
    array = distinct(shape, draw(st.sampled_from(DTYPES)))
    entries = [draw(picks(size)) for size in shape]
    while (
        np.prod([size if e is None else len(e) for size, e in zip(shape, entries, strict=True)], dtype=int)
        > 4 * MOST_ITEMS
    ):
        entries[next(dim for dim, e in enumerate(entries) if e is not None and len(e) > 1)] = np.zeros(1, np.int64)
    return array, entries


def assert_same(result, expected):
    """Bit for bit, whatever the bits stand for."""
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    assert result.tobytes() == expected.tobytes()


@given(st.lists(jobs(), max_size=4), st.integers(0, 3))
@settings(max_examples=400, deadline=None)
def test_gather_equals_numpy_for_any_shape_dtype_and_entries(portable, many, threads):
    """On this processor, which may have AVX-512, and as the others run it."""
    results = _core.gather_many(many, threads)
    assert len(results) == len(many)
    for (array, entries), result in zip(many, results, strict=True):
        expected = gathered(array, entries)
        assert_same(result, expected)
        assert_same(portable.gather(array, entries, threads), expected)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "float16", "float32", "float64"])
def test_channels_of_every_width_keep_their_entries(portable, dtype):
    """The cut of a convolution's or a linear layer's inputs: rows of every width, with every share of them kept."""
    rng = np.random.default_rng(0)
    for width in range(1, 101):
        for kernel in ((), (2,), (3, 3)):
            array = distinct((3, width, *kernel), dtype)
            kept = np.sort(rng.permutation(width)[: rng.integers(1, width + 1)])
            entries = [None, kept] + [None] * len(kernel)
            (result,) = _core.gather_many([(array, entries)])
            assert_same(result, array[:, kept])
            assert_same(portable.gather(array, entries), array[:, kept])


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
