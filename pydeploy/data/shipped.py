"""Files that come with pydeploy: configs and calibration manifests, found by name.

In a checkout they lie in ``configs/`` and ``calib/`` at the top; in an installed package, in folders of the same names
inside it. So paths from one to the other are the same in both.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydeploy.errors import ConfigError, DataError, nearest
from pydeploy.files import check_writable, replacing

KINDS: Mapping[str, str] = {"configs": "config", "calib": "calibration manifest"}
"""Folders, and what a file in each is called."""
_PACKAGE = Path(__file__).resolve().parent.parent


def home(kind: str, package: Path = _PACKAGE) -> Path:
    """The folder in which files of a kind of `KINDS` lie."""
    checkout = package.parent / kind
    return checkout if (package.parent / "pyproject.toml").is_file() and checkout.is_dir() else package / kind


def shipped(kind: str) -> dict[str, Path]:
    """Every file of a kind by its name, which has no suffix."""
    return {path.stem: path for path in sorted(home(kind).glob("*.yaml"))}


def find(kind: str, path: Path | str) -> Path:
    """`path` where there is such a file, or it is written as a path; else the file of that name that comes with pydeploy.

    Raises `ConfigError` with the nearest name where nothing is called so.
    """
    path = Path(path)
    if path.exists() or len(path.parts) != 1 or path.suffix:
        return path
    return _named(kind, path.name, ", and there is no such file")


def _named(kind: str, name: str, more: str = "") -> Path:
    known = shipped(kind)
    if name not in known:
        raise ConfigError(f"unknown {KINDS[kind]} '{name}'{more}{nearest(name, known)}")
    return known[name]


def summary(path: Path) -> str:
    """The first sentence of a file's head comment that is no command."""
    head = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    lines = [line.removeprefix("#").strip() for line in head]
    text = " ".join(line for line in lines if not line.startswith("pydeploy "))
    return text.partition(". ")[0]


def copy(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Copy the named configs, all without names, and what configs need into `folder`; returns the copies.

    Raises `ConfigError` for an unknown name and `DataError` where a file of another content would be replaced.
    """
    chosen = [_named("configs", name) for name in names or shipped("configs")]
    needed = [path for path in sorted(home("configs").rglob("*")) if path.is_file() and path.suffix != ".yaml"]
    pairs = [(path, folder / "configs" / path.relative_to(home("configs"))) for path in [*chosen, *needed]]
    pairs += [(path, folder / "calib" / path.name) for path in shipped("calib").values()]
    for source, copied in pairs:
        check_writable(copied)
        if copied.exists() and copied.read_bytes() != source.read_bytes():
            raise DataError(f"{copied} exists and is another file; choose another folder")
    for source, copied in pairs:
        with replacing(copied) as partial:
            shutil.copyfile(source, partial)
    return [copied for _, copied in pairs]
