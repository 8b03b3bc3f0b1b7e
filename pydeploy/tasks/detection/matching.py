"""What an SSD is to say at each prior box for the objects of a batch of pictures, and the loss of what it says instead.

Source: Liu et al., "SSD: Single Shot MultiBox Detector", 2016, section 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pydeploy.data.boxes.box_set import Objects
from pydeploy.data.boxes.priors import CENTRE, SIZE

POSITIVE = 0.5
"""IoU from which on a prior box stands for an object."""
NEGATIVES = 3
"""Priors without an object that count, for each that has one: those that look most like objects."""


def targets_of(found: Sequence[Objects]) -> dict[str, Tensor]:
    """Objects of the pictures of a batch, filled up to the same number: ``boxes`` ``(N, G, 4)`` (corners, shares), ``labels``
    ``(N, G)`` (1 = the first class, 0 = none), ``difficult`` ``(N, G)`` and ``sizes`` ``(N, 2)`` (height, width in pixels).
    """
    most = max(1, *map(len, found), 1)
    boxes = np.zeros((len(found), most, 4), np.float32)
    labels, difficult = np.zeros((len(found), most), np.int64), np.zeros((len(found), most), bool)
    for index, own in enumerate(found):
        boxes[index, : len(own)], labels[index, : len(own)] = own.boxes, own.labels + 1
        difficult[index, : len(own)] = own.difficult
    sizes = np.array([own.size for own in found], np.int64)
    made = {"boxes": boxes, "labels": labels, "difficult": difficult, "sizes": sizes}
    return {name: torch.from_numpy(array) for name, array in made.items()}


def objects_of(target: Mapping[str, Tensor]) -> list[Objects]:
    """The objects of each picture: undoes `targets_of`."""
    boxes, labels, difficult, sizes = (target[name].numpy() for name in ("boxes", "labels", "difficult", "sizes"))
    return [
        Objects(boxes[n][own], labels[n][own] - 1, difficult[n][own], (int(sizes[n][0]), int(sizes[n][1])))
        for n, own in enumerate(labels > 0)
    ]


def match(target: Mapping[str, Any], priors: Tensor) -> tuple[Tensor, Tensor]:
    """Classes ``(N, P)`` (0 = background) and offsets ``(N, P, 4)`` for `priors` ``(P, 4)`` (centres).

    A prior stands for the object that it overlaps most, from an IoU of a half on; every object has the prior that overlaps it
    most, whatever the overlap, the later one of two objects that want the same. Difficult objects are left out.
    """
    labels = target["labels"] * ~target["difficult"]
    overlap = _iou(
        target["boxes"], torch.cat([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)
    )
    overlap = overlap.masked_fill((labels == 0)[:, :, None], -1)
    share, chosen = overlap.max(1)
    best = overlap.argmax(2)
    order = torch.arange(best.shape[1], device=best.device).expand_as(best).masked_fill(labels == 0, -1)
    forced = torch.full_like(chosen, -1).scatter_reduce(1, best, order, "amax")
    chosen = torch.where(forced >= 0, forced, chosen)
    positive = (share >= POSITIVE) | (forced >= 0)
    boxes = target["boxes"].gather(1, chosen[:, :, None].expand(-1, -1, 4))
    return labels.gather(1, chosen) * positive, _encoded(boxes, priors)


def multibox_loss(scores: Tensor, offsets: Tensor, classes: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Parts of the loss: ``boxes``, smooth L1 over priors with an object, and ``classes``, cross-entropy over these and the
    hardest others; both by the number of priors with an object in the batch.

    `scores` ``(N, P, classes)`` logits, `offsets` and `wanted` ``(N, P, 4)``, `classes` ``(N, P)``. 0 where there is no object.
    """
    positive = classes > 0
    entropy = F.cross_entropy(scores.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)
    with torch.no_grad():
        background = -F.log_softmax(scores, 2)[:, :, 0]
        order = background.masked_fill(positive, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        counted = NEGATIVES * positive.sum(1, keepdim=True)
        places = torch.arange(order.shape[1], device=order.device).expand_as(order)
        hard = torch.zeros_like(positive).scatter(1, order, places < counted) & ~positive
    count = positive.sum().clamp(min=1)
    moved = F.smooth_l1_loss(offsets[positive], wanted[positive], reduction="sum")
    return {"boxes": moved / count, "classes": entropy[positive | hard].sum() / count}


def _iou(boxes: Tensor, priors: Tensor) -> Tensor:
    """``(N, G, P)`` of ``(N, G, 4)`` and ``(P, 4)``, all corners."""
    low = torch.maximum(boxes[:, :, None, :2], priors[:, :2])
    high = torch.minimum(boxes[:, :, None, 2:], priors[:, 2:])
    common = (high - low).clamp(min=0).prod(3)
    areas = [(one[..., 2] - one[..., 0]) * (one[..., 3] - one[..., 1]) for one in (boxes[:, :, None], priors)]
    return common / (areas[0] + areas[1] - common).clamp(min=1e-12)


def _encoded(boxes: Tensor, priors: Tensor) -> Tensor:
    """`pydeploy.data.boxes.priors.encode` for a batch; what stands for no object is finite."""
    middle, sizes = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)
    moved = (middle - priors[:, :2]) / priors[:, 2:] / CENTRE
    return torch.cat([moved, (sizes / priors[:, 2:]).log() / SIZE], 2)
