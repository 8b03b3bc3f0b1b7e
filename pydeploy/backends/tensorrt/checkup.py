"""What a machine has and lacks for TensorRT, in words: for `pydeploy doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from types import ModuleType

from pydeploy.backends.tensorrt import compat, trtexec
from pydeploy.backends.tensorrt.driver import find_gpu
from pydeploy.errors import BackendUnavailable


def checkup() -> dict[str, str]:
    """One line a part; a line that begins with 'missing' says how to get the part."""
    return {"GPU": _gpu(), "bindings": _bindings(), "pycuda": _pycuda(), "CUDA graphs": _graphs(), "NVML": _nvml(),
            "trtexec": _trtexec()}  # fmt: skip


def checkup_rtx() -> dict[str, str]:
    """As `checkup`, for TensorRT for RTX: without a GPU engines can be built, but not run."""
    return {"GPU": _gpu(), "bindings": _bindings_rtx(), "cuda-python": _cuda_python(), "NVML": _nvml()}


def _bindings_rtx() -> str:
    try:
        trt = _fitting(compat.load_rtx())
    except BackendUnavailable as error:
        return f"missing: {error}"
    return f"TensorRT for RTX {trt.__version__}, builds for {', '.join(compat.known_gpus(trt))}, also without a GPU"


def _cuda_python() -> str:
    if not _installed("cuda.bindings.driver"):
        return "missing: pip install cuda-python; without it engines are built, but not run"
    return "cuda-python is there"


def _gpu() -> str:
    try:
        gpu = find_gpu()
    except BackendUnavailable as error:
        return f"missing: {error}"
    kind = "integrated" if gpu.integrated else f"{gpu.memory_bytes >> 30} GiB"
    return (
        f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}, {kind}, driver for CUDA {gpu.driver}"
    )


def _bindings() -> str:
    try:
        trt = _fitting(compat.load())
    except BackendUnavailable as error:
        return f"missing: {error}"
    typed = compat.is_typed(compat.version(trt), typed_file=False)
    return f"TensorRT {trt.__version__}, precision {'from the types in the file' if typed else 'by flags, or from typed files'}"


def _fitting(trt: ModuleType) -> ModuleType:
    """`trt`; raises `BackendUnavailable` where there is a driver that is too old for it."""
    try:
        gpu = find_gpu()
    except BackendUnavailable:
        return trt
    compat.check_driver(trt, gpu.driver)
    return trt


def _pycuda() -> str:
    if not _installed("pycuda"):
        return "missing: pip install pycuda (pip compiles it: needs a C++ compiler and the CUDA toolkit's headers, nvcc on the PATH)"
    try:
        return f"pycuda {importlib.metadata.version('pycuda')}"
    except importlib.metadata.PackageNotFoundError:
        return "pycuda is there"  # copied or built in place, without metadata


def _graphs() -> str:
    if not (_installed("cuda.bindings.driver") or _installed("cuda.cuda")):
        return "missing: pip install cuda-python; without it latencies include launching each kernel"
    return "cuda-python is there"


def _nvml() -> str:
    if not _installed("pynvml"):
        return "missing: pip install nvidia-ml-py; without it clocks and temperature are not recorded"
    return "nvidia-ml-py is there"


def _trtexec() -> str:
    found = trtexec.find()
    if found is None:
        return "not found (comes with TensorRT's Debian packages, archives and containers); only needed where there are no bindings"
    return f"{found[0]}, TensorRT {found[1][0]}.{found[1][1]}"


def _installed(name: str) -> bool:
    """Whether a module can be found; it is not imported, because pycuda needs a driver for that."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
