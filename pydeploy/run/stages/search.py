"""The inner loop: solve, cut, build, measure, correct the table, until a measured engine meets the budget.

No training happens here: latency does not depend on weight values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Protocol

from pydeploy.backends.base import Engine
from pydeploy.errors import DataError, Infeasible
from pydeploy.files import read_json, write_json
from pydeploy.graph import Graph, Plan, Scores
from pydeploy.latency.table.table import Table
from pydeploy.planning.next_plans import Built, Tried, next_plans
from pydeploy.planning.solve import pareto_front, solve
from pydeploy.run.artefacts import Artefacts
from pydeploy.run.stages.shared import (
    Job,
    build_engine,
    layer_profile,
    measure_at_level,
    model_of,
    prevailing_us,
    read_scores,
)
from pydeploy.timing.records import Profile, Timing

SLACK = 0.03
"""A plan at most this share below the budget is good enough; a slower, better one is looked for otherwise."""
RETURN_S = 120.0
"""How long the table's speed is waited for when a search at another speed met nothing."""


@dataclass(frozen=True)
class Budget:
    """An absolute latency, or a share of the dense engine's latency; exactly one of the two.

    Computers run faster in one minute than in another. A share is therefore taken of the dense engine measured in turns
    with the plan, and the table is read relative to its own dense network.
    """

    share: float | None = None
    absolute_us: float | None = None

    def of(self, dense_us: float) -> float:
        """The budget in microseconds where the dense network takes `dense_us`."""
        return self.absolute_us if self.absolute_us is not None else (self.share or 1.0) * dense_us


@dataclass(frozen=True)
class RoundResult:
    """One plan, cut, built and measured in its round and in every later one; `name` is that of its folder.

    `readings` are what each round measured, as shares of the budget; their median is what the plan takes
    (`measured_us`, now that the budget is `limit_us`), and the profile is scaled to it. `speed` is how long the dense engine
    took in the last round of measuring over what the table says of it (1 for an absolute budget); `predicted_us` is the
    table's prediction at that speed.
    """

    number: int
    name: str
    plan: Plan
    predicted_us: float
    limit_us: float
    speed: float
    readings: tuple[float, ...]
    profile: Profile

    @property
    def measured_us(self) -> float:
        return self.tried.measured * self.limit_us

    @property
    def met(self) -> bool:
        return self.tried.met

    @property
    def tried(self) -> Tried:
        return Tried(self.predicted_us / self.limit_us, median(self.readings))


class Planner(Protocol):
    """A rule that makes a plan for a budget: `solve.solve`, or one of `baselines` to compare it with."""

    def __call__(self, graph: Graph, scores: Scores, table: Table, /, *, budget_us: float, min_width: int) -> Plan: ...


def search(job: Job, at: Artefacts, budget: Budget, here: Path, planner: Planner = solve) -> list[RoundResult]:
    """Plan, cut, build, measure, correct the table, and again, until a measured engine meets the budget closely.

    Returns every plan that was tried: one in the first round, up to three in each of the others (`aim.proposals`).
    Every round measures the earlier plans again beside its own, and the median of what it was measured to take counts for
    each: a computer that is shared runs large and small networks at other ratios in one minute than in the next.
    Good enough is a plan between `SLACK` below the budget (twice the config's headroom, where that is more) and the
    budget. Finished rounds are read back from `here`, so a killed search goes on where it stopped. A budget below the
    smallest plan of the table is refused only after that plan was built and measured: narrow networks are often faster
    than their layers beside wide ones. Raises `Infeasible` when no round met the budget.

    On a computer that others slow down, small networks may take twice the share of the dense one's time. A search that
    met nothing at another speed than the table's is therefore begun again if that speed comes back within `RETURN_S`,
    and so is one that had used up its rounds when it is resumed.
    """
    bench = _Bench(job, at, budget)
    tried = read_rounds(here)
    if tried and tried[-1].number >= job.config.prune.rounds and not any(result.met for result in tried):
        job.console.say("the budget was missed in all rounds before: they are measured anew")
        tried = _forgotten(here)
    try:
        return _rounds(bench, planner, here, tried)
    except Infeasible:
        if not (bench.slowed and bench.speed_returns()):
            raise
    job.console.say("the computer is back at the speed at which the table was measured: the rounds are measured anew")
    return _rounds(_Bench(job, at, budget), planner, here, _forgotten(here))


def _forgotten(here: Path) -> list[RoundResult]:
    """No rounds: those in `here` are deleted."""
    for path in here.glob("round*.json"):
        path.unlink()
    return []


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
        _write_round(here / f"round{number}.json", tried)
        for result in tried:
            say(f"round {result.number}{', again' if result.number < number else ''}: predicted "
                f"{result.predicted_us:.0f} us, measured {result.measured_us:.0f} us, budget "
                f"{result.limit_us:.0f} us: {'met' if result.met else 'missed'}")  # fmt: skip
    if not any(result.met for result in tried):
        raise _missed(tried, refusal)
    return tried


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
        self.model = model_of(job, at.dense_weights)
        self.dense = Engine.load(at.dense / "model.engine")
        self.level_us = self.table_level_us = self.table.reference_us(self.graph)
        self._take_speed()
        self.table_dense_us = self.table.predict_us(self.graph, self.graph.widths)

    def _take_speed(self) -> None:
        """Where the computer does not come to the speed at which the table was measured, the table is taken to its."""
        if self.level_us is None or not self.job.backend.target().measured:
            return
        now_us = prevailing_us(self.job.backend, self.dense, self.level_us)
        if now_us != self.level_us:
            self.job.console.say(f"the dense engine takes {now_us:.0f} us now, {self.level_us:.0f} us while the table was "
                                 "measured: layers are scaled by what its own layers take now")  # fmt: skip
            inside = layer_profile(self.job, self.dense, self.graph)
            self.table = self.table.at_speed(self.graph, inside.scaled(now_us / inside.whole.median_us))
            self.level_us = now_us

    @property
    def slowed(self) -> bool:
        """Whether the computer did not come to the speed at which the table was measured."""
        return self.level_us != self.table_level_us

    def speed_returns(self) -> bool:
        """Wait for that speed, and tell whether it came."""
        assert self.table_level_us is not None
        self.job.console.say(f"no plan met the budget while the computer ran at another speed than for the table: waiting "
                             f"for that one, {RETURN_S:.0f} s at most")  # fmt: skip
        return prevailing_us(self.job.backend, self.dense, self.table_level_us, RETURN_S) == self.table_level_us

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
    limit_us = budget.of(times["dense"].median_us)
    shares = {name: times[name].median_us / limit_us for name in engines}
    confirmed = [name for name in met if shares[name] <= 1.0] or [min(met, key=lambda name: shares[name])]
    return met[max(confirmed, key=lambda name: met[name].plan.score)].plan


def _next_plans(bench: _Bench, planner: Planner, tried: Sequence[RoundResult]) -> list[Plan]:
    """The best plans by what is known now; none when all were tried already. Raises `Infeasible` when nothing fits."""
    settings = bench.job.config.prune
    budget_us = bench.budget.of(bench.table_dense_us)

    def rule(table: Table, widths: Mapping[str, Sequence[int]], share: float) -> Plan:
        make = partial(solve, widths=widths) if planner is solve else planner
        return make(bench.graph, bench.scores, table, budget_us=share * budget_us, min_width=settings.min_width)

    built = [Built(one.number, one.plan, one.tried, bench.at_table_speed(one)) for one in tried]
    return next_plans(rule, bench.graph, bench.table, 1 - settings.headroom, built)


def _smallest_plan(bench: _Bench) -> Plan:
    """The cheapest plan by the table as it was measured."""
    return pareto_front(bench.graph, bench.scores, bench.table, points=2, min_width=bench.job.config.prune.min_width)[0]


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

    def result(number: int, name: str, plan: Plan, inside: Profile, readings: tuple[float, ...] = ()) -> RoundResult:
        return _result(bench, number, name, plan, inside, readings, times[name], times["dense"].median_us)

    again = [result(one.number, one.name, one.plan, one.profile, one.readings) for one in tried]
    inside = {name: layer_profile(bench.job, engines[name], bench.graph) for name in new}
    return again + [result(number, name, plan, inside[name]) for name, plan in new.items()]


def _result(
    bench: _Bench, number: int, name: str, plan: Plan, inside: Profile, before: tuple[float, ...], whole: Timing,
    dense_us: float,
) -> RoundResult:  # fmt: skip
    """A plan that took `before` in earlier rounds and `whole` in this one, in which the dense engine took `dense_us`."""
    speed = 1.0 if bench.budget.share is None else dense_us / bench.table_dense_us
    limit_us = bench.budget.of(dense_us)
    readings = (*before, whole.median_us / limit_us)
    typical = whole.scaled(median(readings) / readings[-1])
    return RoundResult(number, name, plan, plan.latency_us * speed, limit_us, speed, readings, inside.within(typical))


def read_rounds(here: Path) -> list[RoundResult]:
    """The plans of a search's finished rounds, in order, each with what all rounds measured."""
    numbered = sorted(here.glob("round*.json"), key=lambda path: int(path.stem.removeprefix("round")))
    return list({result.name: result for path in numbered for result in _read_round(path)}.values())


def _write_round(path: Path, results: Sequence[RoundResult]) -> None:
    plans = [{"number": one.number, "name": one.name, "plan": one.plan.to_json(), "predicted_us": one.predicted_us,
              "limit_us": one.limit_us, "speed": one.speed, "readings": one.readings,
              "profile": one.profile.to_json()} for one in results]  # fmt: skip
    write_json(path, {"plans": plans})


def _read_round(path: Path) -> list[RoundResult]:
    data = read_json(path)
    try:
        return [RoundResult(one["number"], one["name"], Plan.from_json(one["plan"]), one["predicted_us"], one["limit_us"],
                            one["speed"], tuple(one["readings"]), Profile.from_json(one["profile"]))
                for one in data["plans"]]  # fmt: skip
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not a finished round ({error!r}); delete it and run again with --resume") from None
