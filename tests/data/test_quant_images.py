"""Manifests of files: what is read, in which order, and what is skipped."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pydeploy.data.images import batches
from pydeploy.data.manifest import Manifest
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import ConfigError, DataError

WAY = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 12, 10)
RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(20):
        target = tmp_path / "set" / f"class{i % 3}" / f"{i:02}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (15 + i, 20, 3), np.uint8)).save(target)
    (tmp_path / "set" / "notes.md").write_text("no image")
    return tmp_path


def joined(manifest: Manifest, batch: int = 4) -> np.ndarray:
    return np.concatenate([part.copy() for part in batches(manifest, batch)])


def files(folder: Path) -> list[Path]:
    return sorted((folder / "set").rglob("*.png"), key=lambda p: p.as_posix())


def test_a_folder_gives_the_drawn_images_in_order(folder: Path) -> None:
    manifest = Manifest("./set", count=9, seed=3, preprocessing=WAY, folder=folder)
    chosen = [files(folder)[i] for i in manifest.indices(20)]
    expected = np.concatenate([WAY(np.asarray(Image.open(path))[None]) for path in chosen])
    for batch in (1, 4, 64):
        np.testing.assert_array_equal(joined(manifest, batch), expected)
    pinned = replace(manifest, sha256=hashlib.sha256(expected.tobytes()).hexdigest())
    assert len(joined(pinned)) == 9
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(chosen[4])
    with pytest.raises(DataError, match="the data or their preprocessing changed"):
        joined(pinned)


def test_grey_and_palette_images_become_what_the_model_takes(folder: Path) -> None:
    Image.open(files(folder)[0]).convert("P").save(files(folder)[0])
    Image.open(files(folder)[1]).convert("LA").save(files(folder)[1])
    assert joined(Manifest("./set", count=20, preprocessing=WAY, folder=folder)).shape == (20, 3, 10, 10)
    grey = Preprocessing((0.5,), (0.2,), 12, 10)
    assert joined(Manifest("./set", count=20, preprocessing=grey, folder=folder)).shape == (20, 1, 10, 10)


def test_a_list_names_its_images(folder: Path) -> None:
    (folder / "list.txt").write_text("\n".join(str(p.relative_to(folder)) for p in files(folder)[5:9]) + "\n\n")
    found = joined(Manifest("list.txt", count=4, preprocessing=WAY, folder=folder))
    expected = np.concatenate([WAY(np.asarray(Image.open(path))[None]) for path in files(folder)[5:9]])
    np.testing.assert_array_equal(found, expected)


def damage(folder: Path) -> None:
    files(folder)[2].write_bytes(files(folder)[2].read_bytes()[:80])
    files(folder)[7].write_text("not an image")
    (folder / "list.txt").write_text("\n".join(str(p.relative_to(folder)) for p in files(folder)))
    files(folder)[11].unlink()


def test_damaged_and_missing_images_are_skipped_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage(folder)
    manifest = Manifest("list.txt", count=20, preprocessing=WAY, folder=folder, max_skipped=0.15)
    assert len(joined(manifest)) == 17
    for text in ("skipped 3 of 20", "class0/06.png (damaged", "class1/01.png (damaged", "(missing)"):
        assert text in caplog.text
    with pytest.raises(DataError, match=r"3 of 20 .* 2 may be skipped: .*06\.png.*01\.png.*'max_skipped'"):
        joined(replace(manifest, max_skipped=0.1))


def test_one_bad_image_of_few_is_too_many_by_default(folder: Path) -> None:
    damage(folder)
    with pytest.raises(DataError, match="1 of 20 calibration images cannot be read, 0 may be skipped"):
        joined(Manifest("list.txt", count=20, preprocessing=WAY, folder=folder))


def test_arrays_are_read_where_they_lie(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (30, 14, 12, 3), np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    manifest = Manifest("pixels.npy", count=13, seed=1, preprocessing=WAY, folder=tmp_path)
    np.testing.assert_array_equal(joined(manifest), WAY(pixels[manifest.indices(30)]))
    ready = RNG.normal(size=(30, 5)).astype(np.float32)
    np.save(tmp_path / "ready.npy", ready)
    manifest = Manifest("ready.npy", count=13, seed=1, folder=tmp_path)
    np.testing.assert_array_equal(joined(manifest), ready[manifest.indices(30)])


@pytest.mark.parametrize(
    ("array", "way", "message"),
    [
        (np.zeros((4, 8, 8, 3)), "", r"float64 .*expected float32 samples .* without a 'preprocessing'"),
        (np.zeros((4, 8, 8, 3), np.uint8), "", "uint8 .* expected float32 samples"),
        (np.zeros((4, 8, 8, 3), np.float32), WAY, "expected uint8 images .* with a 'preprocessing'"),
        (np.zeros((4, 8, 8), np.uint8), WAY, "expected uint8 images"),
        (np.zeros((4, 3, 8, 8), np.uint8), WAY, "the image has 8 channels, expected 3"),
        (np.zeros((3, 8), np.float32), "", "asks for 4 samples .* which has 3"),
    ],
    ids=["float64", "no-preprocessing", "floats", "rank", "channels", "few"],
)
def test_arrays_that_do_not_fit(tmp_path: Path, array: np.ndarray, way: str | Preprocessing, message: str) -> None:
    np.save(tmp_path / "set.npy", array)
    with pytest.raises(DataError, match=message):
        joined(Manifest("set.npy", count=4, preprocessing=way, folder=tmp_path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./none", "expected a folder of images, a .txt list of them or a .npy file"),
        ("./empty", "names no images"),
        ("none.txt", "cannot be read"),
        ("none.npy", "does not exist"),
        ("text.npy", "is not an array of NumPy's format"),
        ("pickle.npy", "is not an array of NumPy's format"),
    ],
)
def test_sources_that_are_not_there(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object))
    with pytest.raises(DataError, match=message):
        joined(Manifest(source, count=1, preprocessing=WAY, folder=tmp_path))


def test_images_need_a_preprocessing(folder: Path) -> None:
    with pytest.raises(ConfigError, match="images need a 'preprocessing'"):
        joined(Manifest("./set", count=1, folder=folder))
    odd = Preprocessing((0.5, 0.5), (0.5, 0.5))
    with pytest.raises(ConfigError, match="images have 1 or 3 channels, not 2"):
        joined(Manifest("./set", count=1, preprocessing=odd, folder=folder))
