"""A task of pictures with boxes: batches do not depend on processes, and every value of a target arrives where it belongs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import DataError
from pydeploy.tasks.contract import Batch
from pydeploy.tasks.evaluate import batches, judged, loss_parts, named, total_loss
from pydeploy.tasks.metric import Metric, MetricTable
from pydeploy.tasks.picture_task import PictureTask, Sample

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
COUNT = 11


class Boxes(PictureTask):
    """Sample `i` has ``i % 3`` boxes; a flip moves picture and boxes alike."""

    data, metric, output_names = "boxes", Metric("score", ""), ("scores", "places")
    preprocessing = Preprocessing((0.5,) * 3, (0.5,) * 3)

    def __init__(self, workers: int = 0, broken: int = -1) -> None:
        self.workers, self.broken = workers, broken

    def size(self, split: str) -> int:
        return COUNT if split == "train" else 4

    def sample(self, split: str, index: int) -> Sample:
        if index == self.broken:
            raise DataError(f"picture {index} is broken")
        rng = np.random.default_rng([split == "train", index])
        left = rng.integers(0, 4, index % 3)
        boxes = np.stack([left, left * 0, left + 4, left * 0 + 8], 1).astype(np.float32)
        picture = np.zeros((8, 8, 3), np.uint8)
        for x0, y0, x1, y1 in boxes.astype(int):
            picture[y0:y1, x0:x1] = 255
        return Sample(picture, {"boxes": boxes, "labels": left.astype(np.int64), "name": str(index)})

    def augmented(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() < 0.5:
            return sample
        boxes = sample.target["boxes"].copy()
        boxes[:, [0, 2]] = 8 - boxes[:, [2, 0]]
        return Sample(sample.picture[:, ::-1], {**sample.target, "boxes": boxes})

    def loss(self, outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return {"class": outputs["scores"].mean(), "box": outputs["places"].sum(), "aux": 0.5 * outputs["aux"].mean()}

    def metrics(self, results: Any) -> dict[str, Any]:
        found = [len(batch.target) for _, batch in results]
        table = MetricTable.of(("a", "b"), {"AP": ("%", (0.5, float("nan")))})
        return {"score": float(sum(found)), "undefined": float("nan"), "classes": table}


def epoch(task: Boxes, number: int = 0, seed: int = 0, size: int = 4) -> list[Batch]:
    return list(task.train_batches(number, size, seed))


def test_processes_change_no_batch_and_the_seed_and_the_epoch_do() -> None:
    plain, other = Boxes(), Boxes(workers=2)
    seen = []
    for number, seed in ((0, 0), (1, 0), (0, 1)):
        one, two = epoch(plain, number, seed), epoch(other, number, seed)
        assert len(one) == len(two) == COUNT // 4
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a.inputs[0], b.inputs[0])
            assert [t["name"] for t in a.target] == [t["name"] for t in b.target]
            assert all(torch.equal(p["boxes"], q["boxes"]) for p, q in zip(a.target, b.target, strict=True))
        seen.append(torch.cat([batch.inputs[0].flatten() for batch in one]))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_picture_and_boxes_stay_together() -> None:
    for batch in epoch(Boxes(), size=COUNT):
        for picture, target in zip(batch.inputs[0], batch.target, strict=True):
            white = torch.full_like(picture, -1.0)
            for x0, y0, x1, y1 in target["boxes"].int().tolist():
                white[:, y0:y1, x0:x1] = 1.0
            assert torch.allclose(picture, white, atol=1e-6)


def test_a_batch_moves_with_all_that_lies_in_its_target() -> None:
    batch = epoch(Boxes())[0].to("meta")
    assert batch.inputs[0].is_meta
    assert all(target["boxes"].is_meta and target["labels"].is_meta for target in batch.target)
    assert all(isinstance(target["name"], str) for target in batch.target)


def test_targets_of_one_shape_are_stacked() -> None:
    task = Boxes()
    assert torch.equal(task.collate([np.arange(3), np.arange(3)]), torch.arange(3).repeat(2, 1))
    assert isinstance(task.collate([np.arange(3), np.arange(2)]), list)
    assert len(next(batches(task, "test", 4)).target) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_named(workers: int) -> None:
    with pytest.raises(DataError, match="picture 5 is broken"):
        epoch(Boxes(workers, broken=5))


def test_parts_outputs_and_tables() -> None:
    task, batch = Boxes(), epoch(Boxes())[0]
    two, aux = (torch.ones(4, 1), torch.ones(4, 2)), torch.full((4, 1), 4.0)
    for returned in (
        (*two, aux),
        {"scores": two[0], "places": two[1], "aux": aux},
        {"aux": aux, "places": two[1], "scores": two[0]},
    ):
        found = named(task, returned, training=True)
        assert tuple(found)[:2] == task.output_names
        assert len(found) == 3
        assert torch.equal(found["places"], two[1])
    parts = loss_parts(task, found, batch)
    assert {name: float(part) for name, part in parts.items()} == {"class": 1.0, "box": 8.0, "aux": 2.0}
    assert float(total_loss(task, found, batch)) == 11.0
    numbers, tables = judged(
        task, lambda _: {"scores": np.ones((2, 1)), "places": np.ones((2, 2)), "aux": np.ones(1)}, batch_size=2
    )
    assert numbers == {"score": 4.0}
    assert tables["classes"].values == ((0.5,), (None,))
