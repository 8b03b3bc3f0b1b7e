"""CIFAR-10 and CIFAR-100 in their binary version: rows of labels and 3 x 32 x 32 bytes, channels first.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009; layout after its data page. Looked for in
`root`, else in ``$PYDEPLOY_DATA``; the folder itself or the one that the archive unpacks to.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.image_sets import ImageSet
from pydeploy.errors import DataError

CLASSES_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32
MEAN_10, STD_10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MEAN_100, STD_100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


def cifar10(root: str | None = None) -> ImageSet:
    """50000 training and 10000 test pictures of 10 classes, 32x32: ``data_batch_1.bin`` to ``_5`` and ``test_batch.bin``."""
    folder = _found(root, "cifar-10-batches-bin", "test_batch.bin")
    parts = [_rows(folder / f"data_batch_{number}.bin", 1) for number in range(1, 6)]
    train, test = _pictures(np.concatenate(parts)), _pictures(_rows(folder / "test_batch.bin", 1))
    return ImageSet("cifar10", 10, *train, *test, MEAN_10, STD_10, CLASSES_10)


def cifar100(root: str | None = None) -> ImageSet:
    """50000 training and 10000 test pictures of 100 (fine) classes, 32x32: ``train.bin`` and ``test.bin``."""
    folder = _found(root, "cifar-100-binary", "test.bin")
    train, test = (_pictures(_rows(folder / name, 2)) for name in ("train.bin", "test.bin"))
    return ImageSet("cifar100", 100, *train, *test, MEAN_100, STD_100)


def _found(root: str | None, unpacked: str, file: str) -> Path:
    top = root if root is not None else os.environ.get("PYDEPLOY_DATA", "")
    for folder in (Path(top), Path(top) / unpacked) if top else ():
        if (folder / file).is_file():
            return folder
    raise DataError(f"no {file} in {top or '$PYDEPLOY_DATA, which is not set'} or its folder {unpacked}; unpack the binary "
                    "version of the data set there, or name its folder with 'root'")  # fmt: skip


def _rows(path: Path, labels: int) -> NDArray[np.uint8]:
    """``(N, labels + PIXELS)``, mapped from the file."""
    try:
        size = path.stat().st_size
        if not size or size % (labels + PIXELS):
            raise DataError(f"{path} has {size:,} bytes, which are no whole number of pictures; unpack it again")
        return np.memmap(path, np.uint8, "r").reshape(-1, labels + PIXELS)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _pictures(rows: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures ``(N, 3, 32, 32)`` and the labels, which are the byte before them."""
    first = rows.shape[1] - PIXELS
    return np.ascontiguousarray(rows[:, first:]).reshape(-1, 3, 32, 32), rows[:, first - 1].astype(np.int64)
