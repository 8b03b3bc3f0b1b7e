"""How a network is trained, as numbers; and the learning rate and precision that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pydeploy.errors import ConfigError, nearest
from pydeploy.train.distill.logits import DistillSettings


def _linear(progress: float) -> float:
    return 1.0 - progress


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _constant(_: float) -> float:
    return 1.0


SCHEDULES: Mapping[str, Callable[[float], float]] = {"linear": _linear, "cosine": _cosine, "constant": _constant}
"""Factor of the learning rate after the warm-up, for a progress in [0, 1]."""

AMP = ("auto", "bf16", "off")


@dataclass(frozen=True, slots=True)
class FitSettings:
    """One training run.

    `lr` is the peak learning rate, reached after `warmup_epochs` and then lowered to zero along `schedule`.
    `weight_decay` acts on weights only, not on biases and normalisation. `clip_norm` limits the gradient's norm,
    0 = off. `amp`: ``bf16`` computes in bfloat16 where that is safe (weights and sums stay float32), ``auto`` does
    so where the device is fast at it.
    """

    epochs: int = 5
    batch_size: int = 128
    lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    schedule: str = "linear"
    clip_norm: float = 0.0
    amp: str = "auto"
    seed: int = 0
    distill: DistillSettings | None = None

    def __post_init__(self) -> None:
        for key, value, low in (("epochs", self.epochs, 1), ("batch_size", self.batch_size, 1), ("seed", self.seed, 0)):
            if value < low:
                raise ConfigError(f"'{key}' must be at least {low}, got {value}")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"'lr' must be positive, got {self.lr}")
        for key, number in (("weight_decay", self.weight_decay), ("clip_norm", self.clip_norm)):
            if not 0 <= number < math.inf:
                raise ConfigError(f"'{key}' must be 0 or more, got {number}")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"'momentum' must lie in [0, 1), got {self.momentum}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ConfigError(f"'warmup_epochs' must lie in [0, epochs={self.epochs}], got {self.warmup_epochs}")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"unknown schedule '{self.schedule}'{nearest(self.schedule, SCHEDULES)}")
        if self.amp not in AMP:
            raise ConfigError(f"unknown amp '{self.amp}'{nearest(self.amp, AMP)}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def lr_at(settings: FitSettings, step: int, steps_per_epoch: int) -> float:
    """Learning rate of the given optimiser step, counted from 0 over the whole run."""
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    rest = settings.epochs * steps_per_epoch - warmup
    return settings.lr * SCHEDULES[settings.schedule]((step - warmup) / rest)


def bf16_wanted(amp: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16 on `device`: as `amp` says, and for ``auto`` where the hardware is fast at it."""
    if amp != "auto":
        return amp == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool({"amx_bf16", "avx512_bf16", "bf16"} & _cpu_flags())


def _cpu_flags() -> set[str]:
    """Instruction sets as Linux lists them (``flags`` on x86, ``Features`` on ARM); empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    first = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return set(first.partition(":")[2].split())
