"""What `pydeploy doctor` reports."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from pydeploy.backends.base import BACKENDS, open_backend
from pydeploy.errors import BackendUnavailable, DataError
from pydeploy.version import __version__

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
PACKAGES = (
    "torch",
    "torchvision",
    "onnx",
    "onnx-graphsurgeon",
    "onnxruntime",
    "openvino",
    "torch-pruning",
    "ray",
)
EXTRAS = {"torch": "train", "torchvision": "train", "openvino": "openvino", "torch-pruning": "bench", "ray": "ray"}


def findings() -> dict[str, Any]:
    """Facts by topic; texts say what to do about what is missing."""
    from pydeploy.backends.device import cpu
    from pydeploy.backends.tensorrt.checkup import checkup

    return {
        "pydeploy": f"{__version__}, Python {platform.python_version()}",
        "compiled part": _core(),
        "device": cpu().name,
        "backend": {name: _backend(name) for name in BACKENDS if name != "null"},
        "tensorrt": checkup(),
        "package": {name: _package(name) for name in PACKAGES},
        "data": _data(),
    }


def _core() -> str:
    try:
        from pydeploy import _core
    except ImportError as error:
        return f"missing ({error}): run 'make setup' or reinstall the package"
    return f"present, version {_core.__version__}"


def _backend(name: str) -> str:
    refusals = {precision: _refusal(name, precision) for precision in PRECISIONS}
    able = [precision for precision, why in refusals.items() if not why]
    return f"ready: {', '.join(able)}" if able else refusals[PRECISIONS[0]]


def _refusal(name: str, precision: str) -> str:
    """Why the backend cannot be used at this precision; '' when it can."""
    try:
        open_backend(name, precision=precision)
    except BackendUnavailable as error:
        return str(error)
    return ""


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed (pip install 'pydeploy[{EXTRAS[name]}]')" if name in EXTRAS else "not installed"


def _data() -> str:
    try:
        from pydeploy.data.image_sets import REMEDY, find_fashion_mnist
    except ImportError as error:
        return f"not looked for: training needs '{error.name}' (pip install 'pydeploy[train]'); measuring does not"

    try:
        return f"Fashion-MNIST in {find_fashion_mnist(download=False)}"
    except DataError:
        return f"Fashion-MNIST not found: {REMEDY}"
