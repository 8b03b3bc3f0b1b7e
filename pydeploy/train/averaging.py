"""A running mean of a network's weights while it is trained."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

WARM = 10.0
"""The first means weigh recent weights more: the decay of step n is at most ``(1 + n) / (WARM + n)``."""


class WeightAverage(nn.Module):
    """Exponential moving average of parameters and of the buffers that are real numbers; other buffers are the latest ones.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992, in the exponential form that
    TensorFlow's ``ExponentialMovingAverage`` has, its warm-up included.
    """

    steps: Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.mean = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        done = float(self.steps)
        decay = min(self.decay, (1.0 + done) / (WARM + done))
        self.steps += 1
        means = self.mean.state_dict()
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                means[name].lerp_(value, 1.0 - decay)
            else:
                means[name].copy_(value)
