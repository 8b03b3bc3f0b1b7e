"""Residual networks for small images: 6n+2 layers in three stages of widths w, 2w, 4w.

Source: He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2, with projection
shortcuts (1x1 convolution + normalization) where the shape changes.
"""

from __future__ import annotations

from torch import Tensor, nn

from pydeploy.models.blocks import conv_bn, he_initialize


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``(N, cin, H, W) -> (N, cout, H/stride, W/stride)``."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(cin, cout, 3, stride)
        self.conv2, self.bn2 = conv_bn(cout, cout, 3)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and cin == cout
        self.shortcut = nn.Sequential() if same else nn.Sequential(*conv_bn(cin, cout, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        z: Tensor = self.relu(y + self.shortcut(x))
        return z


class ResNet(nn.Module):
    """Logits ``(N, num_classes)`` from images ``(N, in_channels, H, W)`` of any size from 4x4 upwards."""

    def __init__(self, depth: int, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1, self.bn1 = conv_bn(in_channels, width, 3)
        self.relu = nn.ReLU(inplace=True)
        self.stage1 = _stage(blocks, width, width, 1)
        self.stage2 = _stage(blocks, width, 2 * width, 2)
        self.stage3 = _stage(blocks, 2 * width, 4 * width, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def _stage(blocks: int, cin: int, cout: int, stride: int) -> nn.Sequential:
    first = BasicBlock(cin, cout, stride)
    return nn.Sequential(first, *(BasicBlock(cout, cout, 1) for _ in range(blocks - 1)))


def resnet8(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> nn.Module:
    """ResNet-8, one block a stage: for trying things out."""
    return ResNet(8, num_classes, in_channels, width)


def resnet20(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> nn.Module:
    """ResNet-20; `width` is that of the first stage (16 in the paper)."""
    return ResNet(20, num_classes, in_channels, width)


def resnet56(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> nn.Module:
    """ResNet-56; `width` is that of the first stage (16 in the paper)."""
    return ResNet(56, num_classes, in_channels, width)
