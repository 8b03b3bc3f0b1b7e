"""Plans: one width per group, found exactly for a latency budget.

* `solve` maximizes the kept score subject to the table's predicted latency, over all groups at once: a layer's
  time depends on its input and output width together, so no group can be decided alone.
* `pareto_front` does the same for several budgets and shares what they have in common.
* Whatever the rule, the count of a group is chosen first and then its best channels are taken.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pydeploy import _core
from pydeploy.errors import ConfigError, DataError, Infeasible, MissingTiming, nearest
from pydeploy.graph import Extent, Graph, Group, Op, OpKey, Widths
from pydeploy.latency.table.table import Table
from pydeploy.plan import Plan, Scores, plan_from_widths

WIDE = 3
"""Layers that read more groups than this (concatenations) get partial sums as variables of their own: a cost over
all their groups at once would have as many entries as there are combinations."""


class Timings(Protocol):
    """What is asked of the predictions of a latency table for one graph."""

    @property
    def overhead_us(self) -> float:
        """What a network takes besides its layers; negative where the layers overlap."""

    @property
    def widths(self) -> Mapping[str, Sequence[int]]:
        """Widths offered to each prunable group, ascending, the dense width included."""

    def latency_us(self, key: OpKey) -> float:
        """Time of one call of one layer; raises `MissingTiming`."""

    def predict_us(self, widths: Widths) -> float:
        """Latency of the network at `widths` (groups not named stay dense); raises `MissingTiming`."""


def timings_of(graph: Graph, table: Table | Timings) -> Timings:
    """What a table file says of networks of `graph`; timings stay what they are."""
    return table.predictions(graph) if isinstance(table, Table) else table


@dataclass
class _Problem:
    """The input of `_core.solve` under construction. A variable's options are widths, or partial sums of widths."""

    options: list[tuple[int, ...]] = field(default_factory=list)
    values: list[NDArray[np.float64]] = field(default_factory=list)
    scopes: list[list[int]] = field(default_factory=list)
    costs: list[NDArray[np.float64]] = field(default_factory=list)
    decided: list[tuple[int, int, int, NDArray[np.int64]]] = field(default_factory=list)
    fixed_us: float = 0.0
    """What no choice changes: the network's overhead and layers without a prunable group."""
    groups: dict[str, int] = field(default_factory=dict)
    sums: dict[tuple[tuple[str, int], ...], int] = field(default_factory=dict)

    def add_variable(self, options: Sequence[int], values: NDArray[np.float64]) -> int:
        self.options.append(tuple(options))
        self.values.append(np.ascontiguousarray(values, dtype=np.float64))
        return len(self.options) - 1

    def add_cost(self, scope: Sequence[int], cost: NDArray[np.float64]) -> None:
        self.scopes.append(list(scope))
        self.costs.append(np.ascontiguousarray(cost, dtype=np.float64))


def solve(
    graph: Graph,
    scores: Scores,
    table: Table | Timings,
    *,
    budget_us: float,
    widths: Mapping[str, Sequence[int]] | None = None,
    min_width: int = 1,
    tolerance: float = 0.0,
    seconds: float = 10.0,
) -> Plan:
    """The plan with the largest kept score whose predicted latency is at most `budget_us`.

    ``scores[g]`` is (width,) float32, higher is kept first. `widths` replaces the widths that the table offers; groups
    that it lacks stay whole. Combinations that the table has no timing for are not considered. The plan's
    `latency_us` is re-read from the table, its `bound` is a proven upper bound on the score: `Plan.gap` is 0 unless
    `tolerance` (relative) or `seconds` ended the search early.

    Raises `Infeasible` (the budget is below the smallest plan), `MissingTiming`, `DataError` (scores), `ConfigError`.
    """
    return pareto_front(graph, scores, table, budgets_us=[budget_us], widths=widths, min_width=min_width,
                        tolerance=tolerance, seconds=seconds)[0]  # fmt: skip


def pareto_front(
    graph: Graph,
    scores: Scores,
    table: Table | Timings,
    *,
    budgets_us: Sequence[float] | None = None,
    points: int = 16,
    widths: Mapping[str, Sequence[int]] | None = None,
    min_width: int = 1,
    tolerance: float = 0.0,
    seconds: float = 10.0,
) -> list[Plan]:
    """The plan of `solve` for each of `budgets_us`, in their order, cheaper than one by one.

    Without `budgets_us`: `points` budgets, evenly from the smallest possible latency to that of the dense network.
    `seconds` is for each budget. Raises as `solve`.
    """
    if budgets_us is not None and any(math.isnan(budget) for budget in budgets_us):
        raise ConfigError("budget_us is not a number; give the latency that the network may take, in microseconds")
    if points < 1:
        raise ConfigError(f"points is {points}, expected at least 1")
    timings = timings_of(graph, table)
    problem = _problem(graph, scores, timings, widths, min_width)
    if budgets_us is None:
        budgets_us = np.linspace(timings.predict_us({}), _smallest_us(problem), points)[::-1].tolist()
    budgets = np.array(budgets_us, dtype=np.float64)
    try:
        solutions = _core.solve_budgets(problem.values, problem.scopes, problem.costs, budgets - problem.fixed_us,
                                        tolerance, seconds, problem.decided)  # fmt: skip
    except Infeasible:
        raise _too_small(problem, float(budgets.min()), min_width) from None
    except ValueError as error:
        raise ConfigError(f"no exact plan can be computed: {error}") from None
    return [_plan(graph, scores, timings, problem, solution) for solution in solutions]


def _problem(
    graph: Graph, scores: Scores, table: Timings, widths: Mapping[str, Sequence[int]] | None, min_width: int
) -> _Problem:
    problem = _Problem()
    for name, allowed in allowed_widths(graph, scores, table, widths, min_width).items():
        problem.groups[name] = problem.add_variable(allowed, kept_scores(scores[name], allowed))
    _add_layers(problem, graph, table)
    problem.fixed_us += table.overhead_us
    return problem


def _plan(graph: Graph, scores: Scores, table: Timings, problem: _Problem, solution: _core.Solution) -> Plan:
    chosen = {name: problem.options[v][solution.choice[v]] for name, v in problem.groups.items()}
    plan = plan_from_widths(graph, scores, chosen, method="joint", latency_us=table.predict_us(chosen))
    return replace(plan, bound=plan.score + (solution.bound - solution.value))


def check_scores(graph: Graph, scores: Scores) -> None:
    for group in graph.prunable:
        score = scores.get(group.name)
        if score is None:
            raise DataError(
                f"the scores lack group '{group.name}'{nearest(group.name, scores)}; score this graph's model"
            )
        if score.shape != (group.width,):
            raise DataError(f"the scores of group '{group.name}' have shape {score.shape}, expected ({group.width},)")
        if not np.isfinite(score).all():
            bad = int(np.flatnonzero(~np.isfinite(score))[0])
            raise DataError(
                f"the score of channel {bad} of group '{group.name}' is {score[bad]}, expected a finite number; "
                "the model or the scoring data hold NaN or overflow"
            )


def kept_scores(score: NDArray[np.float32], widths: Sequence[int]) -> NDArray[np.float64]:
    """Sum of a group's best channels' scores at each of `widths`, shape ``(len(widths),)``."""
    best_first = np.cumsum(np.sort(score.astype(np.float64))[::-1])
    return np.asarray(best_first[np.array(widths) - 1], dtype=np.float64)


def allowed_widths(
    graph: Graph, scores: Scores, table: Timings, widths: Mapping[str, Sequence[int]] | None, min_width: int
) -> dict[str, tuple[int, ...]]:
    """The widths that each prunable group may take, ascending: of `widths`, or of the table's. Checks the scores."""
    check_scores(graph, scores)
    offered = table.widths if widths is None else widths
    return {group.name: _allowed(group, offered, min_width) for group in graph.prunable}


def _allowed(group: Group, widths: Mapping[str, Sequence[int]], min_width: int) -> tuple[int, ...]:
    """The dense width where nothing else is left."""
    offered = sorted(set(widths.get(group.name, (group.width,))))
    if offered and not 1 <= offered[0] <= offered[-1] <= group.width:
        raise ConfigError(f"widths of group '{group.name}' are {offered}, expected numbers within 1..{group.width}")
    least = max(min_width, group.min_width)
    allowed = [w for w in offered if w == group.width or (w >= least and w % group.align == 0)]
    return tuple(allowed) or (group.width,)


def _add_layers(problem: _Problem, graph: Graph, table: Timings) -> None:
    """Add every layer's time as a cost over what decides it, or to the constant part."""
    latency_us = functools.cache(table.latency_us)
    for op in graph.ops:
        groups = [name for name in op.scope if name in problem.groups]
        if not groups:
            problem.fixed_us += latency_us(op.key(graph.widths))
        elif len(groups) <= WIDE:
            scope = [problem.groups[name] for name in groups]
            choices = itertools.product(*(problem.options[v] for v in scope))
            keys = [op.key(graph.at(dict(zip(groups, widths, strict=True)))) for widths in choices]
            _add_times(problem, op, scope, keys, latency_us)
        else:
            _add_wide_layer(problem, graph, op, latency_us)


def _add_times(
    problem: _Problem, op: Op, scope: Sequence[int], keys: Sequence[OpKey], latency_us: Callable[[OpKey], float]
) -> None:
    """Add the times of one layer, `keys` row-major over the options of `scope`; +inf where there is no timing."""
    times = [time_or_error(key, latency_us) for key in keys]
    errors = [time for time in times if isinstance(time, MissingTiming)]
    if len(errors) == len(times):
        raise MissingTiming(f"layer '{op.name}' has no timing at any offered width; the first asked for: {errors[0]}")
    cost = np.array([np.inf if isinstance(time, MissingTiming) else time for time in times])
    problem.add_cost(scope, cost.reshape([len(problem.options[v]) for v in scope]))


def time_or_error(key: OpKey, latency_us: Callable[[OpKey], float]) -> float | MissingTiming:
    """A layer's time, or why it is not known."""
    try:
        return latency_us(key)
    except MissingTiming as error:
        return error


def _add_wide_layer(problem: _Problem, graph: Graph, op: Op, latency_us: Callable[[OpKey], float]) -> None:
    """Add a layer that reads many groups: its time depends on two channel counts only."""
    cin_variable, cins = _channels(problem, graph, op.cin)
    cout_variable, couts = _channels(problem, graph, op.cout)
    same = cin_variable == cout_variable  # depthwise
    pairs = zip(cins, couts, strict=True) if same else itertools.product(cins, couts)
    dense = op.key(graph.widths)
    keys = [replace(dense, cin=cin, cout=cout, groups=cin if op.depthwise else op.groups) for cin, cout in pairs]
    scope = [v for v in dict.fromkeys((cin_variable, cout_variable)) if v is not None]
    _add_times(problem, op, scope, keys, latency_us)


def _channels(problem: _Problem, graph: Graph, extent: Extent) -> tuple[int | None, list[int]]:
    """The variable that decides `extent` (None: nothing does) and the channel count at each of its options."""
    fixed = extent.fixed
    repeats: dict[str, int] = {}
    for name, repeat in extent.terms:
        if name in problem.groups:
            repeats[name] = repeats.get(name, 0) + repeat
        else:
            fixed += repeat * graph.widths[name]
    if not repeats:
        return None, [fixed]
    variable, sums = _partial_sum(problem, tuple(repeats.items()))
    return variable, [fixed + value for value in sums]


def _partial_sum(problem: _Problem, terms: tuple[tuple[str, int], ...]) -> tuple[int, list[int]]:
    """The variable of ``sum(repeat * width[group])`` and the sum at each of its options.

    Layers of a dense block concatenate ever more of the same groups, so sums of equal beginnings are shared.
    """
    name, repeat = terms[-1]
    group = problem.groups[name]
    last = np.array(problem.options[group]) * repeat
    if len(terms) == 1:
        return group, last.tolist()
    if terms not in problem.sums:
        before, sums = _partial_sum(problem, terms[:-1])
        totals = np.add.outer(np.array(sums), last)
        options = np.unique(totals)
        problem.sums[terms] = problem.add_variable(options.tolist(), np.zeros(len(options)))
        problem.decided.append((problem.sums[terms], before, group, np.searchsorted(options, totals)))
    return problem.sums[terms], list(problem.options[problem.sums[terms]])


def _smallest_us(problem: _Problem) -> float:
    sizes = [len(options) for options in problem.options]
    try:
        cheapest_us, _ = _core.minimum_cost(problem.scopes, problem.costs, sizes, problem.decided)
    except Infeasible:
        raise MissingTiming(
            "no combination of the offered widths has timings for all layers; "
            "measure more widths, or offer only widths that were measured together"
        ) from None
    return cheapest_us + problem.fixed_us


def _too_small(problem: _Problem, budget_us: float, min_width: int) -> Infeasible:
    lower = f" or lower min_width, which is {min_width}" if min_width > 1 else ""
    return Infeasible(
        f"budget {budget_us:.6g} us is below the smallest plan, {_smallest_us(problem):.6g} us "
        f"(every group at its cheapest measured width); raise the budget{lower}"
    )
