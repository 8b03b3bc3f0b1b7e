"""A decision and the map of where a defect is: read against the thresholds that suit the engine, drawn as heat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.deployment import Deployment
from pydeploy.errors import DataError, Mismatch
from pydeploy.tasks.readings.base import Outputs, Picture, Reading
from pydeploy.tasks.readings.pens import written

KINDS = ("sound", "defective")
MEANING = (
    "decision: a logit, its sigmoid the score of a defect; mask, if there is one: the same for places of 8 x 8 pixels"
)
STRIDE = 8
HOT, SHADE = np.array([255, 32, 0], np.float32), 0.6
"""Colour of a certain defect, and how much of the picture it covers."""


class Heat(Reading):
    """``{"label", "score", "threshold", "heat": {"size", "threshold", "values"}, "defective_share"}``.

    Settings: ``threshold`` of the decision's score, ``mask_threshold`` of a place's. `values` are the places' scores in whole
    thousandths, row by row; the share is that of the places at or above their threshold.
    """

    def __init__(self, way: Deployment) -> None:
        super().__init__(way)
        self.threshold, self.mask_threshold = (self._share(name) for name in ("threshold", "mask_threshold"))

    def read(self, outputs: Outputs) -> dict[str, Any]:
        decision = self.output(outputs, self.way.outputs[0], ndim=np.ndim(outputs.get(self.way.outputs[0], 0)))
        if decision.size != 1:
            raise Mismatch(
                f"output '{self.way.outputs[0]}' has the shape {decision.shape} a picture; one number decides"
            )
        score = float(_sigmoid(decision).ravel()[0])
        defective = score >= self.threshold
        record: dict[str, Any] = {"label": KINDS[defective], "score": score, "threshold": self.threshold}
        if len(self.way.outputs) > 1:
            heat = _sigmoid(self.output(outputs, self.way.outputs[1], ndim=3))[0]
            values = np.rint(1000 * heat).astype(int)
            record["heat"] = {
                "size": [*heat.shape],
                "threshold": self.mask_threshold,
                "values": values.ravel().tolist(),
            }
            record["defective_share"] = float((heat >= self.mask_threshold).mean())
        return record

    def draw(self, picture: Picture, record: Mapping[str, Any]) -> Picture:
        """Places from their threshold on glow, the more the surer, and are outlined; the decision stands above."""
        if "heat" in record:
            picture = _glowing(picture, record["heat"])
        ground = (170, 0, 0, 200) if record["label"] == KINDS[1] else (0, 110, 0, 200)
        return written(picture, self.headline(record), ground=ground)

    def headline(self, record: Mapping[str, Any]) -> str:
        sign = ">=" if record["score"] >= record["threshold"] else "<"
        return f"{record['label']} {record['score']:.3f} {sign} {record['threshold']:.3f}"

    def _share(self, name: str) -> float:
        value = self.way.settings.get(name, 0.5)
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise DataError(f"the preprocessing's setting '{name}' is {value!r}; expected a number from 0 to 1")
        return float(value)


def _glowing(picture: Picture, heat: Mapping[str, Any]) -> Picture:
    rows, columns = heat["size"]
    places = np.array(heat["values"], np.float32).reshape(rows, columns) / 1000
    height, width = picture.shape[:2]
    scores = places[_nearest(rows, height)][:, _nearest(columns, width)]
    least = heat["threshold"]
    glow = np.clip((scores - least) / max(1 - least, 1e-3), 0, 1) ** 0.5 * SHADE
    drawn = picture + glow[:, :, None] * (HOT - picture)
    inside = scores >= max(least, 1e-3)
    drawn[_edge(inside)] = HOT
    return np.asarray(np.clip(np.rint(drawn), 0, 255), np.uint8)


def _nearest(count: int, length: int) -> NDArray[np.int64]:
    """Which of `count` places each of `length` pixels lies in."""
    return np.minimum((np.arange(length) + 0.5) * count / length, count - 1).astype(np.int64)


def _edge(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels within with a neighbour that is not."""
    padded = np.pad(inside, 1, mode="edge")
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(inside & ~core)


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, powers) / (1.0 + powers)
