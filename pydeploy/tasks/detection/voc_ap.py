"""Average precision of detections as PASCAL VOC defines it, at one IoU; by 11 points (2007) or the whole curve (2010 on).

COCO's curve, read at 101 points, is the third form.

Source: Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", 2015.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.boxes.box_set import Objects
from pydeploy.data.boxes.detections import Detections
from pydeploy.data.boxes.geometry import iou

Numbers = NDArray[np.float64]


class VocAP:
    """Collects pictures, then says the average precision of each class."""

    def __init__(self, classes: int, threshold: float = 0.5, points: int | None = None) -> None:
        self.classes, self.threshold, self.points = classes, threshold, points
        self._scores: list[list[Numbers]] = [[] for _ in range(classes)]
        self._right: list[list[NDArray[np.int64]]] = [[] for _ in range(classes)]
        self.objects = np.zeros(classes, np.int64)
        """Of each class, without difficult ones."""

    def add(self, found: Detections, truth: Objects) -> None:
        """One picture: every detection, best first, takes the object that it overlaps most.

        It is right where the overlap is at least the threshold and nobody took the object before, of no account where the object
        is difficult, else wrong.
        """
        self.objects += np.bincount(truth.labels[~truth.difficult], minlength=self.classes)
        for label in np.unique(found.labels):
            own = np.flatnonzero(found.labels == label)
            own = own[np.argsort(-found.scores[own], kind="stable")]
            wanted = np.flatnonzero(truth.labels == label)
            verdicts = _verdicts(iou(found.boxes[own], truth.boxes[wanted]), truth.difficult[wanted], self.threshold)
            self._scores[label].append(found.scores[own].astype(np.float64))
            self._right[label].append(verdicts)

    def by_class(self) -> Numbers:
        """Average precision ``(classes,)``; NaN where a class has no object."""
        return np.array([self._of(label) for label in range(self.classes)])

    def mean(self) -> float:
        """Over classes that have objects; NaN where none has."""
        found = self.by_class()
        return float(found[~np.isnan(found)].mean()) if self.objects.any() else float("nan")

    def _of(self, label: int) -> float:
        if not self.objects[label]:
            return float("nan")
        scores = np.concatenate([*self._scores[label], np.zeros(0)])
        right = np.concatenate([*self._right[label], np.zeros(0, np.int64)])[np.argsort(-scores, kind="stable")]
        right = right[right >= 0]
        hits = np.cumsum(right)
        recall, precision = hits / self.objects[label], hits / np.arange(1, len(hits) + 1)
        return area(recall, precision, self.points)


def area(recall: Numbers, precision: Numbers, points: int | None = None) -> float:
    """Area under a curve of precision over recall (ascending), where precision counts as the best at this or a higher recall.

    With `points` the mean of it at so many recalls, equally spaced from 0 to 1.
    """
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if points is not None:
        places = np.searchsorted(recall, np.linspace(0, 1, points) - 1e-12)
        return float(np.append(best, 0.0)[places].mean())
    return float((np.diff(recall, prepend=0.0) * best).sum())


def _verdicts(overlap: NDArray[np.float32], difficult: NDArray[np.bool_], threshold: float) -> NDArray[np.int64]:
    """1 right, 0 wrong, -1 of no account; detections in rows, best first, objects in columns."""
    if not overlap.shape[1]:
        return np.zeros(len(overlap), np.int64)
    best = overlap.argmax(1)
    near = overlap.max(1) >= threshold
    first = np.zeros(len(overlap), bool)
    rows = np.flatnonzero(near)
    first[rows[np.unique(best[rows], return_index=True)[1]]] = True
    return np.where(near & difficult[best], -1, (near & first).astype(np.int64))
