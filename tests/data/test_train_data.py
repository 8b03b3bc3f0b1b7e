from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pydeploy.data import image_sets as data
from pydeploy.data import named
from pydeploy.data.idx import read_idx
from pydeploy.errors import ConfigError, DataError


def idx_bytes(values: NDArray[np.uint8]) -> bytes:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.tobytes()


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
def test_idx_values_come_back(tmp_path: Path, packed: bool) -> None:
    raw = idx_bytes(IMAGES)
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    values = read_idx(path, (2, 3, 4))
    np.testing.assert_array_equal(values, IMAGES)
    assert torch.from_numpy(values).shape == (2, 3, 4)  # which warns where the array is read-only


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (gzip.compress(idx_bytes(IMAGES))[:-12], "cannot be read"),
        (gzip.compress(idx_bytes(IMAGES))[:20] + b"\xff" * 40, "cannot be read"),
        (idx_bytes(IMAGES)[:-1], "holds 23 values, expected 24"),
        (idx_bytes(IMAGES) + b"x", "holds 25 values, expected 24"),
        (idx_bytes(IMAGES.reshape(2, 4, 3)), r"shape \(2, 4, 3\), expected \(2, 3, 4\)"),
        (idx_bytes(IMAGES.ravel()), "not an idx file of 3 axes"),
        (b"PK\3\4 a zip file, perhaps", "not an idx file"),
        (b"\0\0\x0d\3" + idx_bytes(IMAGES)[4:], "not an idx file of 3 axes of uint8"),
        (b"", "not an idx file"),
    ],
    ids=["cut gzip", "bad gzip", "short", "long", "shape", "axes", "foreign", "float", "empty"],
)
def test_broken_idx_files_are_named(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=text) as caught:
        read_idx(path, (2, 3, 4))
    assert str(path) in str(caught.value)
    assert "delete it and fetch it again" in str(caught.value)


def write_fashion(folder: Path, *, packed: bool) -> None:
    """A set of the right names and shapes; compressible, so it takes little time."""
    folder.mkdir(parents=True)
    for part, count in (("train", 60000), ("t10k", 10000)):
        pixels = np.zeros((count, 28, 28), np.uint8)
        pixels[:, 0, 0] = np.arange(count) % 251
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, values in ((f"{part}-images-idx3-ubyte", pixels), (f"{part}-labels-idx1-ubyte", labels)):
            raw = idx_bytes(values)
            suffix = ".gz" if packed else ""
            (folder / f"{name}{suffix}").write_bytes(gzip.compress(raw, 1) if packed else raw)


@pytest.mark.parametrize(
    ("place", "packed"),
    [("", False), ("fashion-mnist", True), ("FashionMNIST/raw", False)],
    ids=["folder", "fashion-mnist", "torchvision"],
)
def test_fashion_mnist_is_found_in_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, packed: bool
) -> None:
    write_fashion(tmp_path / "data" / place, packed=packed)
    monkeypatch.setenv("PYDEPLOY_DATA", str(tmp_path / "data"))
    images = named.load("fashion_mnist")
    assert images.train_images.shape == (60000, 1, 28, 28)
    assert images.test_images[250, 0, 0, 0] == 250
    assert images.test_labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_missing_fashion_mnist_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def offline(*_: object, **__: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setenv("PYDEPLOY_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "DEBIAN_FOLDER", tmp_path / "nowhere")
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", offline)
    with pytest.raises(DataError, match=r"Fashion-MNIST is not in PYDEPLOY_DATA=.*download failed") as caught:
        named.load("fashion_mnist")
    assert "apt-get install dataset-fashion-mnist" in str(caught.value)
    assert "set PYDEPLOY_DATA" in str(caught.value)


def test_fashion_mnist_statistics_are_those_of_the_files() -> None:
    if not data._complete(data.DEBIAN_FOLDER):
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    images = data.fashion_mnist()
    assert images.train_images.mean() / 255 == pytest.approx(images.mean[0], abs=1e-4)
    assert images.train_images.std() / 255 == pytest.approx(images.std[0], abs=1e-4)
    assert np.bincount(images.test_labels).tolist() == [1000] * 10


def test_digits_statistics_are_those_of_the_arrays() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    images = named.load("digits")
    assert images.train_images.shape == (1437, 1, 8, 8)
    assert images.test_images.shape == (360, 1, 8, 8)
    assert images.train_images.mean() / 255 == pytest.approx(images.mean[0], abs=1e-3)
    assert images.train_images.std() / 255 == pytest.approx(images.std[0], abs=1e-3)
    assert len(np.unique(images.test_labels)) == 10


def test_synthetic_is_seeded_and_learnable() -> None:
    settings = {"classes": 5, "channels": 3, "size": 12, "train_size": 200, "test_size": 100}
    one, again, other = (named.load("synthetic", **settings, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.train_images, again.train_images)
    assert not np.array_equal(one.train_images, other.train_images)
    assert one.test_images.shape == (100, 3, 12, 12)
    # An independent learner (nearest class average) beats chance (0.2) by far, so there is something to learn.
    flat = one.train_images.reshape(200, -1).astype(np.float64)
    centres = np.stack([flat[one.train_labels == c].mean(0) for c in range(5)])
    test = one.test_images.reshape(100, -1).astype(np.float64)
    nearest = ((test[:, None] - centres) ** 2).sum(2).argmin(1)
    assert (nearest == one.test_labels).mean() > 0.6


def test_normalize_is_the_formula_per_channel() -> None:
    images = data.synthetic(channels=2, size=4, train_size=3)
    uneven = data.ImageSet("x", 4, images.train_images, images.train_labels, images.test_images, images.test_labels,
                           (0.1, 0.6), (0.2, 0.5))  # fmt: skip
    x = uneven.normalize(uneven.train_images)
    for channel, (mean, std) in enumerate(((0.1, 0.2), (0.6, 0.5))):
        np.testing.assert_allclose(x[:, channel], (uneven.train_images[:, channel] / 255 - mean) / std, atol=1e-5)


def test_labels_outside_the_classes_are_refused() -> None:
    images = np.zeros((2, 1, 4, 4), np.uint8)
    good, bad = np.array([0, 1]), np.array([0, 2])
    with pytest.raises(DataError, match=r"test labels must lie in 0..1, got up to 2"):
        data.ImageSet("x", 2, images, good, images, bad, (0.5,), (0.5,))
    with pytest.raises(DataError, match=r"training images .* do not match the labels"):
        data.ImageSet("x", 2, images[:1], good, images, good, (0.5,), (0.5,))


def test_synthetic_sizes_are_checked() -> None:
    with pytest.raises(ConfigError, match="'classes' of the synthetic data set must be at least 1, got 0"):
        named.load("synthetic", classes=0)
