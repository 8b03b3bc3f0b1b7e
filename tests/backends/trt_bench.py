"""A machine with a GPU, for tests: `machine` puts the fake TensorRT, pycuda, cuda-python and driver in place."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

import cuda_fake
import trt_fake
import trt_surface
from pydeploy.backends.tensorrt import driver
from trt_fake import World

_ASKED = os.environ.get("PYDEPLOY_TRT_VERSION", "")
VERSIONS = [name for name in trt_surface.VERSIONS if _ASKED in ("", name)]
"""All versions from their tables; in `make trt-contract` the one whose real bindings are loaded."""


RTX_VERSIONS = [name for name in trt_surface.RTX_VERSIONS if _ASKED in ("", name)]


def machine(monkeypatch: pytest.MonkeyPatch, version: str, folder: Path, *, gpu: Any = None) -> World:
    """Installs the fakes for `version`; returns the world they share."""
    world = World(trt_surface.load(version), version)
    modules = {
        "tensorrt_rtx" if world.surface.rtx else "tensorrt": tensorrt_module(world),
        "pycuda.driver": None if world.surface.rtx else cuda_fake.pycuda(world),
        "cuda.bindings.driver": cuda_fake.cuda_python(world),
        "pynvml": None,
    }
    for name, module in modules.items():
        if module is not None:
            module.__spec__ = ModuleSpec(name, None)  # so that others may ask whether it is installed
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(driver, "load_driver", lambda: gpu or cuda_fake.Driver())
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    driver.find_gpu.cache_clear()
    monkeypatch.setattr("pydeploy.backends.tensorrt.session.perf_counter_ns", lambda: int(world.host_us * 1e3))
    return world


def tensorrt_module(world: World) -> Any:
    if "PYDEPLOY_TRT_VERSION" in os.environ:
        import trt_contract

        return trt_contract.module(world)
    return trt_fake.module(world)


@pytest.fixture(params=VERSIONS)
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    """A machine with one GPU, once for every version."""
    found = machine(monkeypatch, request.param, tmp_path)
    yield found
    driver.find_gpu.cache_clear()
    assert found.graphs == 0, "every CUDA graph was destroyed"
