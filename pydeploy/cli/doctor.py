"""What `pydeploy doctor` reports."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import platform
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydeploy.backends.base import backend_class, names, open_backend
from pydeploy.errors import DataError, DeployError
from pydeploy.version import DISTRIBUTION, __version__

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

    return {
        "pydeploy": f"{__version__}, Python {platform.python_version()}",
        "installation": _installation(importlib.metadata.distributions()),
        "compiled part": _core(),
        "device": cpu().name,
        "backend": {name: _backend(name) for name in names() if not _is_analytic(name)},
        **_checkups(),
        "package": {name: _package(name) for name in PACKAGES},
        "data": _data(),
    }


def _installation(installed: Iterable[importlib.metadata.Distribution]) -> str:
    """Whether the package is as it was installed: another project's distribution has its name, and brings the same files."""
    again = f"pip install --force-reinstall --no-deps {DISTRIBUTION}"
    named = {re.sub(r"[-_.]+", "-", str(one.metadata["Name"])).lower(): one for one in installed}
    if "pydeploy" in named:
        return (
            f"WARNING: a distribution 'pydeploy' {named['pydeploy'].version} is installed too; ours is called {DISTRIBUTION}, and "
            f"both bring a package 'pydeploy': pip uninstall pydeploy, then {again}"
        )
    if DISTRIBUTION not in named:
        return "not installed, run from its source"
    changed = [str(file) for file in named[DISTRIBUTION].files or [] if _differs(file)]
    if changed:
        return f"WARNING: {changed[0]} is not as it was installed ({len(changed)} files are not): {again}"
    return f"{DISTRIBUTION}, complete"


def _differs(file: importlib.metadata.PackagePath) -> bool:
    """Whether a file of the package is missing, or has other bytes than those that were installed."""
    if file.hash is None or file.hash.mode != "sha256" or file.parts[0] != "pydeploy":
        return False
    try:
        found = hashlib.sha256(Path(str(file.locate())).read_bytes()).digest()
    except OSError:
        return True
    return base64.urlsafe_b64encode(found).rstrip(b"=").decode() != file.hash.value


def _core() -> str:
    try:
        from pydeploy import _core
    except ImportError as error:
        return f"missing ({error}): run 'make setup' or reinstall the package"
    return f"present, version {_core.__version__}"


def _is_analytic(name: str) -> bool:
    try:
        return backend_class(name).analytic
    except DeployError:
        return False


def _checkups() -> dict[str, dict[str, str]]:
    """What each backend says of this computer, where it says anything."""
    found: dict[str, dict[str, str]] = {}
    for name in names():
        with suppress(DeployError):  # told by `_backend`
            found[name] = dict(backend_class(name).checkup())
    return {name: parts for name, parts in found.items() if parts}


def _backend(name: str) -> str:
    refusals = {precision: _refusal(name, precision) for precision in PRECISIONS}
    able = [precision for precision, why in refusals.items() if not why]
    if able and (why := open_backend(name, precision=able[0]).only_builds):
        return f"builds {', '.join(able)}; cannot run engines: {why}"
    return f"ready: {', '.join(able)}" if able else refusals[PRECISIONS[0]]


def _refusal(name: str, precision: str) -> str:
    """Why the backend cannot be used at this precision; '' when it can."""
    try:
        open_backend(name, precision=precision)
    except DeployError as error:  # an installed package's backend may raise any
        return str(error)
    return ""


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed (pip install 'pydeploy-hil[{EXTRAS[name]}]')" if name in EXTRAS else "not installed"


def _data() -> str:
    try:
        from pydeploy.data.image_sets import REMEDY, find_fashion_mnist
    except ImportError as error:
        return f"not looked for: training needs '{error.name}' (pip install 'pydeploy-hil[train]'); measuring does not"

    try:
        return f"Fashion-MNIST in {find_fashion_mnist(download=False)}"
    except DataError:
        return f"Fashion-MNIST not found: {REMEDY}"
