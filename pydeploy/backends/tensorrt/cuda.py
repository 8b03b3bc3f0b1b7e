"""Device memory, copies, streams and events through pycuda; CUDA graphs, which pycuda lacks, through cuda-python.

Both act on the device's primary context, the one that TensorRT and PyTorch use.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from logging import getLogger
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.errors import BackendUnavailable, DataError

log = getLogger(__name__)

Launch = Callable[[], bool]


def load_pycuda() -> ModuleType:
    """The module `pycuda.driver`. Import it only where `driver.find_gpu` has found a GPU."""
    try:
        return importlib.import_module("pycuda.driver")
    except ImportError as error:
        raise BackendUnavailable(
            f"backend 'tensorrt' needs the package 'pycuda' ({error}): pip install 'pydeploy-hil[tensorrt]' "
            "(pip compiles it: it needs a C++ compiler and the CUDA toolkit's headers)"
        ) from None


def load_graphs() -> ModuleType | None:
    """cuda-python's driver module, by its new or its old name; None where it is not installed."""
    for name in ("cuda.bindings.driver", "cuda.cuda"):
        try:
            return importlib.import_module(name)
        except ImportError:  # noqa: PERF203 (two tries)
            continue
    return None


class Stream:
    """A stream in the primary context of the first visible GPU, with the memory that was allocated through it.

    `close` frees everything; streams are closed in reverse order of opening.
    """

    def __init__(self) -> None:
        self._cuda = load_pycuda()
        self._graphs = load_graphs()
        self._cuda.init()
        self._context = self._cuda.Device(0).retain_primary_context()
        self._context.push()
        self._stream = self._cuda.Stream()
        self._held: list[Any] = []
        self._launchers: list[tuple[Any, Any]] = []

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self._stream.handle)

    def allocate(self, nbytes: int) -> int:
        """Address of zeroed device memory. `DataError` when the device has none left."""
        size = max(1, nbytes)
        try:
            memory = self._cuda.mem_alloc(size)
        except self._cuda.MemoryError:
            raise DataError(
                f"the GPU has no {size >> 20} MiB left for the engine's inputs and outputs; free memory on the device"
            ) from None
        self._held.append(memory)
        self._cuda.memset_d8_async(int(memory), 0, size, self._stream)
        return int(memory)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a C-contiguous array to the device."""
        self._cuda.memcpy_htod_async(address, np.ascontiguousarray(array), self._stream)
        self.wait()  # the array may be temporary

    def download(self, array: NDArray[Any], address: int) -> None:
        """Fill a C-contiguous array from the device."""
        self._cuda.memcpy_dtoh_async(array, address, self._stream)
        self.wait()

    def wait(self) -> None:
        """Until everything that was enqueued is done."""
        self._stream.synchronize()

    def event(self) -> Any:
        """An event that measures time and is waited for by spinning."""
        return self._cuda.Event()

    def record(self, event: Any) -> None:
        event.record(self._stream)

    @staticmethod
    def elapsed_us(start: Any, end: Any) -> float:
        """Waits for `end`, then tells the time between two recorded events."""
        end.synchronize()
        return float(end.time_since(start)) * 1e3

    def capture(self, enqueue: Launch) -> Launch | None:
        """`enqueue` as one CUDA graph launch; None, with a line in the log, where it cannot be captured."""
        cuda = self._graphs
        if cuda is None:
            log.info("no CUDA graphs without the package cuda-python: latencies include launching each kernel")
            return None
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        handle = cuda.CUstream(self.handle)
        if _failed(cuda.cuStreamBeginCapture(handle, mode)):
            log.warning("this stream cannot be captured: latencies include launching each kernel")
            return None
        enqueued = enqueue()
        error, graph = cuda.cuStreamEndCapture(handle)
        if not enqueued or int(error) != 0:
            if int(error) == 0:
                cuda.cuGraphDestroy(graph)
            log.warning("this engine cannot run as a CUDA graph: latencies include launching each kernel")
            return None
        error, launcher = cuda.cuGraphInstantiate(graph, 0)
        if int(error) != 0:
            cuda.cuGraphDestroy(graph)
            log.warning("the CUDA graph cannot be instantiated (%s): latencies include launching each kernel", error)
            return None
        self._launchers.append((graph, launcher))
        return lambda: not _failed(cuda.cuGraphLaunch(launcher, handle))

    def close(self) -> None:
        self.wait()
        for graph, launcher in self._launchers:
            assert self._graphs is not None
            self._graphs.cuGraphExecDestroy(launcher)
            self._graphs.cuGraphDestroy(graph)
        for memory in self._held:
            memory.free()
        self._context.pop()


def _failed(result: Any) -> bool:
    """cuda-python returns (error, ...) from every call."""
    return int(result[0]) != 0
