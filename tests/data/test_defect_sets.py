"""Layouts of pictures with defects on trees made here; what does not fit is counted and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defect_trees import elpv_tree, ksdd2_tree, piece, tiles_tree, write
from pydeploy.data.canvas_textures import DAMAGES, Woven
from pydeploy.data.defect_layouts import load
from pydeploy.data.defect_set import DefectSet
from pydeploy.errors import ConfigError, DataError, DeployError


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("trees")
    ksdd2_tree(top / "ksdd2")
    tiles_tree(top / "tiles")
    elpv_tree(top / "elpv")
    return top


@pytest.fixture
def own(trees: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(trees, tmp_path / "own"))


def consistent(found: DefectSet) -> None:
    for split in (found.train, found.test):
        for index in range(len(split.names)):
            picture, mask = split.pictures.read(index), split.masks.read(index)
            assert picture.shape[2] == len(found.preprocessing.mean)
            if mask is not None:
                assert mask.shape == picture.shape[:2]
                assert mask.any() == split.defective[index]


def test_ksdd2(trees: Path) -> None:
    found = load("ksdd2", root=str(trees / "ksdd2"), size=[64, 128])
    consistent(found)
    assert (len(found.train.names), len(found.test.names)) == (8, 6)
    assert found.train.names[:2] == ["10000", "10001"]
    assert found.train.defective.tolist() == [True, False] * 4
    assert found.preprocessing.resize == (64, 128)
    deep, colour = (found.train.pictures.read(index) for index in (2, 3))
    assert np.array_equal(deep[:, :, 0], piece(1, defective=True)[0])
    assert np.array_equal(colour[:, :, 2], piece(1, defective=False)[0])


def test_one_folder_is_drawn_from_both_kinds_and_each_sample_is_in_one_split(trees: Path) -> None:
    found = load("folder", root=str(trees / "ksdd2" / "train"), holdout=0.25, size=64)
    consistent(found)
    assert not {*found.train.names} & {*found.test.names}
    assert len(found.test.names) == 2
    other = load("folder", root=str(trees / "ksdd2" / "train"), holdout=0.25, size=64, seed=3)
    assert {*other.test.names} != {*found.test.names}


def test_magnetic_tiles_are_drawn_kind_by_kind(trees: Path) -> None:
    found = load("magnetic_tiles", root=str(trees / "tiles"), size=64)
    consistent(found)
    assert sorted(Path(name).parts[0] for name in found.test.names) == ["MT_Blowhole", "MT_Crack", "MT_Free"]
    assert {name for name, bad in zip(found.train.names, found.train.defective, strict=True) if not bad} == {
        name for name in found.train.names if name.startswith("MT_Free")
    }


def test_elpv_leaves_uncertain_cells_out_and_knows_no_pixels(trees: Path) -> None:
    found = load("elpv", root=str(trees / "elpv"), size=64, holdout=0.5)
    names = [*found.train.names, *found.test.names]
    assert sorted(names) == sorted(f"cell{number:04}" for number in range(16) if number % 4 != 1)
    assert found.train.segmented.tolist() == (~found.train.defective).tolist()
    assert found.train.masks.read(0) is None
    stricter = load("elpv", root=str(trees / "elpv"), size=64, holdout=0.5, at_least=1.0)
    assert len(stricter.train.names) + len(stricter.test.names) == 8


def test_labels_with_a_split(trees: Path, tmp_path: Path) -> None:
    rows = [f"{trees}/elpv/images/cell{n:04}.png,{n % 2},{('train', 'test')[n // 2 % 2]}" for n in range(8)]
    (tmp_path / "list.csv").write_text("path,label,split\n" + "\n".join(rows))
    found = load("labels", root=str(tmp_path / "list.csv"), size=64)
    assert sorted(found.train.names) == ["cell0000", "cell0001", "cell0004", "cell0005"]
    assert sorted(found.test.names) == ["cell0002", "cell0003", "cell0006", "cell0007"]


@pytest.mark.parametrize(("share", "count"), [(1.0, 4), (0.5, 2), (0.0, 0)])
def test_supervision_by_a_share(trees: Path, share: float, count: int) -> None:
    found = load("ksdd2", root=str(trees / "ksdd2"), supervision=share).train
    assert (found.segmented & found.defective).sum() == count
    assert found.segmented[~found.defective].all()


def test_supervision_by_a_list(trees: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps(["10002", "10004"]))
    found = load("ksdd2", root=str(trees / "ksdd2"), supervision=str(path)).train
    assert [found.names[i] for i in np.flatnonzero(found.segmented & found.defective)] == ["10002", "10004"]
    for names, text in ((["10009"], r"names 1 pictures that are not among.*'10009' \(did you mean"), (["10001"], "not defective"),
                        ({"10002": 1}, "JSON list of names"), ([3], "JSON list of names")):  # fmt: skip
        path.write_text(json.dumps(names))
        with pytest.raises(DataError, match=text):
            load("ksdd2", root=str(trees / "ksdd2"), supervision=str(path))
    path.write_text("[")
    with pytest.raises(DataError, match="cannot be read"):
        load("ksdd2", root=str(trees / "ksdd2"), supervision=str(path))


def _other_size(own: Path) -> None:
    write(own / "ksdd2/train/10000_GT.png", np.ones((32, 64), np.uint8))


def _no_masks(own: Path) -> None:
    for path in own.glob("ksdd2/*/*_GT.png"):
        path.unlink()


def _broken(own: Path) -> None:
    (own / "ksdd2/train/10001.png").write_bytes(b"no picture")


def _one_kind(own: Path) -> None:
    for path in own.glob("ksdd2/test/*_GT.png"):
        write(path, np.zeros((64, 32), np.uint8))


DAMAGED: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "mask of another size": (_other_size, "ksdd2", r"1 of 8 pictures.*10000_GT.png \(its size is \(32, 64\), its picture's \(64, 32\)"),
    "no masks": (_no_masks, "ksdd2", r"8 pictures in .*train have no mask NAME_GT.png beside them, such as 10000.png"),
    "a broken picture": (_broken, "ksdd2", r"1 of 8 pictures cannot be used.*10001.png \(damaged"),
    "a test set of one kind": (_one_kind, "ksdd2", "0 defective and 6 sound pictures to test on"),
    "no test folder": (lambda own: shutil.rmtree(own / "ksdd2/test"), "ksdd2", "no folder 'test'"),
    "another layout": (lambda own: shutil.move(own / "ksdd2", own / "tiles2"), "magnetic_tiles", "is no folder"),
    "no tiles": (lambda own: shutil.rmtree(own / "tiles") or (own / "tiles").mkdir(), "magnetic_tiles", "no folders MT_Blowhole"),
    "a missing picture": (lambda own: (own / "elpv/images/cell0002.png").unlink(), "elpv", r"1 of 16 pictures.*cell0002.png \(missing"),
    "a word for a label": (lambda own: (own / "elpv/labels.csv").write_text("images/cell0000.png bad mono"), "elpv", "line 1.*'bad'"),
    "another list": (lambda own: (own / "elpv/labels.csv").write_text("path,label\n"), "elpv", "line 1: expected"),
}  # fmt: skip
ROOTS = {"ksdd2": "ksdd2", "magnetic_tiles": "tiles", "elpv": "elpv"}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_does_not_fit_is_counted_and_named(own: Path, name: str) -> None:
    damage, layout, text = DAMAGED[name]
    damage(own)
    root = own / ("tiles3" if name == "another layout" else ROOTS[layout])
    with pytest.raises(DataError, match=text):
        load(layout, root=str(root), size=64)


def test_a_share_may_be_skipped(own: Path) -> None:
    _broken(own)
    found = load("ksdd2", root=str(own / "ksdd2"), max_skipped=0.2)
    assert len(found.train.names) == 7


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"size": 100}, "multiples of 8"), ({"size": [64]}, "size"), ({"channels": 2}, "1 or 3"),
     ({"mean": [0.5], "std": [0.5]}, "need 3 values"),
     ({"supervision": 1.5}, "share from 0 to 1"), ({"max_skipped": 1.0}, "max_skipped"), ({"holdout": 0.5}, "no setting 'holdout'")],
    ids=["size", "one side", "channels", "mean", "share", "skipped", "unknown"],
)  # fmt: skip
def test_settings_are_checked(trees: Path, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(DeployError, match=text):
        load("ksdd2", root=str(trees / "ksdd2"), **settings)
    with pytest.raises(ConfigError, match=r"unknown data 'ksdd' for inspection \(did you mean 'ksdd2'\?\)"):
        load("ksdd", root="")


def test_the_digest_sees_masks(own: Path) -> None:
    before = load("ksdd2", root=str(own / "ksdd2")).digest()
    assert before == load("ksdd2", root=str(own / "ksdd2")).digest()
    mask = np.zeros((64, 32), np.uint8)
    mask[3, 3] = 1
    write(own / "ksdd2/train/10000_GT.png", mask)
    assert before != load("ksdd2", root=str(own / "ksdd2")).digest()


def test_cloth_is_a_function_of_seed_and_number() -> None:
    one, again, other = Woven((48, 64), 40, 8), Woven((48, 64), 40, 8), Woven((48, 64), 40, 8, seed=1)
    for index in (0, 7):
        assert all(
            np.array_equal(a, b) for a, b in zip(one.piece("train", index), again.piece("train", index), strict=True)
        )
        assert not np.array_equal(one.piece("train", index)[0], other.piece("train", index)[0])
        assert not np.array_equal(one.piece("train", index)[0], one.piece("test", index)[0])
    damaged = one.damaged("train")
    assert damaged.sum() == 12
    for index in range(40):
        picture, mask = one.piece("train", index)
        assert picture.shape == (48, 64, 1)
        assert mask.any() == damaged[index]
        assert mask.mean() < 0.2
    assert len(DAMAGES) == 3


def test_cloth_as_a_set() -> None:
    found = load("canvas", size=[64, 32], train_size=8, test_size=4, defective=0.5, supervision=0.5)
    consistent(found)
    assert (found.train.segmented & found.train.defective).sum() == 2
    with pytest.raises(ConfigError, match="'defective' of the woven textures"):
        load("canvas", defective=1.0)
    with pytest.raises(DataError, match="none of number 9"):
        Woven(train_size=4).piece("train", 9)


def test_masks_of_one_bit_are_no_palette(trees: Path) -> None:
    with Image.open(trees / "tiles/MT_Crack/exp1_num_0.png") as image:
        assert image.mode == "1"
