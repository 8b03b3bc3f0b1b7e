"""Image classification: one label per image, cross-entropy, accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pydeploy.data.image_sets import ImageSet, load
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import ConfigError, DataError, nearest
from pydeploy.models import build
from pydeploy.tasks.augment import Augment, augment, augment_by
from pydeploy.tasks.contract import Batch, Predict, Task, padded
from pydeploy.tasks.losses import soft_divergence

_SPLITS = ("train", "test")


@dataclass(frozen=True)
class Classification:
    """The contract of `Task` for an image set and a model of the zoo; outputs are logits ``(N, classes)``."""

    model: str
    images: ImageSet
    model_settings: Mapping[str, int] = field(default_factory=dict)
    augmentation: Augment = field(default_factory=Augment)
    label_smoothing: float = 0.0
    name: str = "classification"
    metric: str = "accuracy"
    input_names: tuple[str, ...] = ("image",)
    output_names: tuple[str, ...] = ("logits",)

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")

    @property
    def data(self) -> str:
        return self.images.name

    def digest(self) -> str:
        return self.images.digest()

    @property
    def train_size(self) -> int:
        return len(self.images.train_labels)

    def build_model(self) -> nn.Module:
        shape = {"num_classes": self.images.classes, "in_channels": self.images.train_images.shape[1]}
        return build(self.model, **{**shape, **self.model_settings})

    def example(self) -> tuple[Tensor, ...]:
        return (torch.from_numpy(self.images.normalize(self.images.test_images[:1])),)

    def train_batches(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(self.train_size)
        images = torch.from_numpy(self.images.train_images)
        labels = torch.from_numpy(self.images.train_labels)
        for start in range(0, self.train_size - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            pixels = augment(images, chosen, self.augmentation, epoch=epoch, seed=seed, rng=rng)
            inputs = torch.from_numpy(self.images.normalize(pixels.numpy()))
            yield Batch((inputs,), labels[torch.from_numpy(chosen)])

    def eval_batches(
        self, batch_size: int, split: str = "test", preprocessing: Preprocessing | None = None
    ) -> Iterator[Batch]:
        images, labels = self._split(split)
        prepare = preprocessing or self.images.preprocessing
        for start in range(0, len(labels), batch_size):
            samples = torch.from_numpy(prepare(images[start : start + batch_size], planar=True))
            yield Batch((samples,), torch.from_numpy(labels[start : start + batch_size]))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs, batch.target, label_smoothing=self.label_smoothing)

    def distill_loss(self, student_outputs: Tensor, teacher_outputs: Tensor, temperature: float) -> Tensor:
        return soft_divergence(student_outputs, teacher_outputs, temperature)

    def evaluate(self, predict: Predict, *, batch_size: int, limit: int | None = None) -> dict[str, float]:
        """``{"accuracy": share of correct labels in [0, 1], "loss": mean cross-entropy}``, summed in float64."""
        total = min(limit or len(self.images.test_labels), len(self.images.test_labels))
        correct, loss, seen = 0, 0.0, 0
        for batch in self.eval_batches(batch_size):
            feed = padded(batch.inputs[0].numpy(), batch_size)
            use = min(len(batch.target), total - seen)
            logits = self._logits(predict({self.input_names[0]: feed}), batch_size)[:use]
            labels = batch.target.numpy()[:use]
            correct += int((logits.argmax(axis=1) == labels).sum())
            peak = logits.max(axis=1)
            log_sum = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
            loss += float((log_sum - logits[np.arange(use), labels]).sum())
            seen += use
            if seen == total:
                break
        return {"accuracy": correct / total, "loss": loss / total}

    def _logits(self, outputs: Mapping[str, NDArray[Any]], batch_size: int) -> NDArray[np.float64]:
        name, shape = self.output_names[0], (batch_size, self.images.classes)
        if name not in outputs or outputs[name].shape != shape:
            found = {key: value.shape for key, value in outputs.items()}
            raise DataError(f"the network must return '{name}' of shape {shape}, got {found}")
        logits = outputs[name].astype(np.float64)
        if not np.isfinite(logits).all():
            raise DataError(f"output '{name}' holds NaN or infinity; the weights or the quantization ranges are broken")
        return logits

    def _split(self, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        if split == "train":
            return self.images.train_images, self.images.train_labels
        if split == "test":
            return self.images.test_images, self.images.test_labels
        raise ConfigError(f"unknown split '{split}'{nearest(split, _SPLITS)}")


def classification(
    model: str = "resnet20",
    data: str = "fashion_mnist",
    model_settings: Mapping[str, Any] | None = None,
    data_settings: Mapping[str, Any] | None = None,
    augmentation: Mapping[str, Any] | None = None,
    label_smoothing: float = 0.0,
) -> Task:
    """A classification task by names: a model of `models.MODELS` and an image set of `train.data.DATA`.

    `augmentation` holds fields of `Augment`.
    """
    images = load(data, **(data_settings or {}))
    task = Classification(model, images, model_settings or {}, augment_by(augmentation or {}), label_smoothing)
    task.build_model()  # wrong settings are found now, not after minutes of other work
    return task
