"""``pydeploy eval``: what a model or an engine reaches on a config's test set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from pydeploy.cli.arguments import Json

MOST_ROWS = 40
"""Larger tables are printed by --json only."""


def evaluate(
    config: Annotated[Path, typer.Argument(help="YAML file, e.g. one under configs/.")],
    model: Annotated[Path, typer.Argument(help="Weights of the config's network, dense or cut, or an engine file.")],
    set_: Annotated[Optional[list[str]], typer.Option("--set", help="section.key=value; repeat for several.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=1_000_000, help="Samples at a time, of weights.")] = 64,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Only the first samples of the test set.")] = None,
    json: Json = False,
) -> None:
    """Judge a model or an engine on the whole test set of a config: its metrics, and the tables beside them.

    Example: pydeploy eval configs/fashion_mnist_resnet20_cpu.yaml runs/dense/model.safetensors
    """
    from dataclasses import asdict

    from pydeploy.cli.arguments import backend_of
    from pydeploy.cli.console import Terminal, show_json, show_table
    from pydeploy.run.config import load
    from pydeploy.run.job import model_of, open_job
    from pydeploy.tasks.evaluate import judged, predict_with

    job = open_job(load(config, set_ or []), Terminal())
    if model.with_name(f"{model.name}.json").is_file():
        backend, record = backend_of(model)
        with backend.open(record) as session:
            numbers, tables = judged(job.task, session.run, batch_size=backend.batch, limit=limit)
    else:
        predict = predict_with(model_of(job, model), job.task)
        numbers, tables = judged(job.task, predict, batch_size=batch, limit=limit)
    if json:
        show_json({"metrics": numbers, "tables": {name: asdict(table) for name, table in tables.items()}})
        return
    metric = job.task.metric
    show_table(("metric", "value"), [(name, metric.text(value) if name == metric.name else f"{value:.4g}")
                                     for name, value in numbers.items()])  # fmt: skip
    for name, table in tables.items():
        if max(len(table.rows), len(table.columns)) <= MOST_ROWS:
            sys.stdout.write(f"\n{name}\n")
            show_table(("", *table.columns), [(row, *("-" if value is None else f"{value:.4g}" for value in values))
                                              for row, values in zip(table.rows, table.values, strict=True)])  # fmt: skip
