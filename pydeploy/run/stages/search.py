"""The inner loop: solve, cut, build, measure, correct the table, until a measured engine meets the budget.

No training happens here: latency does not depend on weight values.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from pydeploy.backends.base import Engine
from pydeploy.errors import ConfigError, Infeasible
from pydeploy.files import read_json, write_json
from pydeploy.graph import Graph
from pydeploy.latency.table.predictions import Predictions
from pydeploy.latency.table.table import Table
from pydeploy.plan import Plan, Scores
from pydeploy.planning.next_plans import Built, next_plans
from pydeploy.planning.solve import pareto_front, solve
from pydeploy.profiling.engines import comes_to_rest, measure_at_level, prevailing_us
from pydeploy.run.artefacts import Artefacts
from pydeploy.run.job import Job, model_of
from pydeploy.run.stages.engines import build_engine, layer_profile
from pydeploy.run.stages.rounds import Budget, RoundResult, read_rounds, typical, write_round
from pydeploy.run.stages.scoring import read_scores
from pydeploy.run.stages.table import measured_table
from pydeploy.timing.ratio import Ratio, of_limit
from pydeploy.timing.records import Profile, Timing

SLACK = 0.03
"""A plan at most this share below the budget is good enough; a slower, better one is looked for otherwise."""
RETURN_S = 120.0
"""How long a search whose outcome proves nothing waits for the computer to come to rest at the table's speed."""
SEARCHES = 2
"""How often a search is made while its outcome proves nothing."""
REFUSED = "refused.json"


class Planner(Protocol):
    """A rule that makes a plan for a budget: `solve.solve`, or one of `baselines` to compare it with."""

    def __call__(
        self, graph: Graph, scores: Scores, known: Predictions, /, *, budget_us: float, min_width: int
    ) -> Plan: ...


def search(job: Job, at: Artefacts, budget: Budget, here: Path, planner: Planner = solve) -> list[RoundResult]:
    """Plan, cut, build, measure, correct the table, and again, until a measured engine meets the budget closely.

    Returns every plan that was tried: one in the first round, up to three in each of the others (`next_plans.proposals`).
    Every round measures the earlier plans again beside its own, and the median of what it was measured to take counts for
    each: a computer that is shared runs large and small networks at other ratios in one minute than in the next.
    Good enough is a plan between `SLACK` below the budget (twice the config's headroom, where that is more) and the
    budget. Finished rounds are read back from `here`, so a killed search goes on where it stopped. A budget below the
    smallest plan of the table is refused only after that plan was built and measured: narrow networks are often faster
    than their layers beside wide ones. Raises `Infeasible` when no round met the budget.

    What other load disturbed proves nothing. A search that rests on such rounds, or that met nothing with a table of such
    minutes or at another speed than the table's, waits up to `RETURN_S` for the computer to come to rest; then the table's
    disturbed networks are measured again and the search is begun anew. Where that does not help, plans are returned as they
    were measured (`RoundResult.disturbed`), and a refusal tells what disturbed it. Disturbed or refused rounds are not read
    back: who resumes gets a search of its own.
    """
    tried = _kept(job, here)
    for number in range(1, SEARCHES + 1):
        bench, refusal = _Bench(job, at, budget), None
        try:
            tried = _rounds(bench, planner, here, tried)
        except Infeasible as error:
            refusal, tried = error, read_rounds(here)
        doubt = bench.doubt(tried, met=refusal is None)
        if not doubt or number == SEARCHES or not bench.comes_to_rest(doubt):
            break
        measured_table(job, bench.graph, at.float_file(at.dense), at.table.parent)
        job.console.say(
            "the computer is at rest and back at the speed at which the table was measured: the rounds are measured anew"
        )
        tried = _forgotten(here)
    if refusal is not None:
        write_json(here / REFUSED, {"refusal": str(refusal), "doubt": doubt})
        raise _worded(refusal, budget, doubt)
    return tried


def _kept(job: Job, here: Path) -> list[RoundResult]:
    """The finished rounds of a search that was stopped; none of those that proved nothing or ended in a refusal."""
    tried = read_rounds(here)
    used_up = bool(tried) and tried[-1].number >= job.config.prune.rounds and not any(one.met for one in tried)
    if used_up or (here / REFUSED).is_file():
        job.console.say("the budget was missed in all rounds before: they are measured anew")
        return _forgotten(here)
    if any(one.disturbed for one in tried):
        job.console.say("other load disturbed the rounds before: they are measured anew")
        return _forgotten(here)
    return tried


def _forgotten(here: Path) -> list[RoundResult]:
    """No rounds: those in `here` are deleted."""
    for path in [*here.glob("round*.json"), here / REFUSED]:
        path.unlink(missing_ok=True)
    return []


def _worded(refusal: Infeasible, budget: Budget, doubt: str) -> Infeasible:
    """The refusal with what the user asked for, and with what speaks against it."""
    text = f"the budget of {budget} was not met: {refusal}"
    if not doubt:
        return Infeasible(text)
    return Infeasible(f"{text}. This proves nothing, because {doubt}: end the other load and run again with --resume, which "
                      "measures anew")  # fmt: skip


def _rounds(bench: _Bench, planner: Planner, here: Path, tried: list[RoundResult]) -> list[RoundResult]:
    """The rounds that are left after `tried`; all results. Raises `Infeasible` when none met the budget."""
    settings, say = bench.job.config.prune, bench.job.console.say
    slack = max(SLACK, 2 * settings.headroom)  # the headroom is the middle of what is good enough
    refusal: Infeasible | None = None
    for number in range(tried[-1].number + 1 if tried else 1, settings.rounds + 1):
        if any(1 - slack <= result.tried.measured <= 1 for result in tried):
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
        "raise prune.rounds, prune.headroom or the budget"
    )


class _Bench:
    """What every round needs, loaded once."""

    def __init__(self, job: Job, at: Artefacts, budget: Budget) -> None:
        self.job, self.budget = job, budget
        self.graph = Graph.load(at.graph)
        self.scores = read_scores(at.scores)
        self.table = Table.open(at.table, job.backend.target())
        self.predictions = self.table.predictions(self.graph)
        self.model = model_of(job, at.dense_weights)
        self.dense = Engine.load(at.dense / "model.engine")
        self.level_us = self.table_level_us = self.table.reference_us(self.graph)
        self._take_speed()
        self.table_dense_us = self.predictions.predict_us({})

    def _take_speed(self) -> None:
        """Where the computer does not come to the speed at which the table was measured, predictions are rescaled to the present."""
        if self.level_us is None or not self.job.backend.target().measured:
            return
        now_us = prevailing_us(self.job.backend, self.dense, self.level_us)
        if now_us != self.level_us:
            self.job.console.say(f"the dense engine takes {now_us:.0f} us now, {self.level_us:.0f} us while the table was "
                                 "measured: layers are scaled by what its own layers take now")  # fmt: skip
            inside = layer_profile(self.job, self.dense, self.graph)
            if loud := inside.disturbed_layers:
                self.job.console.say(f"other load disturbed {loud} of these {len(inside.layers)} layers")
            self.predictions = self.predictions.at_speed(inside.scaled(1 / of_limit(inside.whole, now_us).value))
            self.level_us = now_us

    def doubt(self, tried: Sequence[RoundResult], *, met: bool) -> str:
        """Why the outcome of the rounds `tried` proves nothing, in words; '' where it does."""
        if met and not all(one.disturbed for one in tried if one.met):
            return ""
        loud = sum(one.disturbed for one in tried)
        reasons = [f"other load disturbed the measurement of {loud} of {len(tried)} plans"] if loud else []
        unsure, networks = len(self.table.disturbed(self.graph)), len(self.table.networks(self.graph))
        if unsure:
            reasons.append(f"other load disturbed {unsure} of the {networks} networks of the latency table")
        if self.level_us is not None and self.table_level_us is not None and self.level_us != self.table_level_us:
            times = self.level_us / self.table_level_us
            reasons.append(f"the dense engine took {times:.2g} times as long as while the table was measured")
        return " and ".join(reasons)

    def comes_to_rest(self, doubt: str) -> bool:
        """Wait for the table's speed and for other load to end, and tell whether that came."""
        self.job.console.say(f"the search proves nothing, because {doubt}: waiting for the computer to come to rest, "
                             f"{RETURN_S:.0f} s at most")  # fmt: skip
        until, level_us = time.monotonic() + RETURN_S, self.table_level_us
        if level_us is not None and prevailing_us(self.job.backend, self.dense, level_us, RETURN_S) != level_us:
            return False
        return comes_to_rest(self.job.backend, self.dense, level_us, until - time.monotonic())

    def at_table_speed(self, result: RoundResult) -> Profile:
        """What a round measured, as it would be where the dense network takes what the table says.

        From the round's budget, not from its `speed`: a search that was killed may go on at another speed.
        """
        if self.budget.share is None:
            return result.profile
        return result.profile.scaled(self.table_dense_us * self.budget.share / result.limit_us)


def level_us(job: Job, at: Artefacts) -> float | None:
    """What the dense engine took while the table was measured."""
    return Table.open(at.table, job.backend.target()).reference_us(Graph.load(at.graph))


def best_plan(job: Job, at: Artefacts, budget: Budget, here: Path, tried: Sequence[RoundResult]) -> Plan:
    """Among the plans that met the budget, the one that keeps the highest score and meets it once more.

    A single measurement can flatter a plan, so where several met it, all of them are measured again, in turns with the
    dense engine; when none meets the budget then, the one nearest to it is taken.
    """
    met = {result.name: result for result in tried if result.met}
    if len(met) == 1:
        return next(iter(met.values())).plan
    engines = {name: (job.backend, Engine.load(here / name / "model.engine")) for name in met}
    bench = {"dense": (job.backend, Engine.load(at.dense / "model.engine")), **engines}
    times = measure_at_level(bench, level_us(job, at))
    shares = {name: budget.used(times[name], times["dense"]).value for name in engines}
    confirmed = [name for name in met if shares[name] <= 1.0] or [min(met, key=lambda name: shares[name])]
    return met[max(confirmed, key=lambda name: met[name].plan.score)].plan


def _next_plans(bench: _Bench, planner: Planner, tried: Sequence[RoundResult]) -> list[Plan]:
    """The best plans by what is known now; none when all were tried already. Raises `Infeasible` when nothing fits."""
    settings = bench.job.config.prune
    budget_us = bench.budget.of(bench.table_dense_us)

    def rule(known: Predictions, widths: Mapping[str, Sequence[int]], share: float) -> Plan:
        make = partial(solve, widths=widths) if planner is solve else planner
        return make(bench.graph, bench.scores, known, budget_us=share * budget_us, min_width=settings.min_width)

    built = [Built(one.number, one.plan, one.tried, bench.at_table_speed(one)) for one in tried]
    return next_plans(rule, bench.predictions, 1 - settings.headroom, built)


def _smallest_plan(bench: _Bench) -> Plan:
    """The cheapest plan by the table as it was measured."""
    settings = bench.job.config.prune
    return pareto_front(bench.graph, bench.scores, bench.predictions, points=2, min_width=settings.min_width)[0]


def _try(
    bench: _Bench, tried: Sequence[RoundResult], plans: Sequence[Plan], here: Path, number: int
) -> list[RoundResult]:
    """Cut to each plan, build, and measure beside the dense engine and those tried before; all results, in order."""
    from pydeploy.prune.surgery.apply import apply

    backend, engines = bench.job.backend, {one.name: Engine.load(here / one.name / "model.engine") for one in tried}
    new: dict[str, Plan] = {}
    for plan, letter in zip(plans, ("", "b", "c"), strict=False):
        place = here / f"round{number}{letter}"
        place.mkdir(parents=True, exist_ok=True)
        new[place.name] = plan
        engines[place.name] = build_engine(bench.job, apply(bench.model, bench.graph, plan), place)
    running = {name: (backend, engine) for name, engine in {"dense": bench.dense, **engines}.items()}
    times = measure_at_level(running, bench.level_us)

    def result(number: int, name: str, plan: Plan, inside: Profile, taken: tuple[Ratio, ...] = ()) -> RoundResult:
        return _result(bench, number, name, plan, inside, taken, times[name], times["dense"])

    again = [result(one.number, one.name, one.plan, one.profile, one.taken) for one in tried]
    inside = {name: layer_profile(bench.job, engines[name], bench.graph, times[name]) for name in new}
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


def search_plan(job: Job, at: Artefacts, here: Path) -> None:
    """``round*.json`` and ``plan.json``: the best plan whose engine was measured to meet the budget."""
    budget = budget_of(job, at)
    best_plan(job, at, budget, here, search(job, at, budget, here)).save(here / "plan.json")


def budget_of(job: Job, at: Artefacts) -> Budget:
    """The budget of the config in microseconds; above the dense engine's latency there is nothing to do."""
    dense_us = float(read_json(at.dense / "facts.json")["latency"]["median_us"])
    settings = job.config.prune
    if settings.budget_us is not None and settings.budget_us >= dense_us:
        raise ConfigError(
            f"budget {settings.budget_us:g} us is not below the dense engine, measured at {dense_us:.0f} us: "
            "the dense model already meets it; lower prune.budget_us"
        )
    return Budget(settings.budget, settings.budget_us)
