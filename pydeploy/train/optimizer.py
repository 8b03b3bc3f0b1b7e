"""Stochastic gradient descent with Nesterov momentum, as all trainings use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from pydeploy.train.settings import FitSettings


def optimizer_of(
    model: nn.Module, settings: FitSettings, without_momentum: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    """SGD whose weight decay leaves biases and normalization alone: shrinking those only costs accuracy."""
    plain = {id(parameter) for parameter in without_momentum}
    vectors = _vectors(model)
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in plain]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p not in vectors], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p in vectors], "weight_decay": 0.0},
    ]
    if without_momentum:
        groups.append({"params": list(without_momentum), "weight_decay": 0.0, "momentum": 0.0, "nesterov": False})
    # One kernel for all steps of the update: on a CPU the plain form costs as much as several layers.
    return torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
    )


def _vectors(model: nn.Module) -> set[nn.Parameter]:
    """Biases, and scales and shifts of norms: one number a channel, perhaps with axes of length 1 around; no layer's weights."""
    weights = {p for m in model.modules() if isinstance(m, nn.Linear | _ConvNd) for p in (m.weight,)}
    return {p for p in model.parameters() if p.ndim <= 1 or (p not in weights and p.numel() == max(p.shape))}
