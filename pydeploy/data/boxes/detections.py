"""What an SSD found in a picture: from raw scores and offsets to boxes with classes. Without torch: it runs on boards too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.boxes.geometry import Floats, nms_by_class
from pydeploy.data.boxes.priors import decode
from pydeploy.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Cleaning:
    """Which boxes are told: of each class the best `candidates` with scores above `score`; of those that overlap by more than `iou`
    the best; of all that are left the best `most`.
    """

    score: float = 0.01
    iou: float = 0.45
    most: int = 100
    candidates: int = 400

    def __post_init__(self) -> None:
        if not 0 <= self.score < 1 or not 0 < self.iou <= 1 or min(self.most, self.candidates) < 1:
            raise ConfigError(f"score must lie in [0, 1), iou in (0, 1], most and candidates be at least 1, got {self}")


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes in one picture, best first."""

    boxes: Floats
    """``(n, 4)``: left, top, right, bottom as shares of the picture."""
    labels: NDArray[np.int64]
    """``(n,)``: places among the classes."""
    scores: Floats
    """``(n,)`` in [0, 1]."""

    def __len__(self) -> int:
        return len(self.labels)


def detections(scores: Floats, offsets: Floats, priors: Floats, cleaning: Cleaning) -> Detections:
    """The objects in one picture, from ``(P, classes + 1)`` logits and ``(P, 4)`` offsets at `priors` (centres)."""
    logits = scores.astype(np.float32)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares = (powers / powers.sum(1, keepdims=True))[:, 1:]
    least = np.full(shares.shape[1], cleaning.score, np.float32)
    if len(shares) > cleaning.candidates:
        least = np.maximum(least, np.partition(shares, -cleaning.candidates - 1, axis=0)[-cleaning.candidates - 1])
    rows, labels = np.nonzero(shares > least)
    used, place = np.unique(rows, return_inverse=True)
    boxes = np.clip(decode(offsets[used].astype(np.float32), priors[used]), 0, 1)[place]
    found = shares[rows, labels]
    kept = nms_by_class(boxes, found, labels, cleaning.iou)[: cleaning.most]
    return Detections(boxes[kept], labels[kept].astype(np.int64), found[kept])
