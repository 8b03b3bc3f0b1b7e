"""Pictures with a class for every pixel: what every layout of a segmentation data set becomes."""

from __future__ import annotations

import colorsys
import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.canvas import Canvas
from pydeploy.data.mask_files import UNKNOWN
from pydeploy.data.picture_set import GREY_MEAN, GREY_STD, require_split
from pydeploy.data.preprocessing import IMAGENET, Preprocessing
from pydeploy.errors import ConfigError, DataError

Colour = tuple[int, int, int]
LEAST, MOST = 2, UNKNOWN
"""Numbers of classes that a mask can tell apart."""


class Masked(Protocol):
    """Pictures with masks by number."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Picture ``(H, W, C)`` and class of every pixel ``(H, W)``, `IGNORED` for none."""

    def fingerprint(self, index: int) -> bytes:
        """Bytes that are others where the picture or its mask is another one."""

    def pixels(self) -> NDArray[np.int64]:
        """``(256,)``: pixels of every class over all masks."""


@dataclass(frozen=True)
class MaskedSet:
    """Splits, names and colours of the classes, and what turns a picture into a sample."""

    name: str
    class_names: tuple[str, ...]
    train: Masked
    test: Masked
    preprocessing: Preprocessing
    colours: tuple[Colour, ...]
    validation: Masked | None = None
    """What epochs are compared by, where the layout has such a part and nothing else uses it."""

    def __post_init__(self) -> None:
        if not LEAST <= self.classes < MOST or len({*self.class_names}) != self.classes:
            raise ConfigError(
                f"{self.name}: expected {LEAST} to {MOST - 1} classes with different names, got {self.classes}"
            )
        if not self.train.pixels()[: self.classes].any():
            raise DataError(
                f"{self.name}: no pixel of the {len(self.train)} training masks has a class: all are ignored"
            )

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return len(self.preprocessing.mean)

    def split(self, name: str) -> Masked:
        """``train``, ``test`` or, where there is one, ``validation``."""
        known = {"train": self.train, "test": self.test, **({"validation": self.validation} if self.validation else {})}
        require_split(name, known)
        return known[name]

    def digest(self) -> str:
        """SHA-256 of classes, preprocessing and every `fingerprint`."""
        found = hashlib.sha256(repr((self.class_names, self.preprocessing)).encode())
        for split in (self.train, self.test, *([self.validation] if self.validation else [])):
            for index in range(len(split)):
                found.update(hashlib.sha256(split.fingerprint(index)).digest())
        return found.hexdigest()


@dataclass(frozen=True)
class Scenes:
    """One split of a canvas."""

    canvas: Canvas
    part: str

    def __len__(self) -> int:
        return self.canvas.count(self.part)

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        scene = self.canvas.scene(self.part, index)
        return scene.picture, scene.mask

    def fingerprint(self, index: int) -> bytes:
        return f"{self.canvas.digest()} {self.part} {index}".encode() if not index else b""

    def pixels(self, most: int = 200) -> NDArray[np.int64]:
        """Of the first `most` scenes: drawing all takes seconds."""
        masks = (self.read(index)[1] for index in range(min(most, len(self))))
        found: NDArray[np.int64] = np.stack([np.bincount(mask.ravel(), minlength=256) for mask in masks]).sum(axis=0)
        return found


def canvas(
    size: tuple[int, int] = (96, 96), train_size: int = 2000, test_size: int = 500, most: int = 4, seed: int = 0
) -> MaskedSet:
    """Drawn scenes (`Canvas`): garments on textures, 10 classes and the background."""
    drawn = Canvas(size, train_size, test_size, most, seed)
    return MaskedSet(
        "canvas",
        drawn.class_names,
        Scenes(drawn, "train"),
        Scenes(drawn, "test"),
        sample(size),
        hues(len(drawn.class_names)),
    )


def sample(
    size: tuple[int, int],
    channels: int = 3,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Preprocessing:
    """What makes samples of `size` (height and width) of pictures: ImageNet's mean and standard deviation without others."""
    if channels not in (1, 3):
        raise ConfigError(f"'channels' must be 1 or 3, got {channels}")
    colours = IMAGENET if channels == 3 else Preprocessing((GREY_MEAN,), (GREY_STD,))
    made = Preprocessing(mean or colours.mean, std or colours.std, size)
    if len(made.mean) != channels:
        raise ConfigError(f"'mean' and 'std' need {channels} values, one per channel, got {made.mean}")
    return made


def hues(count: int) -> tuple[Colour, ...]:
    """`count` colours far apart: black first, then hues by the golden ratio."""
    made = [(0, 0, 0)]
    for number in range(count - 1):
        red, green, blue = colorsys.hsv_to_rgb(
            number * 0.618034 % 1, 0.9 - 0.3 * (number % 2), 1 - 0.25 * (number // 2 % 2)
        )
        made.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(made)
