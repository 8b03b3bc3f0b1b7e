"""Layouts of pictures with masks: what is found in them, what masks may be, and what is told of those that cannot be used."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_trees import SIZE, camvid_tree, cityscapes_tree, folder_tree, pair
from pydeploy.data.camvid import CLASSES, camvid
from pydeploy.data.cityscapes import LABELS, cityscapes
from pydeploy.data.mask_files import IGNORED, read_mask
from pydeploy.data.mask_folders import mask_folder
from pydeploy.data.masked_set import MaskedSet, canvas, hues
from pydeploy.errors import ConfigError, DataError


def folder(root: Path, **settings: object) -> MaskedSet:
    return mask_folder(str(root), SIZE, ("a", "b", "c"), **settings)  # type: ignore[arg-type]


def test_camvid_has_eleven_classes_or_twelve(tmp_path: Path) -> None:
    camvid_tree(tmp_path)
    eleven, twelve = camvid(str(tmp_path), SIZE), camvid(str(tmp_path), SIZE, classes=12)
    assert (len(eleven.train), len(eleven.test), len(camvid(str(tmp_path), SIZE, training="trainval").train)) == (
        4,
        2,
        6,
    )
    assert eleven.class_names == CLASSES[:11]
    assert len(eleven.split("validation")) == 2
    with pytest.raises(ConfigError, match="unknown split 'validation'"):
        camvid(str(tmp_path), SIZE, training="trainval").split("validation")
    _, mask = pair(0, [0, 1, 3, 8, 11])
    assert np.array_equal(twelve.train.read(0)[1], mask)
    assert np.array_equal(eleven.train.read(0)[1], np.where(mask == 11, IGNORED, mask))
    assert (eleven.train.read(3)[1] == IGNORED).all()  # void all over: of no use, but no fault
    assert eleven.train.pixels()[11] == 0 < eleven.train.pixels()[IGNORED]


def test_cityscapes_ids_become_numbers_of_training(tmp_path: Path) -> None:
    found = cityscapes(str(cityscapes_tree(tmp_path)), SIZE)
    assert (len(found.train), len(found.test), found.classes) == (4, 2, 19)
    picture, mask = pair(0, [0, 7, 11, 23, 26, 33])
    assert np.array_equal(found.train.read(0)[0], picture)
    wanted = np.select([mask == 7, mask == 11, mask == 23, mask == 26, mask == 33], [0, 2, 10, 13, 18], IGNORED)
    assert np.array_equal(found.train.read(0)[1], wanted)
    assert [*LABELS] == sorted(LABELS)


def test_folders_with_and_without_a_split(tmp_path: Path) -> None:
    split, drawn = folder(folder_tree(tmp_path / "a", split=True)), folder(folder_tree(tmp_path / "b"), holdout=0.5)
    assert (len(split.train), len(split.test)) == (3, 3)
    assert (len(drawn.train), len(drawn.test)) == (3, 3)
    names = {path for part in (drawn.train, drawn.test) for path in part.masks}  # type: ignore[attr-defined]
    assert len(names) == 6


def test_values_say_what_masks_mean(tmp_path: Path) -> None:
    found = mask_folder(str(folder_tree(tmp_path, values=[0, 255])), SIZE, ("ground", "object"), (0, 255))
    _, mask = found.train.read(0)
    assert set(np.unique(mask)) == {0, 1}


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB", "I;16", "LA"])
def test_masks_may_be_written_in_several_ways(mode: str, tmp_path: Path) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]], np.uint8)
    image = Image.fromarray(values * (255 if mode == "1" else 1)).convert("L")
    if mode == "P":
        image = Image.fromarray(values)
        image.putpalette([200, 0, 0, 0, 100, 50] + [7] * 762)
    elif mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16))
    elif mode != "L":
        image = image.convert(mode)
    image.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), values)


def test_colours_are_no_classes(tmp_path: Path) -> None:
    Image.fromarray(pair(0, [0, 1])[0]).save(tmp_path / "mask.png")
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "lossy.jpg")
    with pytest.raises(DataError, match="mode RGB, not of classes' numbers"):
        read_mask(tmp_path / "mask.png")
    with pytest.raises(DataError, match="values reach from 300 to 300"):
        read_mask(tmp_path / "deep.png")
    with pytest.raises(DataError, match="format that keeps values"):
        read_mask(tmp_path / "lossy.jpg")


def spoilt(root: Path, what: str) -> Path:
    """A tree of 12 pairs of which one, or one more file, is wrong."""
    folder_tree(root, 12, split=True)
    mask, picture = root / "masks/train/0.png", root / "images/train/0.jpg"
    if what == "size":
        Image.fromarray(np.zeros((5, 6), np.uint8)).save(mask)
    elif what == "value":
        Image.fromarray(np.full(SIZE, 3, np.uint8)).save(mask)
    elif what == "missing":
        mask.unlink()
    elif what == "alone":
        picture.unlink()
    elif what == "damaged mask":
        mask.write_bytes(mask.read_bytes()[:60])
    elif what == "damaged picture":
        picture.write_bytes(b"no picture")
    return root


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("size", r"masks/train/0.png has 5 x 6 pixels, its picture 24 x 32"),
        ("value", r"masks/train/0.png holds 768 pixels of unknown values \[3\]; known are 0 to 2, 255"),
        ("missing", r"images/train/0.jpg has no mask"),
        ("alone", r"masks/train/0.png has no picture"),
        ("damaged mask", r"masks/train/0.png: no mask in a format that keeps values"),
        ("damaged picture", r"images/train/0.jpg cannot be read"),
    ],
)
def test_pairs_that_cannot_be_used_are_counted_and_named(
    what: str, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = spoilt(tmp_path, what)
    with pytest.raises(DataError, match=f"1 of 6 pictures with masks cannot be used: .*{told}.*max_skipped"):
        folder(root)
    with caplog.at_level(logging.WARNING):
        assert len(folder(root, max_skipped=0.2).train) == 5
    assert "1 of 6" in caplog.text


def test_other_layouts_are_named(tmp_path: Path) -> None:
    folder_tree(tmp_path / "folder")
    for load, told in ((camvid, "not CamVid"), (cityscapes, "not Cityscapes")):
        with pytest.raises(DataError, match=told):
            load(str(tmp_path / "folder"), SIZE)
        with pytest.raises(DataError, match=told):
            load(str(tmp_path / "nowhere"), SIZE)
    with pytest.raises(DataError, match="no folder 'images'"):
        folder(camvid_tree(tmp_path / "camvid"))
    (tmp_path / "empty/images").mkdir(parents=True)
    (tmp_path / "empty/masks").mkdir()
    with pytest.raises(DataError, match="holds 0 pictures"):
        folder(tmp_path / "empty")


def test_masks_that_are_ignored_all_over_teach_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pixel of the 5 training masks has a class"):
        folder(folder_tree(tmp_path, values=[255]))


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"max_skipped": 1.0}, "max_skipped"), ({"holdout": 0.0}, "holdout"), ({"values": (0, 1)}, "'values' are the different"),
     ({"values": (0, 1, 1)}, "'values' are the different"), ({"channels": 2}, "'channels'"), ({"mean": (0.5,)}, "mean and std")],
)  # fmt: skip
def test_wrong_settings_are_named(settings: dict[str, object], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        folder(folder_tree(tmp_path), **settings)


def test_the_digest_follows_pictures_masks_and_settings(tmp_path: Path) -> None:
    folder_tree(tmp_path, split=True)
    digests = {folder(tmp_path).digest(), folder(tmp_path, channels=1).digest()}
    for path, values in ((tmp_path / "masks/train/0.png", [0, 2, 1]), (tmp_path / "images/test/1.jpg", [1, 0])):
        picture, mask = pair(9, values)
        Image.fromarray(mask if path.suffix == ".png" else picture).save(path)
        digests.add(folder(tmp_path).digest())
    assert len(digests) == 4


def test_the_canvas_is_a_masked_set() -> None:
    found = canvas((32, 40), train_size=3, test_size=2)
    picture, mask = found.test.read(1)
    assert picture.shape == (32, 40, 3)
    assert np.array_equal(found.preprocessing.pixels(picture), picture)
    assert found.preprocessing.size(300, 300) == (32, 40)
    assert set(np.unique(mask)) <= {*range(found.classes)}
    assert found.digest() != canvas((32, 40), train_size=3, test_size=2, seed=1).digest()
    assert len({*hues(40)}) == 40
