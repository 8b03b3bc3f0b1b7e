"""Writes docs/figures/tasks.md from finished runs: what each task keeps at its budget, in float and in INT8, beside other rules.

    pydeploy run configs/classification_cifar10_resnet20.yaml --out runs/cifar10 --resume
    pydeploy run configs/segmentation_camvid_resnet18_seg.yaml --out runs/camvid --resume
    pydeploy run configs/segmentation_camvid_resnet18_seg.yaml --out runs/openvino --reuse runs/camvid --set target.backend=openvino
    python bench/untrained.py --work runs/untrained
    python bench/tasks.py runs/cifar10 runs/camvid runs/openvino --untrained runs/untrained --page docs/figures/tasks.md

Every number comes from the runs' ``report.json`` and the results of ``untrained.py``. A section a task; what was asked of a config is a
line of `GOALS`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from untrained import results

from pydeploy.files import write_text
from pydeploy.report import ModelResult, Report

TASKS = ("classification", "segmentation", "detection", "inspection")

HEAD = """# Tasks, from data to a measured engine

Written by `python bench/tasks.py {runs} --page {page}`. Each row is one run; its report has all engines, layers and rounds. Values are
those of the built engines over the whole test set, latencies medians at batch {batches}. "Lost" is against dense for the pruned engine,
against the pruned one for INT8; the share is of the dense engine's latency, measured in turns.
"""
ROWS = """
| network, data | target | dense | budget | pruned: share, value, lost | INT8: share, value, lost | round | error of predictions | others |
|---|---|---|---|---|---|---|---|---|
"""
UNTRAINED = """
## Full-size networks, untrained

Written from `python bench/untrained.py`: structure and latency alone, batch 1. INT8 is of the pruned network, with ranges from random
inputs. Shares are of the dense engine's latency, measured in turns.

| network | target | parameters, MACs | dense | budget | pruned | INT8 | MACs kept | plans | error of the prediction |
|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Goal:
    """What was asked of a run: the dense metric at least, and what pruning and INT8 may lose, in points or the metric's unit."""

    dense: float
    pruned: float
    int8: float


GOALS: Mapping[str, Goal] = {
    "classification_cifar10_resnet20": Goal(0.80, 1.0, 0.3),
    "segmentation_camvid_resnet18_seg": Goal(0.50, 1.5, 0.5),
    "detection_neu_ssd_small": Goal(0.60, 2.0, 1.0),
    "inspection_magnetic_tiles_cpu": Goal(0.90, 2.0, 1.0),
    "inspection_elpv_cpu": Goal(0.80, 2.0, 2.0),
}
"""By the name of the config in the command of a run."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--untrained", type=Path, help="folder of results of untrained.py")
    parser.add_argument("--page", type=Path, default=Path("docs/figures/tasks.md"))
    chosen = parser.parse_args(arguments)
    reports = [Report.load(run / "report.json") for run in chosen.runs]
    batches = ", ".join(sorted({str(report.target.batch) for report in reports}))
    head = HEAD.format(runs=" ".join(map(str, chosen.runs)), page=chosen.page, batches=batches)
    parts = [head, *sections(reports), notes(reports)]
    if chosen.untrained is not None:
        parts += [UNTRAINED, *(line for one in results(chosen.untrained) for line in untrained_rows(one))]
    write_text(chosen.page, "".join(parts))


def sections(reports: Sequence[Report]) -> list[str]:
    """A heading, a table and the goals for every task that there is a run of."""
    found = []
    names = [*TASKS, *sorted({report.task for report in reports} - set(TASKS))]
    for task in names:
        own = [report for report in reports if report.task == task]
        if own:
            found += [f"\n## {task.capitalize()}\n", ROWS, *map(row, own), *filter(None, map(goal, own))]
    return found


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
    return _line(
        f"{report.model}, {report.config.get('task', {}).get('data') or 'its own'}",
        f"{target.backend} {target.precision}{'' if target.measured else ' (analytic)'}",
        f"{metric.name} {metric.text(models.dense.value)}, {models.dense.latency_us.median / 1000:.3g} ms",
        f"{budget}: {'met' if report.met else 'missed'}",
        _engine(report, pruned, models.dense), quantized, rounds, error,
        "; ".join(others) or "-",
    )  # fmt: skip


def goal(report: Report) -> str:
    """What was asked of a run and what it reached, in a sentence; '' where nothing was asked."""
    config = re.search(r"(\w+)\.yaml", report.command)
    asked = GOALS.get(config[1]) if config else None
    if asked is None:
        return ""
    models, metric = report.models, report.metric
    pruned = models.unquantized or models.pruned
    said = [_said(f"dense {metric.text(models.dense.value)}, asked {metric.text(asked.dense)}",
                  metric.lost(asked.dense, models.dense.value) <= 0)]  # fmt: skip
    for name, engine, beside, limit in (
        ("pruned", pruned, models.dense, asked.pruned),
        ("INT8", models.quantized, pruned, asked.int8),
    ):
        if engine is not None:
            lost = metric.lost(beside.value, engine.value)
            said.append(
                _said(f"{name} loses {metric.amount(round(lost, 2))}, allowed {metric.amount(limit)}", lost <= limit)
            )
    return f"\n{report.model} on {report.target.backend}: {'; '.join(said)}.\n"


def untrained_rows(one: Mapping[str, Any]) -> list[str]:
    """A line for each budget of one network on one target."""
    made = []
    for budget, found in one["budgets"].items():
        name, size = one["name"], "x".join(map(str, one["size"]))
        if "reason" in found:
            made.append(
                _line(
                    f"{name}, {size}",
                    one["target"],
                    "",
                    "",
                    f"{float(budget):.0%}",
                    f"not met: {found['reason']}",
                    *[""] * 4,
                )
            )
            continue
        shares = found["share"]
        int8 = f"{shares['int8']:.3f}" if "int8" in shares else "-"
        made.append(_line(
            f"{name}, {size}", f"{one['target']}, {one['threads']} threads", f"{one['parameters'] / 1e6:.1f} M, {one['macs'] / 1e9:.2f} G",
            f"{found['dense_us'] / 1000:.3g} ms", f"{float(budget):.0%}: {'met' if found['met'] else 'missed'} in round {found['round']}",
            f"{shares['pruned']:.3f}{' (disturbed)' if found['disturbed'] else ''}", int8, f"{found['macs']:.0%}", f"{found['plans']}",
            f"{found['error']:.1%}",
        ))  # fmt: skip
    return made


def notes(reports: Sequence[Report]) -> str:
    """Which machines these are."""
    devices = dict.fromkeys(f"{report.target.device}, {report.target.threads} threads" for report in reports)
    return "\nMachines: " + "; ".join(devices) + ".\n"


def _said(text: str, reached: bool) -> str:
    return text if reached else f"**{text}: not reached**"


def _line(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |\n"


def _engine(report: Report, engine: ModelResult, beside: ModelResult) -> str:
    share = engine.latency_us.ratio_to(report.models.dense.latency_us).value
    lost = report.metric.lost(beside.value, engine.value)
    return f"{share:.2f}, {report.metric.text(engine.value)}, {report.metric.amount(round(lost, 2))}"


if __name__ == "__main__":
    main()
