"""Residual encoders with a decoder that doubles views step by step and takes in the encoder's stages by concatenation.

Logits have half the pictures' height and width: what reads them resizes them. A decoder as of U-Net (Ronneberger et al., 2015)
with bilinear resizing; encoders by He et al., "Deep Residual Learning for Image Recognition", 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pydeploy.models.blocks import conv_bn, he_initialize
from pydeploy.models.resnet import BasicBlock


class Encoder(nn.Module):
    """ResNet-18 of any width: a 3x3 stem and four stages, views of 1/2, 1/4, ... 1/32."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(in_channels, width, 3, 2), nn.ReLU(inplace=True))
        ends = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(BasicBlock(cin, cout, 2), BasicBlock(cout, cout, 1)) for cin, cout in pairwise(ends)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [self.stem(x)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found


class ResNet50(nn.Module):
    """torchvision's ResNet-50 without its classifier, so that its trained weights fit."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        from torchvision.models import resnet50

        whole = resnet50(weights=None)
        self.conv1 = whole.conv1 if in_channels == 3 else nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1, self.relu, self.maxpool = whole.bn1, whole.relu, whole.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = whole.layer1, whole.layer2, whole.layer3, whole.layer4

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [self.relu(self.bn1(self.conv1(x)))]
        x = self.maxpool(found[0])
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            found.append(x)
        return found


class Merge(nn.Module):
    """A view resized to that of a skip, both concatenated, one convolution."""

    def __init__(self, below: int, skip: int, own: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*conv_bn(below + skip, own, 3), nn.ReLU(inplace=True))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, size=[int(side) for side in skip.shape[-2:]], mode="bilinear", align_corners=False)
        merged: Tensor = self.conv(torch.cat([x, skip], dim=1))
        return merged


class ResNetSeg(nn.Module):
    """Logits ``(N, num_classes, H/2, W/2)`` from pictures ``(N, in_channels, H, W)``.

    `widths` are those of the encoder's views from 1/2 to 1/32, `decoder` those of the decoder from 1/16 to 1/2.
    """

    def __init__(self, encoder: nn.Module, widths: Sequence[int], decoder: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        below = [widths[-1], *decoder[:-1]]
        self.merges = nn.ModuleList(Merge(*ends) for ends in zip(below, widths[-2::-1], decoder, strict=True))
        self.head = nn.Conv2d(decoder[-1], num_classes, 1)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        *skips, x = self.encoder(x)
        for merge, skip in zip(self.merges, reversed(skips), strict=True):
            x = merge(x, skip)
        logits: Tensor = self.head(x)
        return logits


def resnet18_seg(num_classes: int = 11, in_channels: int = 3, width: int = 32) -> nn.Module:
    """A ResNet-18 with a decoder, small enough to be trained on a CPU; `width` is that of the first stage."""
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    return ResNetSeg(Encoder(in_channels, width), widths, [4 * width, 2 * width, width, width], num_classes)


def resnet50_seg(num_classes: int = 11, in_channels: int = 3) -> nn.Module:
    """Torchvision's ResNet-50 with a decoder of 256, 128, 64 and 64 channels."""
    return ResNetSeg(ResNet50(in_channels), [64, 256, 512, 1024, 2048], [256, 128, 64, 64], num_classes)
