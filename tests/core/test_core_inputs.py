"""Every public function of the core with arrays and iterables of every make: the right result, or one clear error."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from core_calls import CALLS, leaves, packed, plain, public, replaced
from pydeploy import _core
from pydeploy.errors import Infeasible

WITH_ADDRESS_SANITIZER = "address" in os.environ.get("PYDEPLOY_SANITIZERS", "")
needs_refusal = pytest.mark.skipif(
    WITH_ADDRESS_SANITIZER, reason="AddressSanitizer ends the process where memory is refused"
)


def test_every_public_function_has_a_call() -> None:
    assert sorted(public()) == sorted(CALLS)


def places(kind: Any) -> list[tuple[str, tuple[Any, ...]]]:
    return [
        (name, path) for name, call in CALLS.items() for path, leaf in leaves(call.arguments) if isinstance(leaf, kind)
    ]


def label(value: Any) -> str:
    return value if isinstance(value, str) else ".".join(map(str, value))


def at(name: str, path: tuple[Any, ...]) -> Any:
    return next(leaf for place, leaf in leaves(CALLS[name].arguments) if place == path)


def run(name: str, path: tuple[Any, ...], new: Any) -> Any:
    return plain(CALLS[name].function(**replaced(CALLS[name].arguments, path, new)))


ERRORS = (TypeError, ValueError, MemoryError, Infeasible)
"""What may be said of an argument."""


def error_of(function: Callable[..., Any], *arguments: Any, **named: Any) -> BaseException | None:
    try:
        function(*arguments, **named)
    except ERRORS as error:
        return error
    return None


def assert_clear(error: BaseException) -> None:
    """A sentence that says what was wrong, not what happened inside."""
    text = str(error)
    assert 10 < len(text) < 600, text
    assert text.count("\n") == 0, text
    for inside in ("std::", "vector", "incompatible", "cast", "Unable to", "bad_alloc"):
        assert inside not in text, text


class Plain(np.ndarray):
    """A subclass that changes nothing."""


class Liar(np.ndarray):
    """A subclass whose Python side says nothing true."""

    shape = property(lambda _: (99, 99, 99))  # type: ignore[assignment]
    ndim = property(lambda _: 17)  # type: ignore[assignment]
    size = property(lambda _: 1 << 60)  # type: ignore[assignment]
    nbytes = property(lambda _: 1 << 60)  # type: ignore[assignment]
    itemsize = property(lambda _: 0)  # type: ignore[assignment]
    data = property(lambda _: None)  # type: ignore[assignment]

    def __len__(self) -> int:
        return 1 << 40

    def __iter__(self) -> Any:
        return iter(())

    def copy(self, order: Any = "C") -> Any:
        return None

    def __array__(self, *_: Any, **__: Any) -> Any:
        return np.zeros(3)


def misaligned(array: Any) -> Any:
    """The same values one byte beside where they should begin."""
    memory = np.empty(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def read_only(array: Any) -> Any:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


RIGHT = {
    "misaligned": misaligned,
    "read-only": read_only,
    "subclass": lambda a: a.copy().view(Plain),
    "lying subclass": lambda a: a.copy().view(Liar),
    "masked": lambda a: np.ma.array(a.copy()),
    "record array": lambda a: a.copy().view(np.recarray),
    "memory of bytes": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "strides of one entry": lambda a: np.lib.stride_tricks.as_strided(a.copy(), a.shape, a.strides),
}
"""The same values in an array that NumPy, too, calls C-contiguous."""


@pytest.mark.parametrize("make", RIGHT.values(), ids=RIGHT)
@pytest.mark.parametrize(("name", "path"), places(np.ndarray), ids=label)
def test_arrays_of_another_make_give_the_same_result(name: str, path: tuple[Any, ...], make: Any) -> None:
    assert run(name, path, make(at(name, path))) == CALLS[name]()


def strided(array: Any) -> Any:
    return np.repeat(array, 2, axis=-1)[..., ::2]


SAME_OR_ERROR = {
    "strided": strided,
    "backwards": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "Fortran": np.asfortranarray,
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "strided, misaligned": lambda a: strided(misaligned(a)),
    "a field": lambda a: np.rec.fromarrays([a, a]).f0,
    "objects": lambda a: a.astype(object),
    "float16": lambda a: a.astype(np.float16),
    "float32": lambda a: a.astype(np.float32),
    "complex": lambda a: a.astype(np.complex128),
    "int32": lambda a: np.asarray(a, np.int32),
    "list": lambda a: a.tolist(),
    "tuple": lambda a: tuple(a.tolist()),
}
"""The same values, or nearly, in what a function may read or refuse."""

EXACT = {"strided", "backwards", "Fortran", "other byte order", "strided, misaligned", "a field", "list", "tuple"}


@pytest.mark.parametrize("kind", SAME_OR_ERROR)
@pytest.mark.parametrize(("name", "path"), places(np.ndarray), ids=label)
def test_arrays_that_must_be_converted_are_or_are_refused(name: str, path: tuple[Any, ...], kind: str) -> None:
    with np.errstate(all="ignore"):
        made = SAME_OR_ERROR[kind](at(name, path))
    try:
        found = run(name, path, made)
    except (TypeError, ValueError) as error:
        assert_clear(error)
        return
    if kind in EXACT and made is not None:
        assert name == "gather_many" or found == CALLS[name]()  # which keeps the dtype: test_core_surgery.py
    assert found == run(name, path, made)


NONSENSE = {
    "zero-dimensional": lambda a: np.array(a.reshape(-1)[0]),
    "no entries": lambda a: a[:0].copy(),
    "no entries in the last dimension": lambda a: a[..., :0].copy(),
    "one entry": lambda a: a.reshape(-1)[:1].copy(),
    "flat": lambda a: a.reshape(-1).copy(),
    "one more dimension": lambda a: a[None].copy(),
    "nine dimensions": lambda a: a.reshape((1,) * (9 - a.ndim) + a.shape).copy(),
    "zeros": np.zeros_like,
    "the largest": lambda a: np.full_like(a, np.finfo(a.dtype).max if a.dtype.kind == "f" else np.iinfo(a.dtype).max),
    "the smallest": lambda a: np.full_like(a, np.finfo(a.dtype).min if a.dtype.kind == "f" else np.iinfo(a.dtype).min),
    "NaN": lambda a: np.full_like(a, np.nan) if a.dtype.kind == "f" else a,
    "infinity": lambda a: np.full_like(a, np.inf) if a.dtype.kind == "f" else a,
    "times": lambda a: np.zeros(a.shape, "M8[s]"),
    "text": lambda a: a.astype("S8"),
    "records": lambda a: np.rec.fromarrays([a, a]),
    "nothing": lambda _: None,
    "a word": lambda _: "word",
    "bytes": lambda _: b"bytes",
    "a number": lambda _: 3,
    "a huge number": lambda _: 1 << 70,
    "a dict": lambda _: {},
    "a type": lambda _: np.ndarray,
    "the module": lambda _: _core,
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=needs_refusal if kind == "the largest" else []) for kind in NONSENSE]
)
@pytest.mark.parametrize(("name", "path"), places(np.ndarray), ids=label)
def test_what_makes_no_sense_gives_a_result_or_one_clear_error(name: str, path: tuple[Any, ...], kind: str) -> None:
    made = NONSENSE[kind](at(name, path))
    try:
        found = run(name, path, made)
    except ERRORS as error:
        assert_clear(error)
    else:
        assert found == run(name, path, made)


class Lazy:
    """A sequence that makes its items when asked, and keeps none."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return fresh(self.items[index])


class Boaster(Lazy):
    """Says that it has more than there is."""

    def __len__(self) -> int:
        return 1 << 60


def fresh(item: Any) -> Any:
    """A copy that nobody else holds; histograms and numbers stay what they are."""
    if isinstance(item, np.ndarray):
        return item.copy()
    return type(item)(map(fresh, item)) if isinstance(item, (list, tuple)) else item


ITERABLES = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda items: (fresh(item) for item in items),
    "lazy sequence": Lazy,
    "boasting sequence": Boaster,
    "deque": collections.deque,
    "user list": collections.UserList,
    "values of a dict": lambda items: dict(enumerate(items)).values(),
    "array of objects": lambda items: _objects(items),
}
LISTS = [
    (name, path) for name, path in places((list, tuple)) if isinstance(at(name, path), list) and name != "count_many"
]


def _objects(items: Any) -> Any:
    array = np.empty(len(items), object)
    for i, item in enumerate(items):
        array[i] = item
    return array


@pytest.mark.parametrize("make", ITERABLES.values(), ids=ITERABLES)
@pytest.mark.parametrize(("name", "path"), LISTS, ids=label)
def test_any_iterable_does_for_a_list(name: str, path: tuple[Any, ...], make: Any) -> None:
    try:
        found = run(name, path, make(at(name, path)))
    except MemoryError:
        assert make is Boaster  # what tuple(...) says to it, too
    else:
        assert found == CALLS[name]()


@pytest.mark.parametrize("make", ITERABLES.values(), ids=ITERABLES)
def test_jobs_of_count_many_come_from_any_iterable(make: Any) -> None:
    def counts(jobs: Any) -> Any:
        histograms = [_core.Histogram(8), _core.Histogram(8)]
        arrays = CALLS["count_many"].arguments["arrays"]
        return plain(
            [_core.count_many(jobs([jobs([h, a]) for h, a in zip(histograms, arrays, strict=True)])), *histograms]
        )

    if make is not Boaster:
        assert counts(make) == counts(list) == counts(lambda items: (i for i in items))


@pytest.mark.parametrize("wrong", [None, 3, "word", b"bytes", {}, {"a": 1}, set(), np.zeros(3), [None], [[]], [[[]]], object()],
                         ids=repr)  # fmt: skip
@pytest.mark.parametrize(("name", "path"), LISTS, ids=label)
def test_what_is_no_list_of_that_gives_one_clear_error(name: str, path: tuple[Any, ...], wrong: Any) -> None:
    error = error_of(run, name, path, wrong)
    if error:
        assert_clear(error)


class Broken(Lazy):
    def __getitem__(self, index: int) -> Any:
        if index:
            raise KeyError("the second item")
        return super().__getitem__(index)


@pytest.mark.parametrize(("name", "path"), [p for p in LISTS if len(at(*p)) > 1], ids=label)
def test_an_error_of_the_iterable_arrives(name: str, path: tuple[Any, ...]) -> None:
    with pytest.raises(KeyError, match="the second item"):
        run(name, path, Broken(at(name, path)))


HUGE = [0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**61, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63)]
NUMBERS = [(name, (key,)) for name, call in CALLS.items() for key, value in call.arguments.items()
           if isinstance(value, (int, float)) and (name, key) != ("reference_kernel_us", "repeats")]  # fmt: skip


@needs_refusal
@pytest.mark.parametrize("number", [*HUGE, float("nan"), float("inf"), float("-inf"), 1e308, 0.0, -0.5], ids=repr)
@pytest.mark.parametrize(("name", "path"), NUMBERS, ids=label)
def test_numbers_out_of_range_give_a_result_or_one_error(name: str, path: tuple[Any, ...], number: float) -> None:
    said = str(error_of(run, name, path, number))
    assert "bad_alloc" not in said
    assert "vector" not in said


@needs_refusal
@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("key", ["batch", "buffers", "threads", "size", "resize", "shift"])
def test_a_batcher_of_any_size_is_made_or_refused(key: str, number: int) -> None:
    many = [2**20] * 2 if key in ("size", "resize") else [number] * 2
    for value in (number, (number, 3), (3, number), tuple(many), [number]):
        assert "bad_alloc" not in str(error_of(packed, [np.zeros((4, 5, 3), np.uint8)], **{key: value}))


@pytest.mark.parametrize("sizes", [(2**63 - 1,), (2**62, 2**62), (2**40, 2**40, 2**40)], ids=str)
@pytest.mark.parametrize("step", [1, 2**31, 2**62, 2**63 - 1])
@pytest.mark.parametrize("offset", [0, 1, 2**62, 2**63 - 1])
@pytest.mark.parametrize("repeat", [1, 2**62, 2**63 - 1])
def test_slices_whose_ends_cannot_be_counted_are_refused(sizes: Any, step: int, offset: int, repeat: int) -> None:
    """`width`, `offset`, `step` and `repeat` are the caller's: no product or sum of them may wrap around."""
    rows = np.array([(0, 0, offset, repeat, step)], np.int64)
    width = np.array([3], np.int64)
    fits = offset + 2 * step + repeat <= sizes[0]
    if fits and WITH_ADDRESS_SANITIZER:
        pytest.skip("AddressSanitizer ends the process where memory is refused")
    with pytest.raises(MemoryError if fits else ValueError):
        _core.kept_entries(width, [np.array([0], np.int64)], np.array(sizes, np.int64), rows)


@pytest.mark.parametrize("groups", [2**32, 2**63, 2**64 - 1])
def test_groups_and_outer_sizes_that_cannot_be_counted_are_refused(groups: int) -> None:
    with pytest.raises(ValueError, match=r"too large|contradict"):
        _core.input_shift(np.zeros((4, 2**2)), np.zeros(4), groups)
    with pytest.raises(ValueError, match=r"too large|multiple"):
        _core.fold_batch_norm(np.zeros((4, 2)), None, None, None, np.zeros(4), np.ones(4), 1e-3, groups)


@needs_refusal
def test_a_result_that_no_memory_holds_is_refused() -> None:
    picks = np.zeros(1 << 22, np.int64)
    with pytest.raises((ValueError, MemoryError)) as caught:
        _core.gather_many([(np.zeros((2, 2, 2)), [picks, picks, picks])])
    assert_clear(caught.value)


def test_options_that_no_table_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 33554432 entries"):
        _core.minimum_cost([], [], [2**26])
    with pytest.raises(ValueError, match="more than 33554432 entries"):
        _core.minimum_cost([], [], [2**20] * 33)


def test_counts_do_not_wrap_around() -> None:
    state = {**_core.Histogram(4).state(), "nan_count": 2**52 - 1}
    full = _core.Histogram.from_state(state)
    with pytest.raises(ValueError, match="too many counts"):
        full.merge(full)
    with pytest.raises(ValueError, match="absurdly large"):
        _core.Histogram.from_state({**state, "nan_count": 2**64 - 1})
    half = np.full(1 << 13, 2**51, np.uint64)
    with pytest.raises(ValueError, match="absurdly large"):
        _core.Histogram.from_state({**state, "negative": half, "positive": half, "minimum": -1.0, "maximum": 1.0})


@pytest.mark.parametrize("value", [1.5, "3", None, [1], np.float32(2), -1, 2**70], ids=repr)
def test_counts_of_a_record_are_whole_numbers(value: Any) -> None:
    state = {**_core.Histogram(4).state(), "nan_count": value}
    with pytest.raises(TypeError, match="'nan_count' must be a whole number of at least 0"):
        _core.Histogram.from_state(state)
    for counts in ([1.5] * 4, ["a"] * 4, [None] * 4, [[1]] * 4, [[1]], *([] if value == [1] else [value])):
        with pytest.raises(ValueError, match="'negative' must be a list of whole numbers"):
            _core.Histogram.from_state({**_core.Histogram(4).state(), "negative": counts})


def test_not_a_number_ranks_below_all_numbers() -> None:
    values = np.array([np.nan, 1.0, np.nan, 0.0, np.nan, np.nan, np.nan, 2.0])
    np.testing.assert_array_equal(_core.keep_largest(values, 3, 4, 0), [1, 1, 0, 1, 1, 1, 0, 1])


def test_values_that_are_given_are_not_taken_for_absent() -> None:
    arguments = {**CALLS["fold_batch_norm"].arguments, "gamma": np.zeros(0)}
    with pytest.raises(ValueError, match="expected 4 values in gamma, got 0"):
        _core.fold_batch_norm(**arguments)
