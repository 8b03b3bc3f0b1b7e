"""The task ``classification`` of a config: the class that suits where the data set lies."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydeploy.data.image_sets import ImageSet
from pydeploy.data.named import load, settings_of
from pydeploy.errors import ConfigError, nearest
from pydeploy.guests.resolve import call
from pydeploy.tasks.augment import augment_by
from pydeploy.tasks.classification import Classification
from pydeploy.tasks.contract import Task
from pydeploy.tasks.picture_batches import PictureAugment
from pydeploy.tasks.pictures import PictureClassification


def classification(
    data: str = "fashion_mnist",
    data_settings: Mapping[str, Any] | None = None,
    augmentation: Mapping[str, Any] | None = None,
    label_smoothing: float = 0.0,
    workers: int | None = None,
    **settings: Any,
) -> Task:
    """A classification task by the name of a data set (`pydeploy.data.named.DATA`).

    `settings`, or `data_settings`, are those of the data set. `augmentation` holds fields of `Augment` where the set lies in
    memory, of `PictureAugment` where its pictures are read by `workers` processes.
    """
    own = [*inspect.signature(classification).parameters][:-1]
    for key in settings:
        if key not in (known := settings_of(data)):
            raise ConfigError(f"task 'classification' on '{data}': no setting '{key}'{nearest(key, [*own, *known])}")
    images = load(data, **(data_settings or {}), **settings)
    if isinstance(images, ImageSet):
        return Classification(images, augment_by(augmentation or {}), label_smoothing)
    if workers is not None and workers < 0:
        raise ConfigError(f"'workers' must be 0 or more, got {workers}")
    chosen = call("augmentation", PictureAugment, augmentation or {}, own=True)
    return PictureClassification(images, chosen, label_smoothing, workers=workers)
