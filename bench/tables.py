"""Writes docs/tables.md: how well latency tables predict, and whether budgets are met, for models x targets.

    python bench/tables.py --work runs/tables                                   # everything that is not there yet
    python bench/tables.py --work runs/tables --only resnet18/openvino:bf16 --step verify
    python bench/tables.py --work runs/tables --step none                       # only write the page

Every step of every pair leaves a file in the work folder and is not repeated, so the whole can be run in windows; a
table that was interrupted goes on where it stopped. Weights are random: latency does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from pydeploy.backends.base import open_backend
from pydeploy.errors import DeployError, Infeasible
from pydeploy.files import write_json, write_text
from pydeploy.graph import Graph
from pydeploy.latency import store
from pydeploy.latency.design import grid
from pydeploy.latency.measure import Probe, build, layer_timings, measure, opened, sessions, timed
from pydeploy.latency.table import Table
from pydeploy.latency.verify import verify
from pydeploy.solve import solve
from pydeploy.timing import Profile

MODELS = ("resnet18", "resnet50", "mobilenet_v2")
TARGETS = ("openvino:bf16", "openvino:int8", "onnxruntime:fp32")
INPUT = (1, 3, 224, 224)
STEPS = ("measure", "verify", "budgets")
ROUNDS = 3
SLACK = 0.03
AIM = 0.985  # the middle of [budget - 3 %, budget]


def shares(model: str, target: str) -> tuple[float, ...]:
    return (0.7, 0.6, 0.5) if model == "mobilenet_v2" and target.startswith("openvino") else (0.7, 0.5, 0.35)


def prepare(model: str, folder: Path) -> Graph:
    """Graph, dense ONNX file and L1 scores of a torchvision model with random weights."""
    if not (folder / "scores.npz").is_file():
        import torch
        from torchvision import models

        import pydeploy as pd
        from pydeploy.export import export

        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        net, example = models.get_model(model, weights=None).eval(), torch.randn(INPUT)
        graph = pd.trace(net, example)
        export(net, (example,), folder / "dense.onnx", batch=INPUT[0])
        graph.save(folder / "graph.json")
        np.savez(folder / "scores.npz", **pd.score(net, graph, "l1"))
    return Graph.load(folder / "graph.json")


def open_table(here: Path, target: str):
    backend = open_backend(target.split(":")[0], precision=target.split(":")[1], batch=INPUT[0])
    return backend, Table.open(here / "table.sqlite", backend.target())


def run_measure(model: str, target: str, here: Path, files: Path, graph: Graph) -> dict:
    backend, table = open_table(here, target)
    spent = json.loads((here / "spent.json").read_text())["seconds"] if (here / "spent.json").is_file() else 0.0
    began = time.monotonic()

    def keep(done: int, total: int) -> None:
        write_json(here / "spent.json", {"seconds": spent + time.monotonic() - began})
        sys.stderr.write(f"{model} {target}: {done} of {total}\n")

    done = measure(graph, files / "dense.onnx", backend, table, widths=grid(graph), progress=keep)
    intervals = [network.whole.interval for network in table.networks(graph)]
    return {"networks": len(intervals), "keys": len({row.key for row in table.rows()}), "disturbed": done.disturbed,
            "seconds": spent + time.monotonic() - began, "target": str(table.target), "interval": float(np.median(intervals)),
            "dense_us": table.predict_us(graph, {}), "reference_us": table.reference_us(graph)}  # fmt: skip


def run_verify(model: str, target: str, here: Path, files: Path, graph: Graph) -> dict:
    backend, table = open_table(here, target)
    return verify(graph, files / "dense.onnx", backend, table, plans=30, seed=1,
                  progress=lambda done, total: sys.stderr.write(f"{model} {target}: verified {done} of {total}\n")).to_json()  # fmt: skip


def run_budgets(model: str, target: str, here: Path, files: Path, graph: Graph) -> dict:
    """The closed loop for every budget, and the smallest possible latency, predicted and built."""
    backend, table = open_table(here, target)
    with np.load(files / "scores.npz") as file:
        scores = {name: file[name] for name in file.files}
    dense_us = table.predict_us(graph, {})
    found = {}
    with opened(graph, files / "dense.onnx", backend, table, rounds=8, runs=5) as lab, store.turn(table.path):

        def profile(widths: dict[str, int], name: str) -> tuple[Profile, bool]:
            with sessions(lab, {name: build(lab, Probe(name, widths))}) as running:
                whole, layers = timed(lab, running)[name], layer_timings(lab, running)[name]
            factor = (table.reference_us(graph) or 1.0) / lab.pace.level_us
            scaled = {op: timing.scaled(factor) for op, timing in layers.items()}
            return Profile(table.target, whole.scaled(factor), scaled), whole.disturbed

        for share in shares(model, target):
            known, rounds = table, []
            for number in range(ROUNDS):
                plan = solve(graph, scores, known, budget_us=share * dense_us * AIM)
                measured, disturbed = profile(plan.widths, f"budget{share}-{number}")
                ratio = measured.whole.median_us / (share * dense_us)
                rounds.append({"predicted_us": plan.latency_us, "measured_us": measured.whole.median_us, "of_budget": ratio,
                               "score": plan.score, "gap": plan.gap, "disturbed": disturbed})  # fmt: skip
                sys.stderr.write(f"{model} {target} {share}: {rounds[-1]}\n")
                if 1 - SLACK <= ratio <= 1:
                    break
                known = known.corrected(graph, plan.widths, measured)
            found[str(share)] = rounds
        try:
            solve(graph, scores, table, budget_us=1.0)
        except Infeasible as error:
            smallest = {group.name: table.widths(graph)[group.name][0] for group in graph.prunable}
            measured, disturbed = profile(smallest, "smallest")
            found["smallest"] = {"said": str(error), "predicted_us": table.predict_us(graph, smallest),
                                 "measured_us": measured.whole.median_us, "disturbed": disturbed}  # fmt: skip
    return {"dense_us": dense_us, "budgets": found}


RUN = {"measure": run_measure, "verify": run_verify, "budgets": run_budgets}


def page(work: Path) -> str:
    """The Markdown page from whatever results are there."""
    lines = ["# Latency tables: how well they predict", "",
             ("Written by `python bench/tables.py`; 224 x 224, batch 1, random weights, all cores. A pair or a step that "
             "was not run says so. Errors are of whole networks: n random plans that the table was not made from; *floor* "
             "is the difference between two builds of one plan in the same run; *isolated* is a table of one-layer "
             "networks scaled to the dense network, *MACs* a line through the table's own networks."), ""]  # fmt: skip
    for model in MODELS:
        for target in TARGETS:
            lines += [f"## {model}, {target}", "", *_section(work / model / target.replace(":", "-")), ""]
    return "\n".join(lines).rstrip() + "\n"


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _section(here: Path) -> list[str]:
    made, checked, budgets = (_read(here / f"{step}.json") for step in STEPS)
    lines = ["The table was not measured."] if made is None else [
        (f"{made['target']}. {made['networks']} networks, {made['keys']} layers in {made['seconds'] / 60:.1f} minutes; "
        f"dense {made['dense_us'] / 1e3:.2f} ms; median interval of a network +-{made['interval']:.1%}; "
        f"{made['disturbed']} networks flagged as disturbed.")]  # fmt: skip
    if checked is None:
        lines += ["", "The prediction was not verified."]
    else:
        rows = [
            ("this table", checked),
            ("floor", checked["floor"]),
            ("isolated", checked["isolated"]),
            ("MACs", checked["macs"]),
        ]
        flagged = sum(pair["disturbed"] for pair in checked["pairs"])
        lines += [
            "",
            "| prediction by | median error | 95th percentile | rank correlation | n |",
            "|---|---|---|---|---|",
        ]
        lines += [f"| {name} | {e['median_error']:.2%} | {e['p95_error']:.2%} | {e['spearman']:.3f} | {e['n']} |"
                  for name, e in rows if e]  # fmt: skip
        lines += [
            "",
            f"{flagged} of the {checked['n']} plans were measured while the computer was disturbed; they are counted.",
        ]
    for result in (made, checked):
        if result and result.get("note"):
            lines += ["", result["note"]]
    if budgets is None:
        return [*lines, "", "Budgets were not tried."]
    lines += ["", "| budget | rounds | measured / budget, round by round | met |", "|---|---|---|---|"]
    for share, rounds in budgets["budgets"].items():
        if share != "smallest":
            ratios = ", ".join(f"{one['of_budget']:.3f}" for one in rounds)
            met = "yes" if 1 - SLACK <= rounds[-1]["of_budget"] <= 1 else "no"
            lines.append(f"| {float(share):.0%} of dense | {len(rounds)} | {ratios} | {met} |")
    if smallest := budgets["budgets"].get("smallest"):
        lines += ["", (f"A budget of 1 us is refused: \"{smallest['said']}\". All groups at their smallest width, built: "
                  f"predicted {smallest['predicted_us']:.0f} us, measured {smallest['measured_us']:.0f} us.")]  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for tables and results")
    parser.add_argument("--out", type=Path, default=Path("docs/tables.md"))
    parser.add_argument("--only", help="MODEL/TARGET")
    parser.add_argument("--step", choices=[*STEPS, "all", "none"], default="all")
    asked = parser.parse_args()
    for model in MODELS:
        for target in TARGETS:
            if asked.step == "none" or (asked.only and asked.only != f"{model}/{target}"):
                continue
            here = asked.work / model / target.replace(":", "-")
            here.mkdir(parents=True, exist_ok=True)
            for step in STEPS if asked.step == "all" else (asked.step,):
                result = here / f"{step}.json"
                if result.is_file():
                    continue
                try:
                    graph = prepare(model, asked.work / model)
                    write_json(result, RUN[step](model, target, here, asked.work / model, graph))
                except DeployError as error:
                    sys.exit(f"{model} {target} {step}: {error}")
    write_text(asked.out, page(asked.work))


if __name__ == "__main__":
    main()
