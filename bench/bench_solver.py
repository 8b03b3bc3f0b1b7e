"""The exact solver on a network small enough for enumeration, and on the sizes that it is made for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pydeploy import _core


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
