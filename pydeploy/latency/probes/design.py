"""Which plans to probe, so that every pair of widths that meets in a layer is measured with few engines.

* Rows of the orthogonal array OA(p^2, p+1, p, 2), p prime, hold every pair of levels of any two of its
  columns exactly once (Bose 1938; Rao 1947). A column is a colour: groups that meet in an operator get
  different colours, so p^2 plans hold all their pairs however many groups the model has.
* Each group has its own order of levels (the array stays orthogonal), so every plan mixes narrow and wide layers, as
  plans under a budget do. With one order for all, narrow layers were only ever seen in narrow networks, where all
  weights stay in the caches.
* A layer that reads three or more groups (concat) also sees every *pair* of levels, not every triple: its
  input is a sum of widths, and sums between two measured ones are interpolated.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from pydeploy.errors import ConfigError
from pydeploy.graph import Extent, Graph, Group, Op, OpKey, Widths

Grid = Mapping[str, Sequence[int]]
"""Widths offered to each prunable group, ascending; the last one is the dense width."""


def grid(graph: Graph, points: int = 7, align: int = 8, min_width: int = 1) -> dict[str, tuple[int, ...]]:
    """Widths offered to every prunable group, ascending, at most `points` each, the dense width always among them.

    Widths are multiples of `align`, spread evenly between `min_width` (or the group's own minimum, if that is
    larger) and dense. A group narrower than `align` gets steps of half its width, or of its own alignment.
    """
    if points < 1 or align < 1 or min_width < 1:
        raise ConfigError(f"points ({points}), align ({align}) and min_width ({min_width}) must be at least 1")
    return {group.name: _widths(group, points, align, min_width) for group in graph.prunable}


def _widths(group: Group, points: int, align: int, min_width: int) -> tuple[int, ...]:
    wanted = align if group.width >= align else max(1, group.width // 2)
    step = int(np.lcm(wanted, group.align))
    lowest = max(min_width, group.min_width)
    widths = [w for w in range(step, group.width, step) if w >= lowest] + [group.width]
    # From the dense end, so that a single point is the dense width.
    chosen = np.linspace(len(widths) - 1, 0, min(points, len(widths))).round().astype(int)
    return tuple(widths[i] for i in sorted(set(chosen.tolist())))


def probe_plans(graph: Graph, grid: Grid, limit: int | None = None) -> list[dict[str, int]]:
    """Plans (widths of all prunable groups) that hold every pair of offered widths meeting in an operator.

    The first plan is the dense one; no plan occurs twice. With `limit`, the plans that add most unseen layers
    are taken first; what stays unmeasured is told by `unmeasured`.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"the number of probe plans must be at least 1, got {limit}")
    colours = _colours(graph, grid)
    prime = _prime(max([2, *map(len, grid.values()), *colours.values()]))
    rows = {_levels_to_widths(graph, grid, colours, levels) for levels in _array(prime)}
    dense = tuple(max(grid[group.name]) for group in graph.prunable)
    ordered = [dense, *sorted(rows - {dense}, reverse=True)]
    names = [group.name for group in graph.prunable]
    plans = [dict(zip(names, row, strict=True)) for row in ordered]
    return plans if limit is None or limit >= len(plans) else _most_informative(graph, plans, limit)


def _levels_to_widths(graph: Graph, grid: Grid, colours: Mapping[str, int], levels: tuple[int, ...]) -> tuple[int, ...]:
    # A group with fewer than p widths maps several levels to one, evenly: still onto all of them.
    prime = len(levels) - 1
    widths = []
    for group in graph.prunable:
        values = sorted(grid[group.name])
        order = random.Random(group.name).sample(range(prime), prime)  # noqa: S311 (an order, not a secret)
        widths.append(values[order[levels[colours[group.name]]] * len(values) // prime])
    return tuple(widths)


def _array(prime: int) -> list[tuple[int, ...]]:
    """Rows of OA(p^2, p+1, p, 2): row (i, j) is ``i + k*j mod p`` for k = 0..p-1, then j."""
    return [
        (*((i + k * j) % prime for k in range(prime)), j)
        for i in range(prime)
        for j in range(prime)
    ]  # fmt: skip


def _prime(least: int) -> int:
    """Smallest prime p with ``p >= least``."""
    number = max(2, least)
    while any(number % divisor == 0 for divisor in range(2, int(number**0.5) + 1)):
        number += 1
    return number


def _colours(graph: Graph, grid: Grid) -> dict[str, int]:
    """Greedy colouring, most constrained group first; groups that meet in an operator differ."""
    meets: dict[str, set[str]] = {name: set() for name in grid}
    for op in graph.ops:
        for one, other in combinations([name for name in op.scope if name in grid], 2):
            meets[one].add(other)
            meets[other].add(one)
    colours: dict[str, int] = {}
    for name in sorted(meets, key=lambda name: (-len(meets[name]), name)):
        taken = {colours[other] for other in meets[name] if other in colours}
        colours[name] = next(colour for colour in range(len(meets)) if colour not in taken)
    return colours


def _most_informative(graph: Graph, plans: Sequence[dict[str, int]], limit: int) -> list[dict[str, int]]:
    """The dense plan, then greedily the plan with most keys not seen yet."""
    keys = {index: plan_keys(graph, plan) for index, plan in enumerate(plans)}
    chosen, seen = [0], keys.pop(0)
    while len(chosen) < limit:
        best = max(keys, key=lambda index: (len(keys[index] - seen), -index))
        chosen.append(best)
        seen = seen | keys.pop(best)
    return [plans[index] for index in chosen]


def plan_keys(graph: Graph, widths: Widths) -> set[OpKey]:
    """Table keys of all layers at `widths` (groups not named stay dense)."""
    return set(graph.keys(widths))


def op_keys(graph: Graph, op: Op, grid: Grid) -> set[OpKey]:
    """All keys that `op` can have on `grid`; a concat's sums are enumerated as sums, not as products of widths."""
    extents = {(op.cin.fixed, op.cout.fixed)}
    dense = graph.widths
    for name in op.scope:
        into = sum(repeat for group, repeat in op.cin.terms if group == name)
        out = sum(repeat for group, repeat in op.cout.terms if group == name)
        choices = grid.get(name, (dense[name],))
        extents = {(cin + into * w, cout + out * w) for cin, cout in extents for w in choices}
    return {replace(op, cin=Extent(cin), cout=Extent(cout)).key({}) for cin, cout in extents}


def unmeasured(graph: Graph, grid: Grid, plans: Sequence[Widths]) -> set[OpKey]:
    """Keys that the solver may ask for on `grid` and that no plan in `plans` holds."""
    wanted = set().union(*(op_keys(graph, op, grid) for op in graph.ops))
    held = set().union(*(plan_keys(graph, plan) for plan in plans))
    return wanted - held
