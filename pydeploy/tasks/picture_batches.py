"""Training batches of labelled pictures: decoded and augmented by processes of PyTorch's DataLoader, a few batches ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from pydeploy.data.picture_set import Cached, Pictures, Resized
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import ConfigError
from pydeploy.tasks.loading import Loader, workers_of

RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True, slots=True)
class PictureAugment:
    """What happens to a training picture.

    `scale`: least and largest share of its area that is cut out and resized to the sample (None: the middle, as evaluation
    sees it). `flip`: how often it is mirrored. `colour`: largest relative change of brightness, contrast and saturation.
    `erase`: how often a rectangle is covered.
    """

    scale: tuple[float, float] | None = (0.35, 1.0)
    flip: float = 0.5
    colour: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"augmentation.scale is two shares of the area, ascending, got {list(self.scale)}")
        for key, value in (("flip", self.flip), ("colour", self.colour), ("erase", self.erase)):
            if not 0 <= value <= 1:
                raise ConfigError(f"augmentation.{key} must lie in 0..1, got {value}")

    def transforms(self, size: tuple[int, int], interpolation: str) -> v2.Transform:
        """What turns a ``(C, H, W)`` uint8 picture into a sample of `size`, not normalized."""
        steps: list[v2.Transform] = [v2.Identity()]
        if self.scale is not None:
            mode = InterpolationMode(interpolation)
            steps.append(v2.RandomResizedCrop(size, self.scale, RATIO, mode, antialias=True))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip(self.flip))
        if self.colour:
            steps.append(v2.ColorJitter(self.colour, self.colour, self.colour))
        if self.erase:
            steps.append(v2.RandomErasing(self.erase))
        return v2.Compose(steps)


class Reader:
    """Batches of one set of pictures in any order; its processes live as long as it does."""

    def __init__(
        self, pictures: Pictures, way: Preprocessing, augment: PictureAugment, workers: int | None = None
    ) -> None:
        resized = pictures if isinstance(pictures, Cached) else Resized(pictures, replace(way, crop=None))
        if isinstance(resized, Cached):
            resized.fill(max(1, workers_of(workers)))
        self._loader = Loader(_Make(resized, way, augment), list, way, workers)

    def batches(self, order: NDArray[np.int64], batch_size: int, epoch: int, seed: int) -> Iterator[Tensor]:
        """Normalized float32 ``(batch_size, C, h, w)`` of the pictures in `order`; what remains at its end is left out."""
        for pixels, _ in self._loader.batches(order, batch_size, epoch, seed):
            yield pixels


class _Make:
    """One augmented picture by number."""

    def __init__(self, pictures: Resized, way: Preprocessing, augment: PictureAugment) -> None:
        self._pictures, self._way, self._augment = pictures, way, augment
        self._made: dict[tuple[int, int], v2.Transform] = {}

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Tensor, None]:  # noqa: ARG002  # v2 draws from torch's
        image = self._pictures.read(index)
        size = self._way.size(*image.shape[:2])
        if self._augment.scale is None:
            image = self._way.pixels(image)
        made: Tensor = self._transforms(size)(torch.from_numpy(image).permute(2, 0, 1))
        return made.contiguous(), None

    def _transforms(self, size: tuple[int, int]) -> v2.Transform:
        if size not in self._made:
            self._made = {size: self._augment.transforms(size, self._way.interpolation)}
        return self._made[size]
