"""What happens to a training picture and its mask alike: scaled, cut out, mirrored; and to the picture alone: its colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from pydeploy.data.mask_files import IGNORED
from pydeploy.errors import ConfigError


@dataclass(frozen=True, slots=True)
class MaskAugment:
    """Settings of `Joint`.

    `scale`: least and largest factor by which a picture is resized before a piece of the sample's size is cut out of it; where it
    is smaller, the mean colour and ignored pixels fill up (None: the whole picture, as evaluation sees it). `flip`: how often it
    is mirrored. `colour`: largest relative change of brightness, contrast and saturation.
    """

    scale: tuple[float, float] | None = (0.5, 2.0)
    flip: float = 0.5
    colour: float = 0.0

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 10:
            raise ConfigError(
                f"augmentation.scale is two factors, ascending, above 0 and at most 10, got {list(self.scale)}"
            )
        for key, value in (("flip", self.flip), ("colour", self.colour)):
            if not 0 <= value <= 1:
                raise ConfigError(f"augmentation.{key} must lie in 0..1, got {value}")


class Joint:
    """Pairs of a picture and a mask to training pairs of `size`; draws from torch's generator."""

    def __init__(self, settings: MaskAugment, size: tuple[int, int], mean: Sequence[float]) -> None:
        fill = {tv_tensors.Image: [round(255 * value) for value in mean], tv_tensors.Mask: IGNORED}
        steps: list[v2.Transform] = []
        if settings.scale is None:
            steps.append(v2.Resize(size, antialias=True))
        else:
            steps.append(v2.ScaleJitter(size, settings.scale, antialias=True))
            steps.append(v2.RandomCrop(size, pad_if_needed=True, fill=fill))
        if settings.flip:
            steps.append(v2.RandomHorizontalFlip(settings.flip))
        if settings.colour:
            steps.append(v2.ColorJitter(settings.colour, settings.colour, settings.colour))
        self._steps = v2.Compose(steps)

    def __call__(self, picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """``(C, h, w)`` and ``(h, w)`` uint8 from ``(H, W, C)`` and ``(H, W)``."""
        image = tv_tensors.Image(torch.from_numpy(picture).permute(2, 0, 1))
        made, classes = self._steps(image, tv_tensors.Mask(torch.from_numpy(mask)))
        return made.as_subclass(Tensor).contiguous(), classes.as_subclass(Tensor).contiguous()
