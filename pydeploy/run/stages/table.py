"""The latency table of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from pydeploy.graph import Graph
from pydeploy.run.artefacts import Artefacts, Files
from pydeploy.run.facts import TableFacts
from pydeploy.run.job import Job

if TYPE_CHECKING:
    from pydeploy.latency.table.table import Table


def measure_table(job: Job, at: Artefacts, here: Path) -> None:
    """``table.sqlite``: latency of every layer at the widths the solver may choose."""
    fill_table(job, Graph.load(at.graph), Files(at.dense).source, here)


def fill_table(job: Job, graph: Graph, onnx: Path, here: Path) -> None:
    """``table.sqlite`` and ``facts.json``. What an interrupted measurement left is kept and completed."""
    started = time.monotonic()
    table = measured_table(job, graph, onnx, here)
    facts = TableFacts(probes=len({network.plan for network in table.networks(graph)}),
                       keys=len({row.key for row in table.rows()}), disturbed=len(table.disturbed(graph)),
                       seconds=time.monotonic() - started)  # fmt: skip
    facts.save(Files(here).facts)


def measured_table(job: Job, graph: Graph, onnx: Path, here: Path) -> Table:
    """``table.sqlite`` with all planned networks; those that other load disturbed are measured once more."""
    from pydeploy.latency.probes.design import grid
    from pydeploy.latency.probes.measure import measure, minutes
    from pydeploy.latency.probes.quantized import int8_transform
    from pydeploy.latency.table.table import Table

    settings = job.config.table
    table = Table.open(Files(here).table, job.backend.target())
    align = settings.align or job.backend.align
    widths = grid(graph, settings.points, align, job.config.prune.min_width)
    int8 = None
    if job.backend.precision == "int8":
        exclude = job.config.quantize.exclude if job.config.quantize is not None else ()
        int8 = int8_transform(onnx, job.backend.int8_style, here, job.backend.threads, exclude=exclude)
    with job.console.bar("measure the latency table") as tick:
        measure(graph, onnx, job.backend, table, widths=widths, rounds=settings.rounds, runs=settings.runs, workdir=here,
                transform=int8, progress=tick, announce=lambda s: job.console.say(minutes(s)))  # fmt: skip
    return table
