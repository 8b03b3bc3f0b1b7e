"""The pieces that the stages of a run share: task and model, training, engines, table, calibration set."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.base import Backend, Engine, Feeds, align_of
from pydeploy.data.manifest import Manifest, load_manifest
from pydeploy.errors import ConfigError, DataError
from pydeploy.files import replacing, write_json
from pydeploy.graph import Graph, Plan
from pydeploy.profiling import agreement
from pydeploy.profiling.engines import measure_engines
from pydeploy.profiling.profile import profile
from pydeploy.quant.observe import Ranges
from pydeploy.quant.styles import style_for
from pydeploy.run.artefacts import Artefacts
from pydeploy.run.config import Config
from pydeploy.run.folder import Console
from pydeploy.timing.records import Profile

if TYPE_CHECKING:
    from torch import nn

    from pydeploy.latency.table.table import Table
    from pydeploy.tasks.contract import Task
    from pydeploy.train.distill.logits import Teacher
    from pydeploy.train.distill.settings import DistillSettings
    from pydeploy.train.settings import FitSettings

ALIGN = 16
"""Channel multiple of a run's latency table, unless the config or the backend has one of its own."""


@dataclass(frozen=True)
class Job:
    """What all stages share."""

    config: Config
    task: Task
    backend: Backend
    console: Console
    manifest: Manifest | None = None
    """The calibration set as it was when the job was opened, None where the config names none."""
    samples: str = ""
    """SHA-256 of its samples."""
    shared: dict[str, Any] = field(default_factory=dict)
    """Things that stages of one process share to save time (the distillation teacher with its outputs)."""

    @property
    def seed(self) -> int:
        return self.config.seed


def open_task(config: Config) -> Task:
    """The task of a config, its data loaded. Raises `ConfigError` where its settings do not fit."""
    from pydeploy.tasks.contract import build_task

    task, model = config.task, config.model
    homes = {"data": "task.data", "model": "model.name", "model_settings": "model.options"}
    for key in task.options:
        if key in homes:
            raise ConfigError(f"task.options: '{key}' is given by {homes[key]}")
    made = build_task(task.name, data=task.data, model=model.name, model_settings=model.options, **task.options)
    for section, size in (("train", config.train.batch_size), ("prune", config.prune.batch_size),
                          ("finetune", config.finetune.batch_size)):  # fmt: skip
        if size > made.train_size:
            raise ConfigError(f"{section}.batch_size is {size}, the data set has {made.train_size} training samples")
    return made


def model_of(job: Job, weights: Path | None = None) -> nn.Module:
    """The config's architecture, seeded; cut to and filled with the tensors of `weights` when given."""
    import torch

    from pydeploy.prune.surgery.save import load

    torch.manual_seed(job.seed)
    model = job.task.build_model()
    return load(weights, model) if weights else model


def fit(
    job: Job, model: nn.Module, settings: FitSettings, here: Path, *, teacher: Teacher | None = None,
    distill: DistillSettings | None = None, title: str,
) -> None:  # fmt: skip
    """Train `model`; resumes from `here` and leaves ``model.safetensors`` there."""
    from pydeploy.prune.surgery.save import save
    from pydeploy.train.loop import fit as train

    with job.console.bar(title) as tick:
        result = train(model, job.task, settings, out=here, seed=job.seed, teacher=teacher if distill else None,
                       distill=distill, resume=True, progress=lambda done, total, _loss: tick(done, total))  # fmt: skip
    save(here / "model.safetensors", result.model)
    write_json(here / "history.json", [asdict(record) for record in result.history])


def finetune(job: Job, at: Artefacts, small: nn.Module, here: Path, *, title: str) -> None:
    """Train a cut model with the dense one as its teacher. All students of a run share the teacher's outputs."""
    from pydeploy.train.distill.logits import Teacher

    section = job.config.finetune
    if section.distill is not None and "teacher" not in job.shared:
        job.shared["teacher"] = Teacher(model_of(job, at.dense_weights))
    fit(job, small, section, here, teacher=job.shared.get("teacher"), title=title, distill=section.distill)


def cut_and_finetune(job: Job, at: Artefacts, plan: Plan, here: Path, *, title: str) -> None:
    """``plan.json`` and ``model.safetensors``: the dense model cut to `plan` and fine-tuned."""
    from pydeploy.prune.surgery.apply import apply

    plan.save(here / "plan.json")
    small = apply(model_of(job, at.dense_weights), Graph.load(at.graph), plan)
    finetune(job, at, small, here, title=title)


def scores_of(
    config: Config, task: Task, model: nn.Module, graph: Graph, criterion: str
) -> dict[str, NDArray[np.float32]]:
    """Importance of every channel by `criterion`, on the first training batches of `task`, of several epochs if need be."""
    from pydeploy.prune.criteria.score import score

    settings = config.prune
    batches = (b for epoch in count() for b in task.train_batches(epoch, settings.batch_size, config.seed))
    data = ((batch.inputs, batch) for batch in islice(batches, settings.batches))
    return score(model, graph, criterion, data=data, loss=task.loss, seed=config.seed)


def score_channels(job: Job, model: nn.Module, graph: Graph, path: Path) -> None:
    """Write ``{group: (width,) float32}`` as an npz file."""
    scores = scores_of(job.config, job.task, model, graph, job.config.prune.criterion)
    with replacing(path) as partial, partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **dict(scores))


def read_scores(path: Path) -> dict[str, NDArray[np.float32]]:
    """Scores that `score_channels` wrote."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a file of channel scores ({error}); run the scoring stage again") from None


def build_engine(job: Job, model: nn.Module, here: Path, *, accurate: bool = False) -> Engine:
    """Export `model` to ``model.onnx`` and build ``model.engine`` for the job's target.

    For an int8 target, ``float.onnx`` is exported and ``model.onnx`` has Q/DQ pairs. Unless the engine is to be `accurate`,
    their ranges come from random inputs: latency does not depend on them.
    """
    from pydeploy.export import export

    int8 = job.backend.precision == "int8"
    onnx = export(model, job.task.example(), here / ("float.onnx" if int8 else "model.onnx"), batch=job.backend.batch,
                  input_names=job.task.input_names, output_names=job.task.output_names)  # fmt: skip
    return build_int8(job, onnx, here, accurate=accurate) if int8 else build(job, job.backend, onnx, here)


def build_int8(job: Job, onnx: Path, here: Path, *, accurate: bool) -> Engine:
    """``model.onnx``, the int8 form of a float file, and ``model.engine`` for the job's int8 target."""
    from pydeploy.latency.probes.quantized import random_ranges

    ranges = calibrated(job, onnx, here) if accurate else random_ranges(onnx, job.backend.name, job.backend.threads)
    insert_pairs(job, onnx, ranges, here)
    return build(job, job.backend, here / "model.onnx", here)


def build(job: Job, backend: Backend, onnx: Path, here: Path, name: str = "model.engine") -> Engine:
    """The engine of a file; int8 and half-precision ones are compared with it on calibration samples, else test ones."""
    if "samples" not in job.shared:
        job.shared["samples"] = list(islice(_samples(job), agreement.SAMPLES))
    return agreement.build(backend, onnx, here / name, job.shared["samples"])


def _samples(job: Job) -> Iterator[Feeds]:
    from pydeploy.tasks.samples import calibration_batches, exact_batches

    if job.manifest is not None:
        return exact_batches(calibration_batches(job.task, job.manifest), job.backend.batch)
    names = job.task.input_names
    batches = job.task.eval_batches(agreement.SAMPLES * job.backend.batch)
    feeds = (dict(zip(names, (tensor.numpy() for tensor in batch.inputs), strict=True)) for batch in batches)
    return exact_batches(feeds, job.backend.batch)


def calibrated(job: Job, onnx: Path, here: Path) -> Ranges:
    """``ranges.json``: of the float file `onnx`, on the samples that the config names."""
    from pydeploy.quant.calibrate import calibrate
    from pydeploy.tasks.samples import calibration_batches

    settings, manifest = job.config.quantize, job.manifest
    assert settings is not None
    assert manifest is not None
    with job.console.bar("calibrate") as tick:
        ranges = calibrate(onnx, calibration_batches(job.task, manifest), observer=settings.observer,
                           style=style_for(job.backend.name), threads=job.backend.threads,
                           progress=lambda done: tick(done, manifest.count),
                           resume=here / "counts.json", key=manifest.key())  # fmt: skip
    ranges.save(here / "ranges.json")
    return ranges


def insert_pairs(job: Job, onnx: Path, ranges: Ranges, here: Path, exclude: Sequence[str] | None = None) -> None:
    """``model.onnx`` with Q/DQ pairs and ``quantized.json``; `exclude` is what the config says unless given."""
    from pydeploy.quant.qdq import quantize

    if exclude is None:
        exclude = job.config.quantize.exclude if job.config.quantize is not None else ()
    target = job.backend.target()
    done = quantize(onnx, ranges, here / "model.onnx", style=style_for(target.backend), target=target, exclude=exclude)
    write_json(here / "quantized.json", asdict(done))


def finished_engine(job: Job, model: nn.Module, here: Path) -> None:
    """``model.onnx``, ``model.engine`` and ``facts.json``: latency, accuracy on the engine, size of `model`."""
    from pydeploy.prune.structure.trace import trace

    engine = build_engine(job, model, here, accurate=True)
    graph = trace(model, job.task.example())
    write_facts(job, job.backend, engine, here, params=graph.learnable, macs=graph.macs())


def write_facts(job: Job, backend: Backend, engine: Engine, here: Path, *, params: int, macs: int) -> None:
    """``facts.json`` of a built engine."""
    job.console.say(f"{here.name}: accuracy of the engine over the full test set")
    facts = {"latency": measure_engines({"": (backend, engine)})[""].to_json(), "metrics": accuracy(job, backend, engine),
             "params": params, "macs": macs, "precision": backend.precision, "target": backend.target().fingerprint,
             "bytes": engine.path.stat().st_size, "onnx_bytes": (here / "model.onnx").stat().st_size}  # fmt: skip
    write_json(here / "facts.json", facts)


def accuracy(job: Job, backend: Backend, engine: Engine) -> dict[str, float]:
    """The task's metrics over the whole test set, computed from the engine's outputs."""
    with backend.open(engine) as session:
        return job.task.evaluate(session.run, batch_size=backend.batch)


def layer_profile(job: Job, engine: Engine, graph: Graph) -> Profile:
    """Latency of an engine of the job's target and of its layers, by operator."""
    return profile(job.backend, engine, [op.name for op in graph.ops], rounds=5, runs=20)


def fill_table(job: Job, graph: Graph, onnx: Path, here: Path) -> None:
    """``table.sqlite`` and ``facts.json``. What an interrupted measurement left is kept and completed."""
    started = time.monotonic()
    table = measured_table(job, graph, onnx, here)
    facts = {"probes": len({network.widths for network in table.networks(graph)}),
             "keys": len({row.key for row in table.rows()}), "disturbed": len(table.disturbed(graph)),
             "seconds": time.monotonic() - started}  # fmt: skip
    write_json(here / "facts.json", facts)


def measured_table(job: Job, graph: Graph, onnx: Path, here: Path) -> Table:
    """``table.sqlite`` with all planned networks; those that other load disturbed are measured once more."""
    from pydeploy.latency.probes.design import grid
    from pydeploy.latency.probes.measure import measure, minutes
    from pydeploy.latency.probes.quantized import int8_transform
    from pydeploy.latency.table.table import Table

    settings = job.config.table
    table = Table.open(here / "table.sqlite", job.backend.target())
    align = settings.align or align_of(job.backend, ALIGN)
    widths = grid(graph, settings.points, align, job.config.prune.min_width)
    int8 = None
    if job.backend.precision == "int8":
        exclude = job.config.quantize.exclude if job.config.quantize is not None else ()
        int8 = int8_transform(onnx, job.backend.name, here, job.backend.threads, exclude=exclude)
    with job.console.bar("measure the latency table") as tick:
        measure(graph, onnx, job.backend, table, widths=widths, rounds=settings.rounds, runs=settings.runs, workdir=here,
                transform=int8, progress=tick, announce=lambda s: job.console.say(minutes(s)))  # fmt: skip
    return table


def check_calibration(config: Config) -> Manifest | None:
    """The calibration manifest of a config, read before any work starts."""
    return load_manifest(config.quantize.calibration) if config.quantize is not None else None
