"""Calls of every public function of the compiled core, for tests that do something to all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import BuiltinFunctionType
from typing import Any, NamedTuple

import numpy as np

from pydeploy import _core


class Call(NamedTuple):
    """A function of the core and arguments that it takes; `function` gives something that can be compared."""

    function: Callable[..., Any]
    arguments: dict[str, Any]

    def __call__(self) -> Any:
        return plain(self.function(**self.arguments))


def plain(value: Any) -> Any:
    """Arrays by shape, dtype and bytes; solutions and histograms by what they hold."""
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, _core.Solution):
        return plain([value.choice, value.value, value.cost])
    if isinstance(value, _core.Histogram):
        return plain(list(value.state().values()))
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else repr(value)


def packed(images: Any, **settings: Any) -> Any:
    batcher = _core.Batcher(**{"size": (3, 3), "resize": (0, 0), "interpolation": "bilinear", "shift": [1.0] * 3,
                               "scale": [2.0] * 3, "batch": 4, "threads": 2, **settings})  # fmt: skip
    batcher.submit(images)
    return batcher.take().copy()


def counted(values: Any) -> _core.Histogram:
    histogram = _core.Histogram(8)
    histogram.update(values, threads=2)
    return histogram


def counted_many(arrays: Any) -> Any:
    histograms = [_core.Histogram(8) for _ in arrays]
    return [_core.count_many([(h, a) for h, a in zip(histograms, arrays, strict=True)], 2), *histograms]


def from_record(**record: Any) -> _core.Histogram:
    return _core.Histogram.from_state(record)


RNG = np.random.default_rng(0)


def normal(*shape: int, dtype: Any = np.float64) -> Any:
    return np.asarray(RNG.standard_normal(shape), dtype)


def integers(*values: Any) -> Any:
    return np.array(values, np.int64)


VALUES = [normal(3), normal(2), normal(4)]
SCOPES = [[0], [0, 1], [1, 2]]
COSTS = [normal(3), normal(3, 2), normal(2, 4)]
DECIDED = [(2, 0, 1, integers([0, 1], [3, 2], [1, 1]))]
IMAGES = [RNG.integers(0, 256, (4, 5, 3), np.uint8) for _ in range(3)]
NORM = {"bias": normal(4), "gamma": normal(4), "beta": normal(4), "mean": normal(4), "variance": normal(4) ** 2 + 1}
COUNTS = RNG.integers(1, 50, 40).astype(np.uint64)

CALLS = {
    "gather_many": Call(_core.gather_many, {"threads": 2, "jobs": [
        (normal(6, 5), [integers(5, 0, 0), None]), (normal(4, 3, 2, dtype=np.float16), [None, integers(1, 2), None])]}),
    "kept_entries": Call(_core.kept_entries, {
        "widths": integers(4, 3), "kept": [integers(0, 2), integers(1)], "axis_sizes": integers(7, 6),
        "slices": integers((0, 0, 0, 1, 1), (1, 0, 4, 1, 1), (1, 1, 0, 2, 2))}),
    "input_shift": Call(_core.input_shift, {"weight": normal(6, 2, 3), "means": normal(4), "groups": 2, "threads": 2}),
    "fold_batch_norm": Call(_core.fold_batch_norm, {"weight": normal(4, 2, 3), **NORM, "epsilon": 1e-3}),
    "keep_largest": Call(_core.keep_largest, {"values": normal(5, 8, 3), "n": 2, "m": 4, "axis": 1, "threads": 2}),
    "count_many": Call(counted_many, {"arrays": [normal(40, dtype=np.float32), normal(5, 7, dtype=np.float16)]}),
    "entropy_threshold": Call(_core.entropy_threshold, {"counts": COUNTS, "bin_width": 0.5, "levels": 4}),
    "percentile_threshold": Call(_core.percentile_threshold, {"counts": COUNTS, "bin_width": 0.5, "percentile": 90.0}),
    "mse_threshold": Call(_core.mse_threshold, {"counts": COUNTS, "bin_width": 0.5, "levels": 4}),
    "solve": Call(_core.solve, {"values": VALUES, "scopes": SCOPES, "costs": COSTS, "budget": 3.0, "decided": DECIDED,
                                "threads": 2}),
    "solve_budgets": Call(_core.solve_budgets, {"values": VALUES, "scopes": SCOPES, "costs": COSTS, "threads": 2,
                                                "budgets": np.array([3.0, 4.0]), "decided": DECIDED}),
    "minimum_cost": Call(_core.minimum_cost, {"scopes": SCOPES, "costs": COSTS, "sizes": [3, 2, 4], "decided": DECIDED}),
    "reference_kernel_us": Call(lambda repeats: _core.reference_kernel_us(repeats) > 0, {"repeats": 3}),
    "Solution": Call(_core.Solution, {"choice": integers(1, 0), "value": 1.0, "cost": 2.0, "bound": 3.0}),
    "Batcher": Call(packed, {"images": IMAGES[:1], "shift": [1.0, 2.0, 3.0], "scale": [1.0, 2.0, 3.0]}),
    "Batcher.submit": Call(packed, {"images": IMAGES}),
    "Batcher.take": Call(packed, {"images": [image.transpose(2, 0, 1).copy() for image in IMAGES], "planar": True,
                                  "resize": (6, 7)}),
    "Histogram": Call(_core.Histogram, {"bins": 8}),
    "Histogram.update": Call(counted, {"values": normal(300, dtype=np.float32)}),
    "Histogram.merge": Call(lambda values: [h := counted(values), h.merge(counted(values)), h.merge(h)],
                            {"values": normal(30, dtype=np.float16)}),
    "Histogram.state": Call(lambda values: list(counted(values).state().items()), {"values": normal(9, dtype=np.float32)}),
    "Histogram.from_state": Call(from_record, {**counted(np.float32([1.0, -3.0])).state()}),
}  # fmt: skip
"""By name: all functions of the module, all classes and their methods."""

RECORDS = {"Histogram", "Solution"}
"""Classes with properties, which `plain` or the tests of each read."""


def public() -> Iterator[str]:
    """What the module offers, found by looking."""
    for name, value in vars(_core).items():
        if name.startswith("_"):
            continue
        yield name
        if isinstance(value, type):
            yield from (f"{name}.{method}" for method, found in vars(value).items()
                        if not method.startswith("_") and not isinstance(found, property))  # fmt: skip
        else:
            assert isinstance(value, BuiltinFunctionType), f"{name} is neither a function nor a class"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """All arrays and all containers in nested arguments, with where they are."""
    if isinstance(value, np.ndarray):
        yield path, value
    elif isinstance(value, (list, tuple, dict)):
        if path:
            yield path, value
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """`value` with something else at `path`; containers on the way are copied."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return tuple(copy) if isinstance(value, tuple) else copy
