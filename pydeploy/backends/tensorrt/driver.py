"""Is there a GPU, and which one? Asked of the driver itself, before anything of TensorRT is touched.

Without a driver, TensorRT 11's runtime hands back an object whose first use is a segmentation fault; no ``except``
clause helps then. So every path to CUDA goes through `find_gpu`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydeploy.errors import BackendUnavailable

LIBRARIES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
_MULTIPROCESSORS, _MAJOR, _MINOR, _INTEGRATED = 16, 75, 76, 18  # CUdevice_attribute (cuda.h)
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first visible GPU. `driver` is the newest CUDA version that the driver supports, such as ``12.4``."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    driver: str
    integrated: bool
    pci_bus_id: str = ""
    """Such as ``0000:07:00.0``: other libraries number the devices in another order."""

    @property
    def facts(self) -> dict[str, str]:
        """What a latency depends on and what stays the same from run to run."""
        return {"compute_capability": f"{self.capability[0]}.{self.capability[1]}", "multiprocessors": str(self.multiprocessors),
                "memory_mib": str(self.memory_bytes >> 20), "cuda_driver": self.driver,
                "integrated": str(self.integrated).lower()}  # fmt: skip


def load_driver() -> Any:
    """The driver's library through ctypes; None where there is none."""
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:  # noqa: PERF203 (two tries)
            continue
    return None


@cache
def find_gpu() -> Gpu:
    """The GPU that a session would run on; `BackendUnavailable`, in one sentence, where there is none."""
    cuda = load_driver()
    if cuda is None:
        raise BackendUnavailable(
            "no NVIDIA driver on this machine (libcuda.so.1 is missing): install the driver, or pass the GPU through "
            "to the container ('docker run --gpus all')"
        )
    code = cuda.cuInit(0)
    count = ctypes.c_int(0)
    if code == 0:
        code = cuda.cuDeviceGetCount(ctypes.byref(count))
    if code == _NO_DEVICE or (code == 0 and count.value == 0):
        raise BackendUnavailable(
            "the NVIDIA driver finds no GPU: check 'nvidia-smi' and the variable CUDA_VISIBLE_DEVICES"
        )
    if code != 0:
        raise BackendUnavailable(
            f"the NVIDIA driver does not start (cuInit returned {code}): check 'nvidia-smi'; after an update of the "
            "driver, restart the machine"
        )
    return _first(cuda)


def _first(cuda: Any) -> Gpu:
    device, version = ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    bus = ctypes.create_string_buffer(32)
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetPCIBusId(bus, len(bus), device)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode(errors="replace"), (attribute(_MAJOR), attribute(_MINOR)), attribute(_MULTIPROCESSORS),
               memory.value, driver, bool(attribute(_INTEGRATED)), bus.value.decode(errors="replace"))  # fmt: skip
