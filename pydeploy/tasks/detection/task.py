"""Detection of objects by an SSD: boxes matched with priors, judged by mean average precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from pydeploy.data.boxes.box_set import BoxSet
from pydeploy.data.boxes.detections import Cleaning, Detections, detections
from pydeploy.data.boxes.priors import Priors
from pydeploy.data.deployment import Deployment
from pydeploy.errors import DataError, Mismatch
from pydeploy.tasks.contract import Arrays, Batch, Tensors
from pydeploy.tasks.detection.box_augment import BoxAugment, augmented
from pydeploy.tasks.detection.coco_map import coco_map
from pydeploy.tasks.detection.matching import match, multibox_loss, objects_of, targets_of
from pydeploy.tasks.detection.voc_ap import VocAP
from pydeploy.tasks.losses import soft_divergence
from pydeploy.tasks.metric import Metric, MetricTable
from pydeploy.tasks.picture_task import PictureTask, Sample

MAP_50, MAP_COCO = "mAP@0.5", "COCO mAP"
TOLD = 0.3
"""Least score of the boxes that people are shown; evaluation counts all from 0.01 on."""
MEANING = ("scores: (P, classes + 1) logits, the background first; boxes: (P, 4) offsets from the priors. softmax over scores; "
           "x, y = prior x, y + 0.1 * offset * prior width, height; width, height = prior's * exp(0.2 * offset); then "
           "non-maximum suppression in each class")  # fmt: skip


class Detection(PictureTask):
    """The contract of `PictureTask` for a `BoxSet`; outputs are ``scores`` and ``boxes`` of an SSD with these `priors`.

    Judged by VOC's mean average precision at an IoU of a half, with `eleven_points` as VOC 2007 defines it; with `coco` by COCO's
    mean over IoUs of 0.5 to 0.95.
    """

    output_names = ("scores", "boxes")

    def __init__(
        self, images: BoxSet, priors: Priors, augmentation: BoxAugment | None = None, *, eleven_points: bool = False,
        coco: bool = False, cleaning: Cleaning | None = None, workers: int | None = None,
    ) -> None:  # fmt: skip
        self.images, self.priors, self.preprocessing = images, priors, images.preprocessing
        self.augmentation, self.cleaning, self.workers = augmentation or BoxAugment(), cleaning or Cleaning(), workers
        self.data, self.eleven_points, self.coco = images.name, eleven_points, coco
        self.metric = Metric(MAP_COCO if coco else MAP_50, counted=False)

    def digest(self) -> str:
        return self.images.digest()

    def deployment(self) -> Deployment:
        settings = {
            "priors": self.priors.to_json(),
            "score": TOLD,
            "iou": self.cleaning.iou,
            "most": self.cleaning.most,
        }
        return Deployment(self.preprocessing, self.images.class_names, self.input_names[0], self.output_names, "detection",
                          settings, MEANING)  # fmt: skip

    def size(self, split: str) -> int:
        return len(self.images.split(split).objects)

    def model_options(self) -> Mapping[str, int]:
        return {"num_classes": len(self.images.class_names), "in_channels": self.images.channels}

    def sample(self, split: str, index: int) -> Sample:
        source = self.images.split(split)
        return Sample(source.pictures.read(index), source.objects[index])

    def augmented(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: ARG002
        return Sample(*augmented(self._transforms, sample.picture, sample.target))

    def collate(self, targets: Sequence[Any]) -> dict[str, Tensor]:
        return targets_of(targets)

    def loss(self, outputs: Tensors, batch: Batch) -> dict[str, Tensor]:
        """Boxes and classes apart; the objects are matched with the priors that the network has."""
        scores, offsets = outputs["scores"], outputs["boxes"]
        priors = torch.from_numpy(self.priors.of(scores.shape[1]).boxes).to(scores.device)
        return multibox_loss(scores, offsets, *match(batch.target, priors))

    def distill_loss(self, student: Tensors, teacher: Tensors, temperature: float) -> Tensor:
        """The teacher's classes at all priors, and its boxes where it sees an object; of the branches that both have."""
        count = min(student["scores"].shape[1], teacher["scores"].shape[1])
        ours, theirs = ({name: one[name][:, :count] for name in self.output_names} for one in (student, teacher))
        seen = 1 - theirs["scores"].detach().softmax(2)[:, :, :1]
        classes = soft_divergence(ours["scores"].transpose(1, 2), theirs["scores"].transpose(1, 2), temperature)
        moved = F.smooth_l1_loss(ours["boxes"], theirs["boxes"].detach(), reduction="none")
        # Means over all priors would drown the few that say something.
        found = seen.sum().clamp(min=1)
        return classes * (seen.numel() / found) + (moved * seen).sum() / found

    def metrics(self, results: Iterable[tuple[Arrays, Batch]]) -> Mapping[str, float | MetricTable]:
        """Mean average precision by VOC's rules and, if asked for, COCO's; and a table of each class's."""
        names = self.images.class_names
        voc, pictures = VocAP(len(names), points=11 if self.eleven_points else None), []
        for outputs, batch in results:
            for index, truth in enumerate(objects_of(batch.target)):
                found = self._found(outputs, index)
                voc.add(found, truth)
                if self.coco:
                    pictures.append((found, truth))
        if not voc.objects.any():
            raise DataError(
                f"{self.data}: the {len(names)} classes have no object in the test pictures that is not difficult"
            )
        table = MetricTable.of(names, {"AP": ("%", voc.by_class().tolist()), "objects": ("", voc.objects.tolist())})
        whole = coco_map(pictures, len(names)) if self.coco else {}
        return {MAP_50: voc.mean(), **whole, "classes": table}

    def check(self, outputs: Mapping[str, tuple[int, ...]], batch: Batch) -> None:  # noqa: ARG002
        scores, boxes, classes = outputs["scores"], outputs["boxes"], len(self.images.class_names) + 1
        if len(scores) != 3 or scores[2] != classes or boxes != (*scores[:2], 4):
            raise DataError(
                f"the network must return 'scores' of shape (samples, P, {classes}) and 'boxes' of shape (samples, P, 4), got "
                f"{dict(outputs)}: the data set '{self.data}' has {classes - 1} classes, and background"
            )
        try:
            self.priors.of(scores[1])
        except Mismatch as error:
            raise DataError(str(error)) from None

    def _found(self, outputs: Arrays, index: int) -> Detections:
        scores, boxes = outputs["scores"][index], outputs["boxes"][index]
        return detections(scores, boxes, self.priors.of(len(scores)).boxes, self.cleaning)

    @cached_property
    def _transforms(self) -> v2.Transform:
        side = self.images.side
        return self.augmentation.transforms((side, side), [255 * mean for mean in self.preprocessing.mean])
