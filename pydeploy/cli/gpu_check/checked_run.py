"""The finished run that the checks look at, and what they read from its engines."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pydeploy.backends.base import Backend, Engine, reopen
from pydeploy.backends.tensorrt.backend import TensorRt
from pydeploy.backends.tensorrt.rtx import TensorRtRtx
from pydeploy.profiling.profile import random_feeds
from pydeploy.report import Report
from pydeploy.run.artefacts import Artefacts, Files
from pydeploy.run.config import Config
from pydeploy.timing.rounds import interleave


@dataclass(frozen=True)
class CheckedRun:
    """What the checks look at: the finished run."""

    config: Config
    at: Artefacts
    report: Report
    backend: TensorRt | TensorRtRtx
    folder: Path
    facts: dict[str, Any]
    """For the bug report."""
    unseen_plans: int = 8
    """Plans on which the table is tried that it was not made from."""

    def opened(self, name: str) -> tuple[Backend, Engine]:
        """Backend and engine of a folder of the run ('dense', 'pruned', 'quantized')."""
        engine = Engine.load(Files(getattr(self.at, name)).engine)
        return reopen(engine.target), engine


def median_us(backend: Backend, engine: Engine) -> float:
    """Median latency of an engine by itself."""
    with backend.open(engine) as session:
        timer = partial(session.time, random_feeds(session.inputs))
        return interleave({"": timer}, rounds=10, runs=20)[""].timing.median_us


def describe(run: CheckedRun, name: str) -> list[dict[str, Any]]:
    """What TensorRT says of the layers of one of the run's engines."""
    backend, engine = run.opened(name)
    assert isinstance(backend, TensorRt | TensorRtRtx)
    with backend.open(engine) as session:
        return [{**asdict(info), "padding": info.padding} for info in session.describe()]


def relative_error(mine: dict[str, Any], reference: dict[str, Any]) -> float:
    """The largest relative error over all outputs, in the 2-norm."""
    return max(float(np.linalg.norm(mine[k] - reference[k]) / np.linalg.norm(reference[k])) for k in reference)


def answers(backend: Backend, source: Path, out: Path) -> dict[str, Any]:
    """Outputs of an engine built from `source`, on random inputs that are the same for every backend."""
    with backend.open(backend.build(source, out)) as session:
        return session.run(random_feeds(session.inputs, seed=3))
