"""COCO's mean average precision, over IoUs of 0.5 to 0.95, by `faster-coco-eval`.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", 2014.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.boxes.box_set import Objects
from pydeploy.data.boxes.detections import Detections
from pydeploy.errors import BackendUnavailable

Pictures = Sequence[tuple[Detections, Objects]]
NUMBERS = {"COCO mAP": 0, "COCO AP50": 1, "COCO AP75": 2, "COCO AP small": 3, "COCO AP medium": 4, "COCO AP large": 5}
"""Places in the evaluator's list, by name; -1 there means that there is no such object."""


def coco_map(pictures: Pictures, classes: int) -> dict[str, float]:
    """The numbers of `NUMBERS`, shares in [0, 1], NaN where undefined. Difficult objects count as crowds: of no account.

    Raises `BackendUnavailable` where the package is missing.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise BackendUnavailable(
            "COCO's mAP needs the package 'faster-coco-eval': pip install 'pydeploy-hil[coco]'"
        ) from None
    images = [{"id": n + 1, "height": truth.size[0], "width": truth.size[1]} for n, (_, truth) in enumerate(pictures)]
    truths = [
        {
            "id": 0,
            "image_id": n + 1,
            "category_id": int(label) + 1,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": int(ignored),
        }
        for n, (_, truth) in enumerate(pictures)
        for box, label, ignored in zip(_boxes(truth.boxes, truth.size), truth.labels, truth.difficult, strict=True)
    ]
    for number, one in enumerate(truths, 1):
        one["id"] = number
    found = [
        {"image_id": n + 1, "category_id": int(label) + 1, "bbox": box, "score": float(score)}
        for n, (own, truth) in enumerate(pictures)
        for box, label, score in zip(_boxes(own.boxes, truth.size), own.labels, own.scores, strict=True)
    ]
    if not found or not truths:
        return {name: 0.0 if truths else float("nan") for name in NUMBERS}
    categories = [{"id": n + 1, "name": str(n)} for n in range(classes)]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO({"images": images, "annotations": truths, "categories": categories})
        judge: Any = COCOeval_faster(known, known.loadRes(found), "bbox")
        judge.run()
    values = {name: float(judge.stats[place]) for name, place in NUMBERS.items()}
    return {name: value if value >= 0 else float("nan") for name, value in values.items()}


def _boxes(boxes: NDArray[np.float32], size: tuple[int, int]) -> list[list[float]]:
    """Left, top, width, height in pixels."""
    height, width = size
    pixels = boxes.astype(np.float64) * (width, height, width, height)
    pixels[:, 2:] -= pixels[:, :2]
    found: list[list[float]] = pixels.tolist()
    return found
