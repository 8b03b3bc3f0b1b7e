"""What the solver should aim at next, from the plans that were built and measured.

A table that is corrected by a round is right for the layers that the round tried. The solver then prefers others that
the table still flatters: it seeks out errors in one direction, so corrections alone approach the budget from above.
Two builds of one plan differ by a percent or two besides. Every round after the first therefore builds up to three plans.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Protocol, TypeVar

from pydeploy.errors import Infeasible
from pydeploy.graph import Widths
from pydeploy.plan import Plan
from pydeploy.timing.records import Profile

SHARE = 0.5
"""Power of the last round's surprise that is taken off the aim after the first round.

Simulated for three rounds on ResNet-18 and MobileNetV2 with tables whose layers are too fast by up to 10, 25 and 50 %,
each by its own amount: power 0 misses most budgets from 25 % on, power 1 meets them but leaves up to 3 % of the score
unused; this rule meets all at 10 and 25 % with at most 0.3 % of the score left, and 97 % of them at 50 %.
"""
BRACKET_AFTER = 3
"""Rounds after which corrections are no longer expected to converge, and the aim is bracketed."""
MARGIN = 0.1
"""A bracketed aim stays this share of the bracket away from its ends."""

SPREAD = 0.02
"""How far the second and the third plan of a round are aimed above and below the first.

In the simulation above, of 24 tables each, a plan within 3 % below the budget is found for 24, 18 and 14 with layers too
fast by up to 10, 25 and 50 %; with one plan a round for 21, 6 and 5.
"""
FINER = 8
"""Into at most how many parts a gap between two measured widths is divided."""
RAISE, RAISES = 1.03, 12
"""Steps by which the aim is raised, and how many at most: beyond 40 % too much a table should be measured again."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One plan: what the table of its round predicted and what was measured, both as shares of the budget."""

    predicted: float
    measured: float

    @property
    def met(self) -> bool:
        return self.measured <= 1.0


@dataclass(frozen=True, slots=True)
class Built:
    """A plan that was built in round `number`, how near it came, and what it took at the table's speed."""

    number: int
    plan: Plan
    tried: Tried
    profile: Profile

    def distance(self, target: float) -> float:
        """How far the measured share of the budget is from `target`."""
        return abs(self.tried.measured - target)


Known = TypeVar("Known", bound="Correctable")


class Correctable(Protocol):
    """What is asked of predictions."""

    @property
    def widths(self) -> Mapping[str, Sequence[int]]:
        """Measured widths of each prunable group."""

    def corrected(self: Known, widths: Widths, profile: Profile) -> Known:
        """Predictions in which the plan `widths` costs what `profile` says."""


Rule = Callable[[Known, Mapping[str, Sequence[int]], float], Plan]
"""Makes a plan from predictions, the widths on offer and the share of the budget that it may take."""


def next_plans(rule: Rule[Known], known: Known, target: float, built: Sequence[Built]) -> list[Plan]:
    """What to build next, so that a plan is measured near `target` of the budget; see `proposals`.

    The plan that came nearest corrects what is `known` last: what it took is what is predicted for it, and for the layers
    that it shares. Around it, widths between the measured ones are on offer as well.
    """
    offered = known.widths
    for one in (ranked := sorted(built, key=lambda one: -one.distance(target))):
        known = known.corrected(one.plan.widths, one.profile)
    if ranked:
        offered = finer(offered, ranked[-1].plan)
    return proposals(partial(rule, known, offered), target, built)


def next_aim(target: float, tried: Sequence[Tried]) -> float:
    """The share of the budget to solve for, so that the plan is measured near `target` of it.

    What the last round was slower than predicted is taken off: in part after one round, because the table was corrected
    as well, wholly when two rounds missed. From `BRACKET_AFTER` rounds on, the aim lies between those of the closest
    met and the closest missed round, where the line through both reaches `target`.
    """
    if not tried:
        return target
    met, missed = [one for one in tried if one.met], [one for one in tried if not one.met]
    if len(tried) >= BRACKET_AFTER and met and missed:
        low, high = max(met, key=lambda one: one.measured), min(missed, key=lambda one: one.measured)
        if low.predicted < high.predicted:
            part = (target - low.measured) / (high.measured - low.measured)
            return low.predicted + (high.predicted - low.predicted) * min(1 - MARGIN, max(MARGIN, part))
    power = SHARE if met or len(tried) == 1 else 1.0
    return float(target / max(1.0, tried[-1].measured / tried[-1].predicted) ** power)


def proposals(make: Callable[[float], Plan], target: float, built: Sequence[Built]) -> list[Plan]:
    """The plans to build next: one in the first round, up to three in the others; empty when nothing new is left to try.

    `make` solves for a share of the budget; `built` are the plans so far, in the order of their rounds. Raises
    `Infeasible` when no plan fits.
    """
    rounds = [list(found) for _, found in groupby(built, lambda one: one.number)]
    nearest = [min(found, key=lambda one: one.distance(target)).tried for found in rounds]
    aim, known = next_aim(target, nearest), [one.plan for one in built]
    found: list[Plan] = []
    refusals: list[Infeasible] = []
    wanted = [aim, aim * (1 + SPREAD), aim * (1 - SPREAD)] if rounds else [aim]
    for share in wanted:
        try:
            plan = make(share)
        except Infeasible as error:
            refusals.append(error)
            continue
        if not _among(plan, [*known, *found]):
            found.append(plan)
    if len(refusals) == len(wanted):
        raise refusals[0]
    if found:
        return found
    for share in raised_aims(target, nearest[-1]) if nearest else ():
        plan = make(share)
        if not _among(plan, known):
            return [plan]
    return []


def _among(plan: Plan, others: Sequence[Plan]) -> bool:
    return any(plan.kept == other.kept for other in others)


def finer(widths: Mapping[str, Sequence[int]], plan: Plan) -> dict[str, tuple[int, ...]]:
    """`widths`, and those between them that lie around what `plan` keeps: steps as even as the given ones, few of them.

    The best plans of a coarse grid lie up to 7 % of the latency apart. What layers take in between is interpolated, which
    is good enough for a plan that is measured next.
    """
    return {name: tuple(sorted({*given, *_between(given, plan.widths[name])})) for name, given in widths.items()}


def _between(given: Sequence[int], kept: int) -> list[int]:
    step = math.gcd(*given[:-1]) if len(given) > 1 else 0  # the dense width, the last one, need not be a multiple
    found: list[int] = []
    for low, high in itertools.pairwise(given):
        if step and kept in (low, high):
            stride = step * math.ceil((high - low) / step / FINER)
            found += range(low + stride, high, stride)
    return found


def raised_aims(target: float, last: Tried) -> list[float]:
    """What to aim at, in this order, where the corrected table proposes a plan again that left some of the budget unused.

    If that plan was faster than predicted, the table overprices layers that no round has tried, nobody knows by how
    much: the least aim that gives a new plan is worth a round.
    """
    if not last.met or last.measured >= last.predicted:
        return []
    return [target * RAISE**step for step in range(1, RAISES + 1)]
