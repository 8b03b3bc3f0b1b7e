"""The task ``detection`` of a config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

from pydeploy.data.boxes import priors as prior_boxes
from pydeploy.data.boxes.detections import Cleaning
from pydeploy.data.boxes.named import load, settings_of
from pydeploy.errors import ConfigError, nearest
from pydeploy.guests.resolve import call
from pydeploy.tasks.detection.box_augment import BoxAugment
from pydeploy.tasks.detection.task import Detection


def detection(
    data: str = "canvas",
    priors: str | Mapping[str, Any] = "small",
    metric: Literal["voc", "voc07", "coco"] = "voc",
    augmentation: Mapping[str, Any] | None = None,
    cleaning: Mapping[str, Any] | None = None,
    workers: int | None = None,
    **settings: Any,
) -> Detection:
    """A detection task by the name of a data set (`pydeploy.data.boxes.named.DATA`), whose settings are `settings`.

    `priors` are those of the network: ``small``, ``ssd300``, ``ssd320`` or the fields of `Priors`. `metric` is VOC's mean average
    precision at an IoU of a half over the whole curve, VOC 2007's by 11 points, or COCO's. `augmentation` and `cleaning` hold
    fields of `BoxAugment` and `Cleaning`; `workers` processes make training samples, by default one a core.
    """
    own = [*inspect.signature(detection).parameters][:-1]
    for key in settings:
        if key not in (known := settings_of(data)):
            raise ConfigError(f"task 'detection' on '{data}': no setting '{key}'{nearest(key, [*own, *known])}")
    if workers is not None and workers < 0:
        raise ConfigError(f"'workers' must be 0 or more, got {workers}")
    chosen = call("augmentation", BoxAugment, augmentation or {}, own=True)
    cleaned = call("cleaning", Cleaning, cleaning or {}, own=True)
    images = load(data, **settings)
    return Detection(images, prior_boxes.named(priors, images.side), chosen, eleven_points=metric == "voc07",
                     coco=metric == "coco", cleaning=cleaned, workers=workers)  # fmt: skip
