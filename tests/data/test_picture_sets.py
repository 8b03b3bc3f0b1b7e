"""Every layout of labelled pictures: what is read, in which order, with which labels, and what is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from picture_trees import COLOURS, picture, tree, two_splits
from pydeploy.data.image_sets import ImageSet
from pydeploy.data.named import load
from pydeploy.data.picture_set import Files, PictureSet, held_out, sample_settings
from pydeploy.errors import ConfigError, DataError

NAMES = tuple(sorted(COLOURS))


def folder(root: Path, **settings: Any) -> PictureSet:
    found = load("folder", root=str(root), size=16, **settings)
    assert isinstance(found, PictureSet)
    return found


def test_train_and_val_folders(tmp_path: Path) -> None:
    found = folder(two_splits(tmp_path))
    assert found.class_names == NAMES
    for split, count, seed in ((found.train, 12, 0), (found.test, 5, 1000)):
        assert split.labels.tolist() == [label for label in range(3) for _ in range(count)]
        for place, label in enumerate(split.labels):
            index = place % count
            expected = picture(NAMES[label], seed + index, (24 + index % 5, 30 - index % 3))
            np.testing.assert_array_equal(split.pictures.read(place), expected)
    assert found.preprocessing.resize == round(16 * 8 / 7)


def test_test_comes_before_val_and_can_be_named(tmp_path: Path) -> None:
    two_splits(tmp_path)
    tree(tmp_path / "test", 2)
    assert len(folder(tmp_path).test.labels) == 6
    assert len(folder(tmp_path, test="val").test.labels) == 15
    with pytest.raises(DataError, match="no folder 'tets' to test on"):
        folder(tmp_path, test="tets")


def test_one_folder_is_split_by_a_seed_within_each_class(tmp_path: Path) -> None:
    tree(tmp_path, 10)
    one, again, other = (folder(tmp_path, seed=seed, holdout=0.3) for seed in (0, 0, 1))
    assert Counter(one.test.labels.tolist()) == {0: 3, 1: 3, 2: 3}
    assert isinstance(one.train.pictures, Files)
    paths = [set(map(str, s.test.pictures.paths)) for s in (one, again, other)]  # type: ignore[attr-defined]
    assert paths[0] == paths[1] != paths[2]
    assert not paths[0] & set(map(str, one.train.pictures.paths))
    assert len(paths[0]) + len(one.train.labels) == 30


@pytest.mark.parametrize(("damage", "message"), [
    (lambda top: shutil.rmtree(top / "val"), "no folder 'val' to test on"),
    (lambda top: shutil.rmtree(top / "train"), "a folder 'val' but no folder 'train'"),
    (lambda top: tree(top / "val", 1, ["red"]).joinpath("purple").mkdir(), "class 'purple' is in .*val only"),
    (lambda top: (top / "train" / "empty").mkdir(), "empty holds no pictures"),
    (lambda top: [shutil.rmtree(top / "train" / name) for name in NAMES], "train holds no folders"),
    (lambda top: shutil.rmtree(top), "is no folder; 'root' is"),
])  # fmt: skip
def test_what_is_no_such_layout_is_one_sentence(tmp_path: Path, damage: Any, message: str) -> None:
    top = two_splits(tmp_path / "set")
    damage(top)
    with pytest.raises(DataError, match=message):
        folder(top)


@pytest.mark.parametrize(("settings", "message"), [
    ({"size": 0}, "'size' must be at least 1"), ({"channels": 4}, "'channels' must be 1 or 3"),
    ({"channels": 1, "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}, "need 1 values"), ({"resize": 10}, "must not be smaller"),
    ({"holdout": 1.0}, "'holdout' is the share"), ({"rooot": "x"}, "did you mean 'root'"), ({"size": "big"}, "'size'"),
])  # fmt: skip
def test_wrong_settings_are_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    tree(tmp_path, 3)
    with pytest.raises(ConfigError, match=message):
        load("folder", **{"root": str(tmp_path), "size": 16, **settings})


def test_a_class_of_one_picture_cannot_be_split() -> None:
    with pytest.raises(DataError, match="has one picture only"):
        held_out(np.array([0, 0, 1]), 0.5, 0)


def test_a_broken_picture_is_named_when_it_is_read(tmp_path: Path) -> None:
    found = folder(two_splits(tmp_path))
    bad = tmp_path / "train" / "blue" / "003.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(DataError, match=r"blue/003.png: damaged.*repair the picture, or remove it"):
        found.train.pictures.read(3)


def csv(place: Path, text: str) -> str:
    place.write_text(text)
    return str(place)


def test_csv_with_splits_with_a_second_file_and_drawn(tmp_path: Path) -> None:
    tree(tmp_path / "pics", 4)
    rows = [
        (f"pics/{name}/{index:03}.png", name, "val" if index == 3 else "train") for name in NAMES for index in range(4)
    ]
    whole = csv(tmp_path / "all.csv", "path,label,split\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
    first = csv(tmp_path / "train.csv", "label,path\n" + "".join(f"{b},{a}\n" for a, b, c in rows if c == "train"))
    second = csv(tmp_path / "val.csv", "path,label\n" + "".join(f"{a},{b}\n" for a, b, c in rows if c == "val"))
    one, two = load("csv", root=whole, size=16), load("csv", root=first, test=second, size=16)
    for found in (one, two):
        assert isinstance(found, PictureSet)
        assert found.class_names == NAMES
        assert (len(found.train.labels), found.test.labels.tolist()) == (9, [0, 1, 2])
        np.testing.assert_array_equal(found.test.pictures.read(2), picture("red", 3, (27, 30)))
    drawn = load("csv", root=first, size=16, holdout=0.34)
    assert isinstance(drawn, PictureSet)
    assert (len(drawn.train.labels), len(drawn.test.labels)) == (6, 3)


def test_labels_that_are_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    Image.fromarray(picture("red", 0)).save(tmp_path / "x.png")
    rows = "".join(f"x.png,{label}\n" * 2 for label in (10, 9, 2))
    found = load("csv", root=csv(tmp_path / "x.csv", f"path,label\n{rows}"), size=16)
    assert isinstance(found, PictureSet)
    assert found.class_names == ("2", "9", "10")


@pytest.mark.parametrize(("text", "message"), [
    ("", "the first line must name"), ("file,label\na,b\n", "'path' is missing"), ("path,label\na\n", "row 2: 1 values for 2"),
    ("path,label\n,b\n", "row 2: a path, a label"), ("path,label,split\na,b,tarin\n", "a split .train, val or test. are needed"),
    ("path,label\n", "lists no pictures"), ("path,label,split\na,b,train\nc,d,test\n", "label 'd' is among the pictures to test"),
])  # fmt: skip
def test_wrong_csv_files_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load("csv", root=csv(tmp_path / "x.csv", text))


def test_npy_arrays_are_mapped_not_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {part: rng.integers(0, 256, (count, 9, 7), np.uint8) for part, count in (("train", 12), ("test", 5))}
    for part, array in arrays.items():
        np.save(tmp_path / f"{part}_images.npy", array)
        np.save(tmp_path / f"{part}_labels.npy", np.arange(len(array)) % 4)
    found = load("npy", root=str(tmp_path))
    assert isinstance(found, PictureSet)
    assert (found.classes, found.channels) == (4, 1)
    np.testing.assert_array_equal(found.train.pictures.read(7), arrays["train"][7][:, :, None])
    np.save(tmp_path / "test_labels.npy", np.full(5, 9))
    with pytest.raises(DataError, match=r"test labels must lie in 0\.\.3, got 9"):
        load("npy", root=str(tmp_path))
    np.save(tmp_path / "test_images.npy", arrays["test"].astype(np.float32))
    with pytest.raises(DataError, match="holds float32"):
        load("npy", root=str(tmp_path))


@pytest.mark.parametrize(("name", "place", "labels", "classes"), [
    ("cifar10", "cifar-10-batches-bin", 1, 10), ("cifar100", "cifar-100-binary", 2, 100)])  # fmt: skip
def test_cifar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str, labels: int, classes: int
) -> None:
    rng = np.random.default_rng(0)
    files = (
        [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
        if classes == 10
        else ["train.bin", "test.bin"]
    )
    (tmp_path / place).mkdir()
    rows = {file: rng.integers(0, 256, (7, labels + 3072), np.uint8) for file in files}
    for file, array in rows.items():
        array[:, labels - 1] %= classes
        array.tofile(tmp_path / place / file)
    monkeypatch.setenv("PYDEPLOY_DATA", str(tmp_path))
    for found in (load(name), load(name, root=str(tmp_path / place))):
        assert isinstance(found, ImageSet)
        assert found.train_images.shape == (7 * (len(files) - 1), 3, 32, 32)
        last = rows[files[-1]][3]
        np.testing.assert_array_equal(found.test_images[3].reshape(-1), last[labels:])
        assert found.test_labels[3] == last[labels - 1]
    (tmp_path / place / files[-1]).write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match="no whole number of pictures"):
        load(name)
    with pytest.raises(DataError, match="unpack the binary version"):
        load(name, root=str(tmp_path / "elsewhere"))


def test_imagenet_in_folders_and_flat(tmp_path: Path) -> None:
    two_splits(tmp_path, 3, 2)
    nested = load("imagenet", root=str(tmp_path), size=16)
    lines = []
    for path in sorted((tmp_path / "val").rglob("*.png")):
        flat = tmp_path / "val" / f"{path.parent.name}_{path.name}"
        path.rename(flat)
        lines.append(f"{flat.name} {NAMES.index(path.parent.name)}\n")
    (tmp_path / "val.txt").write_text("".join(lines))
    flat_set = load("imagenet", root=str(tmp_path), size=16)
    assert isinstance(nested, PictureSet)
    assert isinstance(flat_set, PictureSet)
    np.testing.assert_array_equal(nested.test.labels, flat_set.test.labels)
    (tmp_path / "val.txt").write_text("x.png 3\n")
    with pytest.raises(DataError, match="line 1: expected FILE LABEL with a label below 3"):
        load("imagenet", root=str(tmp_path))


@pytest.mark.parametrize("cache", ["memory", "folder"])
def test_a_cache_changes_nothing_and_is_used(tmp_path: Path, cache: str) -> None:
    two_splits(tmp_path / "set")
    place = "memory" if cache == "memory" else str(tmp_path / "cache")
    plain, kept = folder(tmp_path / "set"), folder(tmp_path / "set", cache=place)
    assert plain.digest() == kept.digest()
    way = sample_settings(16)
    first = [way.pixels(kept.train.pictures.read(index)) for index in range(36)]
    for index, pixels in enumerate(first):
        np.testing.assert_array_equal(pixels, way.pixels(plain.train.pictures.read(index)))
    if cache == "memory":
        shutil.rmtree(tmp_path / "set" / "train")  # no file is needed any more
    else:
        assert len(list((tmp_path / "cache").rglob("*.npy"))) == 36
        whole = next((tmp_path / "cache").rglob("*.npy"))
        whole.write_bytes(whole.read_bytes()[:50])  # a damaged entry is made again
    again = [way.pixels(kept.train.pictures.read(index)) for index in range(36)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_digest_tells_another_picture_and_another_label(tmp_path: Path) -> None:
    before = folder(two_splits(tmp_path)).digest()
    copied = folder(shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}_copy")).digest()
    assert copied == before  # where it lies does not matter
    path = tmp_path / "train" / "red" / "001.png"
    Image.fromarray(picture("red", 77, (25, 29))).save(path)
    assert folder(tmp_path).digest() != before
    shutil.move(str(path), str(tmp_path / "train" / "blue" / "zzz.png"))
    assert folder(tmp_path).digest() != before


def test_names_may_have_hyphens() -> None:
    assert load("synthetic", train_size=8, test_size=8).name == "synthetic"
    with pytest.raises(ConfigError, match="unknown data set 'fashion-mist'"):
        load("fashion-mist")
