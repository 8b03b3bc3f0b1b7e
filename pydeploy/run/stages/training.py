"""Training: the dense model, and every cut one with the dense model as its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pydeploy.files import write_json
from pydeploy.graph import Graph
from pydeploy.latency.table.table import Table
from pydeploy.plan import Plan
from pydeploy.run.artefacts import Artefacts, Files
from pydeploy.run.job import Job, model_of, start_model
from pydeploy.run.stages.scoring import write_scores

if TYPE_CHECKING:
    from torch import nn

    from pydeploy.prune.sparsity.settings import SparsitySettings
    from pydeploy.train.distill.logits import Teacher
    from pydeploy.train.distill.settings import DistillSettings
    from pydeploy.train.settings import FitSettings


def train(job: Job, at: Artefacts, here: Path, *, resume: bool = True) -> None:  # noqa: ARG001  # one signature for all stages
    """``model.safetensors``: the dense model, trained, or as ``train.weights`` or ``model.weights`` have it."""
    from pydeploy.prune.surgery.save import save

    settings = job.config.train
    if job.guest is not None:
        save(Files(here).weights, job.guest.network())
        return
    if settings.weights is not None:
        save(Files(here).weights, model_of(job, settings.weights))
        return
    if not job.config.trains:
        save(Files(here).weights, start_model(job))
        return
    fit(job, start_model(job), settings, here, sparsity=settings.sparsity, title="train the dense model", resume=resume)


def finetune_plan(job: Job, at: Artefacts, here: Path) -> None:
    """``model.safetensors``: the model cut to the plan, trained with distillation from the dense one."""
    cut_and_finetune(job, at, Plan.load(at.plan), here, title="fine-tune the pruned model")


def fit(
    job: Job, model: nn.Module, settings: FitSettings, here: Path, *, teacher: Teacher | None = None,
    distill: DistillSettings | None = None, sparsity: SparsitySettings | None = None, title: str, resume: bool = True,
) -> None:  # fmt: skip
    """Train `model`; resumes from `here` unless told otherwise, and leaves ``model.safetensors`` there."""
    from pydeploy.prune.surgery.masks import unmasked
    from pydeploy.prune.surgery.save import save
    from pydeploy.train.loop import fit as train

    table = Table.open(sparsity.table).predictions if sparsity is not None and sparsity.table is not None else None
    with job.console.bar(title) as tick:
        result = train(model, job.task, settings, out=here, seed=job.seed, teacher=teacher if distill else None,
                       distill=distill, sparsity=sparsity, table=table, resume=resume, track=job.config.track,
                       progress=lambda done, total, numbers: tick(done, total, _in_words(numbers)))  # fmt: skip
    if not _first_process():
        return
    save(Files(here).weights, unmasked(result.model))
    write_json(Files(here).history, [asdict(record) for record in result.history])
    if result.scores is not None:
        write_scores(Files(here).scores, result.scores)
    if result.widths is not None:
        told = ", ".join(f"{name} {width}" for name, width in result.widths.items())
        job.console.say(f"expected widths: {told}")


def _in_words(numbers: Mapping[str, float]) -> str:
    """``loss 1.234 (classes 1.1, dice 0.134), lr 0.05``."""
    parts = ", ".join(f"{name} {value:.3g}" for name, value in numbers.items() if name not in ("loss", "lr"))
    return f"loss {numbers['loss']:.4g}{f' ({parts})' if parts else ''}, lr {numbers['lr']:.3g}"


def _first_process() -> bool:
    """Whether this process writes what a training under ``torchrun`` leaves."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def finetune(job: Job, at: Artefacts, small: nn.Module, here: Path, *, title: str) -> None:
    """Train a cut model with the dense one as its teacher. All students of a run share the teacher's outputs."""
    if job.guest is not None:
        from pydeploy.prune.surgery.save import save

        save(Files(here).weights, job.guest.tuned(small))
        return
    from pydeploy.train.distill.logits import Teacher

    section = job.config.finetune
    if section.distill is not None and "teacher" not in job.shared:
        job.shared["teacher"] = Teacher(model_of(job, at.dense_weights))
    fit(job, small, section, here, teacher=job.shared.get("teacher"), title=title, distill=section.distill)


def cut_and_finetune(job: Job, at: Artefacts, plan: Plan, here: Path, *, title: str) -> None:
    """``plan.json`` and ``model.safetensors``: the dense model cut to `plan` and fine-tuned."""
    from pydeploy.prune.surgery.apply import apply

    plan.save(Files(here).plan)
    small = apply(model_of(job, at.dense_weights), Graph.load(at.graph), plan)
    finetune(job, at, small, here, title=title)
