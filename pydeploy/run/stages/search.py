"""The closed loop of a run: which network, which target and which budget it is about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydeploy.backends.base import Engine
from pydeploy.errors import ConfigError
from pydeploy.graph import Graph
from pydeploy.latency.table.table import Table
from pydeploy.plan import Plan
from pydeploy.planning import closed_loop
from pydeploy.planning.case import Case, LoopSettings, Meter, Planner
from pydeploy.planning.rounds import Budget, RoundResult
from pydeploy.planning.solve import solve
from pydeploy.run.artefacts import Artefacts, Files
from pydeploy.run.job import Job, model_of
from pydeploy.run.stages.engines import build_engine, facts_of
from pydeploy.run.stages.scoring import read_scores
from pydeploy.run.stages.table import measured_table


def search_plan(job: Job, at: Artefacts, here: Path) -> None:
    """``round*.json`` and ``plan.json``: the best plan whose engine was measured to meet the budget."""
    budget = budget_of(job, at)
    best_plan(job, at, budget, here, search(job, at, budget, here)).save(Files(here).plan)


def search(
    job: Job, at: Artefacts, budget: Budget, here: Path, planner: Planner = solve, meter: Meter | None = None
) -> list[RoundResult]:
    """All plans that the loop tried (`closed_loop.search`); its rounds are in `here`."""
    return closed_loop.search(case_of(job, at), budget, here, settings_of(job), planner=planner, meter=meter)


def best_plan(job: Job, at: Artefacts, budget: Budget, here: Path, tried: Sequence[RoundResult]) -> Plan:
    """Of the plans that met the budget, the one to go on with (`closed_loop.best_plan`)."""
    return closed_loop.best_plan(case_of(job, at), budget, here, tried).plan


def level_us(job: Job, at: Artefacts) -> float | None:
    """What the dense engine took while the table was measured."""
    return Table.open(at.table, job.backend.target()).reference_us(Graph.load(at.graph))


def case_of(job: Job, at: Artefacts) -> Case:
    """The job's network, as its earlier stages left it."""
    from pydeploy.prune.surgery.apply import apply

    graph, model = Graph.load(at.graph), model_of(job, at.dense_weights)

    def build(plan: Plan, here: Path) -> Engine:
        return build_engine(job, apply(model, graph, plan), here)

    def remeasure() -> None:
        measured_table(job, graph, Files(at.dense).source, at.table.parent)

    dense = Engine.load(Files(at.dense).engine)
    return Case(graph, read_scores(at.scores), job.backend, dense, at.table, build, remeasure, job.console.say)


def settings_of(job: Job) -> LoopSettings:
    """What the config says of the loop."""
    prune = job.config.prune
    return LoopSettings(prune.headroom, prune.rounds, prune.min_width)


def budget_of(job: Job, at: Artefacts) -> Budget:
    """The budget of the config in microseconds; above the dense engine's latency there is nothing to do."""
    dense_us = facts_of(at.dense).latency.median_us
    settings = job.config.prune
    if settings.budget_us is not None and settings.budget_us >= dense_us:
        raise ConfigError(
            f"budget {settings.budget_us:g} us is not below the dense engine, measured at {dense_us:.0f} us: "
            "the dense model already meets it; lower prune.budget_us"
        )
    return Budget(settings.budget, settings.budget_us)
