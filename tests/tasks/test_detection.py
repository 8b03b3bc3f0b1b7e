"""The task of detection: what an SSD learns from boxes, how it is judged, and what is read of its outputs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from box_trees import NAMES, voc_tree, yolo_tree
from pydeploy.data.boxes.box_set import Objects
from pydeploy.data.boxes.detections import Detections
from pydeploy.data.boxes.geometry import iou
from pydeploy.data.boxes.priors import NAMED, encode, small
from pydeploy.data.deployment import Deployment
from pydeploy.errors import ConfigError, DataError, Mismatch
from pydeploy.models import build
from pydeploy.tasks.contract import Batch
from pydeploy.tasks.detection.box_augment import BoxAugment, augmented
from pydeploy.tasks.detection.matching import match, multibox_loss, objects_of, targets_of
from pydeploy.tasks.detection.task import MAP_50, Detection
from pydeploy.tasks.detection.voc_ap import VocAP, area
from pydeploy.tasks.evaluate import batches, judged, predict_with
from pydeploy.tasks.named import build_task
from pydeploy.tasks.readings import reading_of

SIZE = 64


def some(rng: np.random.Generator, count: int, *, difficult: bool = False) -> Objects:
    first = rng.random((count, 2)) * 0.6
    boxes = np.concatenate([first, first + 0.05 + 0.3 * rng.random((count, 2))], 1).astype(np.float32)
    hard = rng.random(count) < 0.3 if difficult else np.zeros(count, bool)
    return Objects(boxes, rng.integers(0, 3, count), hard, (100, 100))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Detection:
    root = voc_tree(tmp_path_factory.mktemp("data") / "voc")
    made = build_task("detection", data="voc", root=str(root), size=SIZE, classes=list(NAMES), workers=0)
    assert isinstance(made, Detection)
    return made


def told(task: Detection, objects: list[Objects], sure: float = 9.0) -> dict[str, np.ndarray]:
    """The outputs of a network that knows the objects."""
    priors = task.priors
    scores = np.zeros((len(objects), len(priors.boxes), len(task.images.class_names) + 1), np.float32)
    scores[:, :, 0] = sure
    offsets = np.zeros((len(objects), len(priors.boxes), 4), np.float32)
    for n, own in enumerate(objects):
        for box, label in zip(own.boxes, own.labels, strict=True):
            best = int(iou(box[None], priors.corners)[0].argmax())
            scores[n, best] = 0
            scores[n, best, 1 + label] = sure
            offsets[n, best] = encode(box[None], priors.boxes[best : best + 1])[0]
    return {"scores": scores, "boxes": offsets}


def by_loops(own: Objects, corners: np.ndarray) -> np.ndarray:
    """Which object each prior stands for, as the source code of the paper has it: -1 none."""
    easy = np.flatnonzero(~own.difficult)
    found = np.full(len(corners), -1)
    if not len(easy):
        return found
    overlap = iou(own.boxes[easy], corners)
    for prior in range(len(corners)):
        if overlap[:, prior].max() >= 0.5:
            found[prior] = easy[overlap[:, prior].argmax()]
    for place, number in enumerate(easy):
        found[overlap[place].argmax()] = number
    return found


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_matching_is_that_of_the_loops(seed: int, counts: list[int]) -> None:
    rng, priors = np.random.default_rng(seed), small(SIZE)
    objects = [some(rng, count, difficult=True) for count in counts]
    classes, offsets = match(targets_of(objects), torch.from_numpy(priors.boxes))
    for n, own in enumerate(objects):
        wanted = by_loops(own, priors.corners)
        rows = np.flatnonzero(wanted >= 0)
        assert classes[n].numpy().tolist() == np.where(wanted >= 0, np.append(own.labels, -1)[wanted] + 1, 0).tolist()
        np.testing.assert_allclose(
            offsets[n].numpy()[rows], encode(own.boxes[wanted[rows]], priors.boxes[rows]), atol=1e-4
        )
    assert torch.isfinite(offsets).all()


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_the_loss_is_that_of_the_loops(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    classes = np.zeros((2, 30), np.int64)
    for row in classes:
        row[rng.permutation(30)[: rng.integers(0, most + 1)]] = rng.integers(1, 4)
    scores = rng.normal(0, 2, (2, 30, 4))
    offsets, wanted = rng.normal(0, 1, (2, 2, 30, 4))
    logs = scores - np.log(np.exp(scores).sum(2, keepdims=True))
    total, moved = 0.0, 0.0
    for n in range(2):
        positive = np.flatnonzero(classes[n])
        negative = [p for p in np.argsort(logs[n, :, 0]) if not classes[n, p]][: 3 * len(positive)]
        total -= sum(logs[n, p, classes[n, p]] for p in [*positive, *negative])
        far = np.abs(offsets[n, positive] - wanted[n, positive])
        moved += np.where(far < 1, far**2 / 2, far - 0.5).sum()
    count = max(1, np.count_nonzero(classes))
    parts = multibox_loss(*map(torch.from_numpy, (scores, offsets, classes, wanted)))
    assert float(parts["classes"]) == pytest.approx(total / count)
    assert float(parts["boxes"]) == pytest.approx(moved / count)


def test_objects_there_and_back() -> None:
    rng = np.random.default_rng(0)
    given_ = [some(rng, count, difficult=True) for count in (3, 0, 5)]
    for one, two in zip(given_, objects_of(targets_of(given_)), strict=True):
        assert all(
            np.array_equal(getattr(one, key), getattr(two, key)) for key in ("boxes", "labels", "difficult", "size")
        )


def found(*rows: tuple[int, float, list[float]]) -> Detections:
    return Detections(np.array([row[2] for row in rows], np.float32).reshape(-1, 4), np.array([row[0] for row in rows], np.int64),
                      np.array([row[1] for row in rows], np.float32))  # fmt: skip


def truth(*rows: tuple[int, list[float]], hard: tuple[int, ...] = ()) -> Objects:
    boxes = np.array([row[1] for row in rows], np.float32).reshape(-1, 4)
    return Objects(boxes, np.array([row[0] for row in rows], np.int64), np.isin(np.arange(len(rows)), hard), (10, 10))


HERE, NEAR, THERE = [0.1, 0.1, 0.3, 0.3], [0.1, 0.1, 0.3, 0.28], [0.6, 0.6, 0.9, 0.9]


@pytest.mark.parametrize(
    ("pictures", "whole", "eleven"),
    [
        ([(found((0, 0.9, HERE)), truth((0, HERE)))], 1.0, 1.0),
        ([(found(), truth((0, HERE)))], 0.0, 0.0),
        ([(found((0, 0.9, THERE)), truth((0, HERE)))], 0.0, 0.0),
        # The same object twice: the second one is wrong, after full recall.
        ([(found((0, 0.9, HERE), (0, 0.8, NEAR)), truth((0, HERE)))], 1.0, 1.0),
        # Wrong first: precision 1/2 at recall 1.
        ([(found((0, 0.9, THERE), (0, 0.8, HERE)), truth((0, HERE)))], 0.5, 0.5),
        # Of two objects one: recalls 0 to 0.5, which are 6 of 11 points.
        ([(found((0, 0.9, HERE)), truth((0, HERE), (0, THERE)))], 0.5, 6 / 11),
        # right, wrong, right: 1/2 at 1, then 2/3 for the rest.
        ([(found((0, 0.9, HERE), (0, 0.8, [0, 0.8, 0.1, 1]), (0, 0.7, THERE)), truth((0, HERE), (0, THERE)))],
         0.5 + 1 / 3, (6 + 5 * 2 / 3) / 11),
        # Difficult: neither missed nor found, however often.
        ([(found((0, 0.9, THERE), (0, 0.85, THERE), (0, 0.8, HERE)), truth((0, HERE), (0, THERE), hard=(1,)))], 1.0, 1.0),
        # In another picture, and another class, an object counts for nothing.
        ([(found((0, 0.9, HERE)), truth()), (found((1, 0.9, HERE)), truth((0, HERE)))], 0.0, 0.0),
    ],
)  # fmt: skip
def test_average_precision_by_hand(pictures: list[tuple[Detections, Objects]], whole: float, eleven: float) -> None:
    for points, wanted in ((None, whole), (11, eleven)):
        judge = VocAP(3, points=points)
        for one in pictures:
            judge.add(*one)
        assert judge.by_class()[0] == pytest.approx(wanted)
        assert np.isnan(judge.by_class()[1:]).all()
        assert judge.mean() == pytest.approx(wanted)


def test_nothing_to_find_is_undefined() -> None:
    judge = VocAP(2)
    judge.add(found((0, 0.9, HERE)), truth((0, HERE), hard=(0,)))
    assert np.isnan(judge.mean())


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 40))
def test_the_area_is_that_of_the_definition(right: list[bool], objects: int) -> None:
    hits = np.cumsum(right)[: len(right)]
    recall, precision = np.minimum(hits / max(objects, sum(right)), 1), hits / np.arange(1, len(right) + 1)

    def best(at: float) -> float:
        return max((p for r, p in zip(recall, precision, strict=True) if r >= at - 1e-9), default=0.0)

    steps = np.unique(np.append(recall, 0.0))
    assert area(recall, precision) == pytest.approx(sum((b - a) * best(b) for a, b in itertools.pairwise(steps)))
    assert area(recall, precision, 11) == pytest.approx(np.mean([best(n / 10) for n in range(11)]))


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_beside_cocos(seed: int) -> None:
    pytest.importorskip("faster_coco_eval", reason="needs the extra 'coco'")
    from pydeploy.tasks.detection.coco_map import coco_map

    rng, pictures, judge = np.random.default_rng(seed), [], VocAP(3, points=101)
    for _ in range(30):
        # Objects apart from each other: with two at one place the rules differ (COCO's take the best that is free).
        cells = rng.permutation(9)[: rng.integers(0, 5)]
        corner = np.stack([cells % 3, cells // 3], 1) / 3 + 0.03
        boxes = np.concatenate([corner, corner + rng.uniform(0.1, 0.25, (len(cells), 2))], 1).astype(np.float32)
        own = Objects(boxes, rng.integers(0, 3, len(cells)), rng.random(len(cells)) < 0.2, (300, 300))
        noise = some(rng, int(rng.integers(0, 4)))
        moved = np.clip(np.concatenate([boxes + rng.normal(0, 0.01, boxes.shape), noise.boxes]), 0, 1).astype(
            np.float32
        )
        labels, scores = np.concatenate([own.labels, noise.labels]), rng.permutation(100)[: len(moved)] / 100
        order = np.argsort(-scores)
        pictures.append((Detections(moved[order], labels[order], scores[order].astype(np.float32)), own))
        judge.add(*pictures[-1])
    assert judge.mean() == pytest.approx(coco_map(pictures, 3)["COCO AP50"], abs=0.01)
    nothing = [(found(), own) for _, own in pictures]
    assert coco_map(nothing, 3)["COCO mAP"] == 0.0


def test_a_network_that_knows_is_told_so(task: Detection) -> None:
    def predict(feeds: Any) -> dict[str, np.ndarray]:
        at = next(places)
        return told(task, [task.images.test.objects[min(at + n, task.size("test") - 1)] for n in range(2)])

    places = iter(range(0, 100, 2))
    numbers, tables = judged(task, predict, batch_size=2)
    assert numbers[MAP_50] == 1.0
    table = tables["classes"]
    assert table.rows == NAMES
    assert [row[0] for row in table.values] == [1.0, 1.0, None]  # no ghost in the test set
    assert sum(row[1] or 0 for row in table.values) == sum((~own.difficult).sum() for own in task.images.test.objects)


def test_a_small_ssd_learns_four_pictures(task: Detection) -> None:
    torch.manual_seed(0)
    model = build("ssd_small", num_classes=3, width=12).train()
    batch = next(batches(task, "train", 4, limit=4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, nesterov=True)
    for _ in range(40):
        parts = task.loss(dict(zip(task.output_names, model(*batch.inputs), strict=True)), batch)
        optimizer.zero_grad()
        sum(parts.values()).backward()
        optimizer.step()
    assert set(parts) == {"boxes", "classes"}
    assert float(sum(parts.values()).detach()) < 0.2


def test_pictures_without_objects_have_a_loss_of_zero(task: Detection) -> None:
    batch = Batch((torch.zeros(2, 3, SIZE, SIZE),), targets_of([some(np.random.default_rng(0), 0)] * 2))
    outputs = {
        name: torch.from_numpy(array).requires_grad_() for name, array in told(task, objects_of(batch.target)).items()
    }
    parts = task.loss(outputs, batch)
    sum(parts.values()).backward()
    assert [part.item() for part in parts.values()] == [0.0, 0.0]


def test_objects_are_matched_anew_without_the_last_branches(task: Detection) -> None:
    """What the last maps would have stood for is learned by those that are left."""
    large = Objects(np.array([[0.02, 0.02, 0.98, 0.98]], np.float32), np.array([1]), np.array([False]), (SIZE, SIZE))
    for levels in (4, 2, 1):
        priors = task.priors.first(levels)
        classes, _ = match(targets_of([large]), torch.from_numpy(priors.boxes))
        assert (classes > 0).sum() >= 1
        model = build("ssd_small", num_classes=3, width=12).first(levels).eval()
        batch = Batch((torch.zeros(1, 3, SIZE, SIZE),), targets_of([large]))
        outputs = dict(zip(task.output_names, model(*batch.inputs), strict=True))
        assert task.loss(outputs, batch)["classes"].item() > 0
        assert task.check({name: tuple(value.shape) for name, value in outputs.items()}, batch) is None


def test_distilling_from_oneself_costs_nothing(task: Detection) -> None:
    outputs = {name: torch.from_numpy(array) for name, array in told(task, [task.images.train.objects[0]]).items()}
    assert float(task.distill_loss(outputs, outputs, 4.0)) == pytest.approx(0.0, abs=1e-6)
    moved = {**outputs, "boxes": outputs["boxes"] + 1}
    assert float(task.distill_loss(moved, outputs, 4.0)) > 0.1
    fewer = {name: value[:, : task.priors.counts[0]] for name, value in outputs.items()}
    assert float(task.distill_loss(fewer, outputs, 4.0)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"scores": (1, 1, 4), "boxes": (1, 1, 4)}, "the network gives 1 boxes"),
        ({"scores": (1, 680, 3), "boxes": (1, 680, 4)}, r"'scores' of shape \(samples, P, 4\)"),
        ({"scores": (1, 680, 4), "boxes": (1, 679, 4)}, "'boxes' of shape"),
        ({"scores": (1, 680), "boxes": (1, 680, 4)}, "'scores' of shape"),
    ],
)
def test_outputs_that_do_not_fit_are_told(task: Detection, shapes: dict[str, tuple[int, ...]], text: str) -> None:
    with pytest.raises(DataError, match=text):
        task.check(shapes, next(batches(task, "test", 1)))


@given(st.integers(0, 2**31 - 1))
def test_augmentation_moves_boxes_with_what_they_hold(seed: int) -> None:
    """A bright rectangle on a dark ground: whatever is done, its bright pixels are where its box says."""
    rng = np.random.default_rng(seed)
    picture = np.full((48, 60, 3), 20, np.uint8)
    left, top, wide, high = (
        int(rng.integers(0, 30)),
        int(rng.integers(0, 24)),
        int(rng.integers(16, 30)),
        int(rng.integers(12, 24)),
    )
    picture[top : top + high, left : left + wide] = 240
    box = np.array([[left / 60, top / 48, (left + wide) / 60, (top + high) / 48]], np.float32)
    own = Objects(box, np.array([2]), np.array([False]), (48, 60))
    torch.manual_seed(seed)
    transforms = BoxAugment(colour=0.0, expand=2.0, flip_vertical=0.5).transforms((SIZE, SIZE), [20, 20, 20])
    made, kept = augmented(transforms, picture, own)
    assert made.shape == (SIZE, SIZE, 3)
    bright = np.argwhere(made[:, :, 0] > 130)
    assert len(kept) == 1 or len(bright) < SIZE * 4
    if len(kept):
        assert kept.labels.tolist() == [2]
        seen = np.concatenate([bright.min(0)[::-1], bright.max(0)[::-1] + 1])
        np.testing.assert_allclose(kept.boxes[0] * SIZE, seen, atol=1.6)


def test_difficult_objects_are_not_trained(task: Detection) -> None:
    own = Objects(np.array([HERE, THERE], np.float32), np.array([0, 1]), np.array([True, False]), (40, 40))
    plain = BoxAugment(0, 1, 0, 0).transforms((SIZE, SIZE), [0, 0, 0])
    _, kept = augmented(plain, np.zeros((40, 40, 3), np.uint8), own)
    np.testing.assert_allclose(kept.boxes, [THERE], atol=1e-6)


def test_training_batches_follow_seed_and_epoch_alone(task: Detection) -> None:
    first, again, other = (next(task.train_batches(epoch, 4, 0)) for epoch in (0, 0, 1))
    assert torch.equal(first.inputs[0], again.inputs[0])
    assert torch.equal(first.target["boxes"], again.target["boxes"])
    assert not torch.equal(first.inputs[0], other.inputs[0])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_grey_pictures_and_empty_label_files(tmp_path: Path) -> None:
    root = yolo_tree(tmp_path / "hand")
    made = build_task("detection", data="yolo", root=str(root), size=SIZE, channels=1, workers=2)
    batch = next(made.train_batches(0, 16, 0))
    assert batch.inputs[0].shape == (16, 1, SIZE, SIZE)
    assert ((batch.target["labels"] > 0).sum(1) == 0).any()


def test_readings_tell_boxes_in_pixels_of_the_input(task: Detection) -> None:
    way = task.deployment()
    again = Deployment.from_json(json.loads(json.dumps(way.to_json())))
    reading = reading_of(again)
    own = task.images.test.objects[0]
    outputs = {name: array[0] for name, array in told(task, [own]).items()}
    record = reading.read(outputs)
    assert sorted(one["label"] for one in record["objects"]) == sorted(NAMES[label] for label in own.labels)
    boxes = sorted(one["box"] for one in record["objects"])
    np.testing.assert_allclose(boxes, sorted((own.boxes * SIZE).tolist()), atol=0.1)
    picture = task.images.test.pictures.read(0)
    drawn = reading.draw(picture, record)
    assert drawn.shape == picture.shape
    assert (drawn != picture).any()
    assert not (reading.draw(picture, {**record, "objects": []}) != picture).any()
    assert all(one["label"] in reading.headline(record) for one in record["objects"])
    assert reading.headline({"objects": []}) == "nothing"
    with pytest.raises(Mismatch, match="names 3 classes, and background"):
        reading.read({**outputs, "scores": outputs["scores"][:, :2]})
    with pytest.raises(DataError, match="not what reads an SSD's outputs"):
        reading_of(Deployment(way.preprocessing, way.class_names, outputs=("scores", "boxes"), kind="detection"))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"sise": 64}, "no setting 'sise'.* 'size'"),
        ({"priors": "ssd300"}, "set size: 300"),
        ({"priors": "ssd3"}, "unknown priors 'ssd3'"),
        ({"augmentation": {"expand": 0.5}}, "expand"),
        ({"augmentation": {"flap": 0.5}}, "flap"),
        ({"cleaning": {"iou": 0}}, "iou"),
        ({"metric": "voc12"}, "metric"),
        ({"workers": -1}, "workers"),
        ({"data": "vok"}, "unknown data set 'vok'"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build_task("detection", **settings)


def test_named_priors_are_those_of_the_networks() -> None:
    for name, priors in (("ssd320_mobilenetv2", NAMED["ssd320"]), ("ssd_small", small(SIZE))):
        model = build(name, num_classes=2, **({"width": 12} if name == "ssd_small" else {})).eval()
        with torch.no_grad():
            assert model(torch.zeros(1, 3, priors.image, priors.image))[0].shape == (1, len(priors.boxes), 3)


def test_an_untrained_network_is_judged(task: Detection) -> None:
    model = build("ssd_small", num_classes=3, width=12).eval()
    numbers, _ = judged(task, predict_with(model, task), batch_size=3)
    assert 0 <= numbers[MAP_50] < 0.5


def test_a_test_set_without_objects_is_told(task: Detection) -> None:
    empty = Batch((torch.zeros(1, 3, SIZE, SIZE),), targets_of([some(np.random.default_rng(0), 0)]))
    with pytest.raises(DataError, match="no object in the test pictures"):
        task.metrics([(told(task, objects_of(empty.target)), empty)])
