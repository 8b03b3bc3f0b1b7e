"""Drawn scenes: garments of Fashion-MNIST, scaled and coloured, on woven and clouded grounds, with masks and boxes.

A data set for segmentation and detection that anyone can make offline. A scene is a function of the settings, the split and
its number alone. Garments of training scenes are Fashion-MNIST's training pictures, those of test scenes its test pictures;
where Fashion-MNIST is missing, scikit-learn's digits take their place, and the class names say so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.image_sets import ImageSet, digits, fashion_mnist, find_fashion_mnist
from pydeploy.data.picture_set import SPLITS, require_split
from pydeploy.errors import ConfigError, DataError

BACKGROUND = "background"
OPAQUE = 24
"""Least grey level that belongs to a garment."""
COVERED = 0.5
"""Share of a garment hidden beyond which it is difficult."""
LEAST = 12
"""Pixels that have to be seen of a garment; one of which less is seen gets no box and no mask."""
MOST = 100
SCALE = (0.22, 0.55)
"""A garment's side, as a share of the shorter side of the picture."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture and all that is known of it; n garments, the later ones in front of the earlier."""

    picture: NDArray[np.uint8]
    """``(H, W, 3)``."""
    mask: NDArray[np.uint8]
    """``(H, W)``: 0 is background, ``1 + label`` a garment."""
    boxes: NDArray[np.float32]
    """``(n, 4)``: x1, y1, x2, y2 in pixels around what is seen, x2 and y2 exclusive."""
    labels: NDArray[np.int64]
    """``(n,)``: places in `Canvas.objects`."""
    difficult: NDArray[np.bool_]
    """``(n,)``: mostly covered or outside."""


@dataclass(frozen=True)
class Canvas:
    """Scenes of `size` (height and width) with 1 to `most` garments; sizes of both splits; `seed` draws everything."""

    size: tuple[int, int] = (96, 96)
    train_size: int = 2000
    test_size: int = 500
    most: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for key, value, least in (("size", min(self.size), 16), ("train_size", self.train_size, 1),
                                  ("test_size", self.test_size, 1), ("most", self.most, 1), ("seed", self.seed, 0)):  # fmt: skip
            if value < least:
                raise ConfigError(f"setting '{key}' of the canvas must be at least {least}, got {value}")
        if self.most > MOST:
            raise ConfigError(f"setting 'most' of the canvas must be at most {MOST} garments, got {self.most}")

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of what lies on the ground: boxes' classes."""
        return garments().class_names

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the values in masks."""
        return (BACKGROUND, *self.objects)

    def count(self, split: str) -> int:
        """Number of scenes in ``train`` or ``test``."""
        require_split(split)
        return self.train_size if split == "train" else self.test_size

    def digest(self) -> str:
        """SHA-256 of what scenes are drawn from."""
        return hashlib.sha256(f"canvas 1 {self}".encode() + garments().digest().encode()).hexdigest()

    def scene(self, split: str, index: int) -> Scene:
        """The scene of this number; the same in every process."""
        if not 0 <= index < self.count(split):
            raise DataError(f"the canvas has {self.count(split)} scenes to {split}, none of number {index}")
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
        source = garments()
        images, labels = (
            (source.train_images, source.train_labels) if split == "train" else (source.test_images, source.test_labels)
        )
        picture = ground(rng, self.size)
        owner = np.full(self.size, -1, np.int8)
        chosen = rng.integers(len(labels), size=rng.integers(1, self.most + 1))
        areas = [_place(picture, owner, number, images[one, 0], rng) for number, one in enumerate(chosen)]
        return _described(picture, owner, labels[chosen], areas)


@cache
def garments() -> ImageSet:
    """Fashion-MNIST, or where it is not on this machine scikit-learn's digits."""
    try:
        find_fashion_mnist(download=False)
    except DataError:
        return digits()
    return fashion_mnist()


def clouds(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float32]:
    """A smooth plane ``(H, W)`` of 5 x 5 normal values."""
    made: NDArray[np.float32] = _cells(size[0], 5) @ rng.normal(0, 1, (5, 5)).astype(np.float32) @ _cells(size[1], 5).T
    return made


def ground(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float32]:
    """A texture ``(H, W, 3)`` with values in 0..255: a colour, clouds, a weave of two waves, grain."""
    height, width = size
    cloudy = clouds(rng, size)
    angle, wave = rng.uniform(0, np.pi), rng.uniform(4, 16)
    along = np.arange(height, dtype=np.float32)[:, None] * np.sin(angle)
    across = np.arange(width, dtype=np.float32)[None] * np.cos(angle)
    weave = np.sin((along + across) * (2 * np.pi / wave)) * np.sin((along - across) * (2 * np.pi / wave))
    shade = 22 * cloudy + rng.uniform(0, 22) * weave + rng.normal(0, 5, size).astype(np.float32)
    colour = rng.uniform(40, 215, 3).astype(np.float32)
    made: NDArray[np.float32] = np.clip(
        colour + shade[:, :, None] * rng.uniform(0.5, 1, 3).astype(np.float32), 0, 255
    ).astype(np.float32)
    return made


def _place(picture: NDArray[np.float32], owner: NDArray[np.int8], number: int, garment: NDArray[np.uint8],
           rng: np.random.Generator) -> int:  # fmt: skip
    """Draw one garment, which may reach a quarter of its sides over the edge; its pixels, hidden ones among them."""
    height, width = owner.shape
    side = rng.uniform(*SCALE) * min(height, width)
    stretch = np.sqrt(rng.uniform(0.8, 1.25))
    rows, columns = max(6, round(side * stretch)), max(6, round(side / stretch))
    grey = _resized(garment[:, :: 1 if rng.random() < 0.5 else -1], rows, columns)
    shape = grey >= OPAQUE
    top = int(rng.integers(-(rows // 4), height - rows + rows // 4 + 1))
    left = int(rng.integers(-(columns // 4), width - columns + columns // 4 + 1))
    inner = np.s_[max(0, -top) : height - top, max(0, -left) : width - left]
    place = np.s_[max(0, top) : top + rows, max(0, left) : left + columns]
    seen = shape[inner]
    colour = rng.uniform(60, 255, 3).astype(np.float32)
    shaded = (0.25 + grey[inner][:, :, None] * (0.75 / 255)) * colour
    picture[place] = np.where(seen[:, :, None], shaded, picture[place])
    owner[place] = np.where(seen, number, owner[place])
    return int(shape.sum())


def _described(
    picture: NDArray[np.float32], owner: NDArray[np.int8], labels: NDArray[np.int64], areas: list[int]
) -> Scene:
    masks = owner[None] == np.arange(len(labels), dtype=np.int8)[:, None, None]
    seen = masks.sum(axis=(1, 2))
    kept = np.flatnonzero(seen >= LEAST)
    values = np.zeros(len(labels) + 1, np.uint8)  # the last one is the ground: an owner of -1
    values[kept] = labels[kept] + 1
    rows, columns = masks[kept].any(axis=2), masks[kept].any(axis=1)
    bounds = [(x.argmax(1), x.shape[1] - x[:, ::-1].argmax(1)) for x in (columns, rows)]
    boxes = np.stack([bounds[0][0], bounds[1][0], bounds[0][1], bounds[1][1]], axis=1).astype(np.float32)
    difficult = seen[kept] < (1 - COVERED) * np.array(areas)[kept]
    return Scene(np.rint(picture).astype(np.uint8), values[owner], boxes, labels[kept], difficult)


def _resized(image: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (
        _cells(rows, image.shape[0]) @ image.astype(np.float32) @ _cells(columns, image.shape[1]).T
    )
    return found


@lru_cache(maxsize=1024)
def _cells(count: int, source: int) -> NDArray[np.float32]:
    """``(count, source)``: the weights that resize `source` values to `count`, a triangle as wide as the larger step."""
    centres = (np.arange(count) + 0.5) * (source / count) - 0.5
    apart = np.abs(np.clip(centres, 0, source - 1)[:, None] - np.arange(source)[None])
    weights = np.maximum(0.0, 1 - apart / max(1.0, source / count))
    made: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return made
