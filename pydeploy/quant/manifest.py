"""Calibration sets as text: which samples of which data, so that a calibration can be repeated and checked.

A manifest is a small YAML file under ``calib/``; the samples themselves are never stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pydeploy.errors import ConfigError, DataError, nearest


@dataclass(frozen=True, slots=True)
class Manifest:
    """One calibration set: `count` samples of one part of a data set, drawn by `seed`."""

    source: str
    """Name of the data set."""
    split: str = "train"
    count: int = 512
    seed: int = 0
    preprocessing: str = ""
    """Name of what turns stored samples into model inputs; '' is the data set's own."""
    sha256: str = ""
    """Hash of the preprocessed float32 samples in the order of `indices` ('' = not pinned)."""

    def indices(self, available: int) -> NDArray[np.int64]:
        """Which samples of a split of `available` ones, ascending, without repetition, shape ``(count,)``."""
        if available < self.count:
            raise DataError(
                f"the calibration set asks for {self.count} samples of {self.source}/{self.split}, "
                f"which has {available}; lower 'count'"
            )
        return np.sort(np.random.default_rng(self.seed).permutation(available)[: self.count]).astype(np.int64)

    def require(self, samples: Iterable[NDArray[Any]]) -> str:
        """Hash of the float32 samples (in any batches, in order); `DataError` where it is not the pinned one."""
        digest = hashlib.sha256()
        for batch in samples:
            digest.update(np.ascontiguousarray(batch, dtype="<f4").tobytes())
        found = digest.hexdigest()
        if self.sha256 and found != self.sha256:
            raise DataError(
                f"the {self.count} calibration samples of {self.source}/{self.split} have sha256 {found}, the manifest "
                f"says {self.sha256}: the data or their preprocessing changed; restore them, or pin the new hash"
            )
        return found


def load_manifest(path: Path) -> Manifest:
    """The manifest in a YAML file; raises `ConfigError` naming the file and the key that is wrong."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"calibration manifest {path} does not exist; pass one of the files under calib/") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"calibration manifest {path} is not readable YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"calibration manifest {path} must hold a mapping, got {type(data).__name__}")
    kinds = {field.name: int if field.name in ("count", "seed") else str for field in fields(Manifest)}
    for key, value in data.items():
        if key not in kinds:
            raise ConfigError(f"{path}: unknown key '{key}'{nearest(str(key), kinds)}")
        if type(value) is not kinds[key]:
            raise ConfigError(
                f"{path}: '{key}' must be {'a whole number' if kinds[key] is int else 'text'}, got {value!r}"
            )
    if not data.get("source"):
        raise ConfigError(f"{path}: key 'source' is required: the name of a data set")
    manifest = Manifest(**data)
    if manifest.count < 1 or manifest.seed < 0:
        raise ConfigError(
            f"{path}: 'count' must be at least 1 and 'seed' at least 0, got {manifest.count} and {manifest.seed}"
        )
    if manifest.sha256 and (len(manifest.sha256) != 64 or not set(manifest.sha256) <= set("0123456789abcdef")):
        raise ConfigError(f"{path}: 'sha256' must be 64 hexadecimal digits or empty, got {manifest.sha256!r}")
    return manifest
