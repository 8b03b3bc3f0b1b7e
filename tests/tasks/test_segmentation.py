"""Segmentation: losses fall, masks and pictures stay together, measures are those of the resized logits, predictions are drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from mask_trees import SIZE, camvid_tree, folder_tree
from pydeploy.data.deployment import Deployment
from pydeploy.errors import ConfigError, DataError, Mismatch
from pydeploy.models import build
from pydeploy.models.named import named as model_named
from pydeploy.tasks.evaluate import batches, judged, loss_parts, named, predict_with, total_loss
from pydeploy.tasks.mask_augment import Joint, MaskAugment
from pydeploy.tasks.metric import MetricTable
from pydeploy.tasks.named import build_task
from pydeploy.tasks.readings import reading_of
from pydeploy.tasks.readings.segmentation import mask_of, resized
from pydeploy.tasks.segmentation import Segmentation, balanced


def task_on(root: Path, **settings: Any) -> Segmentation:
    given = {"size": list(SIZE), "classes": ["a", "b", "c"], "workers": 0, **settings}
    made = build_task("segmentation", data="folder", root=str(root), **given)
    assert isinstance(made, Segmentation)
    return made


@pytest.fixture
def small(tmp_path: Path) -> Segmentation:
    return task_on(folder_tree(tmp_path, split=True))


def test_the_loss_falls_to_near_zero_on_four_samples(small: Segmentation) -> None:
    torch.manual_seed(0)
    network = build("resnet18_seg", num_classes=3, width=8).train()
    batch = small.samples("train", np.array([0, 1, 2, 0]))
    task = dataclasses.replace(small, dice=1.0, class_weights="balanced")
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        parts = loss_parts(task, named(task, network(*batch.inputs)), batch)
        loss = total_loss(task, named(task, network(*batch.inputs)), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert {*parts} == {"cross-entropy", "dice"}
    assert loss.item() < 0.1


def test_training_pairs_are_transformed_alike() -> None:
    """The picture's values tell the mask's, so where both are read off afterwards they have to agree."""
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 10, (3, 4)), np.ones((20, 20))).astype(np.uint8)
    picture = np.repeat((20 * mask)[:, :, None], 3, 2)
    joint = Joint(MaskAugment((0.5, 2.0), 0.5, 0.0), (48, 64), (250 / 255,) * 3)
    padded = 0
    for seed in range(20):
        torch.manual_seed(seed)
        made, classes = joint(picture, mask)
        assert made.shape == (3, 48, 64)
        assert classes.shape == (48, 64)
        assert torch.equal(classes == 255, (made == 250).all(0))
        padded += int((classes == 255).any())
        read = (made[0].float() / 20).round()
        inner = classes != 255
        assert (read == classes)[inner].float().mean() > 0.7  # but for blurred edges of the cells
    assert 0 < padded < 20


def test_an_epoch_does_not_depend_on_who_makes_it(tmp_path: Path) -> None:
    root = folder_tree(tmp_path, split=True)
    alone, helped = task_on(root), task_on(root, workers=1)
    for first, second in zip(alone.train_batches(1, 2, 5), helped.train_batches(1, 2, 5), strict=True):
        assert torch.equal(first.inputs[0], second.inputs[0])
        assert torch.equal(first.target, second.target)


@pytest.mark.parametrize("sizes", ["equal", "different"])
def test_measures_are_those_of_logits_resized_to_each_mask(sizes: str, tmp_path: Path) -> None:
    root = folder_tree(tmp_path, split=True)
    if sizes == "different":
        for folder, suffix in (("images", "jpg"), ("masks", "png")):
            path = root / folder / "test" / f"1.{suffix}"
            with Image.open(path) as image:
                image.resize((41, 19), Image.Resampling.NEAREST).save(path)
    task = task_on(root)
    torch.manual_seed(0)
    network = nn.Conv2d(3, 3, 5, 2)
    numbers, tables = judged(task, predict_with(network, task), batch_size=2)
    truth, predicted = [], []
    for index in range(3):
        batch = task.samples("test", np.array([index]))
        mask = batch.target[0]
        scores = F.interpolate(network(*batch.inputs), size=tuple(mask.shape), mode="bilinear")
        truth.append(mask.numpy().ravel())
        predicted.append(scores.argmax(1).numpy().ravel())
    t, p = np.concatenate(truth), np.concatenate(predicted)
    ious = [np.sum((t == k) & (p == k)) / np.sum((t == k) | (p == k)) for k in range(3)]
    assert numbers["mIoU"] == pytest.approx(np.mean(ious))
    assert numbers["pixel accuracy"] == pytest.approx(np.mean(t == p))
    assert [row[0] for row in tables["classes"].values] == pytest.approx(ious)
    assert tables["confusion"].kind == "confusion"
    assert sum(value or 0 for row in tables["confusion"].values for value in row) == len(t)


def test_classes_that_are_nowhere_are_undefined_in_the_table(tmp_path: Path) -> None:
    task = task_on(folder_tree(tmp_path, split=True), classes=["a", "b", "c", "d"])
    perfect = {"logits": F.one_hot(task.samples("test", np.arange(3)).target.long(), 4).permute(0, 3, 1, 2).numpy()}
    found = task.metrics([(perfect, task.samples("test", np.arange(3)))])
    table = found["classes"]
    assert isinstance(table, MetricTable)
    assert table.values[3] == (None, None, 0.0)
    assert found["mIoU"] == 1


def test_a_test_set_without_a_labelled_pixel_is_named(tmp_path: Path) -> None:
    root = folder_tree(tmp_path, split=True)
    for path in (root / "masks/test").iterdir():
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(path)
    task = task_on(root)
    with pytest.raises(DataError, match="no pixel of the test masks"):
        judged(task, predict_with(nn.Conv2d(3, 3, 1), task), batch_size=2)


def test_batches_with_a_void_mask_train(tmp_path: Path) -> None:
    task = build_task("segmentation", data="camvid", root=str(camvid_tree(tmp_path)), size=[24, 32], workers=0)
    batch = task.samples("train", np.array([3]))
    assert (batch.target == 255).all()
    network = nn.Conv2d(3, 11, 1)
    loss = total_loss(task, named(task, network(*batch.inputs)), batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert network.weight.grad is not None
    assert not network.weight.grad.any()


def test_auxiliary_heads_train_and_are_not_evaluated(small: Segmentation) -> None:
    network = model_named("torchvision:deeplabv3_mobilenet_v3_large", {"aux_loss": True}, small.model_options())
    batch = small.samples("train", np.arange(2))
    parts = loss_parts(small, named(small, network.train()(*batch.inputs), training=True), batch)
    assert {*parts} == {"cross-entropy", "aux"}
    torch.stack([*parts.values()]).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in network.aux_classifier.parameters())  # type: ignore[union-attr]
    found = predict_with(network.eval(), small)({"image": batch.inputs[0].numpy()})
    assert {*found} == {"logits"}


def test_networks_of_other_libraries_take_the_number_of_classes(small: Segmentation) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    network = model_named("smp:Unet", {"encoder_name": "resnet18"}, small.model_options())
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_weights_follow_how_rare_a_class_is() -> None:
    assert balanced(np.array([400, 100, 25, 0])) == [0.5, 1.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dice": -1.0}, "'dice'"),
        ({"class_weights": "ballanced"}, "'balanced' or 3 numbers"),
        ({"class_weights": [1.0, 2.0]}, "must hold 3 numbers"),
        ({"augmentation": {"scale": [2.0, 0.5]}}, "augmentation.scale"),
        ({"augmentation": {"flipp": 0.5}}, "no setting 'flipp'.*'flip'"),
        ({"sizes": [2, 3]}, "no setting 'sizes'.*'size'"),
        ({"size": 24}, "'size'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        task_on(folder_tree(tmp_path), **settings)


def test_an_unknown_layout_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown data set 'canvvas'.*'canvas'"):
        build_task("segmentation", data="canvvas")


def test_a_network_for_other_classes_is_refused(small: Segmentation) -> None:
    for shape in ((1, 4, 8, 8), (1, 3)):
        with pytest.raises(DataError, match="3 classes"):
            small.check({"logits": shape}, next(batches(small, "test", 1)))


# ---- readings


@pytest.mark.parametrize("size", [(7, 9), (20, 3), (24, 32), (1, 1)])
def test_readings_resize_as_pytorch_does(size: tuple[int, int]) -> None:
    logits = np.random.default_rng(0).normal(size=(3, 7, 9))
    wanted = F.interpolate(torch.from_numpy(logits)[None], size=size, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(resized(logits, size), wanted.numpy(), atol=1e-12)


def test_a_mask_is_read_and_drawn_in_its_colours(small: Segmentation) -> None:
    way = dataclasses.replace(Deployment.from_json(small.deployment().to_json()), class_names=("a", "b", "ça π"))
    reading = reading_of(way)
    logits = np.zeros((3, 4, 4))
    logits[1, :, :2], logits[2, :, 2:] = 5, 5
    record = reading.read({"logits": logits})
    mask = mask_of(record)
    assert record["size"] == [*SIZE]
    assert np.array_equal(mask, resized(logits, SIZE).argmax(0))
    assert record["classes"] == {"b": 0.5, "ça π": 0.5}
    assert reading.headline(record) == "b 50%, ça π 50%"
    drawn = reading.draw(np.zeros((48, 64, 3), np.uint8), record)
    colours = np.array(small.images.colours)
    assert np.abs(drawn[:48, :32] - colours[1] * 0.55).max() <= 1
    assert np.abs(drawn[:48, 32:64] - colours[2] * 0.55).max() <= 1
    assert drawn.shape[1] > 64
    assert {tuple(colours[1]), tuple(colours[2])} <= {tuple(pixel) for pixel in drawn[:, 64:].reshape(-1, 3)}


def test_readings_refuse_what_is_not_theirs(small: Segmentation) -> None:
    way = small.deployment()
    with pytest.raises(Mismatch, match="4 scores a pixel"):
        reading_of(way).read({"logits": np.zeros((4, 2, 2))})
    with pytest.raises(Mismatch, match="shape"):
        reading_of(way).read({"logits": np.zeros((3, 2))})
    for wrong in ([[0, 0, 0]], [[0, 0, 300]] * 3, "red", [["x", 1, 2]] * 3):
        with pytest.raises(DataError, match="3 colours"):
            reading_of(dataclasses.replace(way, settings={"colours": wrong}))
