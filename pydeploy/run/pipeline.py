"""The whole story, in order: a config in, a run directory with a measured engine and its report out.

    train -> trace -> score -> measure -> [solve -> cut -> export -> build -> profile -> correct]* -> fine-tune
          -> export -> build -> calibrate -> quantize -> mix -> build -> compare -> profile -> report

Each stage leaves its files in its own folder, stamped with a hash of what it depends on (`pydeploy.run.folder`);
`pydeploy.run.artefacts` knows where they lie.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel

from pydeploy.backends.base import align_of, open_backend, reopen
from pydeploy.errors import ConfigError, nearest
from pydeploy.files import read_json, sha256, write_json
from pydeploy.graph import Graph, Plan
from pydeploy.latency.probes.design import grid
from pydeploy.latency.table.by_precision import other_table, other_target
from pydeploy.onnxfile.load import read_float_model
from pydeploy.onnxfile.prepare import prepare
from pydeploy.quant.placement import excludable
from pydeploy.quant.placement import plan as plan_pairs
from pydeploy.quant.styles import style_for, style_named
from pydeploy.run.artefacts import Artefacts
from pydeploy.run.config import Config, QuantizeSection
from pydeploy.run.folder import Console, RunFolder
from pydeploy.run.stages import comparison as candidates
from pydeploy.run.stages import final as summary
from pydeploy.run.stages import precisions
from pydeploy.run.stages import shared as stages
from pydeploy.run.stages.rounds import Budget
from pydeploy.run.stages.search import best_plan, search
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
    check_structure(job)
    at = Artefacts(out)
    write_json(at.config, config.model_dump(mode="json"))
    learned = {
        "seed": config.seed,
        "task": _dump(config.task),
        "model": _dump(config.model),
        "train": _dump(config.train),
        "weights": sha256(config.train.weights) if config.train.weights is not None else "",
    }
    target = {"target": job.backend.target().to_json()}
    int8 = job.backend.precision == "int8"
    if int8:
        target["quantize"] = _calibration(job, config.quantize) if config.quantize is not None else {}

    folder.stage("01_train", learned, lambda here: train(job, here))
    folder.stage("02_graph", {}, lambda here: trace(job, at, here), ("01_train",))
    folder.stage("03_scores", _scoring(config), lambda here: score(job, at, here), ("02_graph",))
    folder.stage("04_dense", target, lambda here: build_dense(job, at, here), ("01_train",))
    widths = {**_dump(config.table), "min_width": config.prune.min_width}
    folder.stage("05_table", widths, lambda here: measure_table(job, at, here), ("02_graph", "04_dense"))
    if summary.misled(at, Budget(config.prune.budget, config.prune.budget_us)):
        folder.again("0[6-9]_*", "other load disturbed the search, and the engine misses the budget")
        folder.again("11_profile", "its engines are made anew")
    folder.stage("06_search", _dump(config.prune), lambda here: search_plan(job, at, here), ("03_scores", "05_table"))
    folder.stage("07_finetune", _dump(config.finetune), lambda here: finetune(job, at, here), ("06_search",))
    folder.stage("08_pruned", {}, lambda here: build_pruned(job, at, here), ("07_finetune",))
    engines = ["04_dense", "08_pruned"]
    if config.quantize is not None:
        settings = _calibration(job, config.quantize)
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
        settings = {**_dump(config.finetune), "strength": point.strength, "prune": _dump(config.prune)}
        folder.stage(engines[-1], settings, make, ("03_scores", "05_table"))
    if summary.disturbed(at):
        folder.again("11_profile", "other load disturbed it")
    folder.stage("11_profile", {}, lambda here: summary.measure_all(job, at, here), tuple(engines))
    return summary.write_report(job, at, folder.seconds, command)


def open_job(config: Config, console: Console) -> Job:
    """The task and the backend of `config`; whatever it names is looked up here, before any work starts."""
    from pydeploy.tasks.samples import samples_digest

    target = config.target
    backend = open_backend(target.backend, precision=target.precision, batch=target.batch, threads=target.threads,
                           options=target.options)  # fmt: skip
    manifest = stages.check_calibration(config)
    if config.quantize is not None:
        reopen(other_target(backend.target()))
        if config.quantize.table is not None:
            other_table(config.quantize.table, backend.target())
    task = stages.open_task(config)
    samples = samples_digest(task, manifest) if manifest is not None else ""
    return Job(config, task, backend, console, manifest, samples)


def check_structure(job: Job) -> None:
    """Refuse weights that do not fit, and settings that contradict the network's structure: its untrained form tells."""
    from pydeploy.export import export
    from pydeploy.prune.structure.trace import trace as find

    config = job.config
    model = stages.model_of(job, config.train.weights)
    graph = find(model, job.task.example())
    widths = grid(graph, 2, config.table.align or align_of(job.backend, stages.ALIGN), config.prune.min_width)
    if not any(len(choices) > 1 for choices in widths.values()):
        widest = max((group.width for group in graph.prunable), default=0)
        raise ConfigError(f"prune.min_width is {config.prune.min_width} and the widest group of channels that may be pruned "
                          f"has {widest}: no width is left to choose; lower prune.min_width or table.align")  # fmt: skip
    if config.quantize is not None and config.quantize.exclude:
        with TemporaryDirectory(prefix="pydeploy-") as folder:
            onnx = export(model, job.task.example(), Path(folder) / "model.onnx", batch=job.backend.batch,
                          input_names=job.task.input_names, output_names=job.task.output_names)  # fmt: skip
            layers, style = prepare(read_float_model(onnx)), style_named(style_for(job.backend.name))
        known = excludable(layers, style)
        for name in config.quantize.exclude:
            if name not in known:
                raise ConfigError(f"quantize.exclude: cannot exclude '{name}', no such layer{nearest(name, known)}")
        if not plan_pairs(layers, style, exclude=config.quantize.exclude).nodes:
            raise ConfigError(
                "quantize.exclude leaves no layer that could be int8; remove the section 'quantize' instead"
            )


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


def _calibration(job: Job, section: QuantizeSection) -> dict[str, Any]:
    """What int8 engines depend on; the table decides nothing but which layers of the mixed one are int8."""
    return {**section.model_dump(mode="json", exclude={"table"}), "samples": job.samples}


def _scoring(config: Config) -> dict[str, Any]:
    return {"criterion": config.prune.criterion, "batches": config.prune.batches, "batch_size": config.prune.batch_size}
