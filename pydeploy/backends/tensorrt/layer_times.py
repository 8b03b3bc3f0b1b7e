"""Per-layer times: TensorRT's profiler joined with its inspector, and freed of what profiling adds."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.base import LayerTime
from pydeploy.backends.tensorrt.inspector import LayerInfo, nodes_of
from pydeploy.errors import DataError

Row = tuple[str, float]
"""Name and milliseconds, as a profiler reports them."""


def make_profiler(trt: ModuleType) -> Any:
    """An IProfiler whose `rows` hold what was reported since they were last cleared."""

    class Rows(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.rows: list[Row] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.rows.append((layer_name, ms))

    return Rows()


def samples_of(runs: Sequence[Sequence[Row]]) -> list[tuple[str, NDArray[np.float64]]]:
    """``(name, (n,) microseconds)`` of every layer, in execution order. `DataError` when runs differ in layers."""
    names = [name for name, _ in runs[0]] if runs else []
    if not names:
        raise DataError(
            "TensorRT's profiler reported no layers: rebuild the engine with this version of pydeploy, which asks for "
            "detailed profiling"
        )
    if any([name for name, _ in run] != names for run in runs):
        raise DataError("TensorRT's profiler reported other layers from run to run; profile again")
    times = np.array([[ms for _, ms in run] for run in runs], dtype=np.float64) * 1e3
    return [(name, times[:, index]) for index, name in enumerate(names)]


def join(
    samples: Sequence[tuple[str, NDArray[np.float64]]], infos: Sequence[LayerInfo]
) -> list[tuple[LayerInfo, NDArray[np.float64]]]:
    """What the inspector says of each profiled layer.

    By order where both list the same names in the same order, because names may occur twice; else by name. A layer
    that the inspector does not list is described by its name alone.
    """
    if [name for name, _ in samples] == [info.name for info in infos]:
        return [(info, times) for info, (_, times) in zip(infos, samples, strict=True)]
    waiting: dict[str, list[LayerInfo]] = {}
    for info in infos:
        waiting.setdefault(info.name, []).append(info)
    found = []
    for name, times in samples:
        same = waiting.get(name, [])
        found.append((same.pop(0) if same else LayerInfo(name, "", nodes_of(name, "")), times))
    return found


def layer_times(joined: Sequence[tuple[LayerInfo, NDArray[np.float64]]]) -> list[LayerTime]:
    """`LayerTime`s with names made unique."""
    seen: dict[str, int] = {}
    found = []
    for info, times in joined:
        count = seen[info.name] = seen.get(info.name, 0) + 1
        name = info.name if count == 1 else f"{info.name} #{count}"
        found.append(LayerTime(name, info.nodes, times, info.padding))
    return found
