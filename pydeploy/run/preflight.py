"""What can be found wrong in seconds, tried before hours of work: a training step, an export, a build, an evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from pydeploy.errors import ConfigError
from pydeploy.latency.probes.design import grid, probe_plans
from pydeploy.profiling.engines import ROUNDS, RUNS
from pydeploy.run.checks import told
from pydeploy.run.job import Job, fresh_model, model_of, start_model
from pydeploy.run.stages import engines

if TYPE_CHECKING:
    from torch import nn

    from pydeploy.tasks.contract import Arrays, Batch

SAMPLES = 64
"""Test samples of the trial evaluation."""
PLANS = 3
"""Most plans of one round of the search."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured on the way, in seconds."""

    sample_step_s: float
    """A training step, over its samples."""
    build_s: float
    """Export and build of the dense engine."""
    run_s: float
    """One run of the dense engine at its batch size."""


def attempt(job: Job) -> Costs:
    """Try out once what `job` needs. Raises a `DeployError` that says what will not work; nothing that is written stays."""
    model = model_of(job, job.config.train.weights) if job.config.train.weights else start_model(job)
    step_s = _step_s(job, model)
    return Costs(step_s, *_engine(job, model.eval()))


def _step_s(job: Job, model: nn.Module) -> float:
    """Seconds that a training step takes for one sample: forward, loss and backward on a batch of fine-tuning."""
    import torch

    from pydeploy.tasks.evaluate import named, total_loss

    task, section = job.task, job.config.finetune
    with told(f"the training batches of the task {job.config.task.name} cannot be made"):
        batch = next(iter(task.train_batches(0, section.batch_size, job.seed)), None)
    if batch is None:
        raise ConfigError(f"the task {job.config.task.name} gives no training batch of {section.batch_size} samples")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    spent = []
    for _ in range(2):  # the first one prepares kernels
        began = time.perf_counter()
        with told(f"a training step of {job.config.model.name} on {job.config.task.name} fails"):
            outputs = named(task, model(*batch.inputs), training=True)
            total_loss(task, outputs, batch).backward()  # type: ignore[no-untyped-call]
        spent.append(time.perf_counter() - began)
    found = [parameter.grad for parameter in trained if parameter.grad is not None]
    if not found:
        raise ConfigError("no parameter of the network gets a gradient: the loss must depend on the network's outputs")
    if not all(bool(torch.isfinite(gradient).all()) for gradient in found):
        raise ConfigError(f"the loss of the task {job.config.task.name} has gradients that are NaN or infinite")
    model.zero_grad(set_to_none=True)
    return spent[-1] / batch.count


def _engine(job: Job, model: nn.Module) -> tuple[float, float]:
    """Seconds of export and build, and of one run of the engine; its outputs are what the task expects."""
    from pydeploy.tasks.evaluate import results

    with TemporaryDirectory(prefix="pydeploy-") as folder:
        began = time.perf_counter()
        engine = engines.build_engine(job, model, Path(folder))
        build_s, runs = time.perf_counter() - began, 0
        with job.backend.open(engine) as session:
            began = time.perf_counter()
            found = list(results(job.task, session.run, job.backend.batch, min(SAMPLES, job.task.size("test"))))
            runs, run_s = len(found), time.perf_counter() - began
    _check_metrics(job, found)
    return build_s, run_s / runs


def _check_metrics(job: Job, found: Sequence[tuple[Arrays, Batch]]) -> None:
    """A few samples may be too few for a metric, such as those of one class alone: that is only said."""
    name, count = job.config.task.name, sum(batch.count for _, batch in found)
    try:
        with told(f"the metrics of the task {name} fail on {count} test samples"):
            names = list(job.task.metrics(iter(found)))
    except ConfigError as error:
        if count == job.task.size("test"):
            raise
        job.console.say(f"{error}; the whole test set has {job.task.size('test')}")
        return
    if job.task.metric.name not in names:
        raise ConfigError(f"the task's metrics are {', '.join(names)}; expected '{job.task.metric.name}' among them")


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimates(job: Job, costs: Costs, stages: Sequence[str]) -> dict[str, float]:
    """About how many seconds each of the `stages` takes on a machine that does nothing else."""
    from pydeploy.prune.structure.trace import trace
    from pydeploy.tasks.evaluate import deployed, example

    graph = trace(fresh_model(job), example(job.task), deployed=deployed(job.task))
    config, size = job.config, job.task.epoch_size()
    evaluated = costs.build_s + costs.run_s * (job.task.size("test") / job.backend.batch + ROUNDS * RUNS)
    widths = grid(graph, config.table.points, config.table.align or job.backend.align, config.prune.min_width)
    probe = costs.build_s + 2 * config.table.rounds * config.table.runs * costs.run_s
    search = config.prune.rounds * PLANS * (costs.build_s + 2 * ROUNDS * RUNS * costs.run_s)
    finetune = 1.3 * config.finetune.epochs * size * costs.sample_step_s  # and the teacher's forward
    known = {
        "01_train": config.train.epochs * size * costs.sample_step_s if config.trains else 0.0,
        "03_scores": config.prune.batches * config.prune.batch_size * costs.sample_step_s,
        "04_dense": evaluated,
        "05_table": len(probe_plans(graph, widths)) * probe,
        "06_search": search,
        "07_finetune": finetune,
        "08_pruned": evaluated,
        "09_mixed": 3 * evaluated,
    }
    measured = sum(name.startswith(("04", "08", "09", "10")) for name in stages)
    known["11_profile"] = 2 * measured * ROUNDS * RUNS * costs.run_s
    further = {"09": evaluated, "10": search + finetune + evaluated}
    return {name: float(np.round(known.get(name, further.get(name[:2], 1.0)), 1)) for name in stages}
