from collections.abc import Iterable
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__version__: str

def gather_many(
    jobs: Iterable[tuple[NDArray[Any], Iterable[NDArray[np.int64] | None]]], threads: int = 0
) -> list[NDArray[Any]]: ...
def kept_entries(
    widths: NDArray[np.int64],
    kept: Iterable[NDArray[np.int64]],
    axis_sizes: NDArray[np.int64],
    slices: NDArray[np.int64],
) -> list[NDArray[np.int64]]: ...
def input_shift(
    weight: NDArray[np.float32] | NDArray[np.float64],
    means: NDArray[np.float64],
    groups: int = 1,
    threads: int = 0,
) -> NDArray[np.float64]: ...
def fold_batch_norm(
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    gamma: NDArray[Any] | None,
    beta: NDArray[Any] | None,
    mean: NDArray[Any],
    variance: NDArray[Any],
    epsilon: float,
    outer: int = 1,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
def keep_largest(
    values: NDArray[np.float32] | NDArray[np.float64], n: int, m: int, axis: int, threads: int = 0
) -> NDArray[np.uint8]: ...

@final
class Batcher:
    def __init__(
        self,
        size: tuple[int, int],
        resize: tuple[int, int],
        interpolation: str,
        shift: Iterable[float],
        scale: Iterable[float],
        planar: bool = False,
        batch: int = 1,
        buffers: int = 3,
        threads: int = 0,
    ) -> None: ...
    def submit(self, images: Iterable[NDArray[np.uint8]]) -> None: ...
    def take(self) -> NDArray[np.float32]: ...

@final
class Histogram:
    def __init__(self, bins: int = 4096) -> None: ...
    def update(self, values: NDArray[np.float32] | NDArray[np.float16], threads: int = 0) -> None: ...
    def merge(self, other: Histogram) -> None: ...
    def state(self) -> dict[str, Any]: ...
    @staticmethod
    def from_state(state: dict[str, Any]) -> Histogram: ...
    @property
    def bins(self) -> int: ...
    @property
    def bin_width(self) -> float: ...
    @property
    def negative(self) -> NDArray[np.uint64]: ...
    @property
    def positive(self) -> NDArray[np.uint64]: ...
    @property
    def count(self) -> int: ...
    @property
    def minimum(self) -> float: ...
    @property
    def maximum(self) -> float: ...
    @property
    def nan_count(self) -> int: ...
    @property
    def inf_count(self) -> int: ...

def count_many(
    jobs: Iterable[tuple[Histogram, NDArray[np.float32] | NDArray[np.float16]]], threads: int = 0
) -> NDArray[np.float64]: ...

@final
class Solution:
    def __init__(self, choice: NDArray[np.int64], value: float, cost: float, bound: float) -> None: ...
    @property
    def choice(self) -> NDArray[np.int64]: ...
    @property
    def value(self) -> float: ...
    @property
    def cost(self) -> float: ...
    @property
    def bound(self) -> float: ...

def solve(
    values: Iterable[NDArray[np.float64]],
    scopes: Iterable[Iterable[int]],
    costs: Iterable[NDArray[np.float64]],
    budget: float,
    tolerance: float = 0.0,
    seconds: float = 10.0,
    decided: Iterable[tuple[int, int, int, NDArray[np.int64]]] = (),
    threads: int = 0,
) -> Solution: ...
def solve_budgets(
    values: Iterable[NDArray[np.float64]],
    scopes: Iterable[Iterable[int]],
    costs: Iterable[NDArray[np.float64]],
    budgets: NDArray[np.float64],
    tolerance: float = 0.0,
    seconds: float = 10.0,
    decided: Iterable[tuple[int, int, int, NDArray[np.int64]]] = (),
    threads: int = 0,
) -> list[Solution]: ...
def minimum_cost(
    scopes: Iterable[Iterable[int]],
    costs: Iterable[NDArray[np.float64]],
    sizes: Iterable[int],
    decided: Iterable[tuple[int, int, int, NDArray[np.int64]]] = (),
) -> tuple[float, NDArray[np.int64]]: ...
def entropy_threshold(counts: NDArray[np.uint64], bin_width: float, levels: int = 128) -> float: ...
def percentile_threshold(counts: NDArray[np.uint64], bin_width: float, percentile: float) -> float: ...
def mse_threshold(counts: NDArray[np.uint64], bin_width: float, levels: int = 127) -> float: ...
def reference_kernel_us(repeats: int) -> float: ...
