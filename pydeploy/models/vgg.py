"""Plain networks for small images: convolutions in four or five stages, no shortcuts.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks", 2015, configurations A and D with batch
normalization. Small images allow three or four halvings instead of five, and one linear layer takes the place of
three, so the last stage ends in a global average.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pydeploy.models.blocks import conv_bn, he_initialize

_VGG11 = ((1,), (2,), (4, 4), (8, 8, 8, 8))
"""Output channels of every convolution, in units of the first width."""
_VGG16 = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))


class VGG(nn.Module):
    """Logits ``(N, num_classes)`` from images ``(N, in_channels, H, W)`` of any size from 8x8 upwards."""

    def __init__(self, num_classes: int, in_channels: int, width: int, stages: Sequence[Sequence[int]]) -> None:
        super().__init__()
        widths = [in_channels, *(width * unit for stage in stages for unit in stage)]
        pairs = pairwise(widths)
        layers: list[nn.Module] = []
        for number, stage in enumerate(stages):
            layers += [nn.MaxPool2d(2, ceil_mode=number > 3)] if number else []  # a single pixel is not halved
            for cin, cout in (next(pairs) for _ in stage):
                layers += [*conv_bn(cin, cout, 3), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.pool(self.features(x)).flatten(1))
        return logits


def vgg11_bn(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> nn.Module:
    """VGG-11 with batch normalization for small images; `width` is that of the first convolution."""
    return VGG(num_classes, in_channels, width, _VGG11)


def vgg16_bn(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> nn.Module:
    """VGG-16 with batch normalization for small images (13 convolutions); `width` is that of the first one."""
    return VGG(num_classes, in_channels, width, _VGG16)
