"""Engines of a network for the job's target: exported, calibrated where they are int8, built, measured and evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pydeploy.backends.base import Backend, Engine, Feeds, reopen
from pydeploy.files import read_json, write_json
from pydeploy.graph import Graph
from pydeploy.planning import engine_files
from pydeploy.profiling import agreement
from pydeploy.profiling.engines import measure_engines
from pydeploy.profiling.profile import profile
from pydeploy.quant.observe import Ranges
from pydeploy.run.artefacts import Artefacts, Files
from pydeploy.run.facts import EngineFacts, load
from pydeploy.run.job import Job, model_of
from pydeploy.tasks.metric import MetricTable
from pydeploy.timing.records import Profile

if TYPE_CHECKING:
    from torch import nn


def build_dense(job: Job, at: Artefacts, here: Path) -> None:
    """The dense engine, its latency and its metrics."""
    finished_engine(job, model_of(job, at.dense_weights), here)
    if job.backend.precision == "int8":
        float_engine_metrics(job, here)


def build_pruned(job: Job, at: Artefacts, here: Path) -> None:
    """The fine-tuned engine and its metrics."""
    finished_engine(job, model_of(job, at.tuned_weights), here)


def build_engine(job: Job, model: nn.Module, here: Path, *, accurate: bool = False) -> Engine:
    """Export `model` and build ``model.engine`` for the job's target (`pydeploy.planning.engine_files.build_engine`).

    Unless the engine is to be `accurate`, ranges of an int8 one come from random inputs.
    """
    from pydeploy.tasks.evaluate import deployed, example

    kept = excluded(job) if job.backend.precision == "int8" else ()
    return engine_files.build_engine(
        model, example(job.task), job.backend, here, calibration=partial(calibrated, job, here=here) if accurate else None,
        exclude=kept, input_names=job.task.input_names, output_names=job.task.output_names, samples=samples(job),
        deployed=deployed(job.task),
    )  # fmt: skip


def build_int8(job: Job, onnx: Path, here: Path) -> Engine:
    """The int8 engine of a float file, with ranges from random inputs: latency does not depend on them."""
    return engine_files.build_int8(job.backend, onnx, here, exclude=excluded(job), samples=samples(job))


def excluded(job: Job) -> Sequence[str]:
    """The layers that the config leaves in float."""
    return job.config.quantize.exclude if job.config.quantize is not None else ()


def build(job: Job, backend: Backend, onnx: Path, place: Path) -> Engine:
    """The engine of a file; int8 and half-precision ones are compared with it on calibration samples, else test ones."""
    return agreement.build(backend, onnx, place, samples(job))


def samples(job: Job) -> Sequence[Feeds]:
    """The first few of `check_samples`, read once."""
    if "samples" not in job.shared:
        job.shared["samples"] = list(islice(check_samples(job), agreement.SAMPLES))
    found: Sequence[Feeds] = job.shared["samples"]
    return found


def check_samples(job: Job) -> Iterator[Feeds]:
    """What engines are compared on. No result depends on it, so no stage counts it among what it reads."""
    from pydeploy.tasks.evaluate import batches
    from pydeploy.tasks.samples import calibration_batches, exact_batches

    if job.manifest is not None:
        return exact_batches(calibration_batches(job.task, job.manifest), job.backend.batch)
    names = job.task.input_names
    several = batches(job.task, "test", agreement.SAMPLES * job.backend.batch)
    feeds = (dict(zip(names, (tensor.numpy() for tensor in batch.inputs), strict=True)) for batch in several)
    return exact_batches(feeds, job.backend.batch)


def calibrated(job: Job, onnx: Path, here: Path) -> Ranges:
    """``ranges.json``: of the float file `onnx`, on the samples that the config names."""
    from pydeploy.quant.calibrate import calibrate
    from pydeploy.tasks.samples import calibration_batches

    settings, manifest = job.config.quantize, job.manifest
    assert settings is not None
    if job.guest is not None:
        feeds = [
            dict(zip(job.task.input_names, (one.numpy() for one in batch.inputs), strict=True))
            for batch in job.guest.batches
        ]
        ranges = calibrate(
            onnx, feeds, observer=settings.observer, style=job.backend.int8_style, threads=job.backend.threads, few=0
        )
        ranges.save(Files(here).ranges)
        return ranges
    assert manifest is not None
    with job.console.bar("calibrate") as tick:
        ranges = calibrate(onnx, calibration_batches(job.task, manifest), observer=settings.observer,
                           style=job.backend.int8_style, threads=job.backend.threads,
                           progress=lambda done: tick(done, manifest.count),
                           resume=Files(here).counts, key=manifest.key())  # fmt: skip
    ranges.save(Files(here).ranges)
    return ranges


def insert_pairs(job: Job, onnx: Path, ranges: Ranges, here: Path, exclude: Sequence[str] | None = None) -> None:
    """``model.onnx`` with Q/DQ pairs and ``quantized.json``; `exclude` is what the config says unless given."""
    engine_files.insert_pairs(job.backend, onnx, ranges, here, excluded(job) if exclude is None else exclude)


def finished_engine(job: Job, model: nn.Module, here: Path) -> None:
    """``model.onnx``, ``model.engine`` and ``facts.json``: latency, metrics of the engine, size of `model`."""
    from pydeploy.prune.structure.trace import trace
    from pydeploy.tasks.evaluate import deployed, example

    engine = build_engine(job, model, here, accurate=True)
    graph = trace(model, example(job.task), deployed=deployed(job.task))
    write_facts(job, job.backend, engine, here, params=graph.learnable, macs=graph.macs())


def write_facts(job: Job, backend: Backend, engine: Engine, here: Path, *, params: int, macs: int) -> None:
    """``facts.json`` of a built engine, and ``preprocessing.json``, which says how to feed it."""
    job.console.say(f"{here.name}: metrics of the engine over the full test set")
    numbers, tables = metrics(job, backend, engine)
    facts = EngineFacts(latency=measure_engines({"": (backend, engine)})[""], metrics=numbers, tables=tables,
                        params=params, macs=macs, precision=backend.precision, target=backend.target().fingerprint,
                        bytes=engine.path.stat().st_size, onnx_bytes=Files(here).onnx.stat().st_size)  # fmt: skip
    if (way := job.task.deployment()) is not None:
        with backend.open(engine) as session:
            found = job.task.tuned(session.run, backend.batch)
        replace(way, settings={**way.settings, **found}).save(here)
    facts.save(Files(here).facts)


def metrics(job: Job, backend: Backend, engine: Engine) -> tuple[dict[str, float], dict[str, MetricTable]]:
    """The task's metrics over the whole test set, computed from the engine's outputs, and the tables beside them."""
    from pydeploy.tasks.evaluate import judged

    if job.guest is not None:
        return {}, {}  # a stage of its own judges them, so that another `evaluate` builds nothing again
    with backend.open(engine) as session:
        return judged(job.task, session.run, batch_size=backend.batch)


def float_backend(job: Job) -> Backend:
    """The backend of an int8 job in the precision that its unquantized layers have."""
    return reopen(replace(job.backend.target(), precision=job.backend.beside_int8))


def float_engine_metrics(job: Job, here: Path) -> None:
    """``float.json``: the metrics that the network of an int8 engine reaches before it is quantized."""
    backend = float_backend(job)
    engine = build(job, backend, Files(here).float_onnx, Files(here).float_engine)
    write_json(Files(here).float_metrics, metrics(job, backend, engine)[0])


def float_metrics(folder: Path) -> dict[str, float]:
    """The metrics of an engine's network in float: what the limit is counted from."""
    place = Files(folder).float_metrics
    return dict(read_json(place)) if place.is_file() else facts_of(folder).metrics


def facts_of(folder: Path) -> EngineFacts:
    """What is known of the engine in a folder."""
    return load(EngineFacts, Files(folder).facts)


def layer_profile(job: Job, engine: Engine, graph: Graph) -> Profile:
    """Latency of an engine of the job's target and of its layers, by operator."""
    return profile(job.backend, engine, [op.name for op in graph.ops], rounds=5, runs=20)
