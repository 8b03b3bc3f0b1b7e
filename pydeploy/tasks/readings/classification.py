"""Logits, one a class: labels with their shares of the softmax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pydeploy.errors import Mismatch
from pydeploy.tasks.readings.base import Outputs, Picture, Reading
from pydeploy.tasks.readings.pens import written

LINES = 3
"""Labels that are written on a picture."""


class Labels(Reading):
    """``{"label", "score", "top": [{"label", "score"}, ...]}``, best first, as many as the setting ``top`` says (5)."""

    def read(self, outputs: Outputs) -> dict[str, Any]:
        logits, names = self.output(outputs, self.way.outputs[0], ndim=1), self.way.class_names
        if len(logits) != len(names):
            raise Mismatch(
                f"the engine gives {logits.shape} numbers a picture, the preprocessing names {len(names)} classes"
            )
        powers = np.exp(logits - logits.max())
        scores = powers / powers.sum()
        order = np.argsort(-scores, kind="stable")[: int(self.way.settings.get("top", 5))]
        top = [{"label": names[index], "score": float(scores[index])} for index in order]
        return {**top[0], "top": top}

    def draw(self, picture: Picture, record: Mapping[str, Any]) -> Picture:
        return written(picture, "\n".join(f"{one['label']} {one['score']:.1%}" for one in record["top"][:LINES]))

    def headline(self, record: Mapping[str, Any]) -> str:
        return f"{record['label']} {record['score']:.1%}"
