"""U-Net: an encoder of pooled stages, a decoder of transposed convolutions, and skips that are concatenated.

Source: Ronneberger, Fischer and Brox, "U-Net", 2015; with batch norms and with padding, so that views keep their size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pydeploy.models.blocks import conv_bn, he_initialize


class UNet(nn.Module):
    """Logits ``(N, num_classes, H, W)`` from pictures ``(N, in_channels, H, W)`` of any size from ``2 ** depth`` upwards."""

    def __init__(self, num_classes: int, in_channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        ends = [in_channels, *widths]
        self.encoder = nn.ModuleList(_twice(cin, cout) for cin, cout in zip(ends, widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        pairs = [*zip(widths[1:], widths, strict=False)][::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, own, 2, 2) for below, own in pairs)
        self.decoder = nn.ModuleList(_twice(2 * own, own) for _, own in pairs)
        self.head = nn.Conv2d(width, num_classes, 1)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(self.pool(x) if level else x)
            skips.append(x)
        for up, block, skip in zip(self.up, self.decoder, skips[-2::-1], strict=True):
            x = block(torch.cat([skip, up(x, output_size=skip.shape[-2:])], dim=1))
        logits: Tensor = self.head(x)
        return logits


def _twice(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(*conv_bn(cin, cout, 3), nn.ReLU(inplace=True), *conv_bn(cout, cout, 3), nn.ReLU(inplace=True))


def unet(num_classes: int = 11, in_channels: int = 3, width: int = 64, depth: int = 4) -> nn.Module:
    """U-Net; `width` is that of the first stage, `depth` how often views are halved (64 and 4 in the paper)."""
    return UNet(num_classes, in_channels, width, depth)
