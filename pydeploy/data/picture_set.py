"""Labelled pictures that are decoded when they are asked for: what every layout of files becomes.

A set of any size takes the memory of its labels and file names. A cache, on request, keeps every picture after its
resizing: in memory, or in a folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.decode import decode
from pydeploy.data.preprocessing import IMAGENET, Preprocessing
from pydeploy.errors import ConfigError, DataError, nearest
from pydeploy.files import replacing, sha256

SPLITS = ("train", "test")
GREY_MEAN, GREY_STD = 0.449, 0.226
"""ImageNet's mean and standard deviation over all three channels."""


class Pictures(Protocol):
    """Decoded pictures by number."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> NDArray[np.uint8]:
        """``(H, W, C)``; `DataError` naming the picture that cannot be read."""

    def fingerprint(self, index: int) -> bytes:
        """Bytes that are others where the picture is another one."""


@dataclass(frozen=True)
class Files:
    """Picture files of any sizes."""

    paths: Sequence[Path]
    channels: int = 3

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> NDArray[np.uint8]:
        try:
            return decode(self.paths[index], self.channels)
        except DataError as error:
            raise DataError(f"{self.paths[index]}: {error}; repair the picture, or remove it from the set") from None

    def fingerprint(self, index: int) -> bytes:
        """Hash of the whole file: reading it takes a tenth of what decoding takes, and no edit is missed."""
        return bytes.fromhex(sha256(self.paths[index]))


@dataclass(frozen=True)
class Rows:
    """Pictures that lie in one array ``(N, H, W, C)`` uint8, which may be mapped from a file."""

    array: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.array)

    def read(self, index: int) -> NDArray[np.uint8]:
        return np.array(self.array[index])

    def fingerprint(self, index: int) -> bytes:
        return self.read(index).tobytes()


@dataclass(frozen=True)
class Resized:
    """Pictures after a resizing."""

    pictures: Pictures
    resizing: Preprocessing

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> NDArray[np.uint8]:
        image = self.pictures.read(index)
        return image if self.resizing.size(*image.shape[:2]) == image.shape[:2] else self.resizing.pixels(image)

    def fingerprint(self, index: int) -> bytes:
        return self.pictures.fingerprint(index)


@dataclass(frozen=True)
class Cached(Resized):
    """Each is kept when it was first read: in `folder`, or in memory where there is none."""

    folder: Path | None = None
    kept: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def read(self, index: int) -> NDArray[np.uint8]:
        if self.folder is None:
            if index not in self.kept:
                self.kept[index] = super().read(index)
            return self.kept[index]
        key = hashlib.sha256(repr(self.resizing).encode() + self.fingerprint(index)).hexdigest()
        path = self.folder / key[:2] / f"{key}.npy"
        try:
            return np.asarray(np.load(path, allow_pickle=False), np.uint8)
        except (OSError, ValueError, EOFError):
            found = super().read(index)
        with replacing(path) as partial, partial.open("wb") as stream:
            np.save(stream, found)
        return found

    def fill(self, threads: int) -> None:
        """Read everything into memory: what processes that are forked later all see."""
        if self.folder is None:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(self.read, range(len(self))):
                    pass


def require_split(name: str, known: Collection[str] = SPLITS) -> None:
    """Raise `ConfigError` where a data set has no split of this name."""
    if name not in known:
        raise ConfigError(f"unknown split '{name}'{nearest(name, known)}")


@dataclass(frozen=True)
class Split:
    """Pictures and the class of each."""

    pictures: Pictures
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class PictureSet:
    """Labelled pictures of two splits, and what turns one into a sample."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        for part, split in (("training", self.train), ("test", self.test)):
            if not len(split.pictures) or len(split.pictures) != len(split.labels):
                raise DataError(f"{self.name}: {len(split.pictures)} {part} pictures, {len(split.labels)} labels")
            if split.labels.min() < 0 or split.labels.max() >= self.classes:
                raise DataError(
                    f"{self.name}: {part} labels must lie in 0..{self.classes - 1}, got {split.labels.min()} to {split.labels.max()}"
                )

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return len(self.preprocessing.mean)

    def split(self, name: str) -> Split:
        """``train`` or ``test``."""
        require_split(name)
        return self.train if name == "train" else self.test

    def digest(self) -> str:
        """SHA-256 of labels, classes, preprocessing and every picture's `fingerprint`."""
        found = hashlib.sha256(repr((self.class_names, self.preprocessing)).encode())
        for split in (self.train, self.test):
            found.update(split.labels.tobytes())
            for index in range(len(split.pictures)):
                found.update(hashlib.sha256(split.pictures.fingerprint(index)).digest())
        return found.hexdigest()

    def cached(self, cache: str | None) -> PictureSet:
        """The set with a cache: ``memory``, or a folder; None leaves it as it is."""
        if cache is None:
            return self
        resizing = replace(self.preprocessing, crop=None)
        folder = None if cache == "memory" else Path(cache)

        def kept(split: Split) -> Split:
            return replace(split, pictures=Cached(split.pictures, resizing, folder))

        return replace(self, train=kept(self.train), test=kept(self.test))


def sample_settings(
    size: int, channels: int = 3, resize: int | tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None, interpolation: str = "bilinear",
) -> Preprocessing:  # fmt: skip
    """What makes samples of `size` pixels a side of pictures of any size: the shorter side to 8/7 of it, then the middle.

    `mean` and `std` are ImageNet's without others, as most pretrained networks want; `resize` replaces the 8/7.
    """
    if size < 1:
        raise ConfigError(f"'size' must be at least 1 pixel, got {size}")
    if channels not in (1, 3):
        raise ConfigError(f"'channels' must be 1 or 3, got {channels}")
    colours = IMAGENET if channels == 3 else Preprocessing((GREY_MEAN,), (GREY_STD,))
    made = Preprocessing(mean or colours.mean, std or colours.std, resize or round(size * 8 / 7), size, interpolation)
    if len(made.mean) != channels:
        raise ConfigError(f"'mean' and 'std' need {channels} values, one per channel, got {made.mean}")
    if min((made.resize, made.resize) if isinstance(made.resize, int) else made.resize or (size,)) < size:
        raise ConfigError(f"'resize' {made.resize} must not be smaller than 'size' {size}")
    return made


def held_out(labels: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the pictures to train on and of those to test on: `share` of every class, drawn by `seed`, ascending."""
    if not 0 < share < 1:
        raise ConfigError(f"'holdout' is the share of the pictures to test on, above 0 and below 1, got {share}")
    test: list[int] = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        if len(own) < 2:
            raise DataError(f"class {label} has one picture only, which cannot be both trained and tested on; add more")
        count = min(len(own) - 1, max(1, round(share * len(own))))
        test += np.random.default_rng([seed, int(label)]).permutation(own)[:count].tolist()
    chosen = np.zeros(len(labels), bool)
    chosen[test] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
