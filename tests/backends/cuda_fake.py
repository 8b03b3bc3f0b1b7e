"""pycuda, cuda-python and the driver as the backend meets them, on the clock and memory of a `trt_fake.World`."""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import cuda_surface
from trt_fake import LAUNCH_US, STREAM, World


def pycuda(world: World) -> types.ModuleType:
    """The module `pycuda.driver`, as far as the real one has what is here (`test_cuda_surface`)."""
    fake = types.ModuleType("pycuda.driver")
    taken: Iterator[int] = iter(range(0x1000, 1 << 40, 0x1000))

    class OutOfMemory(Exception):
        pass

    class Allocation:
        def __init__(self, size: int) -> None:
            self.address = next(taken)
            world.memory[self.address] = bytearray(b"\xab" * size)  # what others left there

        def __int__(self) -> int:
            return self.address

        __index__ = __int__

        def free(self) -> None:
            del world.memory[self.address]

    class Stream:
        handle = STREAM

        def synchronize(self) -> None:
            world.flush()
            world.host_us = max(world.host_us, world.gpu_us)

    class Event:
        at: float | None = None

        def record(self, stream: Stream) -> None:
            assert isinstance(stream, Stream)
            assert world.capturing is None, "events do not belong into the captured graph"
            world.gpu_us = max(world.gpu_us, world.host_us)
            self.at = world.gpu_us

        def synchronize(self) -> None:
            assert self.at is not None, "waits for an event that was recorded"
            world.host_us = max(world.host_us, self.at)

        def time_since(self, start: Event) -> float:
            assert self.at is not None
            assert start.at is not None
            assert self.at <= world.host_us, "read only after it was waited for"
            return (self.at - start.at) / 1e3

    class Context:
        def push(self) -> None:
            world.calls.append("push")

        def pop(self) -> None:
            world.calls.append("pop")

    class Device:
        def __init__(self, index: int) -> None:
            assert index == 0

        def retain_primary_context(self) -> Context:
            return Context()

    def mem_alloc(size: int) -> Allocation:
        if "allocate" in world.fail:
            raise OutOfMemory("cuMemAlloc failed: out of memory")
        return Allocation(size)

    def memcpy_htod_async(dest: int, src: np.ndarray, stream: Stream) -> None:
        assert src.flags.c_contiguous
        assert len(world.memory[dest]) == src.nbytes
        world.copies.append(lambda: world.memory[dest].__setitem__(slice(None), src.tobytes()))

    def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Stream) -> None:
        if world.pending is not None:
            world.pending()
            world.pending = None
        dest[...] = np.frombuffer(world.memory[src], dest.dtype).reshape(dest.shape)

    def memset_d8_async(dest: int, data: int, size: int, stream: Stream) -> None:
        world.memory[dest][:size] = bytes([data]) * size

    def init() -> None:
        """Nothing to start."""

    Allocation.__name__ = "DeviceAllocation"
    for thing in (
        Stream,
        Event,
        Device,
        Context,
        Allocation,
        init,
        mem_alloc,
        memcpy_htod_async,
        memcpy_dtoh_async,
        memset_d8_async,
    ):
        setattr(fake, thing.__name__, thing)
    fake.MemoryError = OutOfMemory  # type: ignore[attr-defined]
    return fake


def cuda_python(world: World) -> types.ModuleType:
    """The module `cuda.bindings.driver`: graphs; and for TensorRT for RTX memory, copies and events."""
    fake = types.ModuleType("cuda.bindings.driver")
    known = cuda_surface.load("cuda-bindings-13.5")
    for name, function in _driver_functions(world).items():
        setattr(fake, name, _with_count(function, name, len(known[name] or ())))

    def begin(stream: Any, mode: str) -> tuple[int]:
        assert int(stream) == STREAM
        assert mode == "thread local"
        if "begin capture" in world.fail:
            return (401,)
        assert world.gpu_us <= world.host_us, "what was enqueued before is done"
        world.capturing = []
        return (0,)

    def end(stream: Any) -> tuple[int, Any]:
        graph, world.capturing = world.capturing, None
        world.graphs += "capture" not in world.fail
        return (900, None) if "capture" in world.fail else (0, graph)

    def instantiate(graph: Any, flags: int) -> tuple[int, Any]:
        world.graphs += "instantiate" not in world.fail
        return (801, None) if "instantiate" in world.fail else (0, graph)

    def destroy(graph: Any) -> tuple[int]:
        world.graphs -= 1
        return (0,)

    def destroy_launcher(graph: Any) -> tuple[int]:
        return destroy(graph)

    def launch(graph: list[Callable[[], None]], stream: Any) -> tuple[int]:
        world.host_us += LAUNCH_US
        if "graph-launch" in world.fail:
            return (719,)
        for compute in graph:
            compute()
        return (0,)

    fake.CUstream = int  # type: ignore[attr-defined]
    fake.CUstreamCaptureMode = types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")  # type: ignore[attr-defined]
    fake.cuStreamBeginCapture, fake.cuStreamEndCapture = begin, end  # type: ignore[attr-defined]
    fake.cuGraphInstantiate = instantiate  # type: ignore[attr-defined]
    fake.cuGraphLaunch = launch  # type: ignore[attr-defined]
    fake.cuGraphDestroy, fake.cuGraphExecDestroy = destroy, destroy_launcher  # type: ignore[attr-defined]
    return fake


def _with_count(function: Callable[..., Any], name: str, count: int) -> Callable[..., Any]:
    """`function`, which takes as many arguments as the real one of that name."""

    def call(*arguments: Any) -> Any:
        assert len(arguments) == count, f"{name} takes {count} arguments, got {len(arguments)}"
        return function(*arguments)

    return call


def _driver_functions(world: World) -> dict[str, Callable[..., tuple[Any, ...]]]:
    """What cuda-python returns begins with an error code; handles are numbers, events lists of one time."""
    taken: Iterator[int] = iter(range(0x1000, 1 << 40, 0x1000))

    def allocate(bytesize: int) -> tuple[int, int]:
        if "allocate" in world.fail:
            return 2, 0
        address = next(taken)
        world.memory[address] = bytearray(b"\xab" * bytesize)
        return 0, address

    def fill(address: int, value: int, count: int, stream: int) -> tuple[int]:
        world.memory[address][:count] = bytes([value]) * count
        return (0,)

    def upload(address: int, source: int, count: int, stream: int) -> tuple[int]:
        assert len(world.memory[address]) == count
        world.copies.append(lambda: world.memory[address].__setitem__(slice(None), ctypes.string_at(source, count)))
        return (0,)

    def download(target: int, address: int, count: int, stream: int) -> tuple[int]:
        if world.pending is not None:
            world.pending()
            world.pending = None
        ctypes.memmove(target, bytes(world.memory[address]), count)
        return (0,)

    def wait(stream: int) -> tuple[int]:
        assert stream == STREAM
        world.flush()
        world.host_us = max(world.host_us, world.gpu_us)
        return (0,)

    def record(event: list[float], stream: int) -> tuple[int]:
        world.gpu_us = max(world.gpu_us, world.host_us)
        event[:] = [world.gpu_us]
        return (0,)

    def wait_for(event: list[float]) -> tuple[int]:
        world.host_us = max(world.host_us, event[0])
        return (0,)

    def free(address: int) -> tuple[int]:
        del world.memory[address]
        return (0,)

    def note(name: str, *results: Any) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            world.calls.append(name)
            return (700 if name in world.fail else 0, *results)

        return call

    return {
        "cuInit": note("cuInit"), "cuDeviceGet": note("cuDeviceGet", 0),
        "cuDevicePrimaryCtxRetain": note("retain", "context"), "cuCtxPushCurrent": note("push"),
        "cuCtxPopCurrent": note("pop", "context"), "cuDevicePrimaryCtxRelease": note("release"),
        "cuStreamCreate": note("cuStreamCreate", STREAM), "cuStreamDestroy": note("cuStreamDestroy"), "cuStreamSynchronize": wait,
        "cuMemAlloc": allocate, "cuMemFree": free, "cuMemsetD8Async": fill, "cuMemcpyHtoDAsync": upload,
        "cuMemcpyDtoHAsync": download, "cuEventCreate": lambda flags: (0, []), "cuEventRecord": record,
        "cuEventSynchronize": wait_for, "cuEventDestroy": note("cuEventDestroy"),
        "cuEventElapsedTime": lambda start, end: (0, (end[0] - start[0]) / 1e3),
    }  # fmt: skip


class Driver:
    """libcuda as ctypes sees it: one A100."""

    def __init__(self, init: int = 0, count: int = 1, name: bytes = b"NVIDIA A100-SXM4-40GB") -> None:
        self.init, self.count, self.name = init, count, name

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, buffer: Any, size: int, device: Any) -> int:  # noqa: N802
        buffer.value = self.name
        return 0

    def cuDeviceGetPCIBusId(self, buffer: Any, size: int, device: Any) -> int:  # noqa: N802
        buffer.value = b"0000:07:00.0"
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:  # noqa: N802
        size._obj.value = 40 << 30
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 12040
        return 0

    def cuDeviceGetAttribute(self, value: Any, number: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {16: 108, 75: 8, 76: 0, 18: 0}[number]
        return 0
