"""Image sets as arrays: where they are found, how they are read, and the one normalization.

Fashion-MNIST is looked for in ``$PYDEPLOY_DATA`` (the folder itself, or ``fashion-mnist`` or
``FashionMNIST/raw`` in it), in Debian's package ``dataset-fashion-mnist``, then downloaded through torchvision.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.idx import read_idx
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import ConfigError, DataError

CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
REMEDY = "install it (apt-get install dataset-fashion-mnist) or set PYDEPLOY_DATA to the folder with the four files"


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Labelled images: ``(N, C, H, W)`` uint8 with ``(N,)`` int64 labels in ``[0, classes)``.

    `mean` and `std` hold one value per channel, for pixels in [0, 1].
    """

    name: str
    classes: int
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: tuple[str, ...] = ()
    """Of the classes; their numbers where they have none."""

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.names or tuple(map(str, range(self.classes)))

    def __post_init__(self) -> None:
        for part, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if images.ndim != 4 or len(images) != len(labels) or not len(images):
                raise DataError(f"{self.name}: {part} images {images.shape} do not match the labels {labels.shape}")
            if labels.min() < 0 or labels.max() >= self.classes:
                raise DataError(
                    f"{self.name}: {part} labels must lie in 0..{self.classes - 1}, got up to {labels.max()}"
                )

    def digest(self) -> str:
        """SHA-256 of all images and labels, and of what is done to them."""
        found = hashlib.sha256(repr((self.classes, self.mean, self.std)).encode())
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            found.update(repr((array.shape, array.dtype.str)).encode())
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    @property
    def preprocessing(self) -> Preprocessing:
        """What training, evaluation and calibration all do to the images."""
        return Preprocessing(self.mean, self.std)

    def normalize(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 ``(N, C, H, W)`` to float32, ``(pixel / 255 - mean) / std`` per channel."""
        return self.preprocessing(images, planar=True)


def fashion_mnist() -> ImageSet:
    """Fashion-MNIST: 60000 training and 10000 test images of 10 kinds of clothing, 1x28x28.

    Source: Xiao, Rasul and Vollgraf, 2017. Raises `DataError` naming the remedy when it is nowhere to be found.
    """
    folder = find_fashion_mnist()
    parts: list[NDArray[np.uint8]] = []
    for part, count in (("train", 60000), ("t10k", 10000)):
        parts.append(read_idx(_file(folder, f"{part}-images-idx3-ubyte"), (count, 28, 28))[:, None])
        parts.append(read_idx(_file(folder, f"{part}-labels-idx1-ubyte"), (count,)))
    images, labels, test_images, test_labels = parts
    mean, std = (0.2860,), (0.3530,)
    return ImageSet("fashion_mnist", 10, images, labels.astype(np.int64), test_images, test_labels.astype(np.int64),
                    mean, std, CLOTHES)  # fmt: skip


def find_fashion_mnist(*, download: bool = True) -> Path:
    """Folder with the four files; raises `DataError` that says what to install when there is none."""
    if root := os.environ.get("PYDEPLOY_DATA"):
        for folder in (Path(root), Path(root) / "fashion-mnist", Path(root) / "FashionMNIST" / "raw"):
            if _complete(folder):
                return folder
    if _complete(DEBIAN_FOLDER):
        return DEBIAN_FOLDER
    if download or _complete(_cache() / "FashionMNIST" / "raw"):
        return _download()
    raise DataError(f"Fashion-MNIST is not in {_looked()}; {REMEDY}")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pydeploy"


def _looked() -> str:
    return f"PYDEPLOY_DATA={os.environ.get('PYDEPLOY_DATA', '')!r} and {DEBIAN_FOLDER}"


def _complete(folder: Path) -> bool:
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in names)


def _file(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_file() else folder / f"{name}.gz"


def _download() -> Path:
    import torchvision

    folder = _cache() / "FashionMNIST" / "raw"
    if _complete(folder):
        return folder
    try:
        torchvision.datasets.FashionMNIST(str(_cache()), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"Fashion-MNIST is not in {_looked()}, and the download failed ({error}); {REMEDY}") from None
    return folder


def digits() -> ImageSet:
    """scikit-learn's handwritten digits: 1437 training and 360 test images of 10 classes, 1x8x8."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("the data set 'digits' needs the package 'scikit-learn': pip install scikit-learn") from None
    source = load_digits()
    order = np.random.default_rng(0).permutation(len(source.target))
    images = np.rint(source.images * (255 / 16)).astype(np.uint8)[order, None]
    labels = source.target.astype(np.int64)[order]
    return ImageSet("digits", 10, images[:1437], labels[:1437], images[1437:], labels[1437:], (0.3053,), (0.3760,))


def synthetic(
    classes: int = 4,
    channels: int = 1,
    size: int = 16,
    train_size: int = 512,
    test_size: int = 128,
    noise: float = 40.0,
    seed: int = 0,
) -> ImageSet:
    """A learnable set that needs no files: every class is a smooth random pattern, shifted and covered in noise.

    Images are ``(channels, size, size)``; `noise` is its standard deviation in grey levels (0..255).
    """
    for key, value in (("classes", classes), ("channels", channels), ("size", size), ("train_size", train_size),
                       ("test_size", test_size)):  # fmt: skip
        if value < 1:
            raise ConfigError(f"setting '{key}' of the synthetic data set must be at least 1, got {value}")
    if seed < 0 or not 0 <= noise < math.inf:
        raise ConfigError(f"'seed' and 'noise' of the synthetic data set must be 0 or more, got {seed} and {noise}")
    rng = np.random.default_rng([seed, classes, channels, size])
    coarse = rng.normal(0.0, 60.0, (classes, channels, 4, 4))
    between = _bilinear(4, size)
    patterns = between @ coarse @ between.T

    def draw(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        labels = rng.integers(0, classes, count)
        shift = rng.integers(-(size // 8), size // 8 + 1, (count, 2, 1))
        rows, columns = (np.arange(size) + shift[:, :1]) % size, (np.arange(size) + shift[:, 1:]) % size
        moved = patterns[labels[:, None, None], :, rows[:, 0, :, None], columns[:, 0, None, :]].transpose(0, 3, 1, 2)
        noisy = 128 + moved + rng.normal(0.0, noise, moved.shape)
        return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), labels

    train_images, train_labels = draw(train_size)
    test_images, test_labels = draw(test_size)
    level, spread = (0.5,) * channels, (0.25,) * channels
    return ImageSet("synthetic", classes, train_images, train_labels, test_images, test_labels, level, spread)


def _bilinear(count: int, size: int) -> NDArray[np.float64]:
    """``(size, count)`` weights that stretch `count` samples over `size` pixels linearly; pixels' centres count."""
    at = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(count)))
