from __future__ import annotations

import importlib.util
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

from pydeploy import _core
from pydeploy.errors import Infeasible


@dataclass(frozen=True)
class Instance:
    values: list
    scopes: list
    costs: list
    budget: float

    def solve(self, **limits):
        return _core.solve(self.values, self.scopes, self.costs, self.budget, **limits)

    def value(self, choice):
        return sum(options[x] for options, x in zip(self.values, choice, strict=True))

    def cost(self, choice):
        pairs = zip(self.scopes, self.costs, strict=True)
        return sum((table[tuple(choice[v] for v in scope)] for scope, table in pairs), 0.0)

    @property
    def choices(self):
        return itertools.product(*(range(len(options)) for options in self.values))


def scopes_of(kind, n, rng):
    if kind == "chain":
        return [(i, i + 1) for i in range(n - 1)] or [(0,)]
    if kind == "residual":  # everything meets the shared variable 0
        return [(0, i) for i in range(1, n)] + [(i, i + 1) for i in range(1, n - 1, 2)] or [(0,)]
    if kind == "unary":
        return [(i,) for i in range(n)]
    count = rng.integers(0, 2 * n)
    return [tuple(rng.permutation(n)[: rng.integers(1, min(n, 4) + 1)].tolist()) for _ in range(count)]


def random_instance(kind, seed, *, whole):
    """At most 6 variables of at most 4 options, negative entries and forbidden combinations included."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, rng.integers(1, 7))
    scopes = scopes_of(kind, len(sizes), rng)

    def numbers(shape):
        return rng.integers(-3, 12, shape).astype(float) if whole else rng.normal(3, 2, shape)

    values = [numbers(k) for k in sizes]
    costs = [numbers([sizes[v] for v in scope]) for scope in scopes]
    for table in costs:
        table[rng.random(table.shape) < 0.1] = np.inf
    typical = sum(np.mean(table[np.isfinite(table)]) for table in costs if np.isfinite(table).any())
    return Instance(values, scopes, costs, float(np.round(typical * rng.uniform(0.2, 1.2))))


@pytest.mark.parametrize("whole", [True, False], ids=["integers", "reals"])
@pytest.mark.parametrize("kind", ["chain", "residual", "unary", "any"])
def test_equals_brute_force(kind, whole):
    infeasible = 0
    for seed in range(120):
        problem = random_instance(kind, seed, whole=whole)
        fitting = [choice for choice in problem.choices if problem.cost(choice) <= problem.budget]
        if not fitting:
            infeasible += 1
            with pytest.raises(Infeasible):
                problem.solve()
            continue
        best = max(problem.value(choice) for choice in fitting)
        found = problem.solve()
        assert found.value == pytest.approx(best, abs=1e-9), seed
        assert found.bound == pytest.approx(best, abs=1e-9), seed
        assert found.cost <= problem.budget
        assert found.cost == problem.cost(found.choice)
        assert found.value == problem.value(found.choice)
    assert 0 < infeasible < 110


def test_minimum_cost_equals_brute_force():
    for seed in range(150):
        problem = random_instance("any", seed, whole=seed % 2)
        sizes = [len(options) for options in problem.values]
        smallest = min(problem.cost(choice) for choice in problem.choices)
        if smallest == np.inf:
            with pytest.raises(Infeasible, match="every combination of options is forbidden"):
                _core.minimum_cost(problem.scopes, problem.costs, sizes)
            continue
        cost, choice = _core.minimum_cost(problem.scopes, problem.costs, sizes)
        assert cost == pytest.approx(smallest, abs=1e-9)
        assert cost == problem.cost(choice)


def network(seed, n=24, k=12):
    """A chain with skips: concave values, staircase costs with noise."""
    rng = np.random.default_rng(seed)
    widths = np.arange(1, k + 1) * 8
    values = [np.cumsum(np.sort(rng.random(8 * k))[::-1] ** 2)[widths - 1] for _ in range(n)]
    scopes = [(i, i + 1) for i in range(n - 1)] + [(i, i + 3) for i in range(0, n - 3, 4)]
    stairs = [np.multiply.outer(np.ceil(widths / 16), np.ceil(widths / 32)) * rng.uniform(0.5, 2) for _ in scopes]
    costs = [np.ascontiguousarray(stair * (1 + 0.1 * rng.random(stair.shape))) for stair in stairs]
    return Instance(values, scopes, costs, 0.35 * sum(float(table[-1, -1]) for table in costs))


def by_cp_sat(problem, scale=10**6):
    """The optimum of a problem of whole numbers, by OR-tools' constraint solver."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    options = [[model.new_bool_var(f"{v}_{x}") for x in range(len(o))] for v, o in enumerate(problem.values)]
    for choice in options:
        model.add_exactly_one(choice)
    spent = []
    for (a, b), table in zip(problem.scopes, problem.costs, strict=True):
        for (x, y), cost in np.ndenumerate(table):
            both = model.new_bool_var("")
            model.add_bool_or(~options[a][x], ~options[b][y], both)
            spent.append(int(cost) * both)
    model.add(sum(spent) <= int(problem.budget))
    model.maximize(
        sum(int(v) * b for o, c in zip(problem.values, options, strict=True) for v, b in zip(o, c, strict=True))
    )
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    assert solver.solve(model) == cp_model.OPTIMAL
    return round(solver.objective_value)


@pytest.mark.skipif(importlib.util.find_spec("ortools") is None, reason="needs the extra 'bench' (OR-tools)")
@pytest.mark.parametrize("seed", range(4))
def test_equals_a_constraint_solver(seed):
    real = network(seed, n=8, k=5)
    problem = Instance(
        [np.round(v * 100) for v in real.values],
        real.scopes,
        [np.round(c * 100) for c in real.costs],
        float(round(real.budget * 100)),
    )
    assert problem.solve().value == by_cp_sat(problem)


def test_larger_networks_are_closed_and_repeatable():
    problem = network(0)
    first, second = problem.solve(), problem.solve()
    assert first.bound == first.value
    assert first.cost <= problem.budget
    np.testing.assert_array_equal(first.choice, second.choice)
    assert (first.value, first.cost, first.bound) == (second.value, second.cost, second.bound)


def test_without_time_the_gap_is_told():
    problem = network(1)
    hurried, exact = problem.solve(seconds=0.0), problem.solve()
    assert problem.cost(hurried.choice) <= problem.budget
    assert hurried.value <= exact.value <= hurried.bound + 1e-9
    assert hurried.bound > hurried.value


def test_more_time_never_worsens_value_or_bound():
    rng = np.random.default_rng(0)
    n, k = 120, 20
    values = [rng.integers(0, 10**6, k).astype(float) for _ in range(n)]
    scopes = [(i, j) for i in range(n) for j in (i + 1, i + 2) if j < n]
    costs = [np.add.outer(values[a], values[b]) + rng.integers(0, 10**4, (k, k)) for a, b in scopes]
    problem = Instance(values, scopes, costs, 6.0e5 * len(scopes))
    hurried, longer = problem.solve(seconds=0.0), problem.solve(seconds=0.5)
    assert max(hurried.cost, longer.cost) <= problem.budget
    assert hurried.value <= longer.value <= longer.bound <= hurried.bound


def test_tolerance_stops_early_with_a_proof():
    problem = network(2)
    exact, rough = problem.solve(), problem.solve(tolerance=0.02)
    assert rough.value >= exact.value * (1 - 0.021)
    assert exact.value <= rough.bound + 1e-9
    assert (rough.bound - rough.value) <= 0.02 * rough.value + 1e-9


def test_a_budget_that_is_a_sum_of_costs_admits_that_choice():
    rng = np.random.default_rng(4)
    values = [np.array([0.0, 1.0])] * 30
    costs = [np.array([0.0, x]) for x in rng.random(30) * 0.1]
    scopes = [(i,) for i in range(30)]
    for order in range(10):
        everything = float(sum(costs[i][1] for i in np.random.default_rng(order).permutation(30)))
        assert _core.solve(values, scopes, costs, everything).value == 30.0


def test_concurrent_solves_agree():
    problems = [network(seed, n=12, k=8) for seed in range(6)]
    alone = [problem.solve().value for problem in problems]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda problem: problem.solve().value, problems)) == alone


@pytest.mark.parametrize(
    ("values", "scopes", "costs", "budget", "value"),
    [
        ([], [], [], 0.0, 0.0),
        ([np.array([1.0, 5.0])], [], [], 0.0, 5.0),
        ([np.array([1.0, 5.0])], [[0]], [np.array([0.0, 0.0])], 0.0, 5.0),
        ([np.array([1.0, 5.0])], [[0]], [np.array([1.0, 9.0])], np.inf, 5.0),
        ([np.array([1.0, 5.0])], [[0]], [np.array([-4.0, -1.0])], -2.0, 1.0),
        ([np.array([1.0, 5.0])], [[0]], [np.array([1e-300, 2e-300])], 1.5e-300, 1.0),
        ([np.array([-1.0, -5.0])], [[0], [0]], [np.array([1.0, 1.0]), np.array([2.0, 0.0])], 2.0, -5.0),
    ],
    ids=["nothing", "no costs", "free", "no limit", "negative", "tiny", "two costs of one variable"],
)
def test_corner_cases(values, scopes, costs, budget, value):
    assert _core.solve(values, scopes, costs, budget).value == value


def test_infeasible_tells_the_smallest_cost():
    with pytest.raises(Infeasible, match=r"smallest possible cost is 7\.5, above the budget 7"):
        _core.solve(
            [np.zeros(2), np.zeros(2)], [[0], [0, 1]], [np.array([3.0, 4.0]), np.array([[5.0, 4.5], [4.0, 6]])], 7
        )


V, C = np.zeros(2), np.zeros((2, 2))
BAD = {
    "NaN value": (([np.array([0, np.nan])], [], [], 1.0), "variable 0: values must be finite"),
    "infinite value": (([V, np.array([np.inf])], [], [], 1.0), "variable 1: values must be finite"),
    "no options": (([np.zeros(0)], [], [], 1.0), "variable 0 has no options"),
    "NaN cost": (([V, V], [[0, 1]], [C * np.nan], 1.0), "cost 0: entries must be numbers or .infinity, not nan"),
    "cost of -infinity": (([V, V], [[0, 1]], [C - np.inf], 1.0), "cost 0: entries must be .* not -inf"),
    "huge costs": (([V, V], [[0], [1]], [V + 1e308, V - 1e308], 1.0), "too large to add"),
    "unknown variable": (([V], [[1]], [V], 1.0), "cost 0: variable 1 does not exist, there are 1"),
    "repeated variable": (([V, V], [[0, 1], [0, 0]], [C, C], 1.0), "cost 1: variable 0 occurs twice"),
    "empty scope": (([V], [[]], [np.zeros(())], 1.0), "cost 0: expected a scope of 1 to 4 variables"),
    "rank 5": (([V] * 5, [[0, 1, 2, 3, 4]], [np.zeros((2,) * 5)], 1.0), "1 to 4 variables"),
    "rank against scope": (([V, V], [[0, 1]], [V], 1.0), "got 2 and 1"),
    "wrong shape": (([V, V], [[0, 1]], [np.zeros((2, 3))], 1.0), "cost 0: dimension 1 has 3 entries, variable 1 has 2"),
    "scopes without costs": (([V], [[0]], [], 1.0), "one scope for each cost, got 1 and 0"),
    "NaN budget": (([V], [], [], np.nan), "budget and seconds must be numbers"),
    "negative tolerance": (([V], [], [], 1.0, -0.1), "tolerance at least 0"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        _core.solve(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ([np.zeros(2, np.float32)], [], []),
        ([V], [[0]], [np.zeros(2, np.int64)]),
        ([V, V], [[0, 1]], [C.repeat(2, 1)[:, ::2]]),
    ],
    ids=["float32 values", "int64 costs", "strided costs"],
)
def test_wrong_types_are_refused_not_converted(arguments):
    with pytest.raises(TypeError):
        _core.solve(*arguments, 1.0)


def test_problems_that_couple_too_much_are_refused():
    n, k = 9, 16
    scopes = list(itertools.combinations(range(n), 2))
    with pytest.raises(ValueError, match="couple too many variables"):
        _core.solve([np.arange(k, dtype=float)] * n, scopes, [np.ones((k, k))] * len(scopes), 1e9)


def test_a_solution_is_a_plain_record():
    solution = _core.Solution(np.array([1, 0]), value=2.0, cost=3.0, bound=4.0)
    assert (solution.choice.tolist(), solution.value, solution.cost, solution.bound) == ([1, 0], 2.0, 3.0, 4.0)


def test_decided_variables_equal_brute_force():
    """Sums of widths as variables that others decide, chained as in concatenations."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        widths = [np.sort(rng.choice(np.arange(1, 7), rng.integers(1, 4), replace=False)) for _ in range(4)]
        values, decided = [rng.random(len(w)) for w in widths], []
        before, sums = 0, widths[0]
        for group in (1, 2, 3):
            totals = np.add.outer(sums, widths[group])
            sums = np.unique(totals)
            values.append(np.zeros(len(sums)))
            decided.append((len(values) - 1, before, group, np.searchsorted(sums, totals)))
            before = len(values) - 1
        scopes = [(0, 1), (5, 3), (6,), (4, 2)]
        costs = [rng.normal(3, 2, [len(values[v]) for v in scope]) for scope in scopes]
        best, smallest, budget = -np.inf, np.inf, float(rng.uniform(6, 14))
        for choice in itertools.product(*(range(len(w)) for w in widths)):
            full = list(choice)
            for _, first, second, option in decided:
                full.append(option[full[first], full[second]])
            cost = sum(table[tuple(full[v] for v in scope)] for scope, table in zip(scopes, costs, strict=True))
            smallest = min(smallest, cost)
            if cost <= budget:
                best = max(best, sum(v[x] for v, x in zip(values, full, strict=True)))
        sizes = [len(v) for v in values]
        assert _core.minimum_cost(scopes, costs, sizes, decided)[0] == pytest.approx(smallest)
        if best == -np.inf:
            with pytest.raises(Infeasible):
                _core.solve(values, scopes, costs, budget, decided=decided)
            continue
        found = _core.solve(values, scopes, costs, budget, decided=decided)
        assert found.value == found.bound == pytest.approx(best)


def test_many_budgets_equal_single_ones_for_any_number_of_threads():
    problem = network(3, n=14, k=8)
    budgets = np.linspace(0.4, 1.2, 8) * problem.budget
    arguments = (problem.values, problem.scopes, problem.costs)
    one, two = (_core.solve_budgets(*arguments, budgets, threads=threads) for threads in (1, 2))
    for budget, first, second in zip(budgets, one, two, strict=True):
        assert first.value == second.value == _core.solve(*arguments, float(budget)).value
        np.testing.assert_array_equal(first.choice, second.choice)
        assert first.cost <= budget
        assert first.bound == first.value


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_the_first_search_finds_the_same_on_any_number_of_threads(tolerance):
    # Long fronts: they are merged, and shared out among the threads.
    problem = residual_streams(k=16, blocks=4)
    found = [problem.solve(threads=threads, tolerance=tolerance) for threads in (1, 2, 3)]
    for one in found:
        np.testing.assert_array_equal(one.choice, found[0].choice)
        assert (one.value, one.cost, one.bound) == (found[0].value, found[0].cost, found[0].bound)
        assert one.cost == problem.cost(one.choice) <= problem.budget
        assert one.value <= one.bound <= one.value * (1 + tolerance)


def residual_streams(k, blocks):
    """Either a stream is wide and the inner layers narrow, or the other way round."""
    widths = np.arange(1, k + 1) / k
    values, scopes, costs = [], [], []
    for stage in range(3):
        stream = len(values)
        values.append(blocks * widths * (1 + 0.1 * stage))
        if stage:
            scopes.append((stream - 2 * blocks - 1, stream))
            costs.append(np.multiply.outer(widths, widths))
        for _ in range(blocks):
            values += [widths, widths * 0.9]
            scopes += [(stream, len(values) - 2), (len(values) - 2, len(values) - 1), (len(values) - 1, stream)]
            costs += [np.multiply.outer(widths, widths) * scale for scale in (1.0, 2.0, 1.0)]
    return Instance(values, scopes, [np.ascontiguousarray(c) for c in costs], 0.3 * sum(c.max() for c in costs))


def test_values_that_are_no_concave_function_of_the_budget_are_closed():
    problem = residual_streams(k=12, blocks=3)
    found = problem.solve()
    assert found.bound == found.value
    assert found.value >= problem.solve(seconds=0.0).value


BAD_DECISIONS = {
    "later argument": ((0, 1, 2, np.zeros((2, 2), np.int64)), "expected a variable and two different earlier ones"),
    "wrong shape": ((2, 0, 1, np.zeros((2, 3), np.int64)), "one entry for each pair"),
    "no such option": ((2, 0, 1, np.full((2, 2), 2)), "option 2 does not exist, the variable has 2"),
}


@pytest.mark.parametrize(("decision", "message"), BAD_DECISIONS.values(), ids=BAD_DECISIONS)
def test_wrong_decisions_are_named(decision, message):
    with pytest.raises(ValueError, match=message):
        _core.solve([V, V, V], [], [], 1.0, decided=[decision])
    with pytest.raises(ValueError, match="decided twice"):
        _core.solve([V, V, V], [], [], 1.0, decided=[(2, 0, 1, np.zeros((2, 2), np.int64))] * 2)
