"""A classification task with a network small enough to train in a blink."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pydeploy.tasks.classification import Classification


@dataclass(frozen=True)
class TinyTask(Classification):
    """One-channel images, two convolutions."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.BatchNorm2d(12),
            nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
            nn.Linear(48, self.images.classes),
        )
