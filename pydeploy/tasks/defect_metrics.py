"""How well scores tell defective from sound: curves over all thresholds, and the best one. NumPy alone.

Everything is NaN, that is undefined, where there are only defective samples or only sound ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Truth = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Counts:
    """Decisions ``score >= threshold`` against the truth."""

    threshold: float
    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def f1(self) -> float:
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def accuracy(self) -> float:
        return _share(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    @property
    def iou(self) -> float:
        """Of the defective ones."""
        return _share(self.tp, self.tp + self.fp + self.fn)


@dataclass(frozen=True, slots=True)
class Ranking:
    """All decisions that a threshold can make: at each distinct score, highest first, what lies at or above it."""

    thresholds: Scores
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    positives: int
    negatives: int

    @classmethod
    def of(cls, scores: Scores, defective: Truth) -> Ranking:
        """From one score and one truth a sample."""
        order = np.argsort(-scores, kind="stable")
        ranked, hits = scores[order], defective[order].astype(np.int64)
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], np.ones(min(1, len(ranked)), np.bool_)))
        tp = hits.cumsum()[last]
        return cls(ranked[last], tp, last + 1 - tp, int(hits.sum()), int(len(hits) - hits.sum()))

    @property
    def defined(self) -> bool:
        return self.positives > 0 and self.negatives > 0

    @property
    def ap_trapezoid(self) -> float:
        """Area under the precision-recall curve by trapezoids, from precision 1 at recall 0, as the method's authors report it."""
        recall, precision = self._curve()
        return float(np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2)) if self.defined else math.nan

    @property
    def ap_step(self) -> float:
        """Mean precision over the steps of recall: no line is drawn between points."""
        recall, precision = self._curve()
        return float(np.sum(np.diff(recall) * precision[1:])) if self.defined else math.nan

    @property
    def auroc(self) -> float:
        """How often a defective sample scores higher than a sound one; ties count half."""
        if not self.defined:
            return math.nan
        tp, fp = (np.concatenate([[0], counts]) for counts in (self.tp, self.fp))
        return float(np.sum(np.diff(fp) * (tp[1:] + tp[:-1]) / 2) / (self.positives * self.negatives))

    @property
    def best(self) -> Counts | None:
        """At the threshold of the highest F1, the highest such one; None where that is undefined."""
        if not self.defined:
            return None
        at = int(np.argmax(2 * self.tp / (self.tp + self.fp + self.positives)))
        return self._at(at)

    def at(self, threshold: float) -> Counts:
        """The decisions of one threshold."""
        return self._at(int(np.count_nonzero(self.thresholds >= threshold)) - 1, threshold)

    def _at(self, index: int, threshold: float | None = None) -> Counts:
        tp, fp = (int(self.tp[index]), int(self.fp[index])) if index >= 0 else (0, 0)
        chosen = float(self.thresholds[index]) if threshold is None else threshold
        return Counts(chosen, tp, fp, self.positives - tp, self.negatives - fp)

    def _curve(self) -> tuple[Scores, Scores]:
        recall = np.concatenate([[0.0], self.tp / max(self.positives, 1)])
        return recall, np.concatenate([[1.0], self.tp / np.maximum(self.tp + self.fp, 1)])


def sigmoid(logits: NDArray[np.floating]) -> Scores:
    """In float64, without overflow."""
    powers = np.exp(-np.abs(logits.astype(np.float64)))
    return np.where(logits >= 0, 1.0, powers) / (1.0 + powers)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
