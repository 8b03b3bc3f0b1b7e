"""Data sets for inspection by the names that a config gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydeploy.data.defect_folders import ksdd2, magnetic_tiles, masked_folder
from pydeploy.data.defect_lists import elpv, labels
from pydeploy.data.defect_set import DefectSet
from pydeploy.data.defect_woven import canvas
from pydeploy.errors import ConfigError, nearest
from pydeploy.guests.resolve import call

LAYOUTS: Mapping[str, Callable[..., DefectSet]] = {
    "elpv": elpv,
    "ksdd2": ksdd2,
    "labels": labels,
    "magnetic_tiles": magnetic_tiles,
    "folder": masked_folder,
    "canvas": canvas,
}
"""Every layout that the inspection task may name; each function's parameters are its settings."""


def load(name: str, **settings: Any) -> DefectSet:
    """The named data set; raises `ConfigError` for an unknown name or setting, `DataError` where its files do not fit."""
    known = name.replace("-", "_")
    if known not in LAYOUTS:
        raise ConfigError(f"unknown data '{name}' for inspection{nearest(name, LAYOUTS)}")
    return call(f"data set '{name}'", LAYOUTS[known], settings, own=True)
