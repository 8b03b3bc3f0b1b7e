"""The task ``segmentation`` of a config: a data set by its layout, a loss, an augmentation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydeploy.data.camvid import camvid
from pydeploy.data.cityscapes import cityscapes
from pydeploy.data.mask_folders import mask_folder
from pydeploy.data.masked_set import MaskedSet, canvas
from pydeploy.errors import ConfigError, nearest
from pydeploy.guests.resolve import call
from pydeploy.tasks.mask_augment import MaskAugment
from pydeploy.tasks.segmentation import Segmentation

MASKED: Mapping[str, Callable[..., MaskedSet]] = {
    "camvid": camvid,
    "canvas": canvas,
    "cityscapes": cityscapes,
    "folder": mask_folder,
}
"""Every data set with masks that a config may name; each function's parameters are its settings."""


def segmentation(
    data: str = "canvas",
    data_settings: Mapping[str, Any] | None = None,
    augmentation: Mapping[str, Any] | None = None,
    dice: float = 0.0,
    class_weights: str | tuple[float, ...] | None = None,
    auxiliary: float = 0.4,
    workers: int | None = None,
    **settings: Any,
) -> Segmentation:
    """A segmentation task by the name of a data set (`MASKED`); `settings`, or `data_settings`, are those of the data set."""
    if data not in MASKED:
        raise ConfigError(f"unknown data set '{data}' for segmentation{nearest(data, MASKED)}")
    known = [*inspect.signature(MASKED[data]).parameters]
    own = [*inspect.signature(segmentation).parameters][:-1]
    for key in settings:
        if key not in known:
            raise ConfigError(f"task 'segmentation' on '{data}': no setting '{key}'{nearest(key, [*own, *known])}")
    images: MaskedSet = call(f"data set '{data}'", MASKED[data], {**(data_settings or {}), **settings}, own=True)
    chosen = call("augmentation", MaskAugment, augmentation or {}, own=True)
    return Segmentation(images, chosen, dice, class_weights, auxiliary, workers)
