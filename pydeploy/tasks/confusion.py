"""How well classes of pixels are told apart: everything from one table of counts.

Formulas: Long, Shelhamer and Darrell, "Fully convolutional networks for semantic segmentation", 2015. Counts go over the whole
set, not picture by picture; what is undefined, such as the IoU of a class that neither occurs nor is predicted, is NaN and does
not enter a mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def confusion(truth: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """``(classes, classes)``: pixels of each true class (rows) by what was predicted (columns).

    Both arrays have one shape. Pixels whose true class is not one of 0 to ``classes - 1`` do not count.
    """
    counted = (truth >= 0) & (truth < classes)
    places = truth[counted].astype(np.int64) * classes + predicted[counted]
    return np.bincount(places, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


@dataclass(frozen=True)
class Agreement:
    """What a table of `counts` ``(classes, classes)``, true classes by row, says. Values are shares in [0, 1] or NaN."""

    counts: NDArray[np.int64]

    @cached_property
    def iou(self) -> Floats:
        """Of each class: pixels that are right, over those that are of the class or were taken for it."""
        return _ratio(self._right, self._true + self._taken - self._right)

    @cached_property
    def recall(self) -> Floats:
        """Of each class: share of its pixels that are right."""
        return _ratio(self._right, self._true)

    @property
    def mean_iou(self) -> float:
        """Over the classes that occur or were predicted."""
        return _mean(self.iou)

    @property
    def pixel_accuracy(self) -> float:
        """Share of all pixels that are right."""
        return float(_ratio(self._right.sum(), self._true.sum()))

    @property
    def class_accuracy(self) -> float:
        """Mean of `recall` over the classes that occur."""
        return _mean(self.recall)

    @property
    def weighted_iou(self) -> float:
        """`iou` weighted by how often each class occurs."""
        occurs = self._true > 0
        return float(_ratio((self._true * np.where(occurs, self.iou, 0)).sum(), self._true.sum()))

    @property
    def share(self) -> Floats:
        """Of each class: its share of all pixels."""
        return _ratio(self._true, self._true.sum())

    @property
    def _right(self) -> Floats:
        return np.diag(self.counts).astype(np.float64)

    @property
    def _true(self) -> Floats:
        return np.asarray(self.counts.sum(axis=1), np.float64)

    @property
    def _taken(self) -> Floats:
        return np.asarray(self.counts.sum(axis=0), np.float64)


def _ratio(part: Floats, whole: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan))


def _mean(values: Floats) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
