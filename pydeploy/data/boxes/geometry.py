"""Boxes as arrays ``(N, 4)``: corners are left, top, right, bottom; centres are x, y, width, height. All in one unit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
BLOCK = 256
"""Boxes whose overlaps are computed at once."""


def corners(centres: Floats) -> Floats:
    """Left, top, right, bottom of boxes given as x, y, width, height (last axis)."""
    middle, half = centres[..., :2], centres[..., 2:] / 2
    return np.concatenate([middle - half, middle + half], axis=-1)


def centres(boxes: Floats) -> Floats:
    """Middle x, y, width and height of boxes given by their corners (last axis)."""
    first, last = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([(first + last) / 2, last - first], axis=-1)


def areas(boxes: Floats) -> Floats:
    """Areas ``(N,)`` of boxes given by their corners."""
    found: Floats = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return found


def iou(first: Floats, second: Floats) -> Floats:
    """Share of the union that two boxes have in common: ``(N, M)`` of boxes ``(N, 4)`` and ``(M, 4)`` given by their corners.

    0 where neither has an area.
    """
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=-1)
    union = areas(first)[:, None] + areas(second)[None, :] - common
    found: Floats = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return found


def nms(boxes: Floats, scores: Floats, threshold: float) -> NDArray[np.int64]:
    """Numbers of the boxes that stay, best score first: each removes those that it overlaps by more than `threshold` (IoU).

    Boxes are given by their corners. Of equal scores the first one goes first.
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        first, order = order[:BLOCK], order[BLOCK:]
        over = iou(boxes[first], boxes[first]) > threshold
        alive = np.ones(len(first), bool)
        for place in range(len(first)):
            if alive[place]:
                alive[place + 1 :] &= ~over[place, place + 1 :]
        kept += first[alive].tolist()
        order = order[~(iou(boxes[first[alive]], boxes[order]) > threshold).any(0)]
    return np.array(kept, np.int64)


def nms_by_class(boxes: Floats, scores: Floats, classes: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
    """`nms` among the boxes of each class; the numbers of all that stay, best score first."""
    parts = [np.flatnonzero(classes == one) for one in np.unique(classes)]
    kept = [own[nms(boxes[own], scores[own], threshold)] for own in parts]
    found = np.concatenate(kept) if kept else np.zeros(0, np.int64)
    return found[np.argsort(-scores[found], kind="stable")]
