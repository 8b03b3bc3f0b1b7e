"""SegNet: the convolutions of VGG-16 with batch norms, mirrored; maxima return to the places that they came from.

Source: Badrinarayanan, Kendall and Cipolla, "SegNet", 2017. Places are those of the maximum before the ReLU, which is the same
maximum, and has no ties where all of a window is negative.

PyTorch runs ``max_unpool2d`` with pooling indices. Exported files hold a form without indices, as ONNX counts them through
the whole tensor and most runtimes do not know unpooling: what is upsampled is kept where the unpooled tensor equals its own
maximum. Both forms give the same, but for windows in which the maximum occurs twice.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pydeploy.models.blocks import conv_bn, he_initialize

CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Of each stage of VGG-16."""
FACTORS = (1, 2, 4, 8, 8)
"""Widths of the stages in units of the first."""


class SegNet(nn.Module):
    """Logits ``(N, num_classes, H, W)`` from pictures ``(N, in_channels, H, W)`` of any size."""

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        widths = [width * factor for factor in FACTORS]
        ends = [in_channels, *widths]
        self.encoder = nn.ModuleList(
            _stage([cin, *[cout] * count], last=False)
            for cin, cout, count in zip(ends, widths, CONVOLUTIONS, strict=False)
        )
        targets = [width, *widths]
        self.decoder = nn.ModuleList(
            _stage([*[own] * count, target], last=True)
            for own, target, count in [*zip(widths, targets, CONVOLUTIONS, strict=False)][::-1]
        )
        self.head = nn.Conv2d(width, num_classes, 3, padding=1)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        for stage in self.encoder:
            before = stage(x)
            pooled, places = F.max_pool2d(before, 2, ceil_mode=True, return_indices=True)
            kept.append((before, pooled, places))
            x = F.relu(pooled)
        for stage, (before, pooled, places) in zip(self.decoder, kept[::-1], strict=True):
            x = stage(unpooled(x, before, pooled, places))
        logits: Tensor = self.head(x)
        return logits


def unpooled(x: Tensor, before: Tensor, pooled: Tensor, places: Tensor) -> Tensor:
    """`x` at the `places` that ``pooled`` was taken from in `before`, zeros elsewhere."""
    size = [int(side) for side in before.shape[-2:]]
    if not torch.onnx.is_in_onnx_export():
        return F.max_unpool2d(x, places, [2, 2], output_size=size)
    chosen = before == F.interpolate(pooled, size=size, mode="nearest")
    return F.interpolate(x, size=size, mode="nearest") * chosen.to(x.dtype)


def _stage(widths: list[int], *, last: bool) -> nn.Sequential:
    """Convolutions with norms, ReLUs between them; one behind the last where `last`."""
    parts: list[nn.Module] = []
    for cin, cout in pairwise(widths):
        parts += [*conv_bn(cin, cout, 3), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts if last else parts[:-1])


def segnet(num_classes: int = 11, in_channels: int = 3, width: int = 64) -> nn.Module:
    """SegNet with the encoder of VGG-16-BN; `width` is that of the first stage (64 in the paper)."""
    return SegNet(num_classes, in_channels, width)
