"""Data sets of pictures with boxes by the names that a config gives them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydeploy.data.boxes.box_set import BoxSet
from pydeploy.data.boxes.coco import coco
from pydeploy.data.boxes.scenes import canvas
from pydeploy.data.boxes.voc import voc
from pydeploy.data.boxes.yolo import yolo
from pydeploy.errors import ConfigError, nearest
from pydeploy.guests.resolve import call

DATA: Mapping[str, Callable[..., BoxSet]] = {"canvas": canvas, "coco": coco, "voc": voc, "yolo": yolo}
"""Each function's parameters are the data set's settings."""


def load(name: str, **settings: Any) -> BoxSet:
    """The named data set; raises `ConfigError` for an unknown name or setting, `DataError` for files that are missing or wrong."""
    return call(f"data set '{name}'", _named(name), settings, own=True)


def settings_of(name: str) -> list[str]:
    """The settings that a data set has."""
    return [*inspect.signature(_named(name)).parameters]


def _named(name: str) -> Callable[..., BoxSet]:
    if name not in DATA:
        raise ConfigError(f"unknown data set '{name}' of pictures with boxes{nearest(name, DATA)}")
    return DATA[name]
