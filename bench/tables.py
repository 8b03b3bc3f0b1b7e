"""Writes docs/figures/tables.md: how well latency tables predict, whether budgets are met, and what other rules keep.

    python bench/tables.py --work runs/tables                                   # everything that is not there yet
    python bench/tables.py --work runs/tables --only resnet18/openvino:bf16 --step verify --minutes 8
    python bench/tables.py --work runs/tables --step judge                      # predict again what was measured
    python bench/tables.py --work runs/tables --step none                       # only write the page

Every part of every step is kept in the work folder and not repeated, so the whole can be run in windows; after
`--minutes` no further part is begun. Weights are random: latency does not depend on them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tables_page import MODELS, SLACK, STEPS, TARGETS, page, read

from pydeploy.backends.base import Backend, Feeds, Session, open_backend
from pydeploy.errors import DeployError, Infeasible
from pydeploy.files import write_json, write_text
from pydeploy.graph import Graph
from pydeploy.latency.check.verify import Pair, judged, verify
from pydeploy.latency.probes.design import grid
from pydeploy.latency.probes.lab import Lab, Probe, build, layer_timings, opened, sessions, timed
from pydeploy.latency.probes.measure import measure
from pydeploy.latency.table import store
from pydeploy.latency.table.table import Table
from pydeploy.plan import Plan
from pydeploy.planning.baselines import fit_budget, global_threshold, halp, uniform
from pydeploy.planning.next_plans import Built, Tried, next_plans
from pydeploy.planning.solve import pareto_front, solve
from pydeploy.timing.records import Profile, Timing

INPUT = (1, 3, 224, 224)
PARTS, PLANS = 3, 10
"""Parts of the verification and plans in each; isolated layers are timed for the first part's plans."""
ROUNDS = 3
TARGET = 0.985  # the middle of [budget - 3 %, budget]
BUILDS = 3
JOINT = 6
"""Joint plans that other rules' plans are compared with, for budgets from the fastest to the slowest of those."""


class OutOfTime(Exception):
    """`--minutes` are over."""


@dataclass(frozen=True)
class Case:
    """One model on one target; `until` is when no further part is begun."""

    model: str
    target: str
    work: Path
    until: float

    @property
    def files(self) -> Path:
        return self.work / self.model

    @property
    def here(self) -> Path:
        return self.files / self.target.replace(":", "-")

    @property
    def shares(self) -> tuple[float, float, float]:
        if self.model == "mobilenet_v2" and self.target.startswith("openvino"):
            return 0.7, 0.6, 0.5
        return 0.7, 0.5, 0.35

    def read(self, step: str) -> dict[str, Any]:
        return read(self.here / f"{step}.json")

    def write(self, step: str, data: dict[str, Any]) -> None:
        write_json(self.here / f"{step}.json", data)
        if time.monotonic() > self.until and not data["complete"]:
            raise OutOfTime

    def say(self, text: str) -> None:
        sys.stderr.write(f"{self.model} {self.target}: {text}\n")

    def open(self) -> tuple[Backend, Table]:
        name, _, precision = self.target.partition(":")
        backend = open_backend(name, precision=precision, batch=INPUT[0])
        return backend, Table.open(self.here / "table.sqlite", backend.target())

    def scores(self) -> dict[str, np.ndarray]:
        with np.load(self.files / "scores.npz") as file:
            return {name: file[name] for name in file.files}


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


def run_measure(case: Case, graph: Graph) -> None:
    backend, table = case.open()
    spent, began = case.read("measure").get("seconds", 0.0), time.monotonic()

    def keep(done: int, total: int) -> None:
        case.say(f"{done} of {total}")
        if done < total:
            case.write("measure", {"complete": False, "seconds": spent + time.monotonic() - began})

    done = measure(graph, case.files / "dense.onnx", backend, table, widths=grid(graph), progress=keep)
    intervals = [network.whole.interval for network in table.networks(graph)]
    case.write("measure", {
        "complete": True, "networks": len(intervals), "keys": len({row.key for row in table.rows()}),
        "disturbed": done.disturbed, "seconds": spent + time.monotonic() - began, "target": str(table.target),
        "interval": float(np.median(intervals)), "dense_us": _dense_us(graph, table),
    })  # fmt: skip


def _dense_us(graph: Graph, table: Table) -> float:
    """The dense network as measured at the table's level; computed where nothing is measured."""
    measured_us = table.reference_us(graph) if table.target.measured else None
    return measured_us or table.predict_us(graph, {})


def run_verify(case: Case, graph: Graph) -> None:
    backend, table = case.open()
    data = case.read("verify")
    for part in range(data.get("parts", 0) + 1, PARTS + 1):
        found = verify(graph, case.files / "dense.onnx", backend, table, plans=PLANS, seed=part, isolated=part == 1)
        pairs = [*(Pair(**pair) for pair in data.get("pairs", ())), *found.pairs]
        lone_us = data.get("isolated_dense_us") or found.isolated_dense_us
        joined = judged(graph, table, pairs, lone_us, data.get("seconds", 0.0) + found.seconds)
        data = {"complete": part == PARTS, "parts": part, **joined.to_json()}
        case.say(f"verified {len(pairs)}: {joined.table}")
        case.write("verify", data)


def run_judge(case: Case, graph: Graph) -> None:
    """The present code's predictions for the plans that were measured; nothing is measured."""
    if data := case.read("verify"):
        table = Table.open(case.here / "table.sqlite")
        stored = [Pair(**pair) for pair in data["pairs"]]
        pairs = [replace(pair, predicted_us=table.predict_us(graph, pair.widths)) for pair in stored]
        case.write(
            "verify", {**data, **judged(graph, table, pairs, data["isolated_dense_us"], data["seconds"]).to_json()}
        )


class Bench:
    """Plans built and measured in units of the table's dense network."""

    def __init__(self, case: Case, graph: Graph, table: Table, lab: Lab) -> None:
        self.case, self.graph, self.table, self.lab = case, graph, table, lab
        self.dense_us = _dense_us(graph, table)

    def profiles(
        self, running: Mapping[str, tuple[Session, Feeds]], wholes: Mapping[str, Timing]
    ) -> dict[str, Profile]:
        """The layers of every network in `running`, within its time as a whole."""
        layers, target, factor = layer_timings(self.lab, running), self.table.target, self.factor
        return {name: Profile(target, wholes[name].scaled(factor), {op: t.scaled(factor) for op, t in layers[name].items()})
                for name in running}  # fmt: skip

    def measure(self, plans: dict[str, Plan]) -> dict[str, dict[str, Any]]:
        """All plans in turns, each as the median of `BUILDS` builds: two builds of one plan differ by a percent or two."""
        found: dict[str, list[Timing]] = {name: [] for name in plans}
        names = {name: f"plan{i}" for i, name in enumerate(plans)}
        for number in range(BUILDS):
            engines = {names[name]: build(self.lab, Probe(f"{names[name]}-{number}", plan.widths))
                       for name, plan in plans.items()}  # fmt: skip
            with sessions(self.lab, engines) as running:
                timings = timed(self.lab, running)
            for name in plans:
                found[name].append(timings[names[name]].scaled(self.factor))
        return {name: {"score": plan.score, "predicted_us": plan.latency_us,
                       "disturbed": all(one.disturbed for one in found[name]),
                       "measured_us": median(one.median_us for one in found[name])} for name, plan in plans.items()}  # fmt: skip

    @property
    def factor(self) -> float:
        known = self.table.reference_us(self.graph)
        return known / self.lab.pace.level_us if known else 1.0


def with_bench(step: Callable[[Case, Bench], None], case: Case, graph: Graph) -> None:
    backend, table = case.open()
    path = case.files / "dense.onnx"
    with opened(graph, path, backend, table, rounds=8, runs=5) as lab, store.turn(table.path):
        step(case, Bench(case, graph, table, lab))


def run_budgets(case: Case, bench: Bench) -> None:
    """The closed loop for every budget, and the smallest possible latency, predicted and built."""
    data = case.read("budgets") or {"complete": False, "dense_us": bench.dense_us, "budgets": {}}
    scores = case.scores()
    for share in case.shares:
        if str(share) not in data["budgets"]:
            data["budgets"][str(share)] = closed_loop(bench, scores, share)
            case.write("budgets", data)
    try:
        solve(bench.graph, scores, bench.table, budget_us=1.0)
    except Infeasible as error:
        plan = pareto_front(bench.graph, scores, bench.table, points=2)[0]
        built = bench.measure({"smallest": plan})["smallest"]
        data["smallest"] = {"said": str(error), **built}
    case.write("budgets", {**data, "complete": True})


def closed_loop(bench: Bench, scores: dict[str, np.ndarray], share: float) -> list[list[dict[str, Any]]]:
    """Rounds as `pydeploy.run.stages.search` makes them, without torch; each is the list of all plans so far, as it measured them."""
    limit_us, rounds = share * bench.dense_us, list[list[dict[str, Any]]]()
    plans, inside, readings = dict[str, Plan](), dict[str, Profile](), dict[str, list[float]]()

    def rule(table: Table, widths: Mapping[str, Sequence[int]], part: float) -> Plan:
        return solve(bench.graph, scores, table, budget_us=part * limit_us, widths=widths)

    with ExitStack() as stack:
        running: dict[str, tuple[Session, Feeds]] = {}
        while len(rounds) < ROUNDS and not any(1 - SLACK <= one["typical"] <= 1 for one in (rounds or [[]])[-1]):
            began = time.monotonic()
            built = [Built(one["round"], plans[one["name"]], Tried(one["predicted"], one["typical"]), inside[one["name"]])
                     for one in (rounds[-1] if rounds else [])]  # fmt: skip
            new = next_plans(rule, bench.graph, bench.table, TARGET, built)
            if not new:
                break  # the best within the budget was built already
            solved_s = time.monotonic() - began
            fresh = {f"{len(rounds) + 1}{letter}": plan for letter, plan in zip(("", "b", "c"), new, strict=False)}
            engines = {
                name: build(bench.lab, Probe(f"budget{share}-{name}", one.widths)) for name, one in fresh.items()
            }
            opened_now = stack.enter_context(sessions(bench.lab, engines))
            running |= opened_now
            plans |= fresh
            wholes = timed(bench.lab, running)
            for name in plans:
                readings.setdefault(name, []).append(wholes[name].median_us * bench.factor / limit_us)
            inside |= bench.profiles(opened_now, wholes)
            inside = {
                name: one.scaled(median(readings[name]) * limit_us / one.whole.median_us)
                for name, one in inside.items()
            }
            rounds.append([
                {"name": name, "round": int(name[0]), "predicted": plan.latency_us / limit_us,
                 "measured": readings[name][-1], "typical": median(readings[name]), "score": plan.score, "gap": plan.gap,
                 "disturbed": wholes[name].disturbed, "solve_s": solved_s} for name, plan in plans.items()
            ])  # fmt: skip
            told = [
                (round(one["predicted"], 3), round(one["measured"], 3), round(one["typical"], 3)) for one in rounds[-1]
            ]
            bench.case.say(f"{share}: {told}")
    return rounds


def run_rules(case: Case, bench: Bench) -> None:
    """Plans of all rules for the middle budget, and joint plans for what those were measured to take."""
    graph, table, scores = bench.graph, bench.table, case.scores()
    budget_us = case.shares[1] * bench.dense_us
    rules: dict[str, Callable[[], Plan]] = {
        "joint": partial(solve, graph, scores, table, budget_us=budget_us),
        "HALP": partial(halp, graph, scores, table, budget_us=budget_us),
    }
    for rule, name in ((global_threshold, "global threshold"), (uniform, "uniform")):
        for align in (8, 16, 32):
            rules[f"{name}, rounded to {align}"] = partial(
                fit_budget, rule, graph, scores, table, budget_us=budget_us, align=align
            )
    plans: dict[str, Plan] = {}
    seconds: dict[str, float] = {}
    for name, make in rules.items():
        began = time.monotonic()
        try:
            plans[name] = make()
        except Infeasible as error:
            case.say(f"{name}: {error}")
        seconds[name] = time.monotonic() - began
    found = bench.measure(plans)
    times = [one["measured_us"] for one in found.values()]
    around = np.linspace(0.97 * min(times), 1.03 * max(times), JOINT)
    least_us = pareto_front(graph, scores, table, points=2)[0].latency_us
    joint = pareto_front(graph, scores, table, budgets_us=np.maximum(around, least_us * 1.0001).tolist())
    total = sum(float(scores[group.name].sum()) for group in graph.prunable)
    case.write("rules", {
        "complete": True, "budget_us": budget_us, "dense_us": bench.dense_us, "total": total,
        "plans": {name: {**one, "seconds": seconds[name]} for name, one in found.items()},
        "joint": bench.measure({f"joint {i}": plan for i, plan in enumerate(joint)}),
        "missed": sorted(set(rules) - set(plans)),
    })  # fmt: skip


RUN: dict[str, Callable[[Case, Graph], None]] = {
    "measure": run_measure, "verify": run_verify, "judge": run_judge,
    "budgets": partial(with_bench, run_budgets), "rules": partial(with_bench, run_rules),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for tables and results")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/tables.md"))
    parser.add_argument("--only", help="MODEL/TARGET")
    parser.add_argument("--step", choices=[*RUN, "all", "none"], default="all")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further part after so long")
    asked = parser.parse_args()
    names = [tuple(asked.only.split("/"))] if asked.only else [(m, t) for m in MODELS for t in TARGETS]
    until = time.monotonic() + 60 * asked.minutes
    try:
        for model, target in names if asked.step != "none" else ():
            case = Case(model, target, asked.work, until)
            case.here.mkdir(parents=True, exist_ok=True)
            for step in STEPS if asked.step == "all" else (asked.step,):
                if not case.read(step).get("complete"):
                    RUN[step](case, prepare(model, case.files))
                if time.monotonic() > until:
                    raise OutOfTime
    except OutOfTime:
        sys.stderr.write("the minutes are over; the same command goes on\n")
    except DeployError as error:
        sys.exit(str(error))
    finally:
        write_text(asked.out, page(asked.work))


if __name__ == "__main__":
    main()
