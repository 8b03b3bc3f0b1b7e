"""Augmentation of pictures with boxes, by torchvision's transforms.

Source: Liu et al., "SSD: Single Shot MultiBox Detector", 2016, section 3.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from pydeploy.data.boxes.box_set import Objects
from pydeploy.errors import ConfigError

LEAST_SIDE = 2.0
"""Pixels of the sample: a box that is narrower after a crop is no object any more."""


@dataclass(frozen=True, slots=True)
class BoxAugment:
    """What happens to a training picture and its boxes.

    `colour`: how often brightness, contrast, hue and saturation change. `expand`: largest side of a ground, as a multiple of
    the picture's, that the picture is placed on in half of the cases (1 = none). `crop`: how often a part is cut out, so chosen
    that a box keeps a drawn share of itself. `flip` and `flip_vertical`: how often the picture is mirrored.
    """

    colour: float = 0.5
    expand: float = 4.0
    crop: float = 1.0
    flip: float = 0.5
    flip_vertical: float = 0.0

    def __post_init__(self) -> None:
        if self.expand < 1:
            raise ConfigError(f"augmentation.expand is a multiple of the picture's side, at least 1, got {self.expand}")
        for key in ("colour", "crop", "flip", "flip_vertical"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"augmentation.{key} must lie in 0..1, got {getattr(self, key)}")

    def transforms(self, size: tuple[int, int], fill: Sequence[float]) -> v2.Transform:
        """What turns a ``(C, H, W)`` uint8 picture and its boxes into a sample of `size`, not normalized; `fill` is the ground."""
        steps: list[v2.Transform] = []
        if self.colour:
            steps.append(v2.RandomPhotometricDistort(p=self.colour))
        if self.expand > 1:
            steps.append(v2.RandomZoomOut({tv_tensors.Image: list(fill), "others": 0}, (1.0, self.expand), 0.5))
        if self.crop:
            steps.append(v2.RandomApply([v2.RandomIoUCrop()], self.crop) if self.crop < 1 else v2.RandomIoUCrop())
        steps += [v2.Resize(size, antialias=True), v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(LEAST_SIDE)]
        steps += [v2.RandomHorizontalFlip(self.flip), v2.RandomVerticalFlip(self.flip_vertical)]
        return v2.Compose(steps)


def augmented(
    transforms: v2.Transform, picture: NDArray[np.uint8], found: Objects
) -> tuple[NDArray[np.uint8], Objects]:
    """A sample ``(h, w, C)`` uint8 of a picture ``(H, W, C)``, and what is left of its objects; torch's generator decides.

    Difficult objects are not learned, and left out.
    """
    height, width = picture.shape[:2]
    easy = ~found.difficult
    pixels = torch.from_numpy(found.boxes[easy]) * torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes = tv_tensors.BoundingBoxes(pixels, format="XYXY", canvas_size=(height, width))
    given = {"image": tv_tensors.Image(torch.from_numpy(picture).permute(2, 0, 1)), "boxes": boxes,
             "labels": torch.from_numpy(found.labels[easy])}  # fmt: skip
    made = transforms(given)
    side = made["image"].shape[-2:]
    shares = (made["boxes"].as_subclass(Tensor) / torch.tensor([side[1], side[0]] * 2)).numpy()
    labels = made["labels"].numpy()
    left = Objects(shares.astype(np.float32), labels, np.zeros(len(labels), bool), (int(side[0]), int(side[1])))
    return made["image"].as_subclass(Tensor).permute(1, 2, 0).contiguous().numpy(), left
