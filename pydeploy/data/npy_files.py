"""Pictures in arrays of NumPy's format: ``train_images.npy``, ``train_labels.npy`` and the same with ``test_`` in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.picture_set import GREY_MEAN, GREY_STD, PictureSet, Rows, Split
from pydeploy.data.preprocessing import IMAGENET, Preprocessing
from pydeploy.errors import DataError


def npy(
    root: str,
    classes: int | None = None,
    resize: int | tuple[int, int] | None = None,
    crop: int | tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> PictureSet:
    """Arrays in the folder `root`: pictures ``(N, H, W)`` or ``(N, H, W, C)`` uint8, read where they lie, labels ``(N,)``.

    Pictures keep their size without `resize` and `crop`; `mean` and `std` are ImageNet's without others. `classes` is one
    more than the largest training label by default.
    """
    top = Path(root)
    train, test = (_split(top, part) for part in ("train", "test"))
    channels = train.pictures.read(0).shape[2]
    if test.pictures.read(0).shape[2] != channels:
        raise DataError(f"{top}: training and test pictures have different numbers of channels")
    count = classes if classes is not None else int(train.labels.max()) + 1
    colours = IMAGENET if channels == 3 else Preprocessing((GREY_MEAN,) * channels, (GREY_STD,) * channels)
    way = Preprocessing(mean or colours.mean, std or colours.std, resize, crop)
    if len(way.mean) != channels:
        raise DataError(f"{top}: pictures have {channels} channels, 'mean' and 'std' have {len(way.mean)} values")
    return PictureSet(f"npy {top.name}", tuple(map(str, range(count))), train, test, way)


def _split(top: Path, part: str) -> Split:
    images = _array(top / f"{part}_images.npy")
    labels = _array(top / f"{part}_labels.npy")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{top}/{part}_images.npy holds {images.dtype} {images.shape}; expected uint8 (N, H, W) or (N, H, W, C)"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),):
        raise DataError(
            f"{top}/{part}_labels.npy holds {labels.dtype} {labels.shape}; expected {len(images)} whole numbers"
        )
    whole = images[..., None] if images.ndim == 3 else images
    return Split(Rows(whole), np.array(labels, np.int64))


def _array(path: Path) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; expected train_images.npy, train_labels.npy, and both of test_"
        ) from None
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise DataError(f"{path} is not an array of NumPy's format ({error}); write it with numpy.save") from None
    return found
