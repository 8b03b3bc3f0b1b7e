"""SegDecNet: a defect's place and the decision whether there is one, from one trunk.

Source: Bozic, Tabernik and Skocaj, "Mixed supervision for surface-defect detection", Computers in Industry 2021: the network as
its authors published it as code, with its names, so that their checkpoints fit. Written anew from its description.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

EPSILON = 1e-3
PUBLISHED = 32
"""Channels of the first convolution."""
STRIDE = 8
"""Pixels of the picture behind one place of the mask, along each side."""


class FeatureNorm(nn.Module):
    """Every channel of every sample shifted and scaled by its own mean and spread: ``(N, channels, H, W)`` to the same.

    It divides by the **square root of** the standard deviation (Bessel's, as torch has it), as published: no statistics are
    kept, and what it does depends on the size of the picture.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        centred = exact - exact.mean(dim=(2, 3), keepdim=True)
        spread = torch.linalg.vector_norm(centred, dim=(2, 3), keepdim=True) / math.sqrt(
            max(1, x.shape[2] * x.shape[3] - 1)
        )
        made: Tensor = self.scale * (centred / (spread + EPSILON).sqrt()) + self.bias
        return made.to(x.dtype)


class SegDecNet(nn.Module):
    """Logits of the decision ``(N, 1)`` and of the mask ``(N, 1, H/8, W/8)`` from pictures ``(N, in_channels, H, W)``.

    `width`: channels of the first convolution, 32 as published; the trunk's others follow in proportion.
    `gradient_adjustment`: while training, the decision's gradient stops before the trunk and the mask, which then learn from
    pixels alone; in evaluation mode gradients pass, so that criteria see what the decision reads.
    """

    def __init__(self, in_channels: int, width: int, gradient_adjustment: bool) -> None:
        super().__init__()
        self.gradient_adjustment = gradient_adjustment
        first, inner, last = width, 2 * width, 32 * width
        self.volume = nn.Sequential(
            _block(in_channels, first, 5), nn.MaxPool2d(2),
            _block(first, inner, 5), *(_block(inner, inner, 5) for _ in range(2)), nn.MaxPool2d(2),
            *(_block(inner, inner, 5) for _ in range(4)), nn.MaxPool2d(2),
            _block(inner, last, 15),
        )  # fmt: skip
        # The authors meant this norm to have no shift, but their code trains one; without it no sound picture could lie below ln 2.
        self.seg_mask = nn.Sequential(nn.Conv2d(last, 1, 1, bias=False), FeatureNorm(1))
        self.extractor = nn.Sequential(
            nn.MaxPool2d(2),
            _block(last + 1, 8, 5),
            nn.MaxPool2d(2),
            _block(8, 16, 5),
            nn.MaxPool2d(2),
            _block(16, 32, 5),
        )
        self.fc = nn.Linear(66, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        volume = self.volume(x)
        mask = self.seg_mask(volume)
        both = self._stopped(torch.cat([volume, mask], dim=1))
        features = self.extractor(both)
        seen = self._stopped(mask)
        pooled = [features.amax(dim=(2, 3)), features.mean(dim=(2, 3)), seen.amax(dim=(2, 3)), seen.mean(dim=(2, 3))]
        return self.fc(torch.cat(pooled, dim=1)), mask

    def _stopped(self, value: Tensor) -> Tensor:
        """Gradient multiplier 0 where gradients are adjusted, else 1."""
        return value.detach() if self.training and self.gradient_adjustment else value


def _block(cin: int, cout: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False), FeatureNorm(cout), nn.ReLU())


def segdecnet(in_channels: int = 3, width: int = PUBLISHED, gradient_adjustment: bool = True) -> nn.Module:
    """SegDecNet for pictures whose sides are divisible by 8 and at least 64 pixels long."""
    return SegDecNet(in_channels, width, gradient_adjustment)
