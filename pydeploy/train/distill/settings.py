"""How much a student learns from its teacher, as numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pydeploy.settings import Number, Settings, open_name


class DistillSettings(Settings):
    """``(1 - alpha) * task loss + alpha * distillation loss``; `temperature` is that of both networks' softmax."""

    loss: Annotated[str, open_name("pydeploy.train.distill.logits:LOSSES")] = "logits"
    """What compares student and teacher: a name, or your own as `FILE.py:FUNCTION`."""
    alpha: Annotated[Number, Field(ge=0, le=1)] = 0.7
    """Share of the distillation loss."""
    temperature: Annotated[Number, Field(gt=0)] = 4.0
    """Of both networks' softmax."""
