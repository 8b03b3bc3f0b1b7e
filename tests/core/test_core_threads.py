"""The compiled core from several Python threads at once: right results, whatever others do to what they share."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from core_calls import CALLS, packed, plain
from pydeploy import _core

THREADS = 6
SECONDS = 0.2
"""What a test that cannot know when it has tried enough takes."""


@contextlib.contextmanager
def busy(*actions: Callable[[], Any]) -> Iterator[None]:
    """Each action again and again in a thread of its own; an error of one of them is raised at the end."""
    stop = threading.Event()

    def repeat(action: Callable[[], Any]) -> None:
        while not stop.is_set():
            action()

    with ThreadPoolExecutor(len(actions)) as pool:
        futures = [pool.submit(repeat, action) for action in actions]
        try:
            yield
        finally:
            stop.set()
    for future in futures:
        future.result()


def until_done() -> Iterator[int]:
    """0, 1, ... until the time is over, three at least."""
    end = time.monotonic() + SECONDS
    number = 0
    while number < 3 or time.monotonic() < end:
        yield number
        number += 1


@pytest.fixture(autouse=True)
def _quick_switches() -> Iterator[None]:
    """Threads take turns where they would not by themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("name", CALLS)
def test_calls_in_several_threads_give_what_one_gives(name: str) -> None:
    expected = CALLS[name]()
    barrier = threading.Barrier(THREADS)

    def calls() -> list[Any]:
        barrier.wait()
        return [CALLS[name]() for _ in range(8)]

    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(calls) for _ in range(THREADS)]:
            assert future.result() == [expected] * 8


def test_all_functions_run_beside_each_other() -> None:
    expected = {name: call() for name, call in CALLS.items()}

    def check(name: str) -> None:
        assert CALLS[name]() == expected[name]

    with busy(*(lambda name=name: check(name) for name in CALLS)):
        time.sleep(SECONDS)


def test_one_histogram_is_counted_into_read_and_merged_by_all() -> None:
    values = np.linspace(-4, 4, 3000, dtype=np.float32)
    shared, other = _core.Histogram(64), _core.Histogram(64)
    other.update(values)

    def work(_: int) -> None:
        shared.update(values, threads=2)
        _core.count_many([(shared, values), (shared, values.astype(np.float16))] * 2, 3)
        shared.merge(other)
        assert shared.count % len(values) == 0
        assert _core.Histogram.from_state(shared.state()).count % len(values) == 0
        assert shared.minimum == -shared.maximum == -4

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(5 * THREADS)))
    assert shared.count == 5 * THREADS * 6 * len(values)
    assert int(shared.positive.sum() + shared.negative.sum()) == shared.count


def test_two_histograms_merge_into_each_other_without_waiting_for_ever() -> None:
    one, two = _core.Histogram(8), _core.Histogram(8)
    one.update(np.float32([1]))
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            for future in [pool.submit(one.merge, two), pool.submit(two.merge, one)]:
                future.result(10)


def test_arrays_of_count_many_live_while_they_are_counted() -> None:
    """Nobody else holds them: they come from a generator, or from a list that another thread empties."""
    histogram, jobs = _core.Histogram(64), []
    made = 0

    def fill() -> None:
        jobs.extend((histogram, np.full(20_000, 2.0, np.float32)) for _ in range(4))
        jobs.clear()

    with busy(fill, fill):
        for _ in until_done():
            with contextlib.suppress(RuntimeError):  # a list that changes while it is read may say so
                made += len(_core.count_many(jobs, 2))
            made += len(_core.count_many(((histogram, np.full(20_000, 2.0, np.float32)) for _ in range(4)), 2))
    assert histogram.count == made * 20_000
    assert histogram.maximum == histogram.minimum == 2.0


def test_arrays_of_gather_many_live_while_they_are_cut() -> None:
    array, index = np.arange(60_000, dtype=np.int16).reshape(300, 200), np.arange(0, 200, 2)
    jobs: list[Any] = []

    def fill() -> None:
        jobs.extend([array.copy(), [None, index.copy()]] for _ in range(4))
        for job in jobs:
            job.clear()
        jobs.clear()

    with busy(fill, fill):
        for _ in until_done():
            with contextlib.suppress(TypeError):  # a job that was emptied is no pair
                for result in _core.gather_many(jobs, 2):
                    np.testing.assert_array_equal(result, array[:, ::2])


def test_indices_that_change_while_they_are_used_reach_nothing_else() -> None:
    array, index = np.arange(4000, dtype=np.float32).reshape(4, 1000), np.zeros(500, np.int64)

    def disturb() -> None:
        index[:] = 1 << 40
        index[:] = 0

    with busy(disturb):
        for _ in until_done():
            with contextlib.suppress(ValueError):
                (result,) = _core.gather_many([(array, [None, index])], 2)
                np.testing.assert_array_equal(result, np.broadcast_to(array[:, :1], (4, 500)))


@pytest.mark.parametrize("key", ["widths", "axis_sizes", "slices"])
def test_slices_that_change_while_they_are_used_reach_nothing_else(key: str) -> None:
    arguments = dict(CALLS["kept_entries"].arguments)
    arguments[key] = arguments[key].copy()
    good = arguments[key].copy()

    def disturb() -> None:
        arguments[key][...] = 1000
        arguments[key][...] = good

    with busy(disturb):
        for _ in until_done():
            with contextlib.suppress(ValueError):
                _core.kept_entries(**arguments)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_values_that_change_while_they_are_counted_reach_nothing_else(dtype: Any) -> None:
    values = np.zeros(50_000, dtype)

    def disturb() -> None:
        for value in (np.nan, np.inf, np.finfo(dtype).max, 0.0):
            values[:] = value

    with busy(disturb, disturb):
        for _ in until_done():
            histogram = _core.Histogram(2)
            histogram.update(values, threads=2)
            assert histogram.count + histogram.nan_count + histogram.inf_count <= 2 * len(values)


def test_tables_that_change_while_they_are_solved_reach_nothing_else() -> None:
    arguments = dict(CALLS["solve"].arguments)
    (variable, first, second, options), costs = arguments["decided"][0], [c.copy() for c in arguments["costs"]]
    arguments |= {"decided": [(variable, first, second, wild := options.copy())], "costs": costs}

    def disturb() -> None:
        wild[:], costs[1][:] = 1 << 40, np.nan
        wild[:], costs[1][:] = options, CALLS["solve"].arguments["costs"][1]

    with busy(disturb):
        for _ in until_done():
            with contextlib.suppress(ValueError):
                _core.solve(**arguments)


def image(number: int) -> Any:
    return np.full((24, 24, 1), number % 251, np.uint8)


def batcher(**settings: Any) -> _core.Batcher:
    return _core.Batcher(**{"size": (24, 24), "resize": (0, 0), "interpolation": "bilinear", "shift": [0.0], "scale": [1.0],
                            "batch": 2, "buffers": 4, "threads": 2, **settings})  # fmt: skip


def numbers(batch: Any) -> list[int]:
    """What `image` was given, where every pixel says the same."""
    found = batch.reshape(len(batch), -1)
    np.testing.assert_array_equal(found, np.repeat(found[:, :1], found.shape[1], axis=1))
    return [int(value) for value in found[:, 0]]


def patiently(action: Callable[[], Any], words: str) -> Any:
    """What the action gives once it no longer says `words`."""
    refused = [""]
    while refused:
        refused.clear()
        try:
            result = action()
        except ValueError as error:
            refused.append(str(error))
            time.sleep(0)
        assert all(words in text for text in refused)
    return result


def test_takers_share_what_was_submitted() -> None:
    """Several wait for the same batch, as packing takes longer than asking."""
    shared = batcher(buffers=40, resize=(200, 200), size=(200, 200))
    for _ in range(3):
        for number in range(39):
            shared.submit([image(number), image(number + 100)])
        with ThreadPoolExecutor(THREADS) as pool:
            taken = list(pool.map(lambda _: numbers(shared.take()), range(39)))
        assert sorted(taken) == [[number, number + 100] for number in range(39)]
        with pytest.raises(ValueError, match="no batch was submitted"):
            shared.take()


def test_batches_that_somebody_holds_are_not_written_to() -> None:
    shared = batcher()
    held = []
    for number in range(20):
        shared.submit([image(number)])
        held.append(shared.take())
    assert [numbers(batch) for batch in held] == [[number] for number in range(20)]


def test_memory_is_used_again_where_nobody_holds_it() -> None:
    shared = batcher(buffers=3)
    addresses = set()
    for number in range(12):
        shared.submit([image(number)])
        batch = shared.take()
        addresses.add(batch.ctypes.data)
    assert len(addresses) <= 3


def test_submitters_and_takers_work_side_by_side() -> None:
    """Every batch arrives once and whole, though its reader looks at it only after others were packed."""
    shared, count = batcher(buffers=3), 160
    left = threading.Semaphore(count)

    def submit(first: int) -> None:
        for number in range(first, count, 4):
            patiently(lambda number=number: shared.submit([image(number)] * 2), "buffers are in use")

    def take() -> list[Any]:
        own = []
        while left.acquire(blocking=False):
            own.append(patiently(shared.take, "no batch was submitted"))
        return own

    with ThreadPoolExecutor(4 + THREADS) as pool:
        submitters = [pool.submit(submit, first) for first in range(4)]
        takers = [pool.submit(take) for _ in range(THREADS)]
        for future in submitters:
            future.result()
        taken = [numbers(batch) for future in takers for batch in future.result()]
    assert sorted(taken) == [[number] * 2 for number in range(count)]


def test_images_live_until_their_batch_is_taken() -> None:
    shared = batcher(batch=8, threads=1)
    for first in range(0, 80, 8):
        shared.submit(image(number) for number in range(first, first + 8))
        gc.collect()
        assert numbers(shared.take()) == list(range(first, first + 8))


class Counted(np.ndarray):
    """An array that says when it goes."""

    gone = 0

    def __del__(self) -> None:
        if self.base is None or not isinstance(self.base, Counted):
            type(self).gone += 1


def test_images_are_let_go_of_in_every_way_that_a_batch_can_end() -> None:
    """Taken, refused, and never taken because the batcher itself goes."""
    Counted.gone = 0
    shared = batcher()
    shared.submit([image(1).view(Counted)])
    shared.take()
    with pytest.raises(ValueError, match=r"a batch has 1\.\.2 images, not 3"):
        shared.submit([image(1).view(Counted)] * 3)
    with pytest.raises(TypeError, match="uint8 array"):
        shared.submit([image(1).view(Counted), None])
    shared.submit([image(1).view(Counted)])
    del shared
    gc.collect()
    assert Counted.gone == 4


def test_batchers_may_go_while_their_threads_pack() -> None:
    for _ in until_done():
        shared = batcher(resize=(200, 200), size=(200, 200), threads=3)
        for _ in range(3):
            shared.submit([image(1)] * 2)


FORKED = """
import gc, importlib.util, os, sys, warnings
import numpy as np
spec = importlib.util.spec_from_file_location("pydeploy._core", sys.argv[1])
_core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_core)
warnings.simplefilter("ignore", DeprecationWarning)
shared = _core.Batcher((2, 2), (0, 0), "bilinear", [0.0], [1.0], batch=1, threads=2)
shared.submit([np.zeros((2, 2, 1), np.uint8)])
child = os.fork()
if child == 0:
    for action in (shared.take, lambda: shared.submit([np.zeros((2, 2, 1), np.uint8)])):
        try:
            action()
        except RuntimeError as error:
            assert "make one in every process" in str(error)
        else:
            os._exit(3)
    del shared, action
    gc.collect()
    own = _core.Batcher((2, 2), (0, 0), "bilinear", [0.0], [1.0], batch=1, threads=2)
    own.submit([np.ones((2, 2, 1), np.uint8)])
    os._exit(0 if own.take().all() else 4)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert not shared.take().any()
"""


def test_a_forked_process_says_that_it_lacks_the_threads() -> None:
    subprocess.run([sys.executable, "-c", FORKED, _core.__file__], check=True, timeout=60)


def test_results_outlive_what_they_came_from() -> None:
    batch = packed(CALLS["Batcher.submit"].arguments["images"])
    shared = batcher()
    shared.submit([image(7)])
    taken = shared.take()
    del shared
    gc.collect()
    assert numbers(taken) == [7]
    assert plain(batch) == CALLS["Batcher.submit"]()
