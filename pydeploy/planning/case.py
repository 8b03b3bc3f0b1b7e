"""What the closed loop works on: one network for one target, how it is measured, and how near to the budget it has to come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydeploy.backends.base import Backend, Engine
from pydeploy.graph import Graph
from pydeploy.latency.table.predictions import Predictions
from pydeploy.latency.table.table import Table
from pydeploy.plan import Plan, Scores
from pydeploy.planning.rounds import HEADROOM, ROUNDS
from pydeploy.profiling.engines import comes_to_rest, measure_at_level, prevailing_us
from pydeploy.profiling.profile import profile, profile_layers
from pydeploy.timing.records import Profile, Timing
from pydeploy.timing.reference import Waits
from pydeploy.timing.rounds import Watch

SLACK = 0.03
"""A plan at most this share below the budget is good enough; a slower, better one is looked for otherwise."""
LAYER_ROUNDS, LAYER_RUNS = 5, 20
"""How often an engine's layers are read."""


class Planner(Protocol):
    """A rule that makes a plan for a budget: `solve.solve`, or one of `baselines` to compare it with."""

    def __call__(
        self, graph: Graph, scores: Scores, known: Predictions, /, *, budget_us: float, min_width: int
    ) -> Plan: ...


@dataclass
class Meter:
    """How engines are measured: what the loop asks of a target and of its clock."""

    patience_s: float | None = None
    """How long the table's level of speed is waited for; by default as `profiling.engines` does."""
    waits: Waits | None = None
    watch: Callable[[], Watch] | None = None
    """Makes what notices other load."""

    def measure(self, engines: Mapping[str, tuple[Backend, Engine]], level_us: float | None) -> dict[str, Timing]:
        """Latency of all engines, in turns with the one named ``dense`` (`profiling.engines.measure_at_level`)."""
        return measure_at_level(engines, level_us, patience_s=self.patience_s, waits=self.waits, watch=self.watch)

    def prevailing_us(self, backend: Backend, dense: Engine, level_us: float, patience_s: float | None = None) -> float:
        """`level_us` where the dense engine comes to it in time, else what it takes now."""
        return prevailing_us(backend, dense, level_us, patience_s or self.patience_s, self.waits)

    def comes_to_rest(self, backend: Backend, dense: Engine, level_us: float | None, patience_s: float) -> bool:
        """Whether other load ends within `patience_s`, at the level."""
        return comes_to_rest(backend, dense, level_us, patience_s)

    def profile(self, backend: Backend, engine: Engine, ops: Sequence[str], whole: Timing | None = None) -> Profile:
        """An engine's layers by operator, and its latency: `whole` where that was measured already."""
        if whole is not None:
            return profile_layers(backend, engine, whole, ops, rounds=LAYER_ROUNDS, runs=LAYER_RUNS)
        return profile(backend, engine, ops, rounds=LAYER_ROUNDS, runs=LAYER_RUNS)


@dataclass(frozen=True)
class Case:
    """One network that is to be cut for one target."""

    graph: Graph
    scores: Scores
    backend: Backend
    dense: Engine
    """The engine of the uncut network."""
    table: Path
    """The latency table, with the networks that a search needs."""
    build: Callable[[Plan, Path], Engine]
    """``build(plan, folder)``: the network cut to the plan, exported and built as ``model.engine`` in the folder."""
    remeasure: Callable[[], object]
    """Measures those networks of the table again that other load disturbed."""
    say: Callable[[str], None]

    def open_table(self) -> Table:
        """The table as it is in its file."""
        return Table.open(self.table, self.backend.target())

    @property
    def level_us(self) -> float | None:
        """What the dense engine took while the table was measured."""
        return self.open_table().reference_us(self.graph)


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How near to the budget, and how long."""

    headroom: float = HEADROOM
    rounds: int = ROUNDS
    min_width: int = 1

    @property
    def slack(self) -> float:
        """How far below the budget a plan may lie; the headroom is the middle of what is good enough."""
        return max(SLACK, 2 * self.headroom)
