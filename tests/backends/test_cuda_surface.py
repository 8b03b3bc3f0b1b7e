"""The fakes of pycuda, cuda-python and NVML have nothing that the real packages lack; and what we call of NVML only reads."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import cuda_fake
import cuda_surface
from pydeploy.backends.tensorrt import condition
from test_tensorrt_backend import Nvml
from trt_fake import World
from trt_surface import VERSIONS
from trt_surface import load as load_tensorrt

WORLD = World(load_tensorrt(VERSIONS[-1]), VERSIONS[-1])
PYCUDA = ("pycuda-2024.1", "pycuda-2026.1")
CUDA_PYTHON = ("cuda-python-12.4", "cuda-bindings-13.5")


def arguments(call: Any) -> list[str]:
    return [name for name in inspect.signature(call).parameters if name != "self"]


@pytest.mark.parametrize("table", PYCUDA)
def test_the_fake_pycuda_has_only_what_pycuda_has(table: str) -> None:
    """With the tests of the backend, which run on the fake, this says: what the backend uses exists."""
    real, fake = cuda_surface.load(table), cuda_fake.pycuda(WORLD)
    names = [name for name in vars(fake) if not name.startswith("_")]
    assert set(names) >= {"Device", "Stream", "Event", "mem_alloc", "memcpy_htod_async", "MemoryError"}
    for name in names:
        assert name in real, name
        thing = getattr(fake, name)
        if inspect.isfunction(thing) and isinstance(real[name], list):
            assert arguments(thing) == real[name][: len(arguments(thing))]
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            if (member.startswith("_") and member != "__int__") or member in ("at", "address"):
                continue
            kind = real[f"{name}.{member}"]
            assert callable(value) == (kind != cuda_surface.PROPERTY), (name, member)
            if isinstance(kind, list):
                assert arguments(value) == kind[: len(arguments(value))]


@pytest.mark.parametrize("table", CUDA_PYTHON)
def test_the_fake_cuda_python_takes_what_cuda_python_takes(table: str) -> None:
    real, fake = cuda_surface.load(table), cuda_fake.cuda_python(WORLD)
    functions = {*cuda_surface.GRAPH_FUNCTIONS, *cuda_surface.DRIVER_FUNCTIONS}
    assert set(real) == {*functions, "CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"}
    for name in cuda_surface.GRAPH_FUNCTIONS:
        assert len(arguments(getattr(fake, name))) == len(real[name] or ()), name


def test_the_installed_cuda_python_is_as_the_table_says() -> None:
    try:
        driver = importlib.import_module("cuda.bindings.driver")
    except ImportError:
        pytest.skip("cuda-bindings, which some builds of PyTorch bring, is not installed")
    assert cuda_surface.cuda_python(driver) == cuda_surface.load(CUDA_PYTHON[-1])


def test_nvml_is_only_read() -> None:
    real = cuda_surface.load("nvidia-ml-py-13")
    used = set(re.findall(r"\bnvml[A-Z]\w+", Path(condition.__file__).read_text()))
    assert used == set(real), "what is used is in the table, which holds nothing that sets anything"
    for name in set(vars(Nvml)) & set(real):
        assert arguments(getattr(Nvml, name)) == real[name], name
