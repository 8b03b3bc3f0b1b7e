"""The whole story, in order: a config in, a run directory with a measured engine and its report out.

    train -> trace -> score -> measure -> [solve -> cut -> export -> build -> profile -> correct]* -> fine-tune
          -> export -> build -> calibrate -> quantize -> mix -> build -> compare -> profile -> report

Each stage leaves its files in its own folder, stamped with a hash of what it depends on (`pydeploy.run.folder`);
`pydeploy.run.artefacts` knows where they lie.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pydeploy.backends.base import open_backend
from pydeploy.errors import ConfigError, nearest
from pydeploy.files import read_json, sha256, write_json
from pydeploy.graph import Graph, Plan
from pydeploy.latency.table.by_precision import other_table
from pydeploy.run.artefacts import Artefacts
from pydeploy.run.config import Config, QuantizeSection
from pydeploy.run.folder import Console, RunFolder
from pydeploy.run.stages import comparison as candidates
from pydeploy.run.stages import final as summary
from pydeploy.run.stages import precisions
from pydeploy.run.stages import shared as stages
from pydeploy.run.stages.search import Budget, best_plan, search
from pydeploy.run.stages.shared import Job


def run(
    config: Config, out: Path, console: Console, *, resume: bool = False, reuse: Path | None = None, command: str = ""
) -> Path:
    """Run every stage of `config` into the folder `out`; returns the path of ``report.html``.

    With `resume`, finished stages whose inputs are unchanged are kept. Finished stages of the run `reuse` with the
    same inputs are copied, so that a second target need not train the dense model again.
    """
    job = open_job(config, console)
    folder = RunFolder.open(out, console, resume=resume, reuse=reuse)
    at = Artefacts(out)
    write_json(at.config, config.model_dump(mode="json"))
    learned = {
        "seed": config.seed,
        "task": _dump(config.task),
        "model": _dump(config.model),
        "train": _dump(config.train),
    }
    target = {"target": job.backend.target().to_json()}
    int8 = job.backend.precision == "int8"
    if int8:
        target["quantize"] = _calibration(config.quantize) if config.quantize is not None else {}

    folder.stage("01_train", learned, lambda here: train(job, here))
    folder.stage("02_graph", {}, lambda here: trace(job, at, here), ("01_train",))
    folder.stage("03_scores", _scoring(config), lambda here: score(job, at, here), ("02_graph",))
    folder.stage("04_dense", target, lambda here: build_dense(job, at, here), ("01_train",))
    folder.stage("05_table", _dump(config.table), lambda here: measure_table(job, at, here), ("02_graph", "04_dense"))
    folder.stage("06_search", _dump(config.prune), lambda here: search_plan(job, at, here), ("03_scores", "05_table"))
    folder.stage("07_finetune", _dump(config.finetune), lambda here: finetune(job, at, here), ("06_search",))
    folder.stage("08_pruned", {}, lambda here: build_pruned(job, at, here), ("07_finetune",))
    engines = ["04_dense", "08_pruned"]
    if config.quantize is not None:
        settings = _calibration(config.quantize)
        other, make_other = ("09_unquantized", precisions.unquantize) if int8 else ("09_quantized", precisions.quantize)
        folder.stage(other, settings, lambda here: make_other(job, at, here), ("08_pruned",))
        limits = {**settings, "limit": config.compare.limit}
        if config.quantize.table is not None:
            limits["table"] = sha256(config.quantize.table)
        folder.stage("09_mixed", limits, lambda here: precisions.mix(job, at, here), ("04_dense", other))
        engines += [other, "09_mixed"]
        if (half := precisions.half_backend(job)) is not None:
            target = {"target": half.target().to_json()}
            folder.stage("09_half", target, lambda here: precisions.build_half(job, at, here), ("08_pruned",))
            engines.append("09_half")
    for point in candidates.wanted(config):
        engines.append(f"10_{point.slug}")
        make = partial(candidates.make, job, at, point)
        folder.stage(engines[-1], _dump(config.finetune), make, ("03_scores", "05_table"))
    folder.stage("11_profile", {}, lambda here: summary.measure_all(job, at, here), tuple(engines))
    return summary.write_report(job, at, folder.seconds, command)


def open_job(config: Config, console: Console) -> Job:
    """The task and the backend of `config`, checked before any work starts."""
    from pydeploy.prune.criteria.score import CRITERIA

    if config.prune.criterion not in CRITERIA:
        raise ConfigError(
            f"prune.criterion: unknown criterion '{config.prune.criterion}'{nearest(config.prune.criterion, CRITERIA)}"
        )
    target = config.target
    backend = open_backend(target.backend, precision=target.precision, batch=target.batch, threads=target.threads,
                           options=target.options)  # fmt: skip
    stages.check_calibration(config)
    if config.quantize is not None and config.quantize.table is not None:
        other_table(config.quantize.table, backend.target())
    return Job(config, stages.open_task(config), backend, console)


def train(job: Job, here: Path) -> None:
    """``model.safetensors``: the dense model, trained or taken from ``train.weights``."""
    from pydeploy.prune.surgery.save import save

    section = job.config.train
    if section.weights is not None:
        save(here / "model.safetensors", stages.model_of(job, section.weights))
        return
    stages.fit(job, stages.model_of(job), section, here, title="train the dense model")


def trace(job: Job, at: Artefacts, here: Path) -> None:
    """``graph.json``: groups and layers of the dense model."""
    from pydeploy.prune.structure.trace import trace as find

    find(stages.model_of(job, at.dense_weights), job.task.example()).save(here / "graph.json")


def score(job: Job, at: Artefacts, here: Path) -> None:
    """``scores.npz``: importance of every channel."""
    stages.score_channels(job, stages.model_of(job, at.dense_weights), Graph.load(at.graph), here / "scores.npz")


def build_dense(job: Job, at: Artefacts, here: Path) -> None:
    """The dense engine, its latency and its accuracy."""
    stages.finished_engine(job, stages.model_of(job, at.dense_weights), here)
    if job.backend.precision == "int8":
        precisions.float_accuracy(job, here)


def measure_table(job: Job, at: Artefacts, here: Path) -> None:
    """``table.sqlite``: latency of every layer at the widths the solver may choose."""
    stages.fill_table(job, Graph.load(at.graph), at.float_file(at.dense), here)


def search_plan(job: Job, at: Artefacts, here: Path) -> None:
    """``round*.json`` and ``plan.json``: the best plan whose engine was measured to meet the budget."""
    budget = budget_of(job, at)
    best_plan(job, at, budget, here, search(job, at, budget, here)).save(here / "plan.json")


def budget_of(job: Job, at: Artefacts) -> Budget:
    """The budget of the config in microseconds; above the dense engine's latency there is nothing to do."""
    dense_us = float(read_json(at.dense / "facts.json")["latency"]["median_us"])
    settings = job.config.prune
    if settings.budget_us is not None and settings.budget_us >= dense_us:
        raise ConfigError(
            f"budget {settings.budget_us:g} us is not below the dense engine, measured at {dense_us:.0f} us: "
            "the dense model already meets it; lower prune.budget_us"
        )
    return Budget(settings.budget, settings.budget_us)


def finetune(job: Job, at: Artefacts, here: Path) -> None:
    """``model.safetensors``: the cut model, trained with distillation from the dense one."""
    stages.cut_and_finetune(job, at, Plan.load(at.plan), here, title="fine-tune the pruned model")


def build_pruned(job: Job, at: Artefacts, here: Path) -> None:
    """The fine-tuned engine and its accuracy."""
    stages.finished_engine(job, stages.model_of(job, at.tuned_weights), here)


def _dump(section: BaseModel) -> dict[str, Any]:
    return section.model_dump(mode="json")


def _calibration(section: QuantizeSection) -> dict[str, Any]:
    """What int8 engines depend on; the table decides nothing but which layers of the mixed one are int8."""
    return section.model_dump(mode="json", exclude={"table"})


def _scoring(config: Config) -> dict[str, Any]:
    return {"criterion": config.prune.criterion, "batches": config.prune.batches, "batch_size": config.prune.batch_size}
