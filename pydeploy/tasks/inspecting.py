"""The task ``inspection`` of a config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

from pydeploy.data.defect_layouts import LAYOUTS, load
from pydeploy.errors import ConfigError, nearest
from pydeploy.guests.resolve import call
from pydeploy.tasks.inspection import DefectAugment, DefectLoss, Inspection


def inspection(
    data: str = "canvas",
    dilation: int = 1,
    loss: Mapping[str, Any] | None = None,
    augmentation: Mapping[str, Any] | None = None,
    sampling: Literal["frequency", "all"] = "frequency",
    validation: float = 0.1,
    mask: bool = True,
    workers: int | None = None,
    **settings: Any,
) -> Inspection:
    """An inspection task by the layout of its data (`pydeploy.data.defect_layouts.LAYOUTS`), whose settings are `settings`.

    `loss` holds fields of `DefectLoss`, `augmentation` of `DefectAugment`; the others are those of `Inspection`.
    """
    known = (
        [*inspect.signature(LAYOUTS[data.replace("-", "_")]).parameters] if data.replace("-", "_") in LAYOUTS else []
    )
    own = [*inspect.signature(inspection).parameters][:-1]
    for key in settings if known else ():
        if key not in known:
            raise ConfigError(f"task 'inspection' on '{data}': no setting '{key}'{nearest(key, [*own, *known])}")
    if workers is not None and workers < 0:
        raise ConfigError(f"'workers' must be 0 or more, got {workers}")
    weighing = call("loss", DefectLoss, loss or {}, own=True)
    changes = call("augmentation", DefectAugment, augmentation or {}, own=True)
    return Inspection(load(data, **settings), dilation, weighing, changes, sampling, validation, mask, workers)
