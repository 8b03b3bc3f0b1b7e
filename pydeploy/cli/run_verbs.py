"""Verbs that follow a config: run, train, finetune, report; and doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

ConfigFile = Annotated[Path, typer.Argument(help="YAML file, e.g. one under configs/.")]
Override = Annotated[Optional[list[str]], typer.Option("--set", help="section.key=value; repeat for several.")]


def run(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="Run directory; the report lies in it.")],
    set_: Override = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished stages, go on where it stopped.")] = False,
    reuse: Annotated[Optional[Path], typer.Option(help="Take finished stages with equal inputs from this run.")] = None,
) -> None:
    """The whole job: train, prune to the budget on the target, fine-tune, quantize, report.

    Example: pydeploy run configs/fashion_mnist_resnet20_cpu.yaml --out runs/demo
    """
    from pydeploy.cli.console import Terminal
    from pydeploy.report import Report, headline
    from pydeploy.run.config import load
    from pydeploy.run.pipeline import run as run_all

    settings = load(config, set_ or [])
    page = run_all(settings, out, Terminal(), resume=resume, reuse=reuse, command=" ".join(["pydeploy", *sys.argv[1:]]))
    report = Report.load(out / "report.json")
    sys.stdout.write(f"{headline(report)}\nrecommended: {report.recommendation.model}: {report.recommendation.reason}\n"
                     f"report: {page}\n")  # fmt: skip
    for warning in report.warnings:
        if "disturbed" in warning:
            sys.stdout.write(f"DISTURBED: {warning}\n")


def train(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="Folder for model.safetensors and the checkpoint.")],
    set_: Override = None,
) -> None:
    """Train the dense model of a config; an interrupted training goes on from its last epoch.

    Example: pydeploy train configs/fashion_mnist_resnet20_cpu.yaml --out runs/dense
    """
    from pydeploy.cli.console import Terminal
    from pydeploy.run import pipeline
    from pydeploy.run.config import load

    job = pipeline.open_job(load(config, set_ or []), Terminal())
    out.mkdir(parents=True, exist_ok=True)
    pipeline.train(job, out)
    sys.stdout.write(f"{out / 'model.safetensors'}\n")


def finetune(
    config: ConfigFile,
    model: Annotated[Path, typer.Option(help="The cut model, written by 'pydeploy prune'.")],
    teacher: Annotated[Path, typer.Option(help="The dense model, written by 'pydeploy train'.")],
    out: Annotated[Path, typer.Option(help="Folder for model.safetensors and the checkpoint.")],
    set_: Override = None,
) -> None:
    """Fine-tune a cut model with distillation from the dense one, by the config's 'finetune' section.

    Example: pydeploy finetune CONFIG --model small.safetensors --teacher runs/dense/model.safetensors --out runs/tuned
    """
    from pydeploy.cli.console import Terminal
    from pydeploy.run.config import load
    from pydeploy.run.pipeline import open_job
    from pydeploy.run.stages import shared as stages
    from pydeploy.train.distill.logits import Teacher

    job = open_job(load(config, set_ or []), Terminal())
    out.mkdir(parents=True, exist_ok=True)
    section = job.config.finetune
    stages.fit(job, stages.model_of(job, model), section, out, teacher=Teacher(stages.model_of(job, teacher)),
               title="fine-tune", distill=section.distill)  # fmt: skip
    sys.stdout.write(f"{out / 'model.safetensors'}\n")


def report(
    folder: Annotated[Path, typer.Argument(help="Run directory, or a folder with a report.json.")],
    json: Annotated[bool, typer.Option("--json", help="Print report.json instead of a summary.")] = False,
) -> None:
    """Render report.md, report.html and the charts again from report.json.

    Example: pydeploy report runs/demo
    """
    from pydeploy.cli.console import show_json
    from pydeploy.report import Report, headline, render

    loaded = Report.load(folder / "report.json")
    markdown, page = render(loaded, folder)
    if json:
        show_json(loaded.to_json())
    else:
        sys.stdout.write(f"{headline(loaded)}\n{markdown}\n{page}\n")


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
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
