"""Calibration sets as text: which samples of which data, so that a calibration can be repeated and checked.

A manifest is a small YAML file under ``calib/``; the samples themselves are never stored. Its `source` is the name of a
data set, or a path, relative to the manifest: a folder of images, a ``.txt`` file with one image a line, or a ``.npy`` file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.preprocessing import PREPROCESSING, Preprocessing
from pydeploy.data.shipped import find
from pydeploy.errors import ConfigError, DataError, nearest
from pydeploy.files import read_yaml


@dataclass(frozen=True, slots=True)
class Manifest:
    """One calibration set: `count` samples of one part of a data set, drawn by `seed`."""

    source: str
    """Name of a data set, or path of images or arrays."""
    split: str = "train"
    """Part of a data set; without meaning for a path."""
    count: int = 512
    seed: int = 0
    preprocessing: str | Preprocessing = ""
    """What turns stored samples into model inputs; '' or the data set's name: the data set's own."""
    max_skipped: float = 0.01
    """Share of the images that may be missing or damaged; they are left out and named."""
    sha256: str = ""
    """Hash of the preprocessed float32 samples in the order of `indices` ('' = not pinned)."""
    folder: Path = Path()
    """What a path in `source` is relative to; not written in the file."""

    @property
    def path(self) -> Path | None:
        """Where the images or arrays lie; None for the name of a data set."""
        return self.folder / self.source if "/" in self.source or Path(self.source).suffix in (".npy", ".txt") else None

    @property
    def settings(self) -> Preprocessing | None:
        """The preprocessing that is written or named here; None for the data set's own."""
        if isinstance(self.preprocessing, Preprocessing):
            return self.preprocessing
        if self.preprocessing in ("", self.source):
            return None
        if self.preprocessing not in PREPROCESSING:
            known = [*PREPROCESSING, self.source]
            raise ConfigError(f"unknown preprocessing '{self.preprocessing}'{nearest(self.preprocessing, known)}")
        return PREPROCESSING[self.preprocessing]

    def __str__(self) -> str:
        """In words, for people."""
        named = self.preprocessing if isinstance(self.preprocessing, str) else str(self.preprocessing)
        part = "" if self.path else f", part '{self.split}'"
        return f"{self.count} samples of {self.source}{part}, seed {self.seed}, preprocessing: {named or 'its own'}"

    def key(self) -> str:
        """Hash of everything that decides which samples these are."""
        record = {**asdict(self), "folder": str(self.folder.resolve()) if self.path else ""}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

    def indices(self, available: int) -> NDArray[np.int64]:
        """Which samples of a split of `available` ones, ascending, without repetition, shape ``(count,)``."""
        if available < self.count:
            raise DataError(
                f"the calibration set asks for {self.count} samples of {self.source}/{self.split}, "
                f"which has {available}; lower 'count'"
            )
        return np.sort(np.random.default_rng(self.seed).permutation(available)[: self.count]).astype(np.int64)

    def checked(self, samples: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """The samples (in any batches, in order); after the last, `DataError` where their hash is not the pinned one."""
        digest = hashlib.sha256()
        for batch in samples:
            digest.update(np.ascontiguousarray(batch, dtype="<f4").data)
            yield batch
        self.require_hash(digest.hexdigest())

    def require_hash(self, found: str) -> None:
        """`DataError` unless `found` is the pinned hash or none is pinned."""
        if self.sha256 and found != self.sha256:
            raise DataError(
                f"the {self.count} calibration samples of {self.source}/{self.split} have sha256 {found}, the manifest "
                f"says {self.sha256}: the data or their preprocessing changed; restore them, or pin the new hash"
            )


def load_manifest(path: Path) -> Manifest:
    """The manifest in a YAML file; raises `ConfigError` naming the file and the key that is wrong."""
    path = find("calib", path)
    data = read_yaml(
        path, "calibration manifest", "pass a file, or 'smoke' or 'fashion_mnist', which come with pydeploy"
    )
    kinds: dict[str, type] = {f.name: str for f in fields(Manifest) if f.name != "folder"}
    kinds.update(count=int, seed=int, max_skipped=float)
    names = {int: "a whole number", float: "a number", str: "text"}
    for key, value in data.items():
        if key not in kinds:
            raise ConfigError(f"{path}: unknown key '{key}'{nearest(str(key), kinds)}")
        if key == "preprocessing" and isinstance(value, dict):
            continue
        if type(value) is not kinds[key] and not (kinds[key] is float and type(value) is int):
            raise ConfigError(f"{path}: '{key}' must be {names[kinds[key]]}, got {value!r}")
    if not data.get("source"):
        raise ConfigError(f"{path}: key 'source' is required: the name of a data set, or a path")
    if isinstance(data.get("preprocessing"), dict):
        data["preprocessing"] = Preprocessing.parse(data["preprocessing"], str(path))
    manifest = Manifest(**data, folder=path.parent)
    if manifest.count < 1 or manifest.seed < 0:
        raise ConfigError(
            f"{path}: 'count' must be at least 1 and 'seed' at least 0, got {manifest.count} and {manifest.seed}"
        )
    if not 0 <= manifest.max_skipped < 1:
        raise ConfigError(f"{path}: 'max_skipped' is a share, at least 0 and below 1, got {manifest.max_skipped}")
    if manifest.sha256 and (len(manifest.sha256) != 64 or not set(manifest.sha256) <= set("0123456789abcdef")):
        raise ConfigError(f"{path}: 'sha256' must be 64 hexadecimal digits or empty, got {manifest.sha256!r}")
    try:
        _ = manifest.settings
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return manifest
