"""Pictures of surfaces of two splits: defective or sound, with masks of the defects where these are known."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.device import usable_cores
from pydeploy.data.decode import opened
from pydeploy.data.defect_masks import STRIDE, Mask, read_mask
from pydeploy.data.picture_set import Files, Pictures, require_split
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import ConfigError, DataError, nearest

Size = int | tuple[int, int]
"""Of samples: a square's side, or height and width."""
SHOWN = 5
log = logging.getLogger(__name__)


class Masks(Protocol):
    """Masks by number of the picture."""

    def read(self, index: int) -> Mask | None:
        """``(H, W)`` as large as the picture; None where no pixels are marked."""

    def fingerprint(self, index: int) -> bytes:
        """Bytes that are others where the mask is another one."""


@dataclass(frozen=True)
class MaskFiles:
    """Masks in files; without a path, no pixels are marked."""

    paths: Sequence[Path | None]

    def read(self, index: int) -> Mask | None:
        path = self.paths[index]
        if path is None:
            return None
        try:
            return read_mask(path)
        except DataError as error:
            raise DataError(f"{path}: {error}; repair the mask, or remove it with its picture") from None

    def fingerprint(self, index: int) -> bytes:
        path = self.paths[index]
        return b"" if path is None else Files([path]).fingerprint(0)


@dataclass(frozen=True)
class DefectSplit:
    """Pictures, which of them are defective, their names, and their masks."""

    names: Sequence[str]
    pictures: Pictures
    defective: NDArray[np.bool_]
    masks: Masks
    segmented: NDArray[np.bool_]
    """Whether the pixels of a picture may be learned from: those of sound ones always, of defective ones with a mask."""

    def chosen(self, indices: NDArray[np.int64]) -> DefectSplit:
        """Some of the samples, in this order."""
        return DefectSplit([self.names[i] for i in indices], _Part(self.pictures, indices), self.defective[indices],
                           _MaskPart(self.masks, indices), self.segmented[indices])  # fmt: skip


@dataclass(frozen=True)
class DefectSet:
    """Two splits and what turns a picture into a sample. Raises `DataError` where a split has samples of one kind only."""

    name: str
    train: DefectSplit
    test: DefectSplit
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        for part, split in (("train", self.train), ("test", self.test)):
            count, total = int(split.defective.sum()), len(split.defective)
            if not 0 < count < total:
                what = "no pictures" if not total else f"{count} defective and {total - count} sound pictures"
                raise DataError(f"{self.name}: {what} to {part} on; both kinds are needed, or no curve is defined")

    def split(self, name: str) -> DefectSplit:
        """``train`` or ``test``."""
        require_split(name)
        return self.train if name == "train" else self.test

    def digest(self) -> str:
        """SHA-256 of labels, preprocessing, and every picture's and mask's `fingerprint`."""
        found = hashlib.sha256(repr(self.preprocessing).encode())
        for split in (self.train, self.test):
            found.update(split.defective.tobytes() + split.segmented.tobytes())
            for index in range(len(split.pictures)):
                for bits in (split.pictures.fingerprint(index), split.masks.fingerprint(index)):
                    found.update(hashlib.sha256(bits).digest())
        return found.hexdigest()


@dataclass(frozen=True)
class _Part:
    whole: Pictures
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.whole.read(int(self.indices[index]))

    def fingerprint(self, index: int) -> bytes:
        return self.whole.fingerprint(int(self.indices[index]))


@dataclass(frozen=True)
class _MaskPart:
    whole: Masks
    indices: NDArray[np.int64]

    def read(self, index: int) -> Mask | None:
        return self.whole.read(int(self.indices[index]))

    def fingerprint(self, index: int) -> bytes:
        return self.whole.fingerprint(int(self.indices[index]))


def from_masks(top: Path, pairs: Sequence[tuple[Path, Path]], channels: int, max_skipped: float) -> DefectSplit:
    """Pictures that are defective where their mask is not empty; every mask is read, and compared with its picture's size.

    Raises `DataError` where more than the share `max_skipped` cannot be used; the others are left out and logged.
    """

    def seen(pair: tuple[Path, Path]) -> bool | str:
        try:
            mask = read_mask(pair[1])
        except DataError as error:
            return f"{pair[1]} ({error})"
        try:
            with opened(pair[0]) as image:
                size = (image.height, image.width)
        except DataError as error:
            return f"{pair[0]} ({error})"
        if mask.shape != size:
            return f"{pair[1]} (its size is {mask.shape}, its picture's {size})"
        return bool(mask.any())

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = list(pool.map(seen, pairs))
    require_few([one for one in found if isinstance(one, str)], len(pairs), max_skipped)
    kept = [(pair, one) for pair, one in zip(pairs, found, strict=True) if not isinstance(one, str)]
    names = [pair[0].relative_to(top).with_suffix("").as_posix() for pair, _ in kept]
    return DefectSplit(names, Files([pair[0] for pair, _ in kept], channels), np.array([one for _, one in kept], np.bool_),
                       MaskFiles([pair[1] for pair, _ in kept]), np.ones(len(kept), np.bool_))  # fmt: skip


def require_few(bad: Sequence[str], total: int, max_skipped: float) -> None:
    """`DataError` where more than the share `max_skipped` of `total` pictures is `bad`, each told in words; else a warning."""
    if not 0 <= max_skipped < 1:
        raise ConfigError(f"'max_skipped' is a share of the pictures, from 0 to below 1, got {max_skipped}")
    if not bad:
        return
    told = f"{'; '.join(bad[:SHOWN])}{'; ...' if len(bad) > SHOWN else ''}"
    if len(bad) > int(max_skipped * total):
        raise DataError(f"{len(bad)} of {total} pictures cannot be used, {int(max_skipped * total)} may be skipped: {told}; "
                        "repair them or raise 'max_skipped'")  # fmt: skip
    log.warning("skipped %d of %d pictures: %s", len(bad), total, told)


def supervised(split: DefectSplit, supervision: float | str, seed: int) -> DefectSplit:
    """The split with masks of some defective pictures only: of a share drawn by `seed`, or of those that a JSON list names.

    A name is the picture's path in the split's folder without suffix, or its last part. Raises `DataError` for a list that names
    what there is not, `ConfigError` for no share.
    """
    if isinstance(supervision, str):
        segmented = ~split.defective | _listed(split, Path(supervision))
    else:
        if not 0 <= supervision <= 1:
            raise ConfigError(f"'supervision' is a share from 0 to 1 or a JSON file, got {supervision}")
        marked = np.flatnonzero(split.defective & split.segmented)
        drawn = np.random.default_rng(seed).permutation(marked)[: round(supervision * len(marked))]
        segmented = ~split.defective
        segmented[drawn] = True
    return replace(split, segmented=segmented & split.segmented)


def _listed(split: DefectSplit, path: Path) -> NDArray[np.bool_]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"the list of pictures with masks, {path}, cannot be read: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f'{path} must be a JSON list of names of pictures, such as ["10301", "10477"]')
    places: Mapping[str, int] = {
        **{name.rpartition("/")[2]: index for index, name in enumerate(split.names)},
        **{name: index for index, name in enumerate(split.names)},
    }
    unknown = [name for name in names if name not in places]
    if unknown:
        raise DataError(f"{path} names {len(unknown)} pictures that are not among those to train on, such as "
                        f"'{unknown[0]}'{nearest(unknown[0], places)}")  # fmt: skip
    sound = [name for name in names if not split.defective[places[name]]]
    if sound:
        raise DataError(f"{path} names {len(sound)} pictures that are not defective, such as '{sound[0]}'")
    found = np.zeros(len(split.names), np.bool_)
    found[[places[name] for name in names]] = True
    return found


def fixed_size(size: Size, channels: int, mean: tuple[float, ...] | None, std: tuple[float, ...] | None,
               interpolation: str) -> Preprocessing:  # fmt: skip
    """Pictures stretched to `size`, a square's side or ``(height, width)``; values from 0 to 1 unless `mean` and `std` say."""
    if channels not in (1, 3):
        raise ConfigError(f"'channels' must be 1 or 3, got {channels}")
    sides = (size, size) if isinstance(size, int) else (size[0], size[1])
    if any(side < STRIDE or side % STRIDE for side in sides):
        raise ConfigError(
            f"'size' must be multiples of {STRIDE} pixels, which one place of the mask stands for, got {size}"
        )
    made = Preprocessing(mean or (0.0,) * channels, std or (1.0,) * channels, sides, None, interpolation)
    if len(made.mean) != channels:
        raise ConfigError(f"'mean' and 'std' need {channels} values, one per channel, got {made.mean}")
    return made


def mixed(split: DefectSplit) -> DefectSplit:
    """The samples in an order that does not depend on their kind, so that the first ones are of both."""
    return split.chosen(np.random.default_rng(0).permutation(len(split.names)))


def drawn(whole: DefectSplit, strata: NDArray[np.int64], share: float, seed: int) -> tuple[DefectSplit, DefectSplit]:
    """A split to train on and one to test on, with a share of every stratum; strata of one sample are trained on."""
    if not 0 < share < 1:
        raise ConfigError(f"'holdout' is the share of the pictures to test on, above 0 and below 1, got {share}")
    judged = np.zeros(len(strata), np.bool_)
    for stratum in np.unique(strata):
        own = np.flatnonzero(strata == stratum)
        count = min(len(own) - 1, max(1, round(share * len(own))))
        judged[np.random.default_rng([seed, int(stratum)]).permutation(own)[:count]] = True
    return whole.chosen(np.flatnonzero(~judged)), whole.chosen(np.flatnonzero(judged))
