"""JPEGs of one size, one after the other in one file a split, and an array that says where each lies and what it shows.

``PREFIX_train.jpegs`` (or ``.jpegs.xz``) holds the bytes; row i of ``PREFIX_train.npy``, int64, is offset, length and label of picture i;
``PREFIX_test.*`` the same. Small pictures in a file system cost a block each; here fifty thousand are two files.
"""

from __future__ import annotations

import io
import lzma
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.device import usable_cores
from pydeploy.data.decode import decode
from pydeploy.data.image_sets import ImageSet
from pydeploy.errors import ConfigError, DataError

Pictures = tuple[NDArray[np.uint8], NDArray[np.int64]]


def packed_jpegs(
    root: str,
    prefix: str, channels: int = 3, classes: Sequence[str] = (),
    mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None,
) -> ImageSet:  # fmt: skip
    """The files ``PREFIX_*`` under `root`, in memory. `classes` names the labels 0, 1, ...; `mean` and `std` are by default those of the
    training pictures. Raises `DataError` for files that are missing or do not belong together.
    """
    train, test = (_read(Path(root), f"{prefix}_{split}", channels) for split in ("train", "test"))
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"{prefix}: training pictures have the shape {train[0].shape[1:]}, test pictures {test[0].shape[1:]}"
        )
    count = int(max(train[1].max(), test[1].max())) + 1
    if classes and len(classes) < count:
        raise ConfigError(f"'classes' names {len(classes)} classes, the labels of {prefix} are 0 to {count - 1}")
    for what, given in (("mean", mean), ("std", std)):
        if given is not None and len(given) != channels:
            raise ConfigError(f"'{what}' needs {channels} values, one per channel, got {given}")
    middle, spread = _statistics(train[0])
    return ImageSet(prefix, len(classes) or count, *train, *test, mean or middle, std or spread, tuple(classes))


def _statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1], to four digits."""
    counts = [np.bincount(images[:, channel].ravel(), minlength=256) for channel in range(images.shape[1])]
    levels = np.arange(256) / 255
    means = [float((one * levels).sum() / one.sum()) for one in counts]
    spreads = [
        float(np.sqrt((one * (levels - mean) ** 2).sum() / one.sum())) for one, mean in zip(counts, means, strict=True)
    ]
    return tuple(round(mean, 4) for mean in means), tuple(round(max(spread, 1e-3), 4) for spread in spreads)


def _read(root: Path, name: str, channels: int) -> Pictures:
    plain, packed = root / f"{name}.jpegs", root / f"{name}.jpegs.xz"
    table = root / f"{name}.npy"
    try:
        data = plain.read_bytes() if plain.is_file() else lzma.decompress(packed.read_bytes())
        rows = np.load(table, allow_pickle=False)
    except (OSError, ValueError, lzma.LZMAError) as error:
        raise DataError(f"{root}: expected {plain.name} or {packed.name}, and {table.name} ({error})") from None
    if rows.ndim != 2 or rows.shape[1] != 3 or not len(rows) or not np.issubdtype(rows.dtype, np.integer):
        raise DataError(
            f"{table} has the shape {rows.shape}, {rows.dtype}; expected whole numbers (pictures, 3): offset, length, label"
        )
    wrong = np.flatnonzero((rows < 0).any(axis=1) | (rows[:, 0] + rows[:, 1] > len(data)))
    if len(wrong):
        raise DataError(
            f"{table}: row {wrong[0]} lies outside of the {len(data):,} bytes or is negative ({len(wrong)} such rows)"
        )

    def picture(row: int) -> NDArray[np.uint8]:
        offset, length, _ = rows[row].tolist()
        try:
            return decode(io.BytesIO(data[offset : offset + length]), channels)
        except DataError as error:
            raise DataError(f"{name}: picture {row}: {error}") from None

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = list(pool.map(picture, range(len(rows)), chunksize=256))
    if len(sizes := {one.shape for one in found}) > 1:
        raise DataError(f"{name}: pictures of {len(sizes)} sizes ({sorted(sizes)[:3]}); all must have one")
    return np.ascontiguousarray(np.stack(found).transpose(0, 3, 1, 2)), rows[:, 2].astype(np.int64)
