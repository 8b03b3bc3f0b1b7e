"""The rules that `solve` is compared with, for users who ask for them: uniform, global threshold, HALP.

* `uniform` and `global_threshold` know nothing of latency; `fit_budget` finds how far they must go to meet a budget.
* `halp` follows Shen et al., HALP (NeurIPS 2022, arXiv 2210.06659): many small steps, in each of which a layer's time
  depends on its output width only, its input width frozen as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pydeploy import _core
from pydeploy.errors import ConfigError, Infeasible, MissingTiming
from pydeploy.graph import Extent, Graph, Group, Op, Widths
from pydeploy.latency.table.table import Table
from pydeploy.plan import Plan, Scores, plan_from_widths
from pydeploy.planning.solve import Timings, allowed_widths, check_scores, kept_scores, time_or_error, timings_of

STEPS = 30
"""As in HALP's own configurations."""


def uniform(
    graph: Graph,
    scores: Scores,
    *,
    ratio: float,
    align: int = 8,
    min_width: int = 1,
    table: Table | Timings | None = None,
) -> Plan:
    """The plan that removes the share `ratio` of every group's channels, the lowest scores first.

    Kept counts are rounded to the nearest multiple of `align` (half up), at least one multiple, at most the group's
    width. `latency_us` is NaN without a `table`.
    """
    check_scores(graph, scores)
    _check_ratio(ratio, align)
    widths = {g.name: _rounded((1.0 - ratio) * g.width, g, align, min_width) for g in graph.prunable}
    return plan_from_widths(graph, scores, widths, method="uniform", latency_us=_known_us(graph, widths, table))


def global_threshold(
    graph: Graph,
    scores: Scores,
    *,
    ratio: float,
    align: int = 8,
    min_width: int = 1,
    table: Table | Timings | None = None,
) -> Plan:
    """The plan that removes the share `ratio` of all prunable channels, the lowest scores of the whole network first.

    Exactly ``floor(n * ratio)`` of n channels go before rounding; of equal scores the later channel goes first. The
    counts that remain per group are then rounded as in `uniform`.
    """
    check_scores(graph, scores)
    _check_ratio(ratio, align)
    owner = np.repeat(np.arange(len(graph.prunable)), [g.width for g in graph.prunable])
    ranking = np.concatenate([-scores[g.name] for g in graph.prunable] or [np.zeros(0, np.float32)])
    removed = math.floor(round(ratio * len(owner), 9))
    kept = np.argsort(ranking, kind="stable")[: len(owner) - removed]
    counts = np.bincount(owner[kept], minlength=len(graph.prunable))
    widths = {g.name: _rounded(float(n), g, align, min_width) for g, n in zip(graph.prunable, counts, strict=True)}
    return plan_from_widths(graph, scores, widths, method="global", latency_us=_known_us(graph, widths, table))


def fit_budget(
    rule: Callable[..., Plan], graph: Graph, scores: Scores, table: Table | Timings, *, budget_us: float, align: int = 8,
    min_width: int = 1,
) -> Plan:  # fmt: skip
    """The plan of `rule` (`uniform` or `global_threshold`) with the highest score among those within the budget.

    Ratios are tried in steps of 0.5 %: latency does not always fall with the ratio. Those whose plans the table cannot
    tell are passed over. Raises `Infeasible`, and `MissingTiming` where it can tell none.
    """
    tried = [
        _known(rule, graph, scores, ratio=k / 200, align=align, min_width=min_width, table=table) for k in range(200)
    ]
    plans = [plan for plan in tried if isinstance(plan, Plan)]
    if not plans:
        raise next(error for error in tried if isinstance(error, MissingTiming))
    fitting = [plan for plan in plans if plan.latency_us <= budget_us]
    if not fitting:
        raise Infeasible(
            f"no {plans[0].method} cut rounded to {align} meets {budget_us:.6g} us; its smallest takes "
            f"{min(plan.latency_us for plan in plans):.6g} us: raise the budget"
        )
    return max(fitting, key=lambda plan: plan.score)


def _known(rule: Callable[..., Plan], *given: Any, **named: Any) -> Plan | MissingTiming:
    try:
        return rule(*given, **named)
    except MissingTiming as error:
        return error


def halp(
    graph: Graph,
    scores: Scores,
    table: Table | Timings,
    *,
    budget_us: float,
    widths: Mapping[str, Sequence[int]] | None = None,
    min_width: int = 1,
    steps: int = STEPS,
) -> Plan:
    """HALP's plan: `steps` steps whose targets fall geometrically from the dense latency to the budget.

    A step's knapsack (one width per group, never wider than before, times with frozen input widths) is solved exactly,
    where HALP's own is a heuristic. Steps can miss their targets because both widths change at once; where the last
    one does, further steps aim lower by as much. Raises `Infeasible` and as `solve`.
    """
    if steps < 1:
        raise ConfigError(f"steps is {steps}, expected at least 1")
    timings = timings_of(graph, table)
    allowed = allowed_widths(graph, scores, timings, widths, min_width)
    now = {name: options[-1] for name, options in allowed.items()}
    dense_us = timings.predict_us(now)
    aim_us = budget_us
    for step in range(1, 2 * steps + 1):
        if step > steps:
            latency_us = timings.predict_us(now)
            if latency_us <= budget_us:
                break
            aim_us *= budget_us / latency_us
        part = min(1.0, step / steps)
        target_us = math.exp(part * math.log(aim_us) + (1 - part) * math.log(max(dense_us, aim_us)))
        now = _halp_step(graph, scores, timings, allowed, now, target_us)
    latency_us = timings.predict_us(now)
    if latency_us > budget_us:
        raise Infeasible(f"HALP stays at {latency_us:.6g} us, above the budget {budget_us:.6g} us; raise the budget")
    return plan_from_widths(graph, scores, now, method="halp", latency_us=latency_us)


def _halp_step(
    graph: Graph, scores: Scores, table: Timings, allowed: Mapping[str, Sequence[int]], now: Widths, target_us: float
) -> dict[str, int]:
    """The widths of one step, none above `now`; as narrow as the frozen times allow where none meets the target."""
    options = {name: [w for w in allowed[name] if w <= now[name]] for name in now}
    changes = {name: np.zeros(len(options[name])) for name in now}
    full = graph.at(now)
    for op in graph.ops:
        made = [name for name, _ in op.cout.terms if name in now]
        for name in made:
            us = [_time_us(op, full, name, w, table) for w in options[name]]
            changes[name] += np.array(us) - us[-1]
    values = [kept_scores(scores[name], options[name]) for name in now]
    scopes, costs = [[i] for i in range(len(now))], list(changes.values())
    smallest_us, _ = _core.minimum_cost(scopes, costs, [len(o) for o in options.values()])
    saving_us = max(smallest_us, target_us - table.predict_us(now))
    solution = _core.solve(values, scopes, costs, saving_us)
    return {name: options[name][x] for name, x in zip(now, solution.choice, strict=True)}


def _time_us(op: Op, widths: Widths, name: str, width: int, table: Timings) -> float:
    """The layer's time with `width` channels made and its input frozen; infinite where there is no timing."""
    cin = op.cout.at({**widths, name: width}) if op.depthwise else op.cin.at(widths)
    key = replace(op, cin=Extent(cin), cout=Extent(op.cout.at({**widths, name: width}))).key({})
    time = time_or_error(key, table.latency_us)
    return math.inf if isinstance(time, MissingTiming) else time


def _known_us(graph: Graph, widths: Widths, table: Table | Timings | None) -> float:
    return math.nan if table is None else timings_of(graph, table).predict_us(widths)


def _check_ratio(ratio: float, align: int) -> None:
    if not 0.0 <= ratio < 1.0:
        raise ConfigError(f"ratio is {ratio}, expected the share of channels to remove: at least 0 and below 1")
    if align < 1:
        raise ConfigError(f"align is {align}, expected at least 1")


def _rounded(count: float, group: Group, align: int, min_width: int) -> int:
    """The multiple of `align` nearest to `count`, between the smallest allowed width and the group's own."""
    step = math.lcm(align, group.align)
    least = math.ceil(max(min_width, group.min_width, 1) / step) * step
    # Nine digits: (1 - 0.9) * 40 is a half step of 8 although its double is a little less.
    kept = math.floor(round(count / step, 9) + 0.5) * step
    return min(group.width, max(kept, least))
