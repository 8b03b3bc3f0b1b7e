"""Verbs that follow a config: run, train, finetune, report; and doctor."""

from __future__ import annotations

import json as json_
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from torch import nn

    from pydeploy.run.folder import Verdict
    from pydeploy.run.job import Job
    from pydeploy.run.pipeline import Stage

from pydeploy.cli.arguments import Json
from pydeploy.cli.evaluate_verbs import evaluate

ConfigFile = Annotated[Path, typer.Argument(help="YAML file, e.g. one under configs/.")]
Override = Annotated[Optional[list[str]], typer.Option("--set", help="section.key=value; repeat for several.")]


def run(
    config: ConfigFile,
    out: Annotated[Optional[Path], typer.Option(help="Run directory; the report lies in it.")] = None,
    set_: Override = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep finished stages and earlier --set, go on where it stopped.")
    ] = False,
    reuse: Annotated[Optional[Path], typer.Option(help="Take finished stages with equal inputs from this run.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say which stages would run, and why.")] = False,
    fail_if_missed: Annotated[
        bool, typer.Option("--fail-if-missed", help="Exit code 1 where no engine was measured to meet the budget.")
    ] = False,
    slim: Annotated[
        bool,
        typer.Option(
            "--slim", help="Delete at the end what is only needed to go on: engines, ONNX files, checkpoints."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """The whole job: train, prune to the budget on the target, fine-tune, quantize, report.

    What can be found wrong in seconds ('pydeploy check') is tried first. --resume goes on with the --set of before. The last
    lines name the engine to ship and show how Python runs it.

    Example: pydeploy run configs/fashion_mnist_resnet20_cpu.yaml --out runs/demo
    """
    from pydeploy.cli.console import Terminal, tell
    from pydeploy.errors import ConfigError, Infeasible
    from pydeploy.run import pipeline
    from pydeploy.run.config import load, overridden
    from pydeploy.run.overrides import remembered

    terminal, given = Terminal(), overridden(set_ or [])
    if resume and out is not None:
        given = remembered(out, given, terminal.say)
    settings = load(config, given)
    if plan:
        stages = pipeline.foresee(settings, out, terminal, reuse=reuse)
        tell(json, [_foreseen(stage, verdict) for stage, verdict in stages], _plan_text(stages))
        return
    if out is None:
        raise ConfigError("give the run directory with --out")
    try:
        pipeline.run(
            settings, out, terminal, resume=resume, reuse=reuse, command=_command(given), overrides=given, slim=slim
        )
    except Infeasible as error:
        if not fail_if_missed:
            raise
        sys.stderr.write(f"{error}\n")
        tell(json, {"met": False, "why": str(error)}, "")
        raise typer.Exit(1) from None
    _tell_result(out, json)
    if fail_if_missed and not _met(out):
        raise typer.Exit(1)


def _command(given: Mapping[str, Any]) -> str:
    """What was typed, with the --set that an earlier call named."""
    typed = sys.argv[1:]
    more = [f"--set {shlex.quote(f'{key}={json_.dumps(value, default=str)}')}" for key, value in given.items()
            if not any(word.removeprefix("--set=").startswith(f"{key}=") for word in typed)]  # fmt: skip
    return " ".join(["pydeploy", *typed, *more])


def _tell_result(out: Path, json: bool) -> None:
    """The last lines of a run: the verdict, where the report lies, and how the engine to ship is run."""
    from pydeploy.cli.console import tell
    from pydeploy.data.deployment import FILE
    from pydeploy.report import Report, headline
    from pydeploy.report.usage import usage
    from pydeploy.run.artefacts import Artefacts, Files

    at = Artefacts(out)
    report = Report.load(at.report)
    engine, way = Files(at.deploy).engine, at.deploy / FILE if report.preprocessing else None
    lines = [headline(report), f"recommended: {report.recommendation.model}: {report.recommendation.reason}",
             f"report: {at.root / 'report.html'}",
             *(f"DISTURBED: {warning}" for warning in report.warnings if "disturbed" in warning),
             f"ship: {engine}{f' with {way}' if way else ''}; to run it:", "",
             *(f"    {line}".rstrip() for line in usage(report, at.deploy).splitlines())]  # fmt: skip
    tell(json, {"met": report.met, "recommended": report.recommendation.model, "report": str(at.root / "report.html"),
                "engine": str(engine), "preprocessing": None if way is None else str(way),
                "warnings": list(report.warnings)}, "\n".join(lines) + "\n")  # fmt: skip


def _met(out: Path) -> bool:
    from pydeploy.report import Report
    from pydeploy.run.artefacts import Artefacts

    return Report.load(Artefacts(out).report).met


def check(
    config: ConfigFile,
    set_: Override = None,
    json: Json = False,
) -> None:
    """Try in seconds what a run would need: names, files, data, a training step, an export, a build; tell how long it takes.

    Example: pydeploy check configs/smoke.yaml
    """
    from pydeploy.cli.console import Terminal, tell
    from pydeploy.run import pipeline
    from pydeploy.run.config import load
    from pydeploy.run.preflight import duration

    seconds = pipeline.check(load(config, set_ or []), Terminal())
    told = "".join(f"{name:24} about {duration(spent)}\n" for name, spent in seconds.items())
    total = duration(sum(seconds.values()))
    tell(json, {"seconds": seconds},
         f"{told}{config}: nothing is wrong; about {total} on a machine that does nothing else\n")  # fmt: skip


def _foreseen(stage: Stage, verdict: Verdict) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "kept": verdict.stays,
        "why": verdict.why,
        "reads": list(stage.reads),
        "after": list(stage.after),
    }


def _plan_text(stages: Sequence[tuple[Stage, Verdict]]) -> str:
    lines = []
    for stage, verdict in stages:
        lines.append(f"{stage.name}: {'kept' if verdict.stays else 'would run'}: {verdict.why or 'finished earlier'}\n")
        after = f"; after {', '.join(stage.after)}" if stage.after else ""
        lines.append(f"    reads {', '.join(stage.reads)}{after}\n")
    would = sum(not verdict.stays for _, verdict in stages)
    return "".join(lines) + f"{would} of {len(stages)} stages would run, then the report\n"


def train(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="Folder for model.safetensors and the checkpoint.")],
    set_: Override = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last epoch of an interrupted training in --out.")] = True,
    eval_only: Annotated[bool, typer.Option("--eval-only", help="Only judge the model that lies in --out.")] = False,
    json: Json = False,
) -> None:
    """Train the dense model of a config; an interrupted training goes on from its last epoch. Several devices: torchrun -m pydeploy train.

    Example: pydeploy train configs/fashion_mnist_resnet20_cpu.yaml --out runs/dense
    """
    from pydeploy.cli.console import Terminal, tell
    from pydeploy.run.artefacts import Artefacts, Files
    from pydeploy.run.config import load
    from pydeploy.run.job import open_job
    from pydeploy.run.stages.training import train as make

    if eval_only:
        evaluate(config, Files(out).weights, set_=set_, json=json)
        return
    job = open_job(load(config, set_ or []), Terminal())
    out.mkdir(parents=True, exist_ok=True)
    make(job, Artefacts(out), out, resume=resume)
    tell(json, {"model": str(Files(out).weights)}, f"{Files(out).weights}\n")


def finetune(
    config: ConfigFile,
    model: Annotated[Path, typer.Option(help="The cut model, written by 'pydeploy prune'.")],
    teacher: Annotated[Path, typer.Option(help="The dense model, written by 'pydeploy train'.")],
    out: Annotated[Path, typer.Option(help="Folder for model.safetensors and the checkpoint.")],
    keep_zeros: Annotated[
        bool, typer.Option("--keep-zeros", help="Weights that are zero stay zero, as 'pydeploy mask' left them.")
    ] = False,
    set_: Override = None,
    json: Json = False,
) -> None:
    """Fine-tune a cut model with distillation from the dense one, by the config's 'finetune' section.

    Example: pydeploy finetune CONFIG --model small.safetensors --teacher runs/dense/model.safetensors --out runs/tuned
    """
    from pydeploy.cli.console import Terminal, tell
    from pydeploy.run.artefacts import Files
    from pydeploy.run.config import load
    from pydeploy.run.job import model_of, open_job
    from pydeploy.run.stages.training import fit
    from pydeploy.train.distill.logits import Teacher

    job = open_job(load(config, set_ or []), Terminal())
    section, small, dense = job.config.finetune, model_of(job, model), model_of(job, teacher)
    if keep_zeros:
        small = _masked(job, small)
    out.mkdir(parents=True, exist_ok=True)
    fit(job, small, section, out, teacher=Teacher(dense), title="fine-tune", distill=section.distill)
    tell(json, {"model": str(Files(out).weights)}, f"{Files(out).weights}\n")


def _masked(job: Job, model: nn.Module) -> nn.Module:
    """The network with masks on the zeros of its layers' weights."""
    from pydeploy.errors import ConfigError
    from pydeploy.prune.sparsity.empty_channels import zeros_of
    from pydeploy.prune.structure.trace import trace
    from pydeploy.prune.surgery.masks import masked
    from pydeploy.tasks.evaluate import example

    zeros = zeros_of(model, trace(model, example(job.task)))
    if not zeros:
        raise ConfigError("--keep-zeros: no weight of a layer is zero; make a masked model with 'pydeploy mask'")
    return masked(model, zeros)


def recalibrate(
    config: ConfigFile,
    model: Annotated[Path, typer.Option(help="The cut model, written by 'pydeploy prune'.")],
    out: Annotated[Path, typer.Option(help="The recalibrated model (safetensors).")],
    batches: Annotated[int, typer.Option(min=1, max=1_000_000, help="Training batches, as large as 'prune' says.")] = 5,
    set_: Override = None,
    json: Json = False,
) -> None:
    """Measure a cut model's batch norms again, on training batches of a config, without training.

    Example: pydeploy recalibrate CONFIG --model small.safetensors --out recalibrated.safetensors
    """
    from pydeploy.cli.console import Terminal, tell
    from pydeploy.files import check_writable
    from pydeploy.prune.surgery.recalibrate import recalibrate as measured
    from pydeploy.prune.surgery.save import load_plan, save
    from pydeploy.run.config import load
    from pydeploy.run.job import model_of, open_job
    from pydeploy.run.stages.scoring import first_batches

    check_writable(out)
    job = open_job(load(config, set_ or []), Terminal())
    small = model_of(job, model)
    settings = job.config.prune.model_copy(update={"batches": batches})
    data = first_batches(job.task, settings, job.seed)
    save(out, measured(small, (batch.inputs for batch in data)), load_plan(model))
    tell(json, {"model": str(out)}, f"{out}\n")


def report(
    folder: Annotated[Path, typer.Argument(help="Run directory, or a folder with a report.json.")],
    json: Json = False,
) -> None:
    """Render report.md, report.html and the charts again from report.json.

    Example: pydeploy report runs/demo
    """
    from pydeploy.cli.console import show_json
    from pydeploy.report import Report, headline, render
    from pydeploy.run.artefacts import Artefacts

    loaded = Report.load(Artefacts(folder).report)
    markdown, page = render(loaded, folder)
    if json:
        show_json(loaded.to_json())
    else:
        sys.stdout.write(f"{headline(loaded)}\n{markdown}\n{page}\n")


def doctor(json: Json = False) -> None:
    """What this machine offers: device, backends with their precisions, data, and what is missing.

    Example: pydeploy doctor
    """
    from pydeploy.cli.console import show_json
    from pydeploy.cli.doctor import findings

    found = findings()
    if json:
        show_json(found)
        return
    for key, value in found.items():
        lines = value.items() if isinstance(value, dict) else [("", value)]
        for name, text in lines:
            sys.stdout.write(f"{key + (' ' + name if name else ''):24} {text}\n")
