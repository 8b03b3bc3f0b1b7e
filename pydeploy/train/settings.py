"""How a network is trained, as numbers; and the learning rate that follows from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pydeploy.prune.sparsity.settings import SparsitySettings
from pydeploy.settings import Number, Place, Positive, Settings, Share, Whole, name_in
from pydeploy.train.distill.settings import DistillSettings


def _linear(progress: float, _: FitSettings) -> float:
    return 1.0 - progress


def _cosine(progress: float, _: FitSettings) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _poly(progress: float, _: FitSettings) -> float:
    """Liu, Rabinovich and Berg, "ParseNet", 2015."""
    return float((1.0 - progress) ** 0.9)


def _constant(_progress: float, _: FitSettings) -> float:
    return 1.0


def _step(progress: float, settings: FitSettings) -> float:
    return settings.gamma ** sum(progress >= at for at in settings.milestones)


SCHEDULES: Mapping[str, Callable[[float, FitSettings], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "poly": _poly,
    "constant": _constant,
    "step": _step,
}
"""Factor of the learning rate after the warm-up, for a progress in [0, 1]."""


class FitSettings(Settings):
    """One training run: SGD with Nesterov momentum."""

    epochs: Positive = 5
    """Passes over the training set."""
    batch_size: Positive = 128
    """Samples a step, over all processes together."""
    lr: Annotated[Number, Field(gt=0)] = 0.2
    """Peak learning rate, reached after `warmup_epochs` and then lowered to zero along `schedule`."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum of SGD."""
    weight_decay: Annotated[Number, Field(ge=0)] = 5e-4
    """On weights only, not on biases and normalization."""
    warmup_epochs: Annotated[Number, Field(ge=0)] = 1.0
    """Epochs in which the learning rate rises from zero."""
    schedule: Annotated[str, name_in("schedule", "pydeploy.train.settings:SCHEDULES")] = "linear"
    """`linear`, `cosine`, `poly` (with the power 0.9), `constant`, or `step` (times `gamma` at each of `milestones`)."""
    milestones: list[Share] = Field(default_factory=lambda: [0.5, 0.75])
    """Of `step`: where the learning rate falls, as shares of what follows the warm-up."""
    gamma: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    """Of `step`: factor of each fall."""
    clip_norm: Annotated[Number, Field(ge=0)] = 0.0
    """Limit of the gradient's norm; 0 is none."""
    amp: Literal["auto", "bf16", "off"] = "auto"
    """`bf16` computes in bfloat16 where that is safe (weights and sums stay float32), `auto` where the device is fast at it."""
    accumulate: Positive = 1
    """Batches whose gradients are averaged for one step."""
    ema: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Decay of a running mean of the weights, which then is what training returns; 0 is none."""
    keep: Literal["last", "best"] = "last"
    """Whose weights training returns: the last epoch's, or those of the epoch with the best metric on the task's validation split."""
    patience: Annotated[Whole, Field(ge=0)] = 0
    """Epochs without a better metric on the validation split after which training ends; 0: it never ends early."""

    @property
    def judges(self) -> bool:
        """Whether the network is judged after every epoch."""
        return self.keep == "best" or self.patience > 0

    @model_validator(mode="before")
    @classmethod
    def _nothing_said(cls, data: Any) -> Any:
        """Earlier versions wrote the other section's key here, as null."""
        if not isinstance(data, Mapping):
            return data
        said_nothing = {key for key in ("weights", "distill") if key not in cls.model_fields and data.get(key) is None}
        return {key: value for key, value in data.items() if key not in said_nothing}

    @field_validator("amp", mode="before")
    @classmethod
    def _off_is_a_name(cls, value: object) -> object:
        """YAML reads a bare ``off`` as false."""
        return "off" if value is False else value

    @model_validator(mode="after")
    def _warmup_ends(self) -> FitSettings:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"'warmup_epochs' ({self.warmup_epochs:g}) must not exceed 'epochs' ({self.epochs})")
        return self


class TrainSettings(FitSettings):
    """Training of the dense model."""

    weights: Place | None = None
    """Take the tensors of this file instead of training."""
    sparsity: SparsitySettings | None = None
    """A term that makes channels small."""


class FinetuneSettings(FitSettings):
    """Recovery of the cut model, with distillation from the dense one."""

    epochs: Positive = 2
    lr: Annotated[Number, Field(gt=0)] = 0.05
    warmup_epochs: Annotated[Number, Field(ge=0)] = 0.2
    distill: DistillSettings | None = DistillSettings()
    """`null` fine-tunes on the labels alone."""


def lr_at(settings: FitSettings, step: int, steps_per_epoch: int) -> float:
    """Learning rate of the given optimizer step, counted from 0 over the whole run."""
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    rest = settings.epochs * steps_per_epoch - warmup
    return settings.lr * SCHEDULES[settings.schedule]((step - warmup) / rest, settings)
