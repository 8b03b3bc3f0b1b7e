"""The environment that ``pip install pydeploy-hil`` makes on a board: the base dependencies and what they need, nothing else.

Packages are borrowed from this environment by links, so that nothing is downloaded; PyTorch is not among them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

import pydeploy
from pydeploy import _core


def closure(name: str) -> dict[str, Distribution]:
    """The installed distributions that `name` needs without any extra, itself left out."""
    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        for text in distribution(waiting.pop()).requires or []:
            needed = Requirement(text)
            if needed.name in found or (needed.marker and not needed.marker.evaluate({"extra": ""})):
                continue
            try:
                found[needed.name] = distribution(needed.name)
            except PackageNotFoundError:
                continue  # needed by an optional path of another package
            waiting.append(needed.name)
    return found


def make(folder: Path) -> Path:
    """A virtual environment in `folder`; returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    shutil.copytree(Path(pydeploy.__file__).parent, site / "pydeploy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(str(_core.__file__)), site / "pydeploy")
    for package in closure("pydeploy-hil").values():
        for top in {file.parts[0] for file in package.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            source = Path(str(package.locate_file(top)))
            if not (site / top).exists() and source.exists():
                (site / top).symlink_to(source)
    return folder / "bin" / "python"


def run(python: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`python` with nothing of this environment's: no PYTHONPATH, another home, another working directory."""
    env = {"PATH": os.environ["PATH"], "HOME": str(python.parent), "OMP_NUM_THREADS": "1"}
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=env, cwd=python.parent)
    assert done.returncode == code, done.stdout + done.stderr
    return done
