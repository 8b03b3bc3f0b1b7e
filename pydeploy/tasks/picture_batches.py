"""Training batches of pictures: decoded and augmented by processes of PyTorch's DataLoader, a few batches ahead.

What a picture becomes depends on the seed, the epoch and the picture alone, whatever process reads it.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import InterpolationMode, v2

from pydeploy import _core
from pydeploy.backends.device import usable_cores
from pydeploy.data.picture_set import Cached, Pictures, Resized
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import ConfigError, DataError, DeployError

RATIO = (3 / 4, 4 / 3)
MOST_WORKERS = 8
AHEAD = 2
"""Batches that each process reads ahead."""
KEPT = 4
"""Batches whose memory is used again."""

Read = tuple[int, int, int]
"""Which picture, in which epoch, with which seed."""


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


class _Samples(Dataset[Tensor | str]):
    """Augmented pictures by `Read`; what cannot be read is its reason, as an error would lose its kind on the way."""

    def __init__(self, pictures: Resized, way: Preprocessing, augment: PictureAugment) -> None:
        self._pictures, self._way, self._augment = pictures, way, augment
        self._made: dict[tuple[int, int], v2.Transform] = {}

    def __getitem__(self, read: Read) -> Tensor | str:
        index, epoch, seed = read
        try:
            image = self._pictures.read(index)
            size = self._way.size(*image.shape[:2])
            if self._augment.scale is None:
                image = self._way.pixels(image)
        except DeployError as error:
            return str(error)
        seeded = np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0]
        # A process of the loader's own draws nothing else.
        with torch.random.fork_rng(devices=[]) if get_worker_info() is None else nullcontext():
            torch.manual_seed(int(seeded))
            made: Tensor = self._transforms(size)(torch.from_numpy(image).permute(2, 0, 1))
        return made.contiguous()

    def _transforms(self, size: tuple[int, int]) -> v2.Transform:
        if size not in self._made:
            self._made = {size: self._augment.transforms(size, self._way.interpolation)}
        return self._made[size]


def _joined(samples: Sequence[Tensor | str]) -> Tensor | str:
    reasons = [one for one in samples if isinstance(one, str)]
    if reasons:
        return reasons[0]
    tensors = [one for one in samples if isinstance(one, Tensor)]
    sizes = {tuple(one.shape) for one in tensors}
    if len(sizes) > 1:
        return (
            f"pictures become samples of different sizes ({', '.join(map(str, sorted(sizes)))}); give 'size' or 'crop'"
        )
    return torch.stack(tensors)


@dataclass
class _Order:
    """Which pictures the processes read next, batch by batch."""

    batches: list[list[Read]] = field(default_factory=list)

    def __iter__(self) -> Iterator[list[Read]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Reader:
    """Batches of one set of pictures in any order; its processes live as long as it does."""

    def __init__(
        self, pictures: Pictures, way: Preprocessing, augment: PictureAugment, workers: int | None = None
    ) -> None:
        self._order, self._normal = _Order(), replace(way, resize=None, crop=None)
        self._packer: _core.Batcher | None = None
        self._shape: tuple[int, ...] = ()
        self._buffers: list[tuple[NDArray[np.float32], weakref.ref[NDArray[np.float32]]]] = []
        count = min(usable_cores(), MOST_WORKERS) if workers is None else workers
        resized = pictures if isinstance(pictures, Cached) else Resized(pictures, replace(way, crop=None))
        if isinstance(resized, Cached):
            resized.fill(max(1, count))
        self._loader: DataLoader[Tensor | str] = DataLoader(
            _Samples(resized, way, augment), batch_sampler=self._order, collate_fn=_joined, num_workers=count,
            persistent_workers=count > 0, prefetch_factor=AHEAD if count else None,
            generator=torch.Generator(),  # else every epoch would draw from the process's own
        )  # fmt: skip

    def batches(self, order: NDArray[np.int64], batch_size: int, epoch: int, seed: int) -> Iterator[Tensor]:
        """Normalized float32 ``(batch_size, C, h, w)`` of the pictures in `order`; what remains at its end is left out."""
        starts = range(0, len(order) - batch_size + 1, batch_size)
        self._order.batches = [[(int(index), epoch, seed) for index in order[at : at + batch_size]] for at in starts]
        for found in self._loader:
            if isinstance(found, str):
                raise DataError(found)
            yield self._normalized(found.numpy())

    def _normalized(self, pixels: NDArray[np.uint8]) -> Tensor:
        if self._packer is None or self._shape != pixels.shape:
            self._shape, self._buffers = pixels.shape, []
            self._packer = self._normal.batcher((pixels.shape[2], pixels.shape[3]), len(pixels), planar=True)
        self._packer.submit(list(pixels))
        made = self._buffer(pixels.shape)
        np.copyto(made, self._packer.take())
        return torch.from_numpy(made)

    def _buffer(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Memory that nobody uses any more, else new: from the system, because the C library's is split between the pieces
        that processes send until a hundred batches fill it.
        """
        unused = [place for place, (_, user) in enumerate(self._buffers) if user() is None]
        place = unused[0] if unused else len(self._buffers)
        memory = self._buffers[place][0] if unused else np.frombuffer(mmap.mmap(-1, 4 * math.prod(shape)), np.float32)
        made: NDArray[np.float32] = memory.reshape(shape)  # a tensor of it, or of a part, keeps this array alive
        self._buffers[place : place + 1] = [(memory, weakref.ref(made))]
        del self._buffers[KEPT:]
        return made
