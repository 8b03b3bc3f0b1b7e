"""Data sets by the names that a config gives them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydeploy.data.cifar import cifar10, cifar100
from pydeploy.data.csv_lists import csv_file
from pydeploy.data.folders import folder
from pydeploy.data.image_sets import ImageSet, digits, fashion_mnist, synthetic
from pydeploy.data.imagenet import imagenet
from pydeploy.data.npy_files import npy
from pydeploy.data.packed_jpegs import packed_jpegs
from pydeploy.data.picture_set import PictureSet
from pydeploy.errors import ConfigError, nearest
from pydeploy.guests.resolve import call

DATA: Mapping[str, Callable[..., ImageSet | PictureSet]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "csv": csv_file,
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "folder": folder,
    "imagenet": imagenet,
    "npy": npy,
    "packed_jpegs": packed_jpegs,
    "synthetic": synthetic,
}
"""Every data set that a configuration may name; each function's parameters are its settings."""

PLACES = ("root", "test_root", "cache", "supervision")
"""Settings of data sets that are paths; `cache` may also be ``memory``, `supervision` a share."""


def load(name: str, **settings: Any) -> ImageSet | PictureSet:
    """The named data set; raises `ConfigError` for an unknown name or setting, `DataError` when files are missing.

    Names may be written with hyphens: ``fashion-mnist``.
    """
    return call(f"data set '{name}'", _named(name), settings, own=True)


def settings_of(name: str) -> list[str]:
    """The settings that a data set has."""
    return [*inspect.signature(_named(name)).parameters]


def _named(name: str) -> Callable[..., ImageSet | PictureSet]:
    known = name.replace("-", "_")
    if known not in DATA:
        raise ConfigError(f"unknown data set '{name}'{nearest(name, DATA)}")
    return DATA[known]
