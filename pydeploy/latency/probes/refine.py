"""Where a measured staircase has its edges, and which networks to measure next to find them exactly.

* Between two measured widths lies an edge where the time rises more steeply than over the whole range, or falls.
  `refine` puts the width in the middle on the grid, until neighbours are one alignment step apart.
* `off_grid` draws widths that the grid lacks, to prove that nothing between them was missed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise

from pydeploy.errors import MissingTiming
from pydeploy.graph import Graph, Group
from pydeploy.latency.probes.design import Grid, plan_keys
from pydeploy.latency.table.table import Table

STEEP = 1.5
"""A rise this many times the average one between two widths is an edge."""
DRAWS = 64
"""Random plans for each further network, of which the one with most unseen layers is taken."""


def costs(graph: Graph, table: Table, group: Group, widths: Sequence[int]) -> dict[int, float]:
    """Time in microseconds of all layers that read or write `group`, over its width, all other groups dense."""
    ops = [op for op in graph.ops if group.name in op.scope]
    found: dict[int, float] = {}
    for width in widths:
        full = graph.at({group.name: width})
        try:
            found[width] = sum(table.latency_us(op.key(full)) for op in ops)
        except MissingTiming:
            continue
    return found


def refine(graph: Graph, table: Table, grid: Grid, align: int = 8) -> dict[str, tuple[int, ...]]:
    """The grid with a width in the middle of every interval that holds an edge; multiples of `align`."""
    finer = {}
    for group in graph.prunable:
        curve = sorted(costs(graph, table, group, grid[group.name]).items())
        finer[group.name] = tuple(sorted({*grid[group.name], *_middles(curve, align)}))
    return finer


def _middles(curve: Sequence[tuple[int, float]], align: int) -> list[int]:
    if len(curve) < 3:
        return []
    (first, start), (last, end) = curve[0], curve[-1]
    average = max((end - start) / (last - first), 0.0)
    found = []
    for (low, below), (high, above) in pairwise(curve):
        slope, middle = (above - below) / (high - low), (low + high) // 2 // align * align
        if low < middle < high and (slope > STEEP * average or slope < 0):
            found.append(middle)
    return found


def further_plans(
    graph: Graph, grid: Grid, known: Sequence[Mapping[str, int]], count: int, seed: int = 0
) -> list[dict[str, int]]:
    """`count` plans of `grid` that hold most layers that no plan in `known` holds, found greedily."""
    rng = random.Random(seed)  # noqa: S311 (a sample, not a secret)
    seen = set().union(*(plan_keys(graph, plan) for plan in known)) if known else set()
    plans: list[dict[str, int]] = []
    for _ in range(count):
        drawn = [{name: rng.choice(values) for name, values in grid.items()} for _ in range(DRAWS)]
        best = max(drawn, key=lambda plan: len(plan_keys(graph, plan) - seen))
        if not plan_keys(graph, best) - seen:
            break
        plans.append(best)
        seen |= plan_keys(graph, best)
    return plans


def off_grid(grid: Grid, align: int = 8, seed: int = 0) -> dict[str, int]:
    """A plan of widths between the grid's, multiples of `align`; where there is none, a width of the grid."""
    rng = random.Random(seed)  # noqa: S311 (a sample, not a secret)
    plan = {}
    for name, values in grid.items():
        between = [w for w in range(min(values), max(values), align) if w % align == 0 and w not in values]
        plan[name] = rng.choice(between or sorted(values))
    return plan
