"""What pycuda, cuda-python and NVML's bindings offer: names and arguments, so that the fakes can be held to them.

* pycuda cannot be imported without a driver (and pip compiles it): its names are read from the C++ source of its sdist,
  where Boost.Python is told of every class, method and argument.
* cuda-python and nvidia-ml-py are read from the imported modules, which need no driver.

The tables are committed under ``cuda_api/``; `make trt-contract` reads them off the real packages again.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import ModuleType

TABLES = Path(__file__).parent / "cuda_api"

PROPERTY = "property"
Surface = dict[str, list[str] | str | None]
"""Arguments by ``function`` and ``Class.method``, None where they are not told; None for a class; or `PROPERTY`."""

GRAPH_FUNCTIONS = ("cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphLaunch", "cuGraphDestroy",
                   "cuGraphExecDestroy")  # fmt: skip
DRIVER_FUNCTIONS = ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease", "cuCtxPushCurrent",
                    "cuCtxPopCurrent", "cuStreamCreate", "cuStreamDestroy", "cuStreamSynchronize", "cuMemAlloc", "cuMemFree",
                    "cuMemsetD8Async", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuEventCreate", "cuEventRecord",
                    "cuEventSynchronize", "cuEventElapsedTime", "cuEventDestroy")  # fmt: skip
"""What TensorRT for RTX runs on."""
PYCUDA_CLASSES = ("Device", "Context", "Stream", "Event", "DeviceAllocation", "MemoryError")
PYCUDA_FUNCTIONS = ("init", "mem_alloc", "memcpy_htod_async", "memcpy_dtoh_async", "memset_d8_async")
NVML = re.compile(r"^nvml(Init|DeviceGet(HandleByPciBusId|ClockInfo|Temperature|PowerUsage|CurrentClocks\w+Reasons))$")


def load(name: str) -> Surface:
    found: Surface = json.loads((TABLES / f"{name}.json").read_text())
    return found


def save(name: str, surface: Surface) -> None:
    TABLES.mkdir(exist_ok=True)
    rows = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(surface.items())]
    (TABLES / f"{name}.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")


_TOKEN = re.compile(
    r'py::class_<[^;]*?>\s*\(\s*"(?P<cls>\w+)"|DECLARE_EXC\((?P<exc>\w+)|py::def\(\s*"(?P<function>\w+)"|'
    r'DEF_SIMPLE_FUNCTION\((?P<simple>\w+)\)|\.def\(\s*"(?P<method>\w+)"|\.DEF_SIMPLE_METHOD\((?P<plain>\w+)\)|'
    r'\.add_property\(\s*"(?P<property>\w+)"'
)


def pycuda(source: str) -> Surface:
    """From the text of ``src/wrapper/wrap_cudadrv.cpp``."""
    found: Surface = {}
    inside = ""
    tokens = list(_TOKEN.finditer(source))
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        kind, name = next((kind, name) for kind, name in token.groupdict().items() if name)
        said = source[token.end() : following.start() if following else len(source)]
        if kind in ("cls", "exc", "function", "simple"):
            inside = name if kind == "cls" else ""
            found[name] = None if kind in ("cls", "exc", "simple") else _arguments(said)
        elif inside and name != "__init__":
            found[f"{inside}.{name}"] = (
                PROPERTY if kind == "property" else _arguments(said) if kind == "method" else None
            )
    return {key: value for key, value in found.items()
            if key in PYCUDA_FUNCTIONS or key.split(".")[0] in PYCUDA_CLASSES}  # fmt: skip


def _arguments(text: str) -> list[str] | None:
    """``py::args("dest", "data"), py::arg("stream")=...`` -> dest, data, stream; None where nothing is said."""
    names = [name for group in re.findall(r"py::args?\(([^)]*)\)", text) for name in re.findall(r'"(\w+)"', group)]
    return [name for name in names if name != "self"] or None


def cuda_python(driver: ModuleType) -> Surface:
    """Of cuda-python's driver module, as far as CUDA graphs go; the first line of a docstring is the signature."""
    found: Surface = {}
    for name in (*GRAPH_FUNCTIONS, *DRIVER_FUNCTIONS):
        first = (getattr(driver, name).__doc__ or "").splitlines()[0]
        match = re.fullmatch(rf"{name}\((.*)\)", first)
        assert match is not None, first
        found[name] = [
            re.split(r"[ :]", part.strip())[-1 if ":" not in part else 0]
            for part in match[1].split(",")
            if part.strip()
        ]
    assert int(driver.CUstream(5)) == 5
    found["CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"] = None
    assert int(driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) == 1
    return found


def nvml(pynvml: ModuleType) -> Surface:
    """Of nvidia-ml-py, as far as clocks, temperature and power go."""
    names = [name for name in dir(pynvml) if NVML.match(name)]
    return {name: list(inspect.signature(getattr(pynvml, name)).parameters) for name in names}
