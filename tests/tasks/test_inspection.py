"""Inspection: targets and losses against their formulas, sampling by use, thresholds on pictures kept out, heat maps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defect_trees import elpv_tree, ksdd2_tree
from pydeploy.data.defect_masks import dilated, pixel_weights, reduced, touched
from pydeploy.data.deployment import Deployment
from pydeploy.errors import ConfigError, DataError, DeployError, Mismatch
from pydeploy.models import build
from pydeploy.tasks.contract import Arrays, Batch
from pydeploy.tasks.defect_sampling import draws, probabilities
from pydeploy.tasks.evaluate import batches, judged, loss_parts, named, predict_with, total_loss
from pydeploy.tasks.inspection import AP, DefectLoss, Inspection
from pydeploy.tasks.metric import MetricTable
from pydeploy.tasks.named import build_task
from pydeploy.tasks.readings import reading_of

SIZE = (64, 128)


def task_of(**settings: Any) -> Inspection:
    given = {
        "size": list(SIZE),
        "train_size": 24,
        "test_size": 10,
        "defective": 0.25,
        "workers": 0,
        "validation": 0.0,
        **settings,
    }
    made = build_task("inspection", data="canvas", **given)
    assert isinstance(made, Inspection)
    return made


@pytest.fixture(scope="module")
def plain() -> Inspection:
    return task_of(dilation=5)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def cross_entropy(logits: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return -wanted * np.log(sigmoid(logits)) - (1 - wanted) * np.log(1 - sigmoid(logits))


def test_targets_are_dilated_weighted_and_reduced(plain: Inspection) -> None:
    batch = plain.samples("train", np.arange(plain.size("train")))
    split = plain.surfaces.train
    for index in range(plain.size("train")):
        mask = split.masks.read(index)
        assert mask is not None
        soft = dilated(mask, 5).astype(np.float32)
        target = {name: value[index].numpy() for name, value in batch.target.items()}
        np.testing.assert_allclose(target["mask"][0], reduced(soft), atol=1e-6)
        np.testing.assert_allclose(target["weights"][0], reduced(pixel_weights(soft, 2, 3)), atol=1e-6)
        assert np.array_equal(target["touched"][0], touched(soft > 0))
        assert target["defective"] == mask.any()
    assert batch.target["mask"].shape == (24, 1, 8, 16)
    assert batch.target["mask"].max() <= 1


@pytest.mark.parametrize("progress", [None, 0.0, 0.25])
def test_losses_are_the_published_formulas(plain: Inspection, progress: float | None) -> None:
    rng = np.random.default_rng(0)
    task = dataclasses.replace(plain, weighing=DefectLoss(delta=0.3))
    batch = task.samples("train", np.arange(6))
    segmented = np.array([1, 0, 1, 1, 0, 1], np.float32)
    target = {**batch.target, "segmented": torch.from_numpy(segmented)[:, None]}
    logits = {"decision": rng.normal(size=(6, 1)), "mask": rng.normal(size=(6, 1, 8, 16))}
    parts = task.loss(
        {name: torch.from_numpy(value) for name, value in logits.items()}, Batch(batch.inputs, target, progress)
    )
    known = [segmented[i] * (cross_entropy(logits["mask"][i], target["mask"][i].numpy()) * target["weights"][i].numpy()).mean()
             for i in range(6)]  # fmt: skip
    share = {None: (1.0, 1.0), 0.0: (1.0, 0.0), 0.25: (0.75, 0.25)}[progress]
    assert float(parts["mask"]) == pytest.approx(share[0] * np.mean(known))
    decided = cross_entropy(logits["decision"], target["defective"].numpy()).mean()
    assert float(parts["decision"]) == pytest.approx(share[1] * 0.3 * decided)
    even = dataclasses.replace(task, weighing=DefectLoss(delta=0.3, dynamic=False))
    fixed = even.loss(
        {name: torch.from_numpy(value) for name, value in logits.items()}, Batch(batch.inputs, target, progress)
    )
    assert float(fixed["decision"]) == pytest.approx(0.3 * decided)


def test_losses_fall_to_near_their_least_on_four_samples(plain: Inspection) -> None:
    torch.manual_seed(0)
    network = build("segdecnet", in_channels=1, width=2).train()
    defective = np.flatnonzero(plain.surfaces.train.defective)[:2]
    batch = plain.samples("train", np.concatenate([defective, np.flatnonzero(~plain.surfaces.train.defective)[:2]]))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        parts = loss_parts(plain, named(plain, network(*batch.inputs)), batch)
        total_loss(plain, named(plain, network(*batch.inputs)), batch).backward()
        optimizer.step()
    wanted = batch.target["mask"].clamp(1e-6, 1 - 1e-6)
    entropy = -(wanted * wanted.log() + (1 - wanted) * (1 - wanted).log())
    assert parts["mask"].item() < float((entropy * batch.target["weights"]).mean()) + 0.04
    assert parts["decision"].item() < 0.05


def test_an_epoch_has_every_defective_picture_and_as_many_sound_ones(plain: Inspection) -> None:
    defective = plain.surfaces.train.defective
    assert plain.epoch_size() == 12
    seen = np.zeros(24, int)
    for epoch in range(6):
        order = plain.training_order(epoch, 7)
        assert len({*order.tolist()}) == 12
        assert defective[order].sum() == 6
        assert np.array_equal(order, plain.training_order(epoch, 7))
        seen[order] += 1
    assert seen[~defective].min() >= 1  # 36 places for 18 pictures
    assert not np.array_equal(plain.training_order(0, 7), plain.training_order(0, 8))
    targets = torch.cat([batch.target["defective"] for batch in plain.train_batches(0, 4, 7)])
    assert targets.sum() == 6
    everything = dataclasses.replace(plain, sampling="all")
    assert sorted(everything.training_order(0, 0)) == list(range(24))


def test_what_was_used_less_is_likelier() -> None:
    used = np.array([0, 1, 1, 2, 3.0])
    unused = [1 - value / 3 for value in used]
    middle = sorted(unused)[2]
    powers = [(value - middle + 1) ** (math.log(5) * 4) for value in unused]
    np.testing.assert_allclose(probabilities(used), np.array(powers) / sum(powers))
    assert probabilities(np.zeros(5)) is None
    counts = np.zeros(50)
    for chosen in islice(draws(50, 10, 0), 40):
        assert len({*chosen.tolist()}) == 10
        counts[chosen] += 1
    assert counts.max() - counts.min() <= 4
    for chosen in islice(draws(12, 11, 0), 30):  # nearly all are used every time
        assert len({*chosen.tolist()}) == 11


def test_pictures_and_masks_are_mirrored_alike_and_light_changes_pictures_alone() -> None:
    task = task_of(augmentation={"flip": 0.5, "upside_down": 0.5}, dilation=3)
    index = int(np.flatnonzero(task.surfaces.train.defective)[0])
    sample = task.sample("train", index)
    mask = sample.target[0]
    ways = set()
    for seed in range(12):
        made = task.augmented(sample, np.random.default_rng(seed))
        fitting = [(rows, columns) for rows in (1, -1) for columns in (1, -1)
                   if np.array_equal(made.picture, sample.picture[::rows, ::columns])]  # fmt: skip
        assert len(fitting) == 1
        rows, columns = fitting[0]
        turned = dilated(mask[::rows, ::columns], 3).astype(np.float32)
        np.testing.assert_allclose(made.target["mask"][0], reduced(turned), atol=1e-6)
        ways.add(fitting[0])
    assert len(ways) == 4
    lit = task_of(augmentation={"light": 0.5}).augmented(sample, np.random.default_rng(0))
    assert not np.array_equal(lit.picture, sample.picture)
    np.testing.assert_allclose(lit.target["mask"], task_of().fitted(sample, task.preprocessing).target["mask"])


def knowing(task: Inspection, flaw: float = 0.0) -> Any:
    """Predicts the truth of the samples that it gets, by their pixels; `flaw` is added to all logits."""
    known = {}
    for split in ("train", "test", *(["validation"] if task.validation else [])):
        batch = task.samples(split, np.arange(task.size(split)))
        for index, pixels in enumerate(batch.inputs[0].numpy()):
            known[pixels.tobytes()] = {name: batch.target[name][index].numpy() for name in ("defective", "touched")}

    def predict(feeds: Arrays) -> dict[str, np.ndarray]:
        found = [known[np.ascontiguousarray(one).tobytes()] for one in feeds["image"]]
        return {"decision": np.stack([4 * one["defective"] - 2 + flaw for one in found]).astype(np.float32),
                "mask": np.stack([4.0 * one["touched"] - 2 + flaw for one in found]).astype(np.float32)}  # fmt: skip

    return predict


def test_who_knows_the_truth_gets_full_marks(plain: Inspection) -> None:
    numbers, tables = judged(plain, knowing(plain), batch_size=4)
    for name in (AP.name, "AP (step)", "AUROC", "F1", "accuracy", "pixel AP", "pixel IoU"):
        assert numbers[name] == 1, name
    assert (numbers["TP"], numbers["FP"], numbers["FN"], numbers["TN"]) == (2, 0, 0, 8)
    assert tables["decisions at the best F1"] == MetricTable.confusion(("sound", "defective"), ((8, 0), (0, 2)))
    assert tables["images and places"].columns == ("images", "places")


def test_metrics_do_not_depend_on_the_batch(plain: Inspection) -> None:
    network = build("segdecnet", in_channels=1, width=2)
    found = [judged(plain, predict_with(network, plain), batch_size=size)[0] for size in (1, 3, 10)]
    for one in found[1:]:
        assert one == pytest.approx(found[0])


def test_thresholds_come_from_pictures_kept_out() -> None:
    task = task_of(validation=0.25)
    parts = [{*task._split(name).names} for name in ("train", "validation")]
    assert not parts[0] & parts[1]
    assert (task.size("train"), task.size("validation")) == (18, 6)
    assert task.epoch_size() == 2 * 4
    found = task.tuned(knowing(task, flaw=1.5), 4)
    assert found == {
        "threshold": pytest.approx(sigmoid(np.array(3.5))),
        "mask_threshold": pytest.approx(sigmoid(np.array(3.5))),
    }
    assert task_of().tuned(knowing(task), 4) == {}


def test_a_set_without_masks_has_no_measures_of_places(tmp_path: Path) -> None:
    task = build_task(
        "inspection", data="elpv", root=str(elpv_tree(tmp_path, 8)), size=[64, 128], workers=0, validation=0.0
    )
    assert isinstance(task, Inspection)
    network = build("segdecnet", in_channels=1, width=2, gradient_adjustment=False)
    numbers, tables = judged(task, predict_with(network, task), batch_size=4)
    assert AP.name in numbers
    assert not {"pixel AP", "pixel IoU"} & {*numbers}
    assert tables["images and places"].columns == ("images",)
    batch = next(batches(task, "train", 8))
    parts = loss_parts(task, named(task, network(*batch.inputs)), batch)
    assert all(bool(torch.isfinite(part)) for part in parts.values())
    deciding = dataclasses.replace(task, mask=False)
    classifier = build("resnet8", in_channels=1, num_classes=1, width=4)
    assert deciding.model_options() == {"in_channels": 1, "num_classes": 1}
    assert {*loss_parts(deciding, named(deciding, classifier(*batch.inputs)), batch)} == {"decision"}
    assert AP.name in judged(deciding, predict_with(classifier, deciding), batch_size=4)[0]


def test_distillation_is_nothing_where_answers_agree(plain: Inspection) -> None:
    rng = torch.Generator().manual_seed(0)
    teacher = {"decision": torch.randn(4, 1, generator=rng), "mask": torch.randn(4, 1, 8, 16, generator=rng)}
    other = {name: value + 1 for name, value in teacher.items()}
    assert float(plain.distill_loss(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-6)
    assert float(plain.distill_loss(other, teacher, 2.0)) > 0.1


def one_kind(task: Inspection) -> Iterator[tuple[Arrays, Batch]]:
    sound = np.flatnonzero(~task.surfaces.test.defective)[:3]
    yield {"decision": np.zeros((3, 1)), "mask": np.zeros((3, 1, 8, 16))}, task.samples("test", sound)


def test_what_does_not_fit_is_told(plain: Inspection, tmp_path: Path) -> None:
    batch = plain.samples("test", np.arange(2))
    with pytest.raises(DataError, match=r"'mask' of shape \(samples, 1, 8, 16\) for pictures of 64 x 128"):
        plain.check({"decision": (2, 1), "mask": (2, 1, 64, 128)}, batch)
    with pytest.raises(DataError, match="'decision'"):
        plain.check({"decision": (2, 2), "mask": (2, 1, 8, 16)}, batch)
    with pytest.raises(DataError, match="AP is undefined: of the 3 pictures judged on, 0 are defective"):
        plain.metrics(one_kind(plain))
    for settings, text in (({"dilation": 4}, "odd number of pixels"), ({"validation": 1.0}, "validation"), ({"workers": -1}, "workers"),
                           ({"augmentation": {"flips": 0.5}}, "flips"), ({"augmentation": {"flip": 2.0}}, r"augmentation.flip"),
                           ({"loss": {"power": -1.0}}, "loss.power"), ({"sampling": "some"}, "sampling"),
                           ({"sizes": 3}, "no setting 'sizes'"),
                           ({"loss": {"delta": "big"}}, "delta")):  # fmt: skip
        with pytest.raises(DeployError, match=text):
            task_of(**settings)
    with pytest.raises(ConfigError, match="unknown data 'canvass'"):
        build_task("inspection", data="canvass")
    root = ksdd2_tree(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        build_task("inspection", data="ksdd2", root=str(root / "none"))


def test_readings_decide_by_the_threshold_and_draw_where(plain: Inspection) -> None:
    way = dataclasses.replace(plain.deployment(), settings={"threshold": 0.3, "mask_threshold": 0.6})
    way = Deployment.from_json(way.to_json())
    mask = np.full((1, 8, 16), -3.0, np.float32)
    mask[0, 2:4, 5:8] = 2
    outputs = {"decision": np.array([-0.5], np.float32), "mask": mask}
    reading = reading_of(way)
    record = reading.read(outputs)
    assert record["label"] == "defective"
    assert record["score"] == pytest.approx(sigmoid(np.array(-0.5)))
    assert record["defective_share"] == 6 / 128
    assert record["heat"]["size"] == [8, 16]
    assert record["heat"]["values"][2 * 16 + 5] == 881
    assert reading.headline(record) == "defective 0.378 >= 0.300"
    picture = np.full((256, 512, 3), 90, np.uint8)
    drawn = reading.draw(picture, record)
    changed = (drawn != picture).any(axis=2)
    changed[:40] = False  # the decision
    assert np.array_equal(np.argwhere(changed).min(0), [64, 160])
    assert np.array_equal(np.argwhere(changed).max(0), [127, 255])
    sound = reading.read({**outputs, "decision": np.array([-2.0], np.float32)})
    assert sound["label"] == "sound"
    deciding = reading_of(dataclasses.replace(way, outputs=("decision",)))
    assert "heat" not in deciding.read({"decision": np.array([0.0])})
    with pytest.raises(Mismatch, match="one number decides"):
        reading.read({**outputs, "decision": np.zeros(2)})
    with pytest.raises(DataError, match="'threshold' is 2"):
        reading_of(dataclasses.replace(way, settings={"threshold": 2}))
