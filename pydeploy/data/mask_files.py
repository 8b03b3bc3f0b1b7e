"""Masks as files: pictures whose pixels are the numbers of classes, beside the pictures that they belong to."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.device import usable_cores
from pydeploy.data.decode import SUFFIXES
from pydeploy.data.picture_set import Files
from pydeploy.errors import BackendUnavailable, ConfigError, DataError

IGNORED = 255
"""Class of pixels that count neither in training nor in evaluation."""
UNKNOWN = 254
"""Class of values that no mask may hold."""
FORMATS = ("BMP", "GIF", "PNG", "PPM", "TIFF")
MASKS = frozenset({".bmp", ".gif", ".pgm", ".png", ".ppm", ".tif", ".tiff"})
"""Suffixes of formats that keep values exactly."""
WHOLE = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "LA", "PA")
"""Pillow's modes whose first channel is a whole number a pixel; a palette's colours do not matter."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskedFiles:
    """Pictures and the mask of each; `values` (256 classes, one a value) says what a mask's values mean."""

    pictures: tuple[Path, ...]
    masks: tuple[Path, ...]
    values: NDArray[np.uint8]
    counts: NDArray[np.int64]
    """``(256,)``: pixels of every class, `IGNORED` among them, over all masks."""
    channels: int = 3

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Picture ``(H, W, C)`` and classes ``(H, W)``; `DataError` naming the file that cannot be used."""
        picture = Files(self.pictures, self.channels).read(index)
        return picture, _classes(self.masks[index], self.values, picture.shape[:2])

    def fingerprint(self, index: int) -> bytes:
        """Bytes that are others where the picture or its mask is another one."""
        return Files(self.pictures).fingerprint(index) + Files(self.masks).fingerprint(index)

    def pixels(self) -> NDArray[np.int64]:
        """``(256,)``: pixels of every class over all masks."""
        return self.counts


def read_mask(path: Path) -> NDArray[np.uint8]:
    """The values of a mask ``(H, W)``; `DataError` with the reason, without the path, where it is none."""
    try:
        from PIL import Image
    except ImportError:
        raise BackendUnavailable("pictures need the package 'pillow': pip install pillow") from None
    try:
        with Image.open(path, formats=FORMATS) as image:
            mode, values = image.mode, np.asarray(image)
    except FileNotFoundError:
        raise DataError("missing") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
            f"no mask in a format that keeps values ({', '.join(FORMATS)}): {str(error).splitlines()[0]}"
        ) from None
    if values.ndim == 3 and (mode not in WHOLE) and (values[:, :, :3] == values[:, :, :1]).all():
        mode = "L"  # grey, written in three equal channels
    if mode not in WHOLE:
        raise DataError(f"a picture of mode {mode}, not of classes' numbers; expected one whole number a pixel")
    plain = values if values.ndim == 2 else values[:, :, 0]
    if plain.size and (plain.min() < 0 or plain.max() > 255):
        raise DataError(f"values reach from {plain.min()} to {plain.max()}; expected 0 to 255")
    return np.array(plain, np.uint8)


def values_table(known: Mapping[int, int], ignored: Iterable[int] = ()) -> NDArray[np.uint8]:
    """``(256,)`` classes by a mask's value: `known` ones, `IGNORED` and, for all others, `UNKNOWN`."""
    table = np.full(256, UNKNOWN, np.uint8)
    table[[*ignored]] = IGNORED
    for value, number in known.items():
        table[value] = number
    return table


def masked_files(
    pairs: Sequence[tuple[Path | None, Path | None]],
    values: NDArray[np.uint8],
    channels: int,
    max_skipped: float,
    where: Path,
) -> MaskedFiles:
    """Those of the `pairs` of pictures and masks that can be used. Every mask is read once, and the sizes are compared.

    Raises `DataError` that counts and names the others where they are more than the share `max_skipped`; where fewer, they are
    logged and left out.
    """
    if not 0 <= max_skipped < 1:
        raise ConfigError(f"'max_skipped' is a share, at least 0 and below 1, got {max_skipped}")
    if not pairs:
        raise DataError(f"{where} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    with ThreadPoolExecutor(usable_cores()) as pool:
        found = [*pool.map(lambda pair: _counted(pair, values), pairs)]
    if bad := [one for one in found if isinstance(one, str)]:
        told = f"{len(bad)} of {len(found)} pictures with masks cannot be used"
        if len(bad) > max_skipped * len(found) or len(bad) == len(found):
            shown = "; ".join(bad[:3]) + ("; ..." if len(bad) > 3 else "")
            raise DataError(f"{where}: {told}: {shown}. Repair or remove them, or raise 'max_skipped' ({max_skipped})")
        log.warning("%s: %s and are left out: %s", where, told, "; ".join(bad))
    used = [(*pair, one) for pair, one in zip(pairs, found, strict=True) if not isinstance(one, str)]
    counts = np.stack([one[2] for one in used]).sum(axis=0)
    return MaskedFiles(
        tuple(one[0] for one in used if one[0]), tuple(one[1] for one in used if one[1]), values, counts, channels
    )


def paired(
    pictures: Path, masks: Path, ending: str = "", mask_ending: str = ""
) -> list[tuple[Path | None, Path | None]]:
    """Pictures and masks of two folders whose names are the same without `ending` and `mask_ending`, by name.

    One without its partner stands alone. Raises `DataError` where one of the folders is none.
    """
    for top, what in ((pictures, "pictures"), (masks, "masks")):
        if not top.is_dir():
            raise DataError(f"{top} is no folder; expected the {what} there")
    first, second = _by_name(pictures, SUFFIXES, ending), _by_name(masks, MASKS | SUFFIXES, mask_ending)
    return [(first.get(name), second.get(name)) for name in sorted({*first, *second})]


def _by_name(top: Path, suffixes: Iterable[str], ending: str) -> dict[str, Path]:
    """Files under `top` by their path in it, without the ending."""
    found: dict[str, Path] = {}
    for path in sorted(top.rglob("*")):
        if path.suffix.lower() in suffixes and path.stem.endswith(ending) and not path.name.startswith("."):
            name = path.relative_to(top).with_name(path.stem.removesuffix(ending)).as_posix()
            if name in found:
                raise DataError(
                    f"{found[name]} and {path} have the same name; which belongs to the mask cannot be told"
                )
            found[name] = path
    return found


def _counted(pair: tuple[Path | None, Path | None], values: NDArray[np.uint8]) -> NDArray[np.int64] | str:
    """Pixels of every class, ``(256,)``, or why this pair cannot be used."""
    picture, mask = pair
    if picture is None or mask is None:
        return f"{picture or mask} has no {'mask' if mask is None else 'picture'}"
    try:
        return np.bincount(_classes(mask, values, _size(picture)).ravel(), minlength=256).astype(np.int64)
    except DataError as error:
        return str(error)


def _classes(path: Path, values: NDArray[np.uint8], size: Sequence[int]) -> NDArray[np.uint8]:
    try:
        raw = read_mask(path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if raw.shape != tuple(size):
        raise DataError(f"{path} has {raw.shape[0]} x {raw.shape[1]} pixels, its picture {size[0]} x {size[1]}")
    classes = values[raw]
    if (unknown := raw[classes == UNKNOWN]).size:
        known = np.flatnonzero(values != UNKNOWN)
        raise DataError(f"{path} holds {unknown.size} pixels of unknown values {np.unique(unknown)[:5].tolist()}; known are "
                        f"{_ranges(known)}")  # fmt: skip
    return classes


def _size(path: Path) -> tuple[int, int]:
    """Height and width, upright, without decoding the pixels."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _ranges(values: NDArray[np.int64]) -> str:
    """``0 to 10, 255``."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
