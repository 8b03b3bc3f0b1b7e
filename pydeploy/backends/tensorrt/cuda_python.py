"""Device memory, copies, streams and events through cuda-python, which needs nothing compiled on the user's machine."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.tensorrt.cuda import load_graphs
from pydeploy.errors import BackendUnavailable, DataError

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


def load_cuda() -> ModuleType:
    """cuda-python's driver module. Import it only where `driver.find_gpu` has found a GPU."""
    found = load_graphs()
    if found is None:
        raise BackendUnavailable(
            "backend 'tensorrt-rtx' needs the package 'cuda-python' to run engines: pip install 'pydeploy-hil[rtx]'"
        )
    return found


class CudaStream:
    """A stream in the primary context of the first visible GPU, with the memory that was allocated through it.

    As `pydeploy.backends.tensorrt.cuda.Stream`, without CUDA graphs: TensorRT for RTX makes its own.
    `close` frees everything; streams are closed in reverse order of opening.
    """

    def __init__(self) -> None:
        self._cuda = load_cuda()
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", 0)
        self._call("cuCtxPushCurrent", self._call("cuDevicePrimaryCtxRetain", self._device))
        self._stream = self._call("cuStreamCreate", 0)
        self._memory: list[Any] = []
        self._events: list[Any] = []

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self._stream)

    def allocate(self, nbytes: int) -> int:
        """Address of zeroed device memory. `DataError` when the device has none left."""
        size = max(1, nbytes)
        error, memory = self._cuda.cuMemAlloc(size)
        if int(error) == _OUT_OF_MEMORY:
            raise DataError(
                f"the GPU has no {size >> 20} MiB left for the engine's inputs and outputs; free memory on the device"
            )
        self._check("cuMemAlloc", error)
        self._memory.append(memory)
        self._call("cuMemsetD8Async", memory, 0, size, self._stream)
        return int(memory)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array to the device."""
        source = np.ascontiguousarray(array)
        self._call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, self._stream)
        self.wait()  # the array may be temporary

    def download(self, array: NDArray[Any], address: int) -> None:
        """Fill a C-contiguous array from the device."""
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self._stream)
        self.wait()

    def wait(self) -> None:
        """Until everything that was enqueued is done."""
        self._call("cuStreamSynchronize", self._stream)

    def event(self) -> Any:
        """An event that measures time and is waited for by spinning."""
        event = self._call("cuEventCreate", 0)
        self._events.append(event)
        return event

    def record(self, event: Any) -> None:
        self._call("cuEventRecord", event, self._stream)

    def elapsed_us(self, start: Any, end: Any) -> float:
        """Waits for `end`, then tells the time between two recorded events."""
        self._call("cuEventSynchronize", end)
        return float(self._call("cuEventElapsedTime", start, end)) * 1e3

    def close(self) -> None:
        self.wait()
        for event in self._events:
            self._call("cuEventDestroy", event)
        for memory in self._memory:
            self._call("cuMemFree", memory)
        self._call("cuStreamDestroy", self._stream)
        self._call("cuCtxPopCurrent")
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def _call(self, name: str, *arguments: Any) -> Any:
        """The result of a function of the driver; `DataError` where it fails."""
        error, *results = getattr(self._cuda, name)(*arguments)
        self._check(name, error)
        return results[0] if results else None

    def _check(self, name: str, error: Any) -> None:
        if int(error):
            raise DataError(
                f"the NVIDIA driver refuses {name} ({getattr(error, 'name', int(error))}): check 'nvidia-smi'"
            )
