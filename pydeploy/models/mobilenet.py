"""A small MobileNetV3-like network: inverted residuals with depthwise convolutions and squeeze-excite.

Source: Howard et al., "Searching for MobileNetV3", 2019; the stem keeps the view size, because the images are small.
"""

from __future__ import annotations

from torch import Tensor, nn

from pydeploy.models.blocks import conv_bn, he_initialize

_BLOCKS = ((1, 1, 1), (2, 3, 2), (2, 3, 1), (4, 4, 2), (4, 4, 1))
"""Per block: output channels in units of the first width, expansion, stride."""


class SqueezeExcite(nn.Module):
    """Scale every channel of ``(N, C, H, W)`` by a factor in [0, 1] computed from the channels' averages."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.relu = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        factor: Tensor = self.gate(self.expand(self.relu(self.reduce(self.pool(x)))))
        return x * factor


class InvertedResidual(nn.Module):
    """Expand (1x1), filter each channel (3x3 depthwise), gate, project (1x1); a shortcut where the shape stays."""

    def __init__(self, cin: int, cout: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = cin * expansion
        self.expand = nn.Sequential(*conv_bn(cin, inner, 1), nn.Hardswish(inplace=True))
        self.depthwise = nn.Sequential(*conv_bn(inner, inner, 3, stride, groups=inner), nn.Hardswish(inplace=True))
        self.gate = SqueezeExcite(inner, max(8, inner // 4))
        self.project = nn.Sequential(*conv_bn(inner, cout, 1))
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.gate(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """Logits ``(N, num_classes)`` from images ``(N, in_channels, H, W)`` of any size from 4x4 upwards."""

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(in_channels, width, 3), nn.Hardswish(inplace=True))
        blocks, cin = [], width
        for units, expansion, stride in _BLOCKS:
            blocks.append(InvertedResidual(cin, units * width, expansion, stride))
            cin = units * width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*conv_bn(cin, 4 * cin, 1), nn.Hardswish(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * cin, num_classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def mobilenet_small(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> nn.Module:
    """MobileNetV3-like network for small images; `width` is that of the stem."""
    return MobileNet(num_classes, in_channels, width)
