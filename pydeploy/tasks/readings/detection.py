"""Raw scores and offsets of an SSD: boxes with labels and scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pydeploy.data.boxes.detections import Cleaning, detections
from pydeploy.data.boxes.priors import Priors
from pydeploy.data.deployment import Deployment
from pydeploy.errors import ConfigError, DataError, Mismatch
from pydeploy.tasks.readings.base import Outputs, Picture, Reading
from pydeploy.tasks.readings.pens import colour, font_size, written


class Boxes(Reading):
    """``{"size", "objects": [{"label", "score", "box": [left, top, right, bottom]}, ...]}``, best first.

    Settings: ``priors``; ``score``, the least that is told, ``iou``, the most that boxes of a class overlap, and ``most`` boxes.
    """

    def __init__(self, way: Deployment) -> None:
        super().__init__(way)
        try:
            self.priors = Priors.parse(way.settings["priors"])
            self.cleaning = Cleaning(*(way.settings[key] for key in ("score", "iou", "most")))
        except (KeyError, TypeError, ConfigError) as error:
            raise DataError(
                f"not what reads an SSD's outputs ({error}); expected priors, score, iou and most"
            ) from None

    def read(self, outputs: Outputs) -> dict[str, Any]:
        scores, boxes = (self.output(outputs, name, ndim=2) for name in self.way.outputs)
        names = self.way.class_names
        if scores.shape[1] != len(names) + 1 or boxes.shape != (len(scores), 4):
            raise Mismatch(f"the engine gives scores {scores.shape} and boxes {boxes.shape} a picture; the preprocessing names "
                           f"{len(names)} classes, and background")  # fmt: skip
        priors = self.priors.of(len(scores)).boxes
        found = detections(scores.astype(np.float32), boxes.astype(np.float32), priors, self.cleaning)
        pixels = (found.boxes * self.priors.image).round(2).tolist()
        objects = [{"label": names[label], "score": round(float(score), 4), "box": box}
                   for label, score, box in zip(found.labels, found.scores, pixels, strict=True)]  # fmt: skip
        return {"size": [self.priors.image, self.priors.image], "objects": objects}

    def draw(self, picture: Picture, record: Mapping[str, Any]) -> Picture:
        from PIL import Image, ImageDraw

        image = Image.fromarray(picture)
        pen, wide = ImageDraw.Draw(image), max(1, round(min(picture.shape[:2]) / 150))
        scale = np.tile((picture.shape[1] / record["size"][1], picture.shape[0] / record["size"][0]), 2)
        placed = [(one, np.array(one["box"]) * scale) for one in record["objects"][::-1]]  # the best one on top
        for one, box in placed:
            pen.rectangle((*box[:2], *np.maximum(box[2:] - 1, box[:2])), outline=self._colour(one["label"]), width=wide)
        drawn, size = np.array(image, np.uint8), max(9, font_size(picture) * 2 // 3)
        for one, box in placed:
            place = (float(np.clip(box[0], 0, picture.shape[1] - size)), float(max(0.0, box[1] - 1.6 * size)))
            drawn = written(
                drawn, f"{one['label']} {one['score']:.0%}", place, (*self._colour(one["label"]), 200), size
            )
        return drawn

    def headline(self, record: Mapping[str, Any]) -> str:
        names = [one["label"] for one in record["objects"]]
        counted = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        return counted or "nothing"

    def _colour(self, label: str) -> tuple[int, int, int]:
        return colour(self.way.class_names.index(label) if label in self.way.class_names else 0)
