"""Semantic segmentation: a class for every pixel; cross-entropy and Dice, mean IoU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pydeploy.data.deployment import Deployment
from pydeploy.data.masked_set import MaskedSet
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import ConfigError, DataError
from pydeploy.tasks.confusion import Agreement, confusion
from pydeploy.tasks.contract import Arrays, Batch, Tensors
from pydeploy.tasks.losses import pixel_cross_entropy, soft_dice, soft_divergence
from pydeploy.tasks.mask_augment import Joint, MaskAugment
from pydeploy.tasks.metric import Metric, MetricTable
from pydeploy.tasks.picture_task import PictureTask, Sample

MIOU = Metric("mIoU", counted=False)
BALANCED = "balanced"


@dataclass(frozen=True)
class Segmentation(PictureTask):
    """The contract of `Task` for a `MaskedSet`; outputs are logits ``(N, classes, h, w)`` of any height and width.

    The loss compares them, resized to the masks, with the classes of pixels: cross-entropy plus `dice` times the Dice loss, and
    `auxiliary` times the cross-entropy of every further output that a network has in training. `class_weights` are one a class,
    or ``balanced``: the median of the classes' shares of all pixels over each class's own, as in SegNet, to the power of 1/2.
    """

    images: MaskedSet
    augmentation: MaskAugment = field(default_factory=MaskAugment)
    dice: float = 0.0
    class_weights: str | tuple[float, ...] | None = None
    auxiliary: float = 0.4
    workers: int | None = None
    metric: Metric = MIOU
    output_names: tuple[str, ...] = ("logits",)

    def __post_init__(self) -> None:
        for key, value in (("dice", self.dice), ("auxiliary", self.auxiliary)):
            if not 0 <= value <= 100:
                raise ConfigError(f"'{key}' is the weight of a loss, 0 to 100, got {value}")
        given = self.class_weights
        if isinstance(given, str) and given != BALANCED:
            raise ConfigError(f"'class_weights' is '{BALANCED}' or {self.images.classes} numbers, got '{given}'")
        if isinstance(given, tuple) and (len(given) != self.images.classes or min(given) < 0 or not max(given) > 0):
            raise ConfigError(
                f"'class_weights' must hold {self.images.classes} numbers of 0 or more, got {list(given)}"
            )

    @property
    def data(self) -> str:  # type: ignore[override]
        return self.images.name

    @property
    def preprocessing(self) -> Preprocessing:  # type: ignore[override]
        return self.images.preprocessing

    @property
    def validation_split(self) -> str:  # type: ignore[override]
        return "test" if self.images.validation is None else "validation"

    def digest(self) -> str:
        return self.images.digest()

    def size(self, split: str) -> int:
        return len(self.images.split(split))

    def model_options(self) -> Mapping[str, int]:
        return {"num_classes": self.images.classes, "in_channels": self.images.channels}

    def deployment(self) -> Deployment:
        return Deployment(
            self.preprocessing, self.images.class_names, self.input_names[0], self.output_names, "segmentation",
            {"colours": [list(colour) for colour in self.images.colours]},
            "logits (classes, height, width); resized bilinearly to the picture, the largest is the pixel's class",
        )  # fmt: skip

    def sample(self, split: str, index: int) -> Sample:
        return Sample(*self.images.split(split).read(index))

    def augmented(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: ARG002  # v2 draws from torch's generator
        size = self.preprocessing.size(*sample.picture.shape[:2])
        picture, mask = self._joint(size)(sample.picture, sample.target)
        return Sample(picture.permute(1, 2, 0).numpy(), mask)

    def loss(self, outputs: Tensors, batch: Batch) -> dict[str, Tensor]:
        logits, parts = outputs["logits"], {}
        parts["cross-entropy"] = self._mean(self._cross_entropy, logits, batch.target)
        if self.dice:
            parts["dice"] = self.dice * self._mean(soft_dice, logits, batch.target)
        for name, other in outputs.items():
            if name not in self.output_names and self.auxiliary:
                parts[name] = self.auxiliary * self._mean(self._cross_entropy, other, batch.target)
        return parts

    def distill_loss(self, student: Tensors, teacher: Tensors, temperature: float) -> Tensor:
        return soft_divergence(student["logits"], teacher["logits"], temperature)

    def metrics(self, results: Iterable[tuple[Arrays, Batch]]) -> dict[str, float | MetricTable]:
        """Mean IoU over the classes that occur or are predicted, other means, and a table of the classes.

        Logits are resized bilinearly to each mask. Raises `DataError` where no pixel of the test set has a class.
        """
        counts = np.zeros((self.images.classes, self.images.classes), np.int64)
        for outputs, batch in results:
            logits = torch.from_numpy(np.ascontiguousarray(outputs["logits"], np.float32))
            for scores, mask in _pairs(logits, batch.target):
                found = _resized(scores, mask).argmax(dim=1)
                counts += confusion(mask.numpy(), found.numpy(), self.images.classes)
        if not counts.any():
            raise DataError(f"no pixel of the test masks of '{self.data}' has a class: all are ignored")
        agreement, names = Agreement(counts), self.images.class_names
        columns = {
            "IoU": ("%", agreement.iou),
            "accuracy": ("%", agreement.recall),
            "share of pixels": ("%", agreement.share),
        }
        return {
            "mIoU": agreement.mean_iou,
            "pixel accuracy": agreement.pixel_accuracy,
            "class accuracy": agreement.class_accuracy,
            "frequency-weighted IoU": agreement.weighted_iou,
            "classes": MetricTable.of(names, {key: (unit, values.tolist()) for key, (unit, values) in columns.items()}),
            "confusion": MetricTable.confusion(names, counts.tolist()),
        }

    def check(self, outputs: Mapping[str, tuple[int, ...]], batch: Batch) -> None:  # noqa: ARG002
        found = outputs["logits"]
        if len(found) != 4 or found[1] != self.images.classes:
            raise DataError(
                f"the network must return 'logits' of shape (samples, {self.images.classes}, height, width), got {dict(outputs)}: "
                f"the data set '{self.data}' has {self.images.classes} classes"
            )

    def _mean(self, loss: Any, logits: Tensor, target: Tensor | Sequence[Tensor]) -> Tensor:
        """`loss` of logits resized to the masks; over the samples, where these are of different sizes, their mean."""
        parts = [loss(_resized(scores, mask), mask.long()) for scores, mask in _pairs(logits, target)]
        return torch.stack(parts).mean()

    def _cross_entropy(self, logits: Tensor, classes: Tensor) -> Tensor:
        return pixel_cross_entropy(logits, classes, None if self._weights is None else self._weights.to(logits.device))

    def _joint(self, size: tuple[int, int]) -> Joint:
        if size not in self._made:
            self._made[size] = Joint(self.augmentation, size, self.preprocessing.mean)
        return self._made[size]

    @cached_property
    def _made(self) -> dict[tuple[int, int], Joint]:
        return {}

    @cached_property
    def _weights(self) -> Tensor | None:
        if self.class_weights is None:
            return None
        return torch.tensor(
            balanced(self.images.train.pixels()[: self.images.classes])
            if self.class_weights == BALANCED
            else self.class_weights,
            dtype=torch.float32,
        )


def balanced(pixels: NDArray[np.int64]) -> list[float]:
    """A weight for each class from its number of `pixels`: the root of the median share over its own; 0 for none."""
    median = float(np.median(pixels[pixels > 0]))
    return [float(np.sqrt(median / count)) if count else 0.0 for count in pixels.tolist()]


def _pairs(logits: Tensor, target: Tensor | Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits ``(n, classes, h, w)`` with masks ``(n, H, W)``: all at once where masks are of one size, else one by one."""
    if isinstance(target, Tensor):
        yield logits, target
    else:
        yield from ((scores[None], mask[None]) for scores, mask in zip(logits, target, strict=True))


def _resized(logits: Tensor, mask: Tensor) -> Tensor:
    return F.interpolate(logits, size=tuple(mask.shape[-2:]), mode="bilinear", align_corners=False)
