"""Accuracies, tables and stems of classifiers, against sklearn, brute force and torchvision."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pydeploy.data.image_sets import ImageSet
from pydeploy.data.named import load
from pydeploy.errors import ConfigError, DataError, DeployError
from pydeploy.models.named import named
from pydeploy.tasks.classification import Classification
from pydeploy.tasks.evaluate import judged
from pydeploy.tasks.sampling import wilson


@pytest.mark.parametrize("classes", [3, 7])
def test_numbers_and_tables_are_sklearns(classes: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng, images = np.random.default_rng(classes), np.zeros((40, 1, 4, 4), np.uint8)
    labels = rng.integers(0, classes - 1, 40)  # the last class has no samples
    logits = np.round(rng.normal(0, 1, (40, classes)), 1)  # with ties
    order = iter(range(40))
    task = Classification(ImageSet("x", classes, images, labels, images, labels, (0.5,), (0.5,)))
    numbers, tables = judged(task, lambda _: {"logits": logits[[next(order)]]}, batch_size=1)
    found = logits.argmax(1)
    assert numbers["accuracy"] == metrics.accuracy_score(labels, found)
    names = range(classes)
    np.testing.assert_array_equal(
        np.array(tables["confusion"].values), metrics.confusion_matrix(labels, found, labels=names)
    )
    rows = dict(zip(tables["classes"].rows, tables["classes"].values, strict=True))
    assert rows[str(classes - 1)] == (None, None, None, 0)
    for name in names[:-1]:
        k, n = int(((found == name) & (labels == name)).sum()), int((labels == name).sum())
        assert rows[str(name)] == (k / n, *wilson(k, n), n)
    if classes > 5:
        top = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        assert numbers["top-5 accuracy"] == np.mean([label in row for label, row in zip(labels, top, strict=True)])
    else:
        assert "top-5 accuracy" not in numbers


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_small_stem_keeps_the_size(name: str) -> None:
    """The largest map of a network with a small stem is as large as its pictures, with any number of channels."""
    sizes: list[int] = []
    net = named(f"torchvision:{name}", {"small_stem": True}, {"num_classes": 7, "in_channels": 1})
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _args, out: sizes.append(out.shape[-1]))
    assert net(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    assert sizes[0] == 32
    plain = named(f"torchvision:{name}", {}, {"num_classes": 7, "in_channels": 3})
    reference = named(f"torchvision:{name}", {"num_classes": 7})
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in reference.state_dict().items()
    }


def packed(top: Path, count: int = 6, size: int = 8) -> Path:
    for split in ("train", "test"):
        data, rows = b"", []
        for index in range(count):
            path = top / "one.jpg"
            Image.fromarray(np.full((size, size, 3), 40 * index, np.uint8)).save(path, quality=95)
            rows.append((len(data), path.stat().st_size, index % 3))
            data += path.read_bytes()
        (top / f"set_{split}.jpegs.xz").write_bytes(lzma.compress(data))
        np.save(top / f"set_{split}.npy", np.array(rows, np.int64))
    return top


def test_packed_jpegs(tmp_path: Path) -> None:
    images = load("packed_jpegs", root=str(packed(tmp_path)), prefix="set", classes=["a", "b", "c"])
    assert isinstance(images, ImageSet)
    assert images.train_images.shape == (6, 3, 8, 8)
    assert images.class_names == ("a", "b", "c")
    np.testing.assert_allclose(images.train_images.mean(axis=(1, 2, 3)), 40 * np.arange(6), atol=1)
    np.testing.assert_allclose(images.mean, images.train_images.mean(axis=(0, 2, 3)) / 255, atol=1e-4)
    np.testing.assert_allclose(images.std, images.train_images.std(axis=(0, 2, 3)) / 255, atol=1e-4)
    assert images.test_labels.tolist() == [0, 1, 2] * 2


def rows(change: Any) -> Any:
    def damage(top: Path) -> None:
        np.save(top / "set_test.npy", change(np.load(top / "set_test.npy")))

    return damage


@pytest.mark.parametrize(("damage", "error", "text"), [
    (lambda top: (top / "set_test.npy").unlink(), DataError, "expected set_test.jpegs or set_test.jpegs.xz, and set_test.npy"),
    (lambda top: (top / "set_train.jpegs.xz").write_bytes(b"no"), DataError, "expected set_train.jpegs"),
    (rows(lambda r: r[:, :2]), DataError, r"expected whole numbers \(pictures, 3\)"),
    (rows(lambda r: np.add(r, [[10**6, 0, 0]])), DataError, "row 0 lies outside"),
    (rows(lambda r: r - [[0, 0, 1]]), DataError, "row 0 lies outside .* or is negative"),
    (rows(lambda r: np.add(r, [[3, 0, 0]])), DataError, "row 5|picture 0: damaged"),
    (rows(lambda r: np.add(r, [[0, 0, 5]])), ConfigError, "'classes' names 3 classes, the labels of set are 0 to 7"),
])  # fmt: skip
def test_packed_jpegs_that_do_not_belong_together(
    tmp_path: Path, damage: Any, error: type[DeployError], text: str
) -> None:
    damage(packed(tmp_path))
    with pytest.raises(error, match=text):
        load("packed_jpegs", root=str(tmp_path), prefix="set", classes=["a", "b", "c"])
