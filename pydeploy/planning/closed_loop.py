"""The closed loop: solve, cut, build, measure, correct what is predicted, until a measured engine meets the budget.

No training happens here: latency does not depend on weight values.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pydeploy.backends.base import Engine
from pydeploy.errors import Infeasible
from pydeploy.files import write_json
from pydeploy.latency.table.predictions import Predictions
from pydeploy.plan import Plan
from pydeploy.planning.case import Case, LoopSettings, Meter, Planner
from pydeploy.planning.next_plans import Built, next_plans
from pydeploy.planning.rounds import Budget, RoundResult, read_rounds, typical, write_round
from pydeploy.planning.solve import pareto_front, solve
from pydeploy.timing.ratio import Ratio, of_limit
from pydeploy.timing.records import Profile, Timing

RETURN_S = 120.0
"""How long a search whose outcome proves nothing waits for the computer to come to rest at the table's speed."""
SEARCHES = 2
"""How often a search is made while its outcome proves nothing."""
REFUSED = "refused.json"


def search(
    case: Case, budget: Budget, here: Path, settings: LoopSettings, *, planner: Planner = solve, meter: Meter | None = None
) -> list[RoundResult]:  # fmt: skip
    """Plan, cut, build, measure, correct the table, and again, until a measured engine meets the budget closely.

    Returns every plan that was tried: one in the first round, up to three in each of the others (`next_plans.proposals`).
    Every round measures the earlier plans again beside its own, and the median of what it was measured to take counts for
    each: a computer that is shared runs large and small networks at other ratios in one minute than in the next.
    Good enough is a plan between `LoopSettings.slack` below the budget and the budget. Finished rounds are read back from
    `here`, so a killed search goes on where it stopped. A budget below the smallest plan of the table is refused only after
    that plan was built and measured: narrow networks are often faster than their layers beside wide ones. Raises
    `Infeasible` when no round met the budget.

    What other load disturbed proves nothing. A search that rests on such rounds, or that met nothing with a table of such
    minutes or at another speed than the table's, waits up to `RETURN_S` for the computer to come to rest; then the table's
    disturbed networks are measured again and the search is begun anew. Where that does not help, plans are returned as they
    were measured (`RoundResult.disturbed`), and a refusal tells what disturbed it. Disturbed or refused rounds are not read
    back: who resumes gets a search of its own.
    """
    tried = _kept(case, settings, here)
    for number in range(1, SEARCHES + 1):
        bench, refusal = _Bench(case, budget, settings, meter or Meter()), None
        try:
            tried = _rounds(bench, planner, here, tried)
        except Infeasible as error:
            refusal, tried = error, read_rounds(here)
        doubt = bench.doubt(tried, met=refusal is None)
        if not doubt or number == SEARCHES or not bench.comes_to_rest(doubt):
            break
        case.remeasure()
        case.say(
            "the computer is at rest and back at the speed at which the table was measured: the rounds are measured anew"
        )
        tried = forget(here)
    if refusal is not None:
        write_json(here / REFUSED, {"refusal": str(refusal), "doubt": doubt})
        raise _worded(refusal, budget, doubt)
    return tried


def _kept(case: Case, settings: LoopSettings, here: Path) -> list[RoundResult]:
    """The finished rounds of a search that was stopped; none of those that proved nothing or ended in a refusal."""
    tried = read_rounds(here)
    used_up = bool(tried) and tried[-1].number >= settings.rounds and not any(one.met for one in tried)
    if used_up or (here / REFUSED).is_file():
        case.say("the budget was missed in all rounds before: they are measured anew")
        return forget(here)
    if any(one.disturbed for one in tried):
        case.say("other load disturbed the rounds before: they are measured anew")
        return forget(here)
    return tried


def forget(here: Path) -> list[RoundResult]:
    """No rounds: those in `here` are deleted."""
    for path in [*here.glob("round*.json"), here / REFUSED]:
        path.unlink(missing_ok=True)
    return []


def _worded(refusal: Infeasible, budget: Budget, doubt: str) -> Infeasible:
    """The refusal with what the user asked for, and with what speaks against it."""
    text = f"the budget of {budget} was not met: {refusal}"
    if not doubt:
        return Infeasible(text)
    return Infeasible(f"{text}. This proves nothing, because {doubt}: end the other load and run again (with --resume), "
                      "which measures anew")  # fmt: skip


def _rounds(bench: _Bench, planner: Planner, here: Path, tried: list[RoundResult]) -> list[RoundResult]:
    """The rounds that are left after `tried`; all results. Raises `Infeasible` when none met the budget."""
    settings, say = bench.settings, bench.case.say
    refusal: Infeasible | None = None
    for number in range(tried[-1].number + 1 if tried else 1, settings.rounds + 1):
        if any(1 - settings.slack <= result.tried.measured <= 1 for result in tried):
            break
        try:
            plans = _next_plans(bench, planner, tried)
        except Infeasible as error:
            refusal = error
            plans = [_smallest_plan(bench)] if planner is solve and not tried else []
        if not plans:
            break
        tried = _try(bench, tried, plans, here, number)
        write_round(here / f"round{number}.json", tried)
        for result in tried:
            say(_told(result, number))
    if not any(result.met for result in tried):
        raise _missed(tried, refusal)
    return tried


def _told(result: RoundResult, number: int) -> str:
    """What round `number` says of a plan."""
    verdict = "met" if result.met else "missed"
    if result.disturbed:
        verdict = f"{verdict}, which proves nothing: other load disturbed it"
    return (
        f"round {result.number}{', again' if result.number < number else ''}: predicted {result.predicted_us:.0f} us, "
        f"measured {result.measured_us:.0f} us, budget {result.limit_us:.0f} us: {verdict}"
    )


def _missed(tried: Sequence[RoundResult], refusal: Infeasible | None) -> Infeasible:
    """Why no plan met the budget, and what to do."""
    if refusal is not None and not tried:
        return refusal
    closest = min(tried, key=lambda result: result.tried.measured)
    if refusal is not None:
        return Infeasible(f"{refusal}. The closest engine that was built takes {closest.measured_us:.6g} us, "
                          f"{closest.tried.measured - 1:.1%} above the budget")  # fmt: skip
    return Infeasible(
        f"no plan met the budget in {tried[-1].number} rounds; the closest was {closest.tried.measured - 1:.1%} too slow: "
        "raise rounds, headroom or the budget"
    )


class _Bench:
    """What every round needs, loaded once."""

    def __init__(self, case: Case, budget: Budget, settings: LoopSettings, meter: Meter) -> None:
        self.case, self.budget, self.settings, self.meter = case, budget, settings, meter
        self.table = case.open_table()
        self.predictions = self.table.predictions(case.graph)
        self.level_us = self.table_level_us = self.table.reference_us(case.graph)
        self._take_speed()
        self.table_dense_us = self.predictions.predict_us({})

    def profile(self, engine: Engine, whole: Timing | None = None) -> Profile:
        """An engine's layers by operator; its latency is `whole` where that was measured already."""
        return self.meter.profile(self.case.backend, engine, [op.name for op in self.case.graph.ops], whole)

    def _take_speed(self) -> None:
        """Where the computer does not come to the table's speed, predictions are rescaled to the present one."""
        case = self.case
        if self.level_us is None or not case.backend.target().measured:
            return
        now_us = self.meter.prevailing_us(case.backend, case.dense, self.level_us)
        if now_us != self.level_us:
            case.say(f"the dense engine takes {now_us:.0f} us now, {self.level_us:.0f} us while the table was measured: "
                     "layers are scaled by what its own layers take now")  # fmt: skip
            inside = self.profile(case.dense)
            if loud := inside.disturbed_layers:
                case.say(f"other load disturbed {loud} of these {len(inside.layers)} layers")
            self.predictions = self.predictions.at_speed(inside.scaled(1 / of_limit(inside.whole, now_us).value))
            self.level_us = now_us

    def doubt(self, tried: Sequence[RoundResult], *, met: bool) -> str:
        """Why the outcome of the rounds `tried` proves nothing, in words; '' where it does."""
        if met and not all(one.disturbed for one in tried if one.met):
            return ""
        loud = sum(one.disturbed for one in tried)
        reasons = [f"other load disturbed the measurement of {loud} of {len(tried)} plans"] if loud else []
        unsure, networks = len(self.table.disturbed(self.case.graph)), len(self.table.networks(self.case.graph))
        if unsure:
            reasons.append(f"other load disturbed {unsure} of the {networks} networks of the latency table")
        if self.level_us is not None and self.table_level_us is not None and self.level_us != self.table_level_us:
            times = self.level_us / self.table_level_us
            reasons.append(f"the dense engine took {times:.2g} times as long as while the table was measured")
        return " and ".join(reasons)

    def comes_to_rest(self, doubt: str) -> bool:
        """Wait for the table's speed and for other load to end, and tell whether that came."""
        case, level_us = self.case, self.table_level_us
        case.say(f"the search proves nothing, because {doubt}: waiting for the computer to come to rest, "
                 f"{RETURN_S:.0f} s at most")  # fmt: skip
        until = time.monotonic() + RETURN_S
        if level_us is not None and self.meter.prevailing_us(case.backend, case.dense, level_us, RETURN_S) != level_us:
            return False
        return self.meter.comes_to_rest(case.backend, case.dense, level_us, until - time.monotonic())

    def at_table_speed(self, result: RoundResult) -> Profile:
        """What a round measured, as it would be where the dense network takes what the table says.

        From the round's budget, not from its `speed`: a search that was killed may go on at another speed.
        """
        if self.budget.share is None:
            return result.profile
        return result.profile.scaled(self.table_dense_us * self.budget.share / result.limit_us)


def best_plan(
    case: Case, budget: Budget, here: Path, tried: Sequence[RoundResult], meter: Meter | None = None
) -> RoundResult:
    """Among the plans that met the budget, the one that keeps the highest score and meets it once more.

    A single measurement can flatter a plan, so where several met it, all of them are measured again, in turns with the
    dense engine; when none meets the budget then, the one nearest to it is taken.
    """
    met = {result.name: result for result in tried if result.met}
    if len(met) == 1:
        return next(iter(met.values()))
    engines = {name: (case.backend, Engine.load(here / name / "model.engine")) for name in met}
    times = (meter or Meter()).measure({"dense": (case.backend, case.dense), **engines}, case.level_us)
    shares = {name: budget.used(times[name], times["dense"]).value for name in engines}
    confirmed = [name for name in met if shares[name] <= 1.0] or [min(met, key=lambda name: shares[name])]
    return met[max(confirmed, key=lambda name: met[name].plan.score)]


def _next_plans(bench: _Bench, planner: Planner, tried: Sequence[RoundResult]) -> list[Plan]:
    """The best plans by what is known now; none when all were tried already. Raises `Infeasible` when nothing fits."""
    case, settings = bench.case, bench.settings
    budget_us = bench.budget.of(bench.table_dense_us)

    def rule(known: Predictions, widths: Mapping[str, Sequence[int]], share: float) -> Plan:
        make = partial(solve, widths=widths) if planner is solve else planner
        return make(case.graph, case.scores, known, budget_us=share * budget_us, min_width=settings.min_width)

    built = [Built(one.number, one.plan, one.tried, bench.at_table_speed(one)) for one in tried]
    return next_plans(rule, bench.predictions, 1 - settings.headroom, built)


def _smallest_plan(bench: _Bench) -> Plan:
    """The cheapest plan by the table as it was measured."""
    case, settings = bench.case, bench.settings
    return pareto_front(case.graph, case.scores, bench.predictions, points=2, min_width=settings.min_width)[0]


def _try(
    bench: _Bench, tried: Sequence[RoundResult], plans: Sequence[Plan], here: Path, number: int
) -> list[RoundResult]:
    """Cut to each plan, build, and measure beside the dense engine and those tried before; all results, in order."""
    case, engines = bench.case, {one.name: Engine.load(here / one.name / "model.engine") for one in tried}
    new: dict[str, Plan] = {}
    for plan, letter in zip(plans, ("", "b", "c"), strict=False):
        place = here / f"round{number}{letter}"
        place.mkdir(parents=True, exist_ok=True)
        new[place.name] = plan
        engines[place.name] = case.build(plan, place)
    running = {name: (case.backend, engine) for name, engine in {"dense": case.dense, **engines}.items()}
    times = bench.meter.measure(running, bench.level_us)

    def result(number: int, name: str, plan: Plan, inside: Profile, taken: tuple[Ratio, ...] = ()) -> RoundResult:
        return _result(bench, number, name, plan, inside, taken, times[name], times["dense"])

    again = [result(one.number, one.name, one.plan, one.profile, one.taken) for one in tried]
    inside = {name: bench.profile(engines[name], times[name]) for name in new}
    return again + [result(number, name, plan, inside[name]) for name, plan in new.items()]


def _result(
    bench: _Bench, number: int, name: str, plan: Plan, inside: Profile, before: tuple[Ratio, ...], whole: Timing,
    dense: Timing,
) -> RoundResult:  # fmt: skip
    """A plan that took `before` in earlier rounds and `whole` in this one, in which the dense engine took `dense`."""
    speed = 1.0 if bench.budget.share is None else of_limit(dense, bench.table_dense_us).value
    limit_us = bench.budget.of(dense.median_us)
    taken = (*before, bench.budget.used(whole, dense))
    now = whole.scaled(typical(taken) * limit_us / whole.median_us)
    return RoundResult(number, name, plan, plan.latency_us * speed, limit_us, speed, taken, inside.within(now))
