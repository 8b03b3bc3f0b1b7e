"""Writes docs/figures/tasks.md from finished runs: what each task keeps at its budget, in float and in INT8, beside other rules.

    pydeploy run configs/segmentation_camvid_resnet18_seg.yaml --out runs/camvid --resume
    pydeploy run configs/segmentation_camvid_resnet18_seg.yaml --out runs/openvino --reuse runs/camvid --set target.backend=openvino
    python bench/tasks.py runs/camvid runs/openvino --page docs/figures/tasks.md

Every number comes from the runs' ``report.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pydeploy.files import write_text
from pydeploy.report import ModelResult, Report

HEAD = """# Tasks, from data to a measured engine

Written by `python bench/tasks.py {runs} --page {page}`. Each row is one run; its report has all engines, layers and rounds. Values are
those of the built engines over the whole test set, latencies medians at batch {batches}. "Lost" is against dense for the pruned engine,
against the pruned one for INT8; the share is of the dense engine's latency, measured in turns.

| task, network | target | dense | budget | pruned: share, value, lost | INT8: share, value, lost | round | error of predictions | others |
|---|---|---|---|---|---|---|---|---|
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--page", type=Path, default=Path("docs/figures/tasks.md"))
    chosen = parser.parse_args(arguments)
    reports = [Report.load(run / "report.json") for run in chosen.runs]
    batches = ", ".join(sorted({str(report.target.batch) for report in reports}))
    head = HEAD.format(runs=" ".join(map(str, chosen.runs)), page=chosen.page, batches=batches)
    write_text(chosen.page, head + "".join(map(row, reports)) + notes(reports))


def row(report: Report) -> str:
    """One run as a line of the table."""
    models, metric, target = report.models, report.metric, report.target
    pruned = models.unquantized or models.pruned
    budget = f"{report.budget_share:.0%}" if report.budget_share else f"{report.budget_us / 1000:.3g} ms"
    rounds = next((str(one.number) for one in report.rounds if one.met), "-")
    error = f"{max(abs(one.error) for one in report.rounds):.1%}" if report.rounds else "-"
    quantized = _engine(report, models.quantized, pruned) if models.quantized else "-"
    others = [f"{one.name} {one.latency_us.ratio_to(models.dense.latency_us).value:.2f}, {metric.text(one.value)}"
              for one in report.candidates]  # fmt: skip
    cells = (
        f"{report.task}, {report.model}",
        f"{target.backend} {target.precision}{'' if target.measured else ' (analytic)'}",
        f"{metric.name} {metric.text(models.dense.value)}, {models.dense.latency_us.median / 1000:.3g} ms",
        f"{budget}: {'met' if report.met else 'missed'}",
        _engine(report, pruned, models.dense), quantized, rounds, error,
        "; ".join(others) or "-",
    )  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |\n"


def notes(reports: Sequence[Report]) -> str:
    """Which machines these are."""
    devices = dict.fromkeys(f"{report.target.device}, {report.target.threads} threads" for report in reports)
    return "\nMachines: " + "; ".join(devices) + ".\n"


def _engine(report: Report, engine: ModelResult, beside: ModelResult) -> str:
    share = engine.latency_us.ratio_to(report.models.dense.latency_us).value
    lost = report.metric.lost(beside.value, engine.value)
    return f"{share:.2f}, {report.metric.text(engine.value)}, {report.metric.amount(round(lost, 2))}"


if __name__ == "__main__":
    main()
