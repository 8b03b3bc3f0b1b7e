"""The backend's tests against the real TensorRT bindings: `make trt-contract`.

NVIDIA's binding wheels of eight versions are installed side by side, imported with the help of a compiled stub (no GPU and
no TensorRT library is involved), compared with the committed tables, and the whole backend then runs against
`create_autospec` of the real classes. What pycuda, cuda-python and NVML's bindings offer is compared with tables as well
(`cuda_surface`). ``python tests/trt_contract.py --update`` writes the tables anew.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
import tarfile
import types
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import cuda_surface
import trt_fake
import trt_surface

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLACE = ROOT / "build" / "trt"
WHEELS = {"8.6.1": "tensorrt-bindings==8.6.1", "10.0.1": "tensorrt-cu12-bindings==10.0.1",
          "10.3.0": "tensorrt-cu12-bindings==10.3.0", "10.16.1": "tensorrt-cu12-bindings==10.16.1.11",
          "11.0.0": "tensorrt-cu13-bindings==11.0.0.114", "11.4.0": "tensorrt-cu13-bindings==11.4.0.106",
          "rtx-1.4.0": "tensorrt-rtx-cu13-bindings==1.4.0.76", "rtx-1.7.1": "tensorrt-rtx-cu13-bindings==1.7.1.116"}  # fmt: skip
OTHERS = {"cuda-python-12.4": "cuda-python==12.4.0", "cuda-bindings-13.5": "cuda-bindings==13.5.0 cuda-pathfinder",
          "nvidia-ml-py-13": "nvidia-ml-py==13.615.71"}  # fmt: skip
SOURCES = {"pycuda-2024.1": "pycuda==2024.1", "pycuda-2026.1": "pycuda==2026.1"}
MODULES = {"cuda-python-12.4": ("cuda.cuda", "cuda_python"), "cuda-bindings-13.5": ("cuda.bindings.driver", "cuda_python"),
           "nvidia-ml-py-13": ("pynvml", "nvml")}  # fmt: skip
LIBRARIES = {"8": ("nvinfer", "nvonnxparser", "nvinfer_plugin", "nvparsers"), "10": ("nvinfer", "nvonnxparser", "nvinfer_plugin"),
             "11": ("nvinfer", "nvonnxparser", "nvinfer_plugin"), "rtx-1": ("tensorrt_rtx", "tensorrt_onnxparser_rtx")}  # fmt: skip
"""What the bindings load, by the version's first number."""
UNAVAILABLE = 3  # exit code: the wheels cannot be had here


def tests(version: str) -> list[str]:
    """Files of tests that are held against the bindings of a version."""
    backend = "test_rtx_backend.py" if version.startswith("rtx-") else "test_tensorrt_backend.py"
    return [str(HERE / backend), str(HERE / "test_tensorrt_contract.py")]


def bindings(version: str) -> types.ModuleType:
    """The real module of a version; one version per process."""
    major = version.split(".")[0]
    for name in LIBRARIES[major]:
        ctypes.CDLL(str(PLACE / f"stub{major}" / f"lib{name}.so.{major.removeprefix('rtx-')}"), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(PLACE / version))
    if version.startswith("rtx"):
        sys.modules["tensorrt_rtx_libs"] = types.ModuleType("tensorrt_rtx_libs")  # another version's may be installed
        return importlib.import_module("tensorrt_rtx_bindings")
    return importlib.import_module("tensorrt_bindings")


_loaded: dict[str, types.ModuleType] = {}


def real_module(version: str) -> types.ModuleType:
    if version not in _loaded:
        _loaded[version] = bindings(version)
    return _loaded[version]


def module(world: trt_fake.World) -> types.ModuleType:
    """The real module, except that its three entry points lead to autospec'd objects with the fake's behaviour."""
    real = real_module(world.table)
    world.surface = trt_surface.extract(real)
    trt = types.ModuleType("tensorrt_rtx" if world.surface.rtx else "tensorrt")
    trt.__dict__.update({name: getattr(real, name) for name in dir(real) if not name.startswith("_")})
    trt.__version__ = real.__version__  # type: ignore[attr-defined]
    world.module = trt  # type: ignore[attr-defined]

    def make(name: str, core: Any) -> Any:
        return mock(world, getattr(real, name), name, core)

    for name, start in trt_fake.entries(world, make).items():
        setattr(trt, name, trt_fake.constructor(world, name, start))
    return trt


def mock(world: trt_fake.World, cls: Any, name: str, core: Any) -> Any:
    """An autospec of the real class: its methods check their arguments, then do what `core` does."""
    thing = create_autospec(cls, instance=True, spec_set=True)
    for member, kind in world.surface.classes[name].items():
        if member == "__init__":
            continue
        if isinstance(kind, list):
            getattr(thing, member).side_effect = _checked(world, name, member, kind, core)
        else:
            setattr(type(thing), member, _property(world, name, member, kind, core))
    trt_fake.remember(thing, core)
    return thing


def _checked(world: trt_fake.World, name: str, member: str, signatures: list[str], core: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        trt_fake.check_call(world.surface, f"{name}.{member}", signatures, args, kwargs)
        world.calls.append(f"{name}.{member}")
        return getattr(core, member)(*args, **kwargs)

    return call


def _property(world: trt_fake.World, name: str, member: str, kind: Any, core: Any) -> property:
    assigned: dict[str, Any] = {}

    def read(_self: Any) -> Any:
        return assigned.get(member, getattr(core, member, None))

    def write(_self: Any, value: Any) -> None:
        if kind != "rw":
            raise AttributeError(f"'{name}.{member}' is read-only in {world.surface.version}")
        world.calls.append(f"{name}.{member}=")
        assigned[member] = value

    return property(read, write)


# ---------------------------------------------------------------- the run


def install() -> str:
    """Fetches the packages that are not there yet and compiles the stub; says what is missing, '' when nothing is."""
    for name, wheels in {**WHEELS, **OTHERS}.items():
        if not (PLACE / name / ".complete").exists():
            if problem := pip("install", "--target", str(PLACE / name), *wheels.split()):
                return f"{wheels} cannot be installed: {problem}"
            (PLACE / name / ".complete").touch()
    for name, source in SOURCES.items():
        if any((PLACE / name).glob("*.tar.gz")):
            continue
        if problem := pip("download", "--no-binary", "pycuda", "--dest", str(PLACE / name), source):
            return f"{source} cannot be downloaded: {problem}"
    compiler = os.environ.get("CC", "cc")
    for major, libraries in LIBRARIES.items():
        folder = PLACE / f"stub{major}"
        folder.mkdir(parents=True, exist_ok=True)
        for name in libraries:
            out = folder / f"lib{name}.so.{major.removeprefix('rtx-')}"
            command = [
                compiler,
                "-shared",
                "-fPIC",
                "-w",
                f"-Wl,-soname,{out.name}",
                "-o",
                str(out),
                str(HERE / "trt_loader_stub.c"),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return f"the stub cannot be compiled: {done.stderr.strip()[-300:]}"
    return ""


def pip(verb: str, *arguments: str) -> str:
    """Without dependencies; the last line of what went wrong, '' where nothing did."""
    command = [sys.executable, "-m", "pip", verb, "--quiet", "--disable-pip-version-check", "--no-deps", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stderr.strip().splitlines() or ["no reason"])[-1] if done.returncode else ""


def cuda_surfaces() -> dict[str, cuda_surface.Surface]:
    """What the real packages offer; each is imported in a process of its own, pycuda's is read from its source."""
    found: dict[str, cuda_surface.Surface] = {}
    for name in SOURCES:
        (archive,) = (PLACE / name).glob("*.tar.gz")
        with tarfile.open(archive) as files:
            member = next(m for m in files.getnames() if m.endswith("src/wrapper/wrap_cudadrv.cpp"))
            text = files.extractfile(member)
            assert text is not None
            found[name] = cuda_surface.pycuda(text.read().decode(errors="replace"))
    for name, (module, reader) in MODULES.items():
        code = f"import json, {module} as m, cuda_surface as c; print(json.dumps(c.{reader}(m)))"
        env = {**os.environ, "PYTHONPATH": f"{PLACE / name}{os.pathsep}{HERE}"}
        done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, env=env)
        found[name] = json.loads(done.stdout)
    return found


def cuda_differences(*, update: bool) -> list[str]:
    """Names of packages whose surface is not the committed one; with `update`, the tables are written anew."""
    found = cuda_surfaces()
    for name, surface in found.items() if update else ():
        cuda_surface.save(name, surface)
    return [name for name, surface in found.items() if cuda_surface.load(name) != surface]


def main() -> int:
    if "--update" in sys.argv:
        version = os.environ.get("PYDEPLOY_TRT_VERSION")
        if version is not None:
            trt_surface.extract(bindings(version)).save()
            return 0
    if sys.version_info[:2] > (3, 11):
        print("trt-contract: the wheels of TensorRT 8.6 end at Python 3.11; run with 'make PYTHON=python3.11'")
        return UNAVAILABLE
    if problem := install():
        print(f"trt-contract: {problem}")
        return UNAVAILABLE
    failed = cuda_differences(update="--update" in sys.argv)
    print(f"== pycuda, cuda-python, NVML: {'other than ' + ', '.join(failed) if failed else 'as their tables say'}")
    for version in WHEELS:
        command = [sys.executable, "-m", "pytest", "-q", *tests(version)]
        if "--update" in sys.argv:
            command = [sys.executable, __file__, "--update"]
        print(f"== TensorRT {version}, real bindings", flush=True)
        done = subprocess.run(command, check=False, env={**os.environ, "PYDEPLOY_TRT_VERSION": version}, cwd=ROOT)
        failed += [version] if done.returncode else []
    print(f"trt-contract: {'FAILED on ' + ', '.join(failed) if failed else f'{len(WHEELS)} versions passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
