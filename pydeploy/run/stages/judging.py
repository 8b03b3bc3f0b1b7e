"""What a program's own `evaluate` says of the engines. No other stage reads it, so another `evaluate` builds nothing again."""

from __future__ import annotations

from pathlib import Path

from pydeploy.backends.base import Engine
from pydeploy.files import read_json, write_json
from pydeploy.run.artefacts import Artefacts, Files
from pydeploy.run.job import Job
from pydeploy.run.stages.engines import facts_of, float_backend, float_metrics

Metrics = dict[str, float]


def judge_dense(job: Job, at: Artefacts, here: Path) -> None:
    """``metrics.json`` of the dense engine; for an int8 target also ``float.json`` of its float one."""
    _judge(job, at.dense, here)
    if job.backend.precision == "int8":
        assert job.guest is not None
        engine = Engine.load(Files(at.dense).float_engine)
        write_json(Files(here).float_metrics, job.guest.metrics(float_backend(job), engine))


def judge_pruned(job: Job, at: Artefacts, here: Path) -> None:
    """``metrics.json`` of the fine-tuned engine."""
    _judge(job, at.pruned, here)


def _judge(job: Job, folder: Path, here: Path) -> None:
    assert job.guest is not None
    write_json(Files(here).metrics, job.guest.metrics(job.backend, Engine.load(Files(folder).engine)))


def metrics_of(job: Job, at: Artefacts, folder: Path) -> Metrics:
    """The metrics of the engine in a folder of the run."""
    if job.guest is None:
        return facts_of(folder).metrics
    return dict(read_json(Files(at.judged(folder)).metrics))


def metrics_in_float(job: Job, at: Artefacts, folder: Path) -> Metrics:
    """Those of its network in float, which are the same unless the target is int8."""
    if job.guest is None:
        return float_metrics(folder)
    place = Files(at.judged(folder)).float_metrics
    return dict(read_json(place)) if place.is_file() else metrics_of(job, at, folder)
