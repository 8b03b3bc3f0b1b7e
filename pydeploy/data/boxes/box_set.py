"""Pictures with boxes: what every layout of files becomes, and what is done with annotations that are wrong."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.boxes.geometry import Floats, areas
from pydeploy.data.picture_set import GREY_MEAN, GREY_STD, Cached, Files, Pictures, require_split
from pydeploy.data.preprocessing import IMAGENET, Preprocessing
from pydeploy.errors import ConfigError, DataError, nearest

log = logging.getLogger(__name__)
BEYOND = 1.0
"""Pixels that a box may reach beyond its picture: what rounding does, and is cut off."""
SHOWN = 5
Item = TypeVar("Item")


@dataclass(frozen=True)
class Objects:
    """What lies in one picture."""

    boxes: Floats
    """``(n, 4)`` float32: left, top, right, bottom as shares of the picture."""
    labels: NDArray[np.int64]
    """``(n,)``: places among the classes."""
    difficult: NDArray[np.bool_]
    """``(n,)``: neither learned nor missed nor found wrongly."""
    size: tuple[int, int]
    """Height and width of the picture in pixels."""

    def __len__(self) -> int:
        return len(self.labels)


def objects(
    corners: Iterable[Sequence[float]], labels: Sequence[int], difficult: Sequence[bool], size: tuple[int, int]
) -> Objects:
    """From boxes in pixels, the right and lower edges exclusive; raises `DataError` for one outside of the picture or without area."""
    height, width = size
    if min(size) < 1:
        raise DataError(f"the picture's size is given as {width} x {height} pixels")
    pixels = np.array([*corners], np.float64).reshape(-1, 4)
    for box in pixels:
        shown = ", ".join(f"{value:g}" for value in box)
        if not np.isfinite(box).all():
            raise DataError(f"the box ({shown}) is not of finite numbers")
        if box[2] <= box[0] or box[3] <= box[1]:
            raise DataError(f"the box ({shown}) has no area; expected left < right and top < bottom")
        if min(box) < -BEYOND or box[2] > width + BEYOND or box[3] > height + BEYOND:
            raise DataError(f"the box ({shown}) lies outside of the picture of {width} x {height} pixels")
    shares = np.clip(pixels / (width, height, width, height), 0, 1).astype(np.float32)
    if len(shares) and areas(shares).min() <= 0:
        raise DataError("a box lies on the picture's edge without an area inside of it")
    return Objects(shares, np.array(labels, np.int64), np.array(difficult, bool), size)


@dataclass(frozen=True)
class BoxSplit:
    """Pictures and what lies in each."""

    pictures: Pictures
    objects: Sequence[Objects]


@dataclass(frozen=True)
class BoxSet:
    """Pictures with boxes in two splits, and what makes samples of them: the whole picture, resized to a square."""

    name: str
    class_names: tuple[str, ...]
    train: BoxSplit
    test: BoxSplit
    preprocessing: Preprocessing
    drawn_from: str = ""
    """Hash of what drawn pictures are made from; '' for files."""

    def __post_init__(self) -> None:
        for part, split in (("training", self.train), ("test", self.test)):
            if not len(split.pictures) or len(split.pictures) != len(split.objects):
                raise DataError(f"{self.name}: {len(split.pictures)} {part} pictures, boxes of {len(split.objects)}")

    @property
    def channels(self) -> int:
        return len(self.preprocessing.mean)

    @property
    def side(self) -> int:
        """Pixels a side of a sample."""
        assert isinstance(self.preprocessing.resize, tuple)
        return self.preprocessing.resize[0]

    def split(self, name: str) -> BoxSplit:
        """``train`` or ``test``."""
        require_split(name)
        return self.train if name == "train" else self.test

    def digest(self) -> str:
        """SHA-256 of classes, preprocessing, boxes and every picture's `fingerprint`."""
        found = hashlib.sha256(repr((self.class_names, self.preprocessing, self.drawn_from)).encode())
        for split in () if self.drawn_from else (self.train, self.test):
            for index, own in enumerate(split.objects):
                for array in (own.boxes, own.labels, own.difficult, np.array(own.size)):
                    found.update(np.ascontiguousarray(array).tobytes())
                found.update(hashlib.sha256(split.pictures.fingerprint(index)).digest())
        return found.hexdigest()

    def cached(self, cache: str | None) -> BoxSet:
        """With the resized pictures kept: in ``memory``, or in a folder; None leaves the set as it is."""
        if cache is None:
            return self
        folder = None if cache == "memory" else Path(cache)
        kept = [replace(s, pictures=Cached(s.pictures, self.preprocessing, folder)) for s in (self.train, self.test)]
        return replace(self, train=kept[0], test=kept[1])


def square_samples(
    size: int, channels: int, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Preprocessing:
    """Whole pictures resized to `size` pixels a side; `mean` and `std` are ImageNet's without others."""
    if size < 32:
        raise ConfigError(f"'size' must be at least 32 pixels, got {size}")
    if channels not in (1, 3):
        raise ConfigError(f"'channels' must be 1 or 3, got {channels}")
    colours = IMAGENET if channels == 3 else Preprocessing((GREY_MEAN,), (GREY_STD,))
    made = Preprocessing(mean or colours.mean, std or colours.std, (size, size))
    if len(made.mean) != channels:
        raise ConfigError(f"'mean' and 'std' need {channels} values, one per channel, got {made.mean}")
    return made


def annotated(
    items: Sequence[Item], read: Callable[[Item], tuple[Path, Objects]], what: str, channels: int, max_skipped: float
) -> BoxSplit:
    """A split of what `read` gives for each item; items that raise `DataError` are left out, named and counted.

    Raises `DataError` where they are more than the share `max_skipped` of all, or nothing is left. `what` names the split.
    """
    if not 0 <= max_skipped < 1:
        raise ConfigError(f"'max_skipped' is a share, at least 0 and below 1, got {max_skipped}")
    allowed = int(max_skipped * len(items))
    found: list[tuple[Path, Objects]] = []
    wrong: list[str] = []
    for one in map(partial(_tried, read), items):
        if isinstance(one, str):
            wrong.append(one)
        else:
            found.append(one)
    told = "; ".join(wrong[:SHOWN]) + (f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
    if len(wrong) > allowed or not found:
        raise DataError(
            f"{len(wrong)} of {len(items)} pictures of {what} have annotations that are wrong, {allowed} may be skipped: "
            f"{told or 'there are none'}; repair them or raise 'max_skipped'"
        )
    if wrong:
        log.warning("skipped %d of %d pictures of %s: %s", len(wrong), len(items), what, told)
    return BoxSplit(Files([path for path, _ in found], channels), [own for _, own in found])


def _tried(read: Callable[[Item], tuple[Path, Objects]], item: Item) -> tuple[Path, Objects] | str:
    try:
        return read(item)
    except DataError as error:
        return str(error)


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture as it is decoded, from the beginning of its file; raises `DataError`."""
    from PIL import Image

    from pydeploy.data.decode import FORMATS, ORIENTATION

    try:
        with Image.open(path, formats=[name for name in FORMATS if name != "JPEG2000"] or None) as image:
            turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except (OSError, ValueError, SyntaxError) as error:
        reason = "missing" if not path.exists() else f"damaged: {error}"
        raise DataError(f"{path}: {reason}; repair the picture, or remove it from the list") from None


def class_number(name: str, names: Sequence[str]) -> int:
    """The place of a class; `DataError` where it is none."""
    if name not in names:
        raise DataError(f"unknown class '{name}'{nearest(name, names)}")
    return names.index(name)
