"""A loaded TensorRT engine: runs it, times it as trtexec does, and reads its layers' times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.base import Feeds, LayerTime, TensorSpec, check_feeds
from pydeploy.backends.tensorrt import compat
from pydeploy.backends.tensorrt.condition import Condition, Nvml
from pydeploy.backends.tensorrt.cuda import Launch, Stream
from pydeploy.backends.tensorrt.cuda_python import CudaStream
from pydeploy.backends.tensorrt.driver import find_gpu
from pydeploy.backends.tensorrt.inspector import LayerInfo, parse_layers
from pydeploy.backends.tensorrt.layer_times import join, layer_times, make_profiler, samples_of
from pydeploy.backends.tensorrt.logger import make_logger
from pydeploy.errors import BackendUnavailable, DataError
from pydeploy.timing.overhead import without_overhead

_WARM_UP = 3  # profiled runs that are thrown away
_WHOLE_RUNS = 20  # unprofiled runs that tell what the profiled layers should add up to


class TensorRtSession:
    """See `pydeploy.backends.base.Session`. `time` returns GPU time between events, not wall time on the host.

    Two queries are in flight: while one runs, the next is enqueued, so that launching hides behind computing
    (trtexec's scheme). Inputs are copied to the device before timing starts.
    """

    def __init__(self, trt: ModuleType, path: Path, batch: int, stream: Stream | CudaStream) -> None:
        self._trt, self._path, self._stream = trt, path, stream
        self._messages = make_logger(trt)
        self._messages.errors.clear()
        self._runtime = trt.Runtime(self._messages)  # must live as long as the engine
        self._engine = self._load(path.read_bytes())
        self._shapes = _input_shapes(trt, self._engine, batch, path)
        self._context = self._new_context()
        self._addresses: dict[str, int] = {}
        self.inputs: Sequence[TensorSpec] = self._specs(trt.TensorIOMode.INPUT)
        self.outputs: Sequence[TensorSpec] = self._specs(trt.TensorIOMode.OUTPUT)
        for spec in (*self.inputs, *self.outputs):
            nbytes = int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
            self._addresses[spec.name] = stream.allocate(nbytes)
        self._bind(self._context)
        self._launch: Launch | None = None
        self._condition = Condition(Nvml(find_gpu().pci_bus_id))

    def _load(self, plan: bytes) -> Any:
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise DataError(f"TensorRT cannot load {self._path} ({self._messages.reason()}); build the engine again")
        return engine

    def _create_context(self, *, profiled: bool) -> Any:  # noqa: ARG002
        return self._engine.create_execution_context()

    def _new_context(self, *, profiled: bool = False) -> Any:
        context = self._create_context(profiled=profiled)
        if context is None:
            raise DataError(
                f"the GPU has no memory left for another context of {self._path} ({self._messages.reason()}); "
                "open fewer engines at once"
            )
        context.nvtx_verbosity = self._trt.ProfilingVerbosity.NONE  # detailed markers slow the enqueue down
        for name, shape in self._shapes.items():
            if not context.set_input_shape(name, shape):
                raise DataError(f"{self._path} was not built for input '{name}' of shape {list(shape)}; build it again")
        return context

    def _bind(self, context: Any) -> None:
        for name, address in self._addresses.items():
            if not context.set_tensor_address(name, address):
                raise DataError(f"TensorRT refuses the memory of '{name}': {self._messages.reason()}")
        if missing := context.infer_shapes():
            raise DataError(f"{self._path}: the shapes of {list(missing)} are not known; build it from static shapes")

    def _specs(self, mode: Any) -> list[TensorSpec]:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        return [self._spec(name) for name in names if self._engine.get_tensor_mode(name) == mode]

    def _spec(self, name: str) -> TensorSpec:
        dtype = compat.numpy_name(self._engine.get_tensor_dtype(name))
        if dtype is None:
            raise BackendUnavailable(
                f"'{name}' has a type that NumPy lacks; export the model with float inputs and outputs"
            )
        return TensorSpec(name, dtype, tuple(int(size) for size in self._context.get_tensor_shape(name)))

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        self._upload(feeds)
        self._enqueue(self._context)
        results = {spec.name: np.empty(spec.shape, np.dtype(spec.dtype)) for spec in self.outputs}
        for name, array in results.items():
            self._stream.download(array, self._addresses[name])
        return results

    def time(self, feeds: Feeds, n: int) -> NDArray[np.float64]:
        self._upload(feeds)
        gpu_us, enqueue_us = in_flight(self._stream, self._launcher(), n)
        self._condition.add(gpu_us, enqueue_us)
        return np.asarray(gpu_us, dtype=np.float64)

    def layers(self, feeds: Feeds, n: int) -> Sequence[LayerTime]:
        whole_us = float(np.median(self.time(feeds, max(n, _WHOLE_RUNS))))
        samples = samples_of(self._profiled_runs(n))
        times, _ = without_overhead([values for _, values in samples], whole_us)
        freed = [(name, values) for (name, _), values in zip(samples, times, strict=True)]
        return layer_times(join(freed, self.describe()))

    def describe(self) -> list[LayerInfo]:
        """Kind, formats and kernel of every layer, in execution order."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context  # fills in dynamic shapes
        return parse_layers(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def condition(self) -> Mapping[str, float]:
        """What the timed runs so far showed of the device; see `Condition.summary`."""
        return self._condition.summary()

    def close(self) -> None:
        """Let go of everything that lives on the device, in the order that TensorRT wants."""
        del self._context, self._engine, self._runtime

    def _upload(self, feeds: Feeds) -> None:
        check_feeds(feeds, self.inputs)
        for name, array in feeds.items():
            self._stream.upload(self._addresses[name], array)

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.handle):
            raise DataError(f"TensorRT cannot run {self._path}: {self._messages.reason()}")

    def _launcher(self) -> Callable[[], None]:
        """One query; as a CUDA graph where the engine can be captured. Addresses and shapes never change."""
        if self._launch is None:
            self._launch = self._prepared()
        launch = self._launch

        def once() -> None:
            if not launch():
                raise DataError(f"TensorRT cannot run {self._path}: {self._messages.reason()}")

        return once

    def _prepared(self) -> Launch:
        """What enqueues one query, after a first run: what that initializes must not happen inside a capture."""
        assert isinstance(self._stream, Stream)
        handle, context = self._stream.handle, self._context
        self._enqueue(context)
        self._stream.wait()
        graph = self._stream.capture(lambda: bool(context.execute_async_v3(handle)))
        self._condition.cuda_graph = graph is not None
        return graph or (lambda: bool(context.execute_async_v3(handle)))

    def _profiled_runs(self, n: int) -> list[list[tuple[str, float]]]:
        """What the profiler reports of each run; in a context of its own, so that the timed one stays clean."""
        context, profiler = self._new_context(profiled=True), make_profiler(self._trt)
        self._bind(context)
        context.enqueue_emits_profile = False
        context.profiler = profiler
        runs = []
        for _ in range(_WARM_UP + n):
            profiler.rows.clear()
            self._enqueue(context)
            self._stream.wait()
            context.report_to_profiler()
            runs.append(list(profiler.rows))
        return runs[_WARM_UP:]


def in_flight(stream: Stream | CudaStream, launch: Callable[[], None], n: int) -> tuple[list[float], list[float]]:
    """GPU time and host time of the enqueue of `n` queries in microseconds, the next one always queued already."""
    events = [(stream.event(), stream.event()) for _ in range(2)]
    gpu_us, enqueue_us = [], []
    for index in range(n):
        start, end = events[index % 2]
        began = perf_counter_ns()
        stream.record(start)
        launch()
        stream.record(end)
        enqueue_us.append((perf_counter_ns() - began) / 1e3)
        if index:
            gpu_us.append(stream.elapsed_us(*events[(index - 1) % 2]))
    if n:
        gpu_us.append(stream.elapsed_us(*events[(n - 1) % 2]))
    return gpu_us, enqueue_us


def _input_shapes(trt: ModuleType, engine: Any, batch: int, path: Path) -> dict[str, tuple[int, ...]]:
    """Full shape of every input whose batch is dynamic."""
    found = {}
    for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
        shape = tuple(int(size) for size in engine.get_tensor_shape(name))
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT and -1 in shape:
            if -1 in shape[1:]:
                raise DataError(
                    f"{path}: input '{name}' has the dynamic shape {list(shape)}; only a batch may be dynamic"
                )
            found[name] = (batch, *shape[1:])
    return found
