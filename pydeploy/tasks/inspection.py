"""Inspection of surfaces: whether a picture shows a defect, and where.

A network gives the logit of the decision ``(N, 1)`` and, unless it decides only, those of a mask with 8 pixels a place. Losses,
targets and sampling are those of SegDecNet (Bozic, Tabernik and Skocaj, Computers in Industry 2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pydeploy.data.defect_masks import STRIDE, Mask, dilated, pixel_weights, reduced, touched
from pydeploy.data.defect_set import DefectSet, DefectSplit, drawn
from pydeploy.data.deployment import Deployment
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import ConfigError, DataError
from pydeploy.tasks.contract import Arrays, Batch, Predict, Tensors
from pydeploy.tasks.defect_metrics import Ranking, sigmoid
from pydeploy.tasks.defect_sampling import draws
from pydeploy.tasks.evaluate import padded
from pydeploy.tasks.metric import Metric, MetricTable
from pydeploy.tasks.picture_task import PictureTask, Sample
from pydeploy.tasks.readings.inspection import KINDS, MEANING

AP = Metric("AP (trapezoid)", counted=False)
MEASURES = (AP.name, "AP (step)", "AUROC", "best F1", "accuracy there", "IoU there")
FILLED = 0.5
"""Share of the range from which on a resized mask's pixel counts as defective in evaluation."""


@dataclass(frozen=True, slots=True)
class DefectLoss:
    """How pixels and decisions are weighed.

    `weighted`: pixels of a defect count ``most * (depth / greatest depth) ** power``, sound ones 1. `delta`: weight of the decision.
    `dynamic`: training begins with the pixels alone and ends with the decisions; else both count all the time.
    """

    weighted: bool = True
    power: float = 2.0
    most: float = 3.0
    delta: float = 1.0
    dynamic: bool = True

    def __post_init__(self) -> None:
        if min(self.power, self.most, self.delta) < 0:
            raise ConfigError("loss.power, loss.most and loss.delta must be 0 or more")


@dataclass(frozen=True, slots=True)
class DefectAugment:
    """What happens to a training picture and its mask: how often it is mirrored and turned upside down; the largest relative
    change of brightness and contrast.
    """

    flip: float = 0.0
    upside_down: float = 0.0
    light: float = 0.0

    def __post_init__(self) -> None:
        for key, value in (("flip", self.flip), ("upside_down", self.upside_down), ("light", self.light)):
            if not 0 <= value <= 1:
                raise ConfigError(f"augmentation.{key} must lie in 0..1, got {value}")


@dataclass(frozen=True)
class Inspection(PictureTask):
    """The contract of `Task` for a `DefectSet`."""

    surfaces: DefectSet
    dilation: int = 1
    """Side in pixels of the square by which defects are made larger before they are learned."""
    weighing: DefectLoss = field(default_factory=DefectLoss)
    augmentation: DefectAugment = field(default_factory=DefectAugment)
    sampling: Literal["frequency", "all"] = "frequency"
    """``frequency``: an epoch has as many sound pictures as defective ones, those seen least first; ``all``: every picture once."""
    validation: float = 0.1
    """Share of the training pictures kept out of training, on which an engine's thresholds are found; 0 leaves them at 1/2."""
    mask: bool = True
    """Whether the network gives a mask; if not, it decides only."""
    workers: int | None = None
    metric: Metric = AP

    def __post_init__(self) -> None:
        if self.dilation < 1 or self.dilation % 2 == 0:
            raise ConfigError(f"'dilation' is the side of a square, an odd number of pixels, got {self.dilation}")
        if not 0 <= self.validation < 1:
            raise ConfigError(
                f"'validation' is a share of the training pictures, from 0 to below 1, got {self.validation}"
            )

    @property
    def data(self) -> str:  # type: ignore[override]
        return self.surfaces.name

    @property
    def preprocessing(self) -> Preprocessing:  # type: ignore[override]
        return self.surfaces.preprocessing

    @property
    def validation_split(self) -> str:  # type: ignore[override]
        return "validation" if self.validation else "test"

    @property
    def output_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("decision", "mask") if self.mask else ("decision",)

    @cached_property
    def _splits(self) -> dict[str, DefectSplit]:
        whole = self.surfaces.train
        if not self.validation:
            return {"train": whole, "test": self.surfaces.test}
        train, kept = drawn(whole, whole.defective.astype(np.int64), self.validation, 0)
        return {"train": train, "validation": kept, "test": self.surfaces.test}

    def digest(self) -> str:
        return self.surfaces.digest()

    def size(self, split: str) -> int:
        return len(self._split(split).names)

    def sample(self, split: str, index: int) -> Sample:
        part = self._split(split)
        return Sample(part.pictures.read(index), (part.masks.read(index), part.defective[index], part.segmented[index]))

    def fitted(self, sample: Sample, way: Preprocessing) -> Sample:
        picture = way.pixels(sample.picture)
        return Sample(picture, self._target(sample, self._soft(sample, way, picture.shape[:2])))

    def augmented(self, sample: Sample, rng: np.random.Generator) -> Sample:
        picture = self.preprocessing.pixels(sample.picture)
        soft = self._soft(sample, self.preprocessing, picture.shape[:2])
        for axis, chance in ((1, self.augmentation.flip), (0, self.augmentation.upside_down)):
            if rng.random() < chance:
                picture, soft = np.flip(picture, axis), np.flip(soft, axis)
        if self.augmentation.light:
            change = self.augmentation.light * rng.uniform(-1, 1, 2)
            lit = (picture.astype(np.float32) - 128) * (1 + change[0]) + 128 * (1 + change[1])
            picture = np.clip(np.rint(lit), 0, 255).astype(np.uint8)
        return Sample(np.ascontiguousarray(picture), self._target(sample, np.ascontiguousarray(soft)))

    def _soft(self, sample: Sample, way: Preprocessing, size: tuple[int, int]) -> NDArray[np.float32]:
        """``(h, w)``: the dilated mask resized as the picture is, from 0 to 1."""
        mask: Mask | None = sample.target[0]
        if mask is None or not mask.any():
            return np.zeros(size, np.float32)
        if mask.shape != sample.picture.shape[:2]:
            raise DataError(f"a mask of {mask.shape} pixels belongs to a picture of {sample.picture.shape[:2]}")
        grown = dilated(mask, self.dilation).astype(np.uint8)[:, :, None] * 255
        grey = Preprocessing((0.0,), (1.0,), way.resize, way.crop, way.interpolation)
        return np.asarray(grey.pixels(grown)[:, :, 0] / np.float32(255), np.float32)

    def _target(self, sample: Sample, soft: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """By name: ``defective`` and ``segmented`` (1,), and of the mask's places (1, h, w) ``mask``, ``weights`` and ``touched``."""
        weights = (
            pixel_weights(soft, self.weighing.power, self.weighing.most)
            if self.weighing.weighted
            else np.ones_like(soft)
        )
        _, defective, segmented = sample.target
        return {
            "defective": np.array([defective], np.float32), "segmented": np.array([segmented], np.float32),
            "mask": reduced(soft)[None], "weights": reduced(weights)[None], "touched": touched(soft >= FILLED)[None],
        }  # fmt: skip

    def collate(self, targets: Sequence[Any]) -> Any:
        return {key: torch.stack([torch.as_tensor(one[key]) for one in targets]) for key in targets[0]}

    def epoch_size(self) -> int:
        count, total = int(self._splits["train"].defective.sum()), self.size("train")
        return 2 * count if self.sampling == "frequency" and 2 * count < total else total

    def training_order(self, epoch: int, seed: int) -> NDArray[np.int64]:
        defective = self._splits["train"].defective
        indices = np.arange(len(defective))
        if self.epoch_size() < len(defective):
            sound = np.flatnonzero(~defective)
            chosen = next(islice(draws(len(sound), int(defective.sum()), seed), epoch, None))
            indices = np.concatenate([np.flatnonzero(defective), sound[chosen]])
        return np.random.default_rng([seed, epoch, 1]).permutation(indices)

    def model_options(self) -> Mapping[str, int]:
        return {**super().model_options(), "num_classes": 1}

    def loss(self, outputs: Tensors, batch: Batch) -> dict[str, Tensor]:
        target, (mine, others) = batch.target, self._balance(batch.progress)
        decision = F.binary_cross_entropy_with_logits(outputs["decision"].reshape(-1, 1), target["defective"])
        if not self.mask:
            return {"decision": self.weighing.delta * decision}
        pixels = (
            F.binary_cross_entropy_with_logits(outputs["mask"], target["mask"], reduction="none") * target["weights"]
        )
        known = (pixels.mean(dim=(1, 2, 3)) * target["segmented"][:, 0]).mean()
        return {"mask": mine * known, "decision": others * self.weighing.delta * decision}

    def _balance(self, progress: float | None) -> tuple[float, float]:
        """Factors of the pixels' loss and of the decision's."""
        return (1 - progress, progress) if self.weighing.dynamic and progress is not None else (1.0, 1.0)

    def distill_loss(self, student: Tensors, teacher: Tensors, temperature: float) -> Tensor:
        """Binary cross-entropy with the teacher's softened answers, less the teacher's own entropy."""
        parts = []
        for name in self.output_names:
            wanted = (teacher[name].detach() / temperature).sigmoid()
            found = F.binary_cross_entropy_with_logits(student[name] / temperature, wanted)
            own = F.binary_cross_entropy_with_logits(teacher[name].detach() / temperature, wanted)
            parts.append((found - own) * temperature**2)
        return torch.stack(parts).sum()

    def metrics(self, results: Iterable[tuple[Arrays, Batch]]) -> dict[str, float | MetricTable]:
        """Of images: both areas under the precision-recall curve, AUROC, and what the threshold of the best F1 gives; of the mask's
        places (8 x 8 pixels, defective where one of them is): AP and IoU, where masks are known.
        """
        images, places = self._rankings(results)
        if (best := images.best) is None:
            raise DataError(f"AP is undefined: of the {images.positives + images.negatives} pictures judged on, "
                            f"{images.positives} are defective")  # fmt: skip
        found: dict[str, float | MetricTable] = {
            AP.name: images.ap_trapezoid, "AP (step)": images.ap_step, "AUROC": images.auroc, "F1": best.f1,
            "accuracy": best.accuracy, "threshold": best.threshold, "TP": best.tp, "FP": best.fp, "FN": best.fn, "TN": best.tn,
        }  # fmt: skip
        columns = {
            "images": ("%", (images.ap_trapezoid, images.ap_step, images.auroc, best.f1, best.accuracy, best.iou))
        }
        if places is not None and (pixel := places.best) is not None:
            found |= {"pixel AP": places.ap_step, "pixel IoU": pixel.iou}
            columns["places"] = (
                "%",
                (places.ap_trapezoid, places.ap_step, places.auroc, pixel.f1, pixel.accuracy, pixel.iou),
            )
        found["images and places"] = MetricTable.of(MEASURES, columns)
        found["decisions at the best F1"] = MetricTable.confusion(KINDS, ((best.tn, best.fp), (best.fn, best.tp)))
        return found

    def _rankings(self, results: Iterable[tuple[Arrays, Batch]]) -> tuple[Ranking, Ranking | None]:
        scores, truth, heat, marked = [], [], [], []
        for outputs, batch in results:
            scores.append(outputs["decision"].reshape(-1))
            truth.append(batch.target["defective"].numpy().reshape(-1) > 0)
            if self.mask:
                known = batch.target["segmented"].numpy()[:, 0] > 0
                heat.append(outputs["mask"][known].ravel())
                marked.append(batch.target["touched"].numpy()[known].ravel())
        places = Ranking.of(sigmoid(np.concatenate(heat)), np.concatenate(marked)) if self.mask else None
        return Ranking.of(sigmoid(np.concatenate(scores)), np.concatenate(truth)), places

    def tuned(self, predict: Predict, batch_size: int) -> dict[str, Any]:
        """Thresholds of the best F1 on pictures that were kept out of training."""
        if not self.validation:
            return {}
        images, places = self._rankings(self._validated(predict, batch_size))
        found = {"threshold": images.best, "mask_threshold": places.best if places is not None else None}
        return {name: best.threshold for name, best in found.items() if best is not None}

    def _validated(self, predict: Predict, batch_size: int) -> Iterator[tuple[Arrays, Batch]]:
        for start in range(0, self.size("validation"), batch_size):
            batch = self.samples("validation", np.arange(start, min(start + batch_size, self.size("validation"))))
            outputs = predict({self.input_names[0]: padded(batch.inputs[0].numpy(), batch_size)})
            yield {name: outputs[name][: batch.count] for name in self.output_names}, batch

    def check(self, outputs: Mapping[str, tuple[int, ...]], batch: Batch) -> None:
        height, width = batch.inputs[0].shape[2:]
        wanted = {"decision": (1,), "mask": (1, height // STRIDE, width // STRIDE)}
        for name in self.output_names:
            if math.prod(outputs[name][1:]) != math.prod(wanted[name]) or (
                name == "mask" and outputs[name][1:] != wanted[name]
            ):
                raise DataError(f"the network must return '{name}' of shape (samples, {', '.join(map(str, wanted[name]))}) for "
                                f"pictures of {height} x {width} pixels, got {dict(outputs)}")  # fmt: skip

    def deployment(self) -> Deployment:
        settings = {"threshold": 0.5, "mask_threshold": 0.5}
        return Deployment(
            self.preprocessing, KINDS, self.input_names[0], self.output_names, "inspection", settings, MEANING
        )

    def _split(self, name: str) -> DefectSplit:
        return self._splits[name] if name in self._splits else self.surfaces.split(name)
