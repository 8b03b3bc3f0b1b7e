"""How many channels stay without a latency table: by a ratio, a threshold, a share of the scores, of the MACs or of the parameters.

First each group's number of kept channels is chosen, then it is rounded, then the best so many channels are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from pydeploy.errors import ConfigError, Infeasible, nearest
from pydeploy.graph import Graph, Group, Widths
from pydeploy.guests.patterns import matches
from pydeploy.plan import Plan, Scores, plan_from_widths
from pydeploy.planning.solve import check_scores
from pydeploy.settings import Number, Positive, Settings

Part = Annotated[Number, Field(gt=0, lt=1)]
AMOUNTS = ("ratio", "threshold", "energy", "macs", "params")


class Rules(Settings):
    """What `select` follows; exactly one of the amounts is given."""

    ratio: Part | None = None
    """Share of channels to remove."""
    threshold: Number | None = None
    """Channels with a higher score stay."""
    energy: Part | None = None
    """The fewest best channels stay whose scores are this share of the sum."""
    macs: Part | None = None
    """Share of the dense network's multiply-accumulates that may stay."""
    params: Part | None = None
    """Share of its parameters that may stay."""
    scope: Literal["local", "global"] = "local"
    """Whether scores compare within each group, or over the whole network."""
    align: Positive = 1
    """Kept counts are multiples of this, where the group is that wide."""
    rounding: Literal["nearest", "down", "up", "power2"] = "nearest"
    """To which multiple (halves up); with power2 to the next power of two."""
    min_share: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Every group keeps at least this share."""
    min_width: Positive = 1
    """Every group keeps at least so many channels, if it has them."""
    layers: Literal["shortcut", "normal"] = "shortcut"
    """With normal, groups that several layers write (those with shortcuts) stay whole."""
    apart: list[str] = Field(default_factory=list)
    """Patterns of group names, such as ``decoder.*``, that compare among themselves in the global scope."""

    @model_validator(mode="after")
    def _one_amount(self) -> Rules:
        given = [name for name in AMOUNTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(AMOUNTS)}; got {' and '.join(given) or 'none'}")
        if self.rounding == "power2" and self.align & (self.align - 1):
            raise ValueError(f"align is {self.align}, expected a power of two with rounding: power2")
        return self


@dataclass(frozen=True)
class Selection:
    """A plan, and how far it is from what was asked for."""

    plan: Plan
    removed: float
    """Share of the channels removed, of the groups that were allowed to lose some."""
    macs: float
    """Share of the multiply-accumulates that stays."""
    params: float
    """Share of the parameters that stays."""
    at_minimum: tuple[str, ...]
    """Groups that would have kept fewer than they must."""


def select(graph: Graph, scores: Scores, **rules: Any) -> Selection:
    """The channels that stay by `rules`, the fields of `Rules`: one of ``ratio threshold energy macs params``, and how.

    Of equal scores the earlier channel stays. Raises `ConfigError` for rules that contradict themselves or the graph,
    `Infeasible` where not even the narrowest cut is within the budget, `DataError` for scores that do not fit.
    """
    check_scores(graph, scores)
    given = Rules(**rules)
    groups = _allowed(graph, given)
    sets = _sets(groups, given)
    if given.macs is not None or given.params is not None:
        counts = _within(graph, scores, sets, given)
    else:
        counts = {name: n for part in sets for name, n in _counts(part, scores, given, given.ratio or 0.0).items()}
    widths = {group.name: _rounded(counts[group.name], group, given) for group in groups}
    plan = plan_from_widths(graph, scores, widths, method=f"{given.scope} {_amount(given)}")
    lost = sum(group.width - widths[group.name] for group in groups)
    return Selection(plan, lost / sum(group.width for group in groups), graph.macs(widths) / max(graph.macs(), 1),
                     parameters(graph, widths) / max(parameters(graph, {}), 1),
                     tuple(group.name for group in groups if counts[group.name] < _least(group, given)))  # fmt: skip


def parameters(graph: Graph, widths: Widths) -> int:
    """Entries of all parameters at `widths`; statistics of batch norms are not counted."""
    removed: dict[tuple[str, int], int] = {}
    for group in graph.groups:
        fewer = group.width - widths.get(group.name, group.width)
        for piece in group.slices:
            removed[piece.param, piece.dim] = removed.get((piece.param, piece.dim), 0) + fewer * piece.repeat
    return sum(math.prod(size - removed.get((name, dim), 0) for dim, size in enumerate(shape))
               for name, shape in graph.params.items() if not name.endswith(STATISTICS))  # fmt: skip


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _amount(rules: Rules) -> str:
    return next(f"{name} {getattr(rules, name):g}" for name in AMOUNTS if getattr(rules, name) is not None)


def _allowed(graph: Graph, rules: Rules) -> list[Group]:
    """Groups that may lose channels."""
    groups = [group for group in graph.prunable if rules.layers == "shortcut" or group.name not in graph.shortcuts]
    if not groups:
        raise ConfigError(
            "no group of channels may be cut"
            + (": all have shortcuts; set layers to shortcut" if graph.shortcuts else "")
        )
    widest = max(group.width for group in groups)
    if rules.align > widest:
        raise ConfigError(
            f"align is {rules.align} and the widest group has {widest} channels: nothing could be removed"
        )
    return groups


def _sets(groups: Sequence[Group], rules: Rules) -> list[list[Group]]:
    """Groups whose scores compare."""
    for pattern in rules.apart:
        if not any(matches(group.name, pattern) for group in groups):
            raise ConfigError(f"no group matches '{pattern}' of apart{nearest(pattern, [g.name for g in groups])}")
    inside = [group for group in groups if any(matches(group.name, pattern) for pattern in rules.apart)]
    sets = [[group for group in groups if group not in inside], inside]
    return [part for part in sets if part] if rules.scope == "global" else [[group] for group in groups]


def _counts(groups: Sequence[Group], scores: Scores, rules: Rules, ratio: float) -> dict[str, int]:
    """How many channels stay of each of `groups`, whose scores compare, before rounding."""
    owner = np.repeat(np.arange(len(groups)), [group.width for group in groups])
    values = np.concatenate([scores[group.name].astype(np.float64) for group in groups])
    if rules.threshold is not None:
        kept = np.flatnonzero(values > rules.threshold)
    else:
        order = np.argsort(-values, kind="stable")
        if rules.energy is not None:
            shares = np.cumsum(np.clip(values[order], 0, None))
            number = int(np.searchsorted(shares, rules.energy * shares[-1] * (1 - 1e-12))) + 1
        else:
            number = len(values) - math.floor(round(ratio * len(values), 9))
        kept = order[:number]
    return {
        group.name: int(n) for group, n in zip(groups, np.bincount(owner[kept], minlength=len(groups)), strict=True)
    }


def _within(graph: Graph, scores: Scores, sets: Sequence[Sequence[Group]], rules: Rules) -> dict[str, int]:
    """The counts of the smallest ratio whose network is within the budget; widths, and so costs, never grow with the ratio."""
    steps = sum(group.width for part in sets for group in part)
    by_name = {group.name: group for part in sets for group in part}
    dense, share = (graph.macs(), rules.macs) if rules.macs is not None else (parameters(graph, {}), rules.params)
    assert share is not None

    def at(step: int) -> tuple[dict[str, int], float]:
        counts = {name: n for part in sets for name, n in _counts(part, scores, rules, step / steps).items()}
        widths = {name: _rounded(n, by_name[name], rules) for name, n in counts.items()}
        return counts, (graph.macs(widths) if rules.macs is not None else parameters(graph, widths)) / dense

    low, high = 0, steps
    if (smallest := at(steps)[1]) > share:
        raise Infeasible(f"{_amount(rules)} cannot be met: the narrowest cut has {smallest:.3f} of dense; raise it")
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle)[1] <= share else (middle + 1, high)
    return at(low)[0]


def _step(group: Group, rules: Rules) -> int:
    return math.lcm(rules.align, group.align)


def _least(group: Group, rules: Rules) -> int:
    return min(
        group.width, max(rules.min_width, group.min_width, math.ceil(round(rules.min_share * group.width, 9)), 1)
    )


def _rounded(count: int, group: Group, rules: Rules) -> int:
    """The width of a group that is to keep `count` channels: a multiple that is not too narrow, or all of them."""
    step, least = _step(group, rules), _least(group, rules)
    parts: Mapping[str, float] = {"nearest": math.floor(count / step + 0.5), "down": count // step, "up": math.ceil(count / step),
                                  "power2": math.ceil(count / step)}  # fmt: skip
    width = max(int(parts[rules.rounding]), math.ceil(least / step)) * step
    if rules.rounding == "power2":
        width = step * 2 ** math.ceil(math.log2(width / step))
    return min(group.width, width)
