"""The exact solver against enumeration, CP-SAT and the other rules.

Measured tables come from ``python bench/tables.py --work runs/tables``; PYDEPLOY_TABLES names another folder. Without
any, the stairs of a made-up device stand in, and the names of the tests say so.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

from pydeploy import _core
from pydeploy.graph import Graph
from pydeploy.latency.table.table import Table
from pydeploy.planning.baselines import fit_budget, global_threshold, halp, uniform
from pydeploy.planning.solve import _problem, solve


def network(n, k, seed=0):
    """A chain of n groups with skips, k widths each: concave values, staircase costs; (values, scopes, costs)."""
    rng = np.random.default_rng(seed)
    widths = np.arange(1, k + 1) * 8
    values = [np.cumsum(np.sort(rng.random(8 * k))[::-1] ** 2)[widths - 1] for _ in range(n)]
    scopes = [(i, i + 1) for i in range(n - 1)] + [(i, i + 3) for i in range(0, n - 3, 6)]
    stairs = [np.multiply.outer(np.ceil(widths / 16), np.ceil(widths / 32)) * rng.uniform(0.5, 2) for _ in scopes]
    costs = [np.ascontiguousarray(stair * (1 + 0.1 * rng.random(stair.shape))) for stair in stairs]
    return values, scopes, costs


def budget_of(costs):
    return 0.4 * sum(float(table[-1, -1]) for table in costs)


def core_value(values, scopes, costs, budget):
    return _core.solve(values, scopes, costs, budget).value


def brute_force(values, scopes, costs, budget):
    best = -np.inf
    for choice in itertools.product(*(range(len(v)) for v in values)):
        if sum(table[choice[a], choice[b]] for (a, b), table in zip(scopes, costs, strict=True)) <= budget:
            best = max(best, sum(v[x] for v, x in zip(values, choice, strict=True)))
    return float(best)


@pytest.mark.benchmark(group="solve: 6 groups of 5 widths")
@pytest.mark.parametrize("solver", [core_value, brute_force], ids=["pydeploy", "enumeration"])
def test_small(benchmark, solver):
    problem = network(6, 5)
    value = benchmark(solver, *problem, budget_of(problem[2]))
    assert value == pytest.approx(brute_force(*problem, budget_of(problem[2])))


def greedy(values, scopes, costs, budget):
    """From all widths full, take the narrowing with the least value lost per cost saved until the budget holds."""
    choice = [len(v) - 1 for v in values]

    def cost():
        return sum(table[choice[a], choice[b]] for (a, b), table in zip(scopes, costs, strict=True))

    spent = cost()
    while spent > budget:
        best = (np.inf, 0, 0.0)
        for v, options in enumerate(values):
            if choice[v] > 0:
                choice[v] -= 1
                saved = spent - cost()
                choice[v] += 1
                best = min(best, ((options[choice[v]] - options[choice[v] - 1]) / max(saved, 1e-12), v, saved))
        choice[best[1]] -= 1
        spent = cost()
    return float(sum(v[x] for v, x in zip(values, choice, strict=True)))


@pytest.mark.benchmark(group="solve: 50 groups of 16 widths")
@pytest.mark.parametrize("solver", [core_value, greedy], ids=["pydeploy, proven optimal", "greedy, a heuristic"])
def test_large(benchmark, solver):
    problem = network(50, 16)
    budget = budget_of(problem[2])
    value = benchmark.pedantic(solver, (*problem, budget), rounds=3)
    exact = _core.solve(*problem, budget)
    assert exact.bound == exact.value
    assert value == exact.value if solver is core_value else value <= exact.value


@pytest.mark.benchmark(group="solve: 30 groups of 64 widths")
def test_many_widths(benchmark):
    values, scopes, costs = network(30, 64)
    found = benchmark.pedantic(_core.solve, (values, scopes, costs, budget_of(costs)), rounds=3)
    assert found.bound == found.value
    assert found.cost <= budget_of(costs)


TABLES = Path(os.environ.get("PYDEPLOY_TABLES", "runs/tables"))
MEASURED = sorted(str(path.parent.relative_to(TABLES)) for path in TABLES.glob("*/*/table.sqlite"))
MADE_UP = ("resnet18", "resnet50", "mobilenet_v2", "densenet121")
SHARES = (0.7, 0.5, 0.35)


@dataclass(frozen=True)
class Stairs:
    """A made-up device: padded multiply-accumulates, bytes and a start-up time for each layer; `points` widths a group."""

    graph: Graph
    points: int
    overhead_us = 10.0

    def latency_us(self, key):
        pad = [-(-max(1, width) // 16) * 16 for width in (key.cin // key.groups, key.cout)]
        pad[0] = 1 if key.cin == key.groups else pad[0]
        macs = key.h * key.w * np.prod(key.kernel) * pad[0] * pad[1]
        return max(macs / 4e4, key.h * key.w * (key.cin + key.cout) / 2500) + 5

    @property
    def widths(self):
        return {g.name: tuple(sorted({max(1, round(g.width * i / self.points)) for i in range(1, self.points + 1)}))
                for g in self.graph.prunable}  # fmt: skip

    def predict_us(self, widths):
        return self.overhead_us + sum(self.latency_us(key) for key in self.graph.keys(widths))


@cache
def made_up(model):
    """Graph and L1 scores of a torchvision model with random weights."""
    import torch
    from torchvision import models

    import pydeploy as pd

    torch.manual_seed(0)
    net = models.get_model(model, weights=None).eval()
    graph = pd.trace(net, torch.randn(1, 3, 224, 224))
    return graph, pd.score(net, graph, "l1")


@cache
def case_of(name):
    """Graph, scores, table of a measured pair, or of a model on the made-up device with 16 widths a group."""
    if name in MADE_UP:
        graph, scores = made_up(name)
        return graph, scores, Stairs(graph, 16)
    folder = TABLES / name
    with np.load(folder.parent / "scores.npz") as file:
        scores = {key: file[key] for key in file.files}
    graph = Graph.load(folder.parent / "graph.json")
    return graph, scores, Table.open(folder / "table.sqlite").predictions(graph)


def large_only_when_timed(benchmark, small):
    """Where nothing is timed, as in `make test`, one small case of each kind is enough."""
    if benchmark.disabled and not small:
        pytest.skip("runs with --benchmark-enable")


def cp_sat(problem, budget_us, seconds=60.0):
    """CP-SAT's best value and its bound. Costs are rounded down to nanoseconds, so its optimum is at least the true one."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    pick = [[model.new_bool_var("") for _ in options] for options in problem.options]
    for one in pick:
        model.add_exactly_one(one)
    tables = {}
    for scope, cost in zip(problem.scopes, problem.costs, strict=True):
        order = tuple(sorted(scope))
        tables[order] = tables.get(order, 0) + np.transpose(cost, [scope.index(v) for v in order])
    spent = []
    for scope, cost in tables.items():
        if len(scope) == 1:
            spent += [int(us * 1000) * x for us, x in zip(cost, pick[scope[0]], strict=True)]
            continue
        pairs = {index: model.new_bool_var("") for index in np.ndindex(cost.shape) if np.isfinite(cost[index])}
        for axis, v in enumerate(scope):
            for option, x in enumerate(pick[v]):
                model.add(sum(y for index, y in pairs.items() if index[axis] == option) == x)
        spent += [int(cost[index] * 1000) * y for index, y in pairs.items()]
    model.add(sum(spent) <= int((budget_us - problem.fixed_us) * 1000))
    unit = max(float(np.abs(values).max()) for values in problem.values) / 1e6
    model.maximize(sum(round(value / unit) * x for values, one in zip(problem.values, pick, strict=True)
                       for value, x in zip(values, one, strict=True)))  # fmt: skip
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = 2
    assert solver.solve(model) in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    return solver.objective_value * unit, solver.best_objective_bound * unit


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("solver", ["pydeploy", "CP-SAT"])
@pytest.mark.parametrize("name", MEASURED or MADE_UP[:3])
def test_against_cp_sat(benchmark, name, solver, share):
    large_only_when_timed(benchmark, name == (MEASURED or MADE_UP)[0] and share == 0.5)
    benchmark.group = f"solve: {name}, {share:.0%} of dense"
    graph, scores, table = case_of(name)
    budget_us = share * table.predict_us({})
    if solver == "pydeploy":
        plan = benchmark.pedantic(solve, (graph, scores, table), {"budget_us": budget_us}, rounds=3)
        benchmark.extra_info.update(score=plan.score, gap=plan.gap)
        assert plan.gap <= 1e-3
        return
    pytest.importorskip("ortools")
    problem = _problem(graph, scores, table, None, 1)
    value, bound = benchmark.pedantic(cp_sat, (problem, budget_us), rounds=1)
    benchmark.extra_info.update(score=value, bound=bound)
    rounding = 2e-6 * sum(float(np.abs(values).max()) for values in problem.values)
    plan = solve(graph, scores, table, budget_us=budget_us, seconds=60)
    loose = solve(graph, scores, table, budget_us=budget_us + 1e-3 * len(problem.costs), seconds=60)
    assert plan.score <= bound + rounding
    assert value <= loose.bound + rounding


RULES = {
    "joint": solve,
    "HALP": halp,
    **{f"global threshold, rounded to {n}": partial(fit_budget, global_threshold, align=n) for n in (8, 16, 32)},
    **{f"uniform, rounded to {n}": partial(fit_budget, uniform, align=n) for n in (8, 16, 32)},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MEASURED or MADE_UP[:3])
def test_rules(benchmark, name, rule):
    large_only_when_timed(benchmark, name == (MEASURED or MADE_UP)[0])
    benchmark.group = f"rules: {name}, half of dense"
    graph, scores, table = case_of(name)
    budget_us = 0.5 * table.predict_us({})
    plan = benchmark.pedantic(RULES[rule], (graph, scores, table), {"budget_us": budget_us}, rounds=1)
    total = sum(float(scores[group.name].sum()) for group in graph.prunable)
    benchmark.extra_info.update(kept_score=plan.score / total, predicted=plan.latency_us / budget_us)
    assert plan.latency_us <= budget_us
    # Rules may choose widths between those of the table, so the joint plan need not keep more than every one of them.


@pytest.mark.parametrize(("model", "tolerance"), [("resnet50", 1e-3), ("densenet121", 1e-2)])
@pytest.mark.parametrize("share", SHARES)
def test_sixteen_widths(benchmark, model, tolerance, share):
    large_only_when_timed(benchmark, model == "resnet50" and share == 0.7)
    benchmark.group = f"solve: {model}, 16 widths, gap {tolerance:.1%}"
    graph, scores, table = case_of(model)
    budget_us = share * table.predict_us({})
    asked = {"budget_us": budget_us, "tolerance": tolerance}
    plan = benchmark.pedantic(solve, (graph, scores, table), asked, rounds=1)
    benchmark.extra_info.update(gap=plan.gap)
    assert plan.gap <= tolerance
