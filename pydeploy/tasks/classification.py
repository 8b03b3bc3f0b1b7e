"""Image classification: one label per image, cross-entropy, accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pydeploy.data.deployment import Deployment
from pydeploy.data.image_sets import ImageSet
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import ConfigError, DataError, nearest
from pydeploy.tasks.augment import Augment, augment
from pydeploy.tasks.contract import SPLITS, Arrays, Batch, Task, Tensors
from pydeploy.tasks.losses import soft_divergence
from pydeploy.tasks.metric import Metric, MetricTable
from pydeploy.tasks.sampling import wilson

ACCURACY = Metric("accuracy")
TOP = 5
MOST_CLASSES = 100
"""Confusion matrices of more are left out: a thousand classes are a million numbers an engine."""


@dataclass(frozen=True)
class Classification(Task):
    """The contract of `Task` for an image set; outputs are logits ``(N, classes)``."""

    images: ImageSet
    augmentation: Augment = field(default_factory=Augment)
    label_smoothing: float = 0.0
    metric: Metric = ACCURACY
    input_names: tuple[str, ...] = ("image",)
    output_names: tuple[str, ...] = ("logits",)

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")

    @property
    def data(self) -> str:  # type: ignore[override]
        return self.images.name

    def digest(self) -> str:
        return self.images.digest()

    def deployment(self) -> Deployment:
        return Deployment(self.images.preprocessing, self.images.class_names, self.input_names[0], self.output_names)

    def size(self, split: str) -> int:
        return len(self._split(split)[1])

    def model_options(self) -> Mapping[str, int]:
        return {"num_classes": self.images.classes, "in_channels": self.images.train_images.shape[1]}

    def samples(self, split: str, chosen: NDArray[np.int64], preprocessing: Preprocessing | None = None) -> Batch:
        images, labels = self._split(split)
        pixels = (preprocessing or self.images.preprocessing)(images[chosen], planar=True)
        return Batch((torch.from_numpy(pixels),), torch.from_numpy(labels[chosen]))

    def train_batches(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(self.size("train"))
        images = torch.from_numpy(self.images.train_images)
        labels = torch.from_numpy(self.images.train_labels)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            pixels = augment(images, chosen, self.augmentation, epoch=epoch, seed=seed, rng=rng)
            inputs = torch.from_numpy(self.images.normalize(pixels.numpy()))
            yield Batch((inputs,), labels[torch.from_numpy(chosen)])

    def loss(self, outputs: Tensors, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs["logits"], batch.target, label_smoothing=self.label_smoothing)

    def distill_loss(self, student: Tensors, teacher: Tensors, temperature: float) -> Tensor:
        return soft_divergence(student["logits"], teacher["logits"], temperature)

    def metrics(self, results: Iterable[tuple[Arrays, Batch]]) -> dict[str, float | MetricTable]:
        """``accuracy``, the share of correct labels, ``top-5 accuracy`` where there are more classes, and ``loss``, the mean
        cross-entropy, summed in float64. Of equal logits the first counts as the larger one. Beside them the accuracy of each class
        with its 95 % interval (Wilson), and the confusion matrix of at most `MOST_CLASSES` classes.
        """
        names, loss, among = self.images.class_names, 0.0, 0
        counts = np.zeros((len(names), len(names)), np.int64)
        for outputs, batch in results:
            logits, labels = outputs["logits"].astype(np.float64), batch.target.numpy()
            np.add.at(counts, (labels, logits.argmax(axis=1)), 1)
            own = logits[np.arange(len(labels)), labels][:, None]
            earlier = np.arange(logits.shape[1]) < labels[:, None]
            among += int((((logits > own) | ((logits == own) & earlier)).sum(axis=1) < TOP).sum())
            peak = logits.max(axis=1)
            log_sum = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
            loss += float((log_sum - logits[np.arange(len(labels)), labels]).sum())
        total = int(counts.sum())
        numbers = {"accuracy": int(np.trace(counts)) / total, "loss": loss / total}
        if len(names) > TOP:
            numbers["top-5 accuracy"] = among / total
        matrix = {"confusion": MetricTable.confusion(names, counts.tolist())} if len(names) <= MOST_CLASSES else {}
        return {**numbers, "classes": _by_class(names, counts), **matrix}

    def check(self, outputs: Mapping[str, tuple[int, ...]], batch: Batch) -> None:  # noqa: ARG002
        found = outputs["logits"]
        if len(found) != 2 or found[1] != self.images.classes:
            raise DataError(
                f"the network must return 'logits' of shape (samples, {self.images.classes}), got {dict(outputs)}: the data "
                f"set '{self.data}' has {self.images.classes} classes"
            )

    def _split(self, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        if split == "train":
            return self.images.train_images, self.images.train_labels
        if split == "test":
            return self.images.test_images, self.images.test_labels
        raise ConfigError(f"unknown split '{split}'{nearest(split, SPLITS)}")


def _by_class(names: Sequence[str], counts: NDArray[np.int64]) -> MetricTable:
    """The share of each class's samples that are found; undefined for a class without samples."""
    right, samples = np.diag(counts).tolist(), counts.sum(axis=1).tolist()
    ends = [wilson(k, n) if n else (math.nan, math.nan) for k, n in zip(right, samples, strict=True)]
    shares = [k / n if n else math.nan for k, n in zip(right, samples, strict=True)]
    return MetricTable.of(names, {"accuracy": ("%", shares), "from": ("%", [low for low, _ in ends]),
                                  "to": ("%", [high for _, high in ends]), "samples": ("", samples)})  # fmt: skip
