"""From decoded images to network inputs: resize, cut out the middle, normalize, channels first. The only place for it.

Training, evaluation and calibration go through `Preprocessing`; the work is done by threads of the compiled core. Resizing
takes the width first, then the height, and equals Pillow's (and so torchvision's on Pillow images) byte for byte, except
where Pillow 13 takes the height first because it shrinks much more; normalizing is ``(pixel - 255 mean) / (255 std)`` in
float32, in this order, so that the same images give the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy import _core
from pydeploy.errors import ConfigError, DataError, nearest

Images = Sequence[NDArray[np.uint8]]
INTERPOLATIONS = ("bilinear", "bicubic")
AHEAD = 2
"""Batches that are packed while one is in use."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes a sample. `mean` and `std` hold one value per channel, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | tuple[int, int] | None = None
    """Length of the shorter side, or height and width; None keeps the size."""
    crop: int | tuple[int, int] | None = None
    """Side of the square, or height and width, that is cut out of the middle; None keeps everything."""
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ConfigError(f"mean and std need one value per channel, got {self.mean} and {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"unknown interpolation '{self.interpolation}'{nearest(self.interpolation, INTERPOLATIONS)}"
            )
        if any(not np.isfinite(value) or value <= 0 for value in self.std) or not np.isfinite(self.mean).all():
            raise ConfigError(f"mean must be finite and std positive, got {self.mean} and {self.std}")
        for key, value in (("resize", self.resize), ("crop", self.crop)):
            if value is not None and min(_pair(value)) < 1:
                raise ConfigError(f"{key} must be at least 1 pixel, got {value}")

    @classmethod
    def parse(cls, data: Mapping[str, Any], source: str) -> Preprocessing:
        """From a YAML mapping with the keys of this class; raises `ConfigError` that names `source` and the key."""
        known = {"mean", "std", "resize", "crop", "interpolation"}
        for key in data:
            if key not in known:
                raise ConfigError(f"{source}: unknown key 'preprocessing.{key}'{nearest(str(key), known)}")
        for key in ("mean", "std"):
            values = data.get(key)
            if not isinstance(values, list) or not all(type(v) in (int, float) for v in values):
                raise ConfigError(
                    f"{source}: 'preprocessing.{key}' must be a list of numbers, one per channel, got {values!r}"
                )
        sides = {key: _side(data.get(key), f"{source}: 'preprocessing.{key}'") for key in ("resize", "crop")}
        try:
            return cls(tuple(map(float, data["mean"])), tuple(map(float, data["std"])), sides["resize"], sides["crop"],
                       str(data.get("interpolation", "bilinear")))  # fmt: skip
        except ConfigError as error:
            raise ConfigError(f"{source}: preprocessing: {error}") from None

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the sample that an image of this size becomes."""
        if self.crop is not None:
            return _pair(self.crop)
        if isinstance(self.resize, int):
            short = min(height, width)
            return self.resize * height // short, self.resize * width // short
        return self.resize or (height, width)

    def batcher(self, size: tuple[int, int], batch: int, *, planar: bool = False, threads: int = 0) -> _core.Batcher:
        """Threads that pack images into samples of `size`; `planar` says that the images have channels first."""
        resize = (self.resize, 0) if isinstance(self.resize, int) else self.resize or (0, 0)
        return _core.Batcher(size, resize, self.interpolation, [255.0 * m for m in self.mean],
                             [255.0 * s for s in self.std], planar, batch, AHEAD + 1, threads)  # fmt: skip

    def batches(
        self, images: Iterable[NDArray[np.uint8]], batch: int, *, planar: bool = False, threads: int = 0
    ) -> Iterator[NDArray[np.float32]]:
        """Batches of up to `batch` samples, shape ``(n, C, H, W)`` float32, packed while the one before is used.

        `images` are ``(H, W, C)`` uint8, or ``(C, H, W)`` where `planar`. Each batch lies in a buffer that is used again
        for a later one: copy what has to outlive the next step of the loop. Raises `DataError` for an image that does not
        fit, or whose sample has another size than those before.
        """
        batcher: _core.Batcher | None = None
        size: tuple[int, int] | None = None
        pending = 0
        source = iter(images)
        while chunk := list(islice(source, batch)):
            for image in chunk:
                if image.ndim != 3:
                    raise DataError(f"an image must have three dimensions, got the shape {image.shape}")
                found = self.size(*(image.shape[1:] if planar else image.shape[:2]))
                size = size or found
                if found != size:
                    raise DataError(f"an image of shape {image.shape} becomes a sample of {found} pixels, those before are "
                                    f"{size}; give 'resize: [height, width]' or 'crop'")  # fmt: skip
            assert size is not None
            batcher = batcher or self.batcher(size, batch, planar=planar, threads=threads)
            if pending == AHEAD:
                pending -= 1
                yield batcher.take()
            _submit(batcher, [np.ascontiguousarray(image) for image in chunk])
            pending += 1
        for _ in range(pending):
            assert batcher is not None
            yield batcher.take()

    def __call__(self, images: NDArray[np.uint8], *, planar: bool = False) -> NDArray[np.float32]:
        """All images of one array as one array of samples, shape ``(N, C, H, W)``."""
        size = self.size(*(images.shape[2:] if planar else images.shape[1:3]))
        if not len(images):
            return np.empty((0, len(self.mean), *size), np.float32)
        batcher = self.batcher(size, len(images), planar=planar)
        _submit(batcher, list(np.ascontiguousarray(images)))
        return batcher.take()

    def pixels(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """One ``(H, W, C)`` image resized and cut out, not normalized: ``(h, w, C)`` uint8, on the calling thread's time."""
        one = replace(self, mean=(0.0,) * image.shape[2], std=(1 / 255,) * image.shape[2])
        batcher = one.batcher(self.size(*image.shape[:2]), 1, threads=1)
        _submit(batcher, [np.ascontiguousarray(image)])
        return np.ascontiguousarray(batcher.take()[0].transpose(1, 2, 0).astype(np.uint8))

    def to_json(self) -> dict[str, Any]:
        """The mapping that `parse` reads."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def _submit(batcher: _core.Batcher, images: list[NDArray[np.uint8]]) -> None:
    try:
        batcher.submit(images)
    except (ValueError, TypeError) as error:
        raise DataError(f"these images cannot be preprocessed: {error}") from None


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _side(value: Any, what: str) -> int | tuple[int, int] | None:
    if value is None or type(value) is int:
        return value
    if isinstance(value, list) and len(value) == 2 and all(type(side) is int for side in value):
        return value[0], value[1]
    raise ConfigError(f"{what} must be a whole number or [height, width], got {value!r}")


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 256, 224)
"""What torchvision's classifiers are evaluated with."""

PREPROCESSING: Mapping[str, Preprocessing] = {"imagenet": IMAGENET}
"""Preprocessing that a manifest may name."""
