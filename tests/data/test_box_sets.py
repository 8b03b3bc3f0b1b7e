"""Layouts of pictures with boxes: the same boxes from all of them, and every wrong annotation named, counted and refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from box_trees import NAMES, coco_tree, drawn, voc_tree, write_picture, write_xml, yolo_tree
from pydeploy.data.boxes.box_set import BoxSet
from pydeploy.data.boxes.named import load
from pydeploy.errors import ConfigError, DataError

TREES: dict[str, tuple[Callable[[Path], Path], dict[str, object]]] = {
    "voc": (voc_tree, {"classes": list(NAMES)}),
    "coco": (coco_tree, {}),
    "yolo": (yolo_tree, {}),
}


@pytest.fixture(scope="module", params=TREES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, BoxSet]:
    tree, settings = TREES[request.param]
    root = tree(tmp_path_factory.mktemp("tree") / request.param)
    return request.param, load(request.param, root=str(root), size=64, **settings)


def test_every_layout_says_what_was_drawn(both: tuple[str, BoxSet]) -> None:
    name, found = both
    assert found.class_names == NAMES
    for seed, split in ((1, found.train), (2, found.test)):
        wanted = [one for one in drawn(len(split.objects) + (name == "voc"), seed) if one.boxes or name != "voc"]
        for index, (one, objects) in enumerate(zip(wanted, split.objects, strict=True)):
            height, width = one.size
            pixels = np.array(one.boxes, np.float64).reshape(-1, 4) / (width, height, width, height)
            np.testing.assert_allclose(objects.boxes, pixels, atol=1e-6)
            assert objects.labels.tolist() == list(one.labels)
            assert objects.size == one.size
            assert objects.difficult.tolist() == (list(one.difficult) if name != "yolo" else [False] * len(one.labels))
            assert split.pictures.read(index).shape == (*one.size, 3)


def test_the_digest_follows_boxes_and_pictures(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "voc")
    settings = {"root": str(root), "size": 64, "classes": list(NAMES)}
    first = load("voc", **settings).digest()
    assert load("voc", **settings).digest() == first
    path = next((root / "Annotations").glob("1_*.xml"))
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    second = load("voc", **settings).digest()
    write_picture(root / "JPEGImages" / f"{path.stem}.png", drawn(16, 5)[0])
    assert len({first, second, load("voc", **settings).digest(), load("voc", **{**settings, "size": 32}).digest()}) == 4


def change(old: str, new: str) -> Callable[[Path], None]:
    def changed(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return changed


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda p: p.unlink(), "missing"),
    "damaged": (change("</annotation>", ""), "damaged XML"),
    "entities": (change("<annotation>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>"), "no annotation"),
    "another root": (lambda p: p.write_text("<a/>"), "expected <annotation>, got <a>"),
    "no objects": (lambda p: write_xml(p, drawn(2, 1)[1]), "no objects; where pictures without any are meant"),
    "unknown class": (change("<name>", "<name>x"), "unknown class 'x"),
    "no class": (change("<name>", "<label>x</label><name>?"), r"unknown class '\?"),
    "no box": (change("<xmin>", "<xmin>x"), "'xmin' must be a number"),
    "no area": (change("<xmin>", "<xmin>9"), "has no area|lies outside"),
    "outside": (change("<xmax>", "<xmax>9"), "lies outside of the picture"),
    "infinite": (change("<ymax>", "<ymax>1e99999</ymax><ymax>"), "not of finite numbers"),
    "no size": (change("<height>", "<height>-"), None),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_annotation_is_named_counted_and_may_be_skipped(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = voc_tree(tmp_path / "voc")
    path = sorted((root / "Annotations").glob("1_*.xml"))[3]
    damage, told = WRONG[kind]
    damage(path)
    settings = {"root": str(root), "size": 64, "classes": list(NAMES)}
    if told is None:  # the picture says its size itself
        assert len(load("voc", **settings).train.objects) == 15
        return
    with pytest.raises(
        DataError, match=f"1 of 15 pictures of the list 'trainval' .* 0 may be skipped: .*{path.name}.*({told})"
    ):
        load("voc", **settings)
    with caplog.at_level(logging.WARNING):
        assert len(load("voc", **settings, max_skipped=0.1).train.objects) == 14
    assert path.name in caplog.text
    caplog.clear()


def test_pictures_without_objects_may_be_meant(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "voc")
    write_xml(sorted((root / "Annotations").glob("1_*.xml"))[0], drawn(2, 1)[1])
    found = load("voc", root=str(root), size=64, classes=list(NAMES), empty=True)
    assert len(found.train.objects[0]) == 0
    assert found.train.objects[0].boxes.shape == (0, 4)


def test_two_folders_of_voc_are_one_set(tmp_path: Path) -> None:
    roots = [str(voc_tree(tmp_path / name)) for name in ("VOC2007", "VOC2012")]
    (Path(roots[1]) / "ImageSets" / "Main" / "test.txt").unlink()
    found = load("voc", root=roots[::-1], size=64, classes=list(NAMES))
    assert (len(found.train.objects), len(found.test.objects)) == (30, 5)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("0 0.5 0.5 0.1\n", "line 1: expected 'class x y width height', got '0 0.5 0.5 0.1'"),
        ("7 0.5 0.5 0.1 0.1\n", "line 1: class 7 is not one of the 3"),
        ("0 0.5 0.5 0 0.1\n", "has no area"),
        ("0 0.5 0.5 1.9 0.1\n", "lies outside"),
        ("0 nan 0.5 0.1 0.1\n", "not of finite numbers"),
    ],
)
def test_wrong_lines_of_labels_are_told(line: str, told: str, tmp_path: Path) -> None:
    root = yolo_tree(tmp_path / "hand")
    path = sorted((root / "labels" / "train").glob("*.txt"))[2]
    path.write_text(line)
    with pytest.raises(DataError, match=rf"1 of 16 .*{path.name}.*{told}"):
        load("yolo", root=str(root), size=64)


def test_wrong_instances_are_told(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "coco")
    path = root / "annotations" / "instances_train2017.json"
    whole = json.loads(path.read_text())

    def told(text: str, **changed: object) -> None:
        path.write_text(json.dumps({**whole, **changed}))
        with pytest.raises(DataError, match=text):
            load("coco", root=str(root), size=64)

    first = whole["annotations"][0]
    others = whole["annotations"][1:]
    told("1 of 16 .*unknown category 99", annotations=[{**first, "category_id": 99}, *others])
    told("1 of 16 .*has no area", annotations=[{**first, "bbox": [1, 1, 0, 5]}, *others])
    told("1 of 16 .*damaged", annotations=[{**first, "bbox": [1, 1, 5]}, *others])
    told("annotations are of pictures that are not listed", annotations=[{**first, "image_id": 1}, *others])
    told("categories are others", categories=whole["categories"][1:], annotations=[])
    told("no instances in COCO's format", images=None)
    told("1 of 16 .*missing", images=[{**whole["images"][0], "file_name": "../x.png"}, *whole["images"][1:]])


@pytest.mark.parametrize("name", ["voc", "coco", "yolo"])
def test_a_folder_of_another_layout_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match=r"expected|has 0 files"):
        load(name, root=str(tmp_path), size=64)
    with pytest.raises(DataError):
        load(name, root=str(tmp_path / "none"), size=64)


def test_the_canvas_is_a_set_with_boxes() -> None:
    found = load("canvas", size=64, train_size=30, test_size=5)
    assert found.train.pictures.read(3).shape == (64, 64, 3)
    assert sum(map(len, found.train.objects)) > 20
    assert all(one.boxes.min() >= 0 and one.boxes.max() <= 1 for one in found.train.objects if len(one))
    assert found.digest() != load("canvas", size=64, train_size=30, test_size=5, seed=1).digest()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"size": 8}, "at least 32"),
        ({"most": "x"}, "most"),
        ({"sise": 64}, "no setting 'sise'"),
    ],
)
def test_wrong_settings(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load("canvas", **settings)
    with pytest.raises(ConfigError, match="unknown data set 'vok'"):
        load("vok")
