"""What a reader ships of a run, and the lines of Python that load and run it."""

from __future__ import annotations

from pathlib import Path

from pydeploy.report.schema import Report

WITH_PICTURES = """import pydeploy as pd
from pydeploy.data.deployment import Deployment

with pd.open_engine("{folder}/model.engine") as engine:
    feeds = Deployment.load("{folder}/preprocessing.json").feeds({pictures})
    print(engine.run(feeds))
"""
WITH_ARRAYS = """import numpy as np
import pydeploy as pd

with pd.open_engine("{folder}/model.engine") as engine:
    feeds = {{one.name: np.zeros(one.shape, one.dtype) for one in engine.inputs}}  # your samples
    print(engine.run(feeds))
"""


def usage(report: Report, folder: Path) -> str:
    """Five lines of Python that run the shipped engine in `folder`: on a picture where the task reads pictures, else on arrays."""
    if report.preprocessing is None:
        return WITH_ARRAYS.format(folder=folder.as_posix())
    batch = report.target.batch
    pictures = '["picture.png"]' if batch == 1 else f'["picture.png"] * {batch}'
    return WITH_PICTURES.format(folder=folder.as_posix(), pictures=pictures)


def told(report: Report) -> str:
    """A sentence on what is shipped."""
    name = report.recommendation.model
    engine = report.models.present[name]
    beside = " with preprocessing.json, which says how pictures become its inputs," if report.preprocessing else ""
    return (
        f"Ship model.engine{beside} and the record beside it (model.engine.json). It is the {name} engine ({engine.precision}) for "
        f"{report.target.device}, {report.target.backend} {report.target.backend_version}; for another machine build it again from "
        "model.onnx."
    )
