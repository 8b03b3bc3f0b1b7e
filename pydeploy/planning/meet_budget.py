"""The closed loop for a module at hand: trace, score, measure the table, and cut until a measured engine meets the budget."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydeploy.backends.base import Backend, Engine, open_target
from pydeploy.errors import ConfigError, DataError
from pydeploy.files import read_json, write_json
from pydeploy.graph import Graph
from pydeploy.latency.probes.design import Grid, grid
from pydeploy.latency.probes.measure import measure, minutes
from pydeploy.latency.probes.quantized import needs_pairs
from pydeploy.latency.table.table import Table
from pydeploy.plan import Plan, Scores
from pydeploy.planning import closed_loop
from pydeploy.planning.case import Case, LoopSettings
from pydeploy.planning.engine_files import build_engine, samples_in
from pydeploy.planning.rounds import HEADROOM, ROUNDS, Budget, RoundResult
from pydeploy.planning.solve import check_scores
from pydeploy.profiling.engines import measure_engines

if TYPE_CHECKING:
    from torch import nn

    from pydeploy.prune.criteria.passes import Batch, Loss

Say = Callable[[str], None]


@dataclass(frozen=True)
class BudgetMet:
    """A network that was cut, and the engine that was measured to meet the budget. Nothing was trained."""

    model: nn.Module
    plan: Plan
    engine: Engine
    table: Table
    rounds: tuple[RoundResult, ...]
    """Every plan that was tried."""
    chosen: RoundResult
    """The one that `plan` and `engine` are of."""
    graph: Graph
    dense: Engine
    """The engine of the uncut network, the reference of a budget that is a share."""


def budget_named(budget: Any) -> Budget:
    """A share of the dense engine's latency, below 1, or microseconds, above 1. Raises `ConfigError`."""
    number = isinstance(budget, int | float) and not isinstance(budget, bool)
    if not number or not math.isfinite(budget) or budget <= 0 or budget == 1:
        raise ConfigError(
            f"the budget is {budget!r}; expected a share of the dense engine's latency below 1, such as 0.6, or microseconds"
        )
    return Budget(share=float(budget)) if budget < 1 else Budget(absolute_us=float(budget))


def meet_budget(
    model: nn.Module,
    example: Any,
    *,
    target: str | Backend,
    budget: float,
    out: Path | str,
    scores: str | Scores = "l1",
    data: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    table: Table | Path | str | None = None,
    threads: int = 0,
    points: int = 7,
    align: int | None = None,
    min_width: int = 1,
    headroom: float = HEADROOM,
    rounds: int = ROUNDS,
    say: Say | None = None,
) -> BudgetMet:
    """Cut `model` so that its engine on `target` is measured to take at most `budget`; no training, `model` is left as it was.

    `example` holds the forward's arguments, a tensor or a tuple of tensors with the samples of one run along the first axis:
    their number is the engine's batch size. `target` is ``BACKEND:PRECISION`` as on the command line, or a backend. `budget`
    is a share of the dense engine's latency below 1, or microseconds. `scores` names a criterion, which gets `data`
    (batches of ``(inputs, target)``) and ``loss(outputs, target)`` where it needs them, or holds the scores themselves.
    `table` is a latency table of this network on this target; without one it is measured in `out`, with at most `points`
    widths a group, multiples of `align`, none below `min_width`. The solver aims `headroom` below the budget, and there are at
    most `rounds` rounds. `say` is told what happens.

    ``out`` keeps graph, dense engine, table and rounds: called again with the same network, scores, target and budget, the
    search goes on where it stopped. Raises `Infeasible` when no engine met the budget; `ConfigError`, `DataError`,
    `TraceError`, `Mismatch` for input that does not fit.
    """
    from pydeploy.prune.structure.trace import trace
    from pydeploy.prune.surgery.apply import apply
    from pydeploy.prune.surgery.save import save

    wanted, here, say = budget_named(budget), Path(out), say or _nothing
    backend = open_target(target, batch=samples_in(example), threads=threads) if isinstance(target, str) else target
    settings = LoopSettings(headroom, rounds, min_width)
    graph = trace(model, example)
    widths = cuttable(graph, points, align or backend.align, min_width)
    known = _scores(model, graph, scores, data, loss)
    (here / "dense").mkdir(parents=True, exist_ok=True)
    graph.save(here / "graph.json")
    dense = build_engine(model, example, backend, here / "dense")
    _require_below_dense(wanted, backend, dense)
    onnx = here / "dense" / ("float.onnx" if needs_pairs(backend) else "model.onnx")
    fill = partial(_fill, graph, onnx, backend, widths, say)
    found = _table(table, here / "table.sqlite", backend)
    if not found.networks(graph):
        fill(found)

    def build(plan: Plan, folder: Path) -> Engine:
        return build_engine(apply(model, graph, plan), example, backend, folder)

    case = Case(graph, known, backend, dense, found.path, build, lambda: fill(found, plans=[]), say)
    _forget_other_work(here, case, wanted, settings)
    tried = closed_loop.search(case, wanted, here, settings)
    chosen = closed_loop.best_plan(case, wanted, here, tried)
    small = apply(model, graph, chosen.plan)
    chosen.plan.save(here / "plan.json")
    save(here / "model.safetensors", small, chosen.plan)
    engine = Engine.load(here / chosen.name / "model.engine")
    return BudgetMet(small, chosen.plan, engine, case.open_table(), tuple(tried), chosen, graph, dense)


def _nothing(_text: str) -> None:
    pass


def cuttable(graph: Graph, points: int, align: int, min_width: int) -> Grid:
    """Widths to choose from. Raises `ConfigError` where there is no choice, and says why."""
    found = grid(graph, points, align, min_width)
    if not any(len(choices) > 1 for choices in found.values()):
        reasons = (
            "; ".join(dict.fromkeys(graph.frozen.values())) or "all groups are as narrow as align and min_width ask"
        )
        raise ConfigError(f"no channel of this network can be cut: {reasons}")
    return found


def _scores(model: nn.Module, graph: Graph, scores: Any, data: Iterable[Batch] | None, loss: Loss | None) -> Scores:
    from pydeploy.prune.criteria.score import score

    if isinstance(scores, str):
        return score(model, graph, scores, data=data, loss=loss)
    if not isinstance(scores, Mapping):
        raise ConfigError(f"scores is {type(scores).__name__}; expected a criterion's name or what pd.score returns")
    check_scores(graph, scores)
    return scores


def _require_below_dense(budget: Budget, backend: Backend, dense: Engine) -> None:
    if budget.absolute_us is None:
        return
    dense_us = measure_engines({"dense": (backend, dense)})["dense"].median_us
    if budget.absolute_us >= dense_us:
        raise ConfigError(
            f"budget {budget.absolute_us:g} us is not below the dense engine, measured at {dense_us:.0f} us: "
            "the dense model already meets it; lower the budget"
        )


def _table(table: Any, own: Path, backend: Backend) -> Table:
    if isinstance(table, Table):
        table.target.require(backend.target(), f"the latency table {table.path}")
        return table
    if table is not None and not isinstance(table, str | Path):
        raise ConfigError(f"table is {type(table).__name__}; expected a pd.Table, the path of one, or nothing")
    return Table.open(own if table is None else table, backend.target())


def _fill(
    graph: Graph, onnx: Path, backend: Backend, widths: Grid, say: Say, table: Table, plans: list[Any] | None = None
) -> None:
    """Measure what the table lacks; with ``plans=[]`` only what other load disturbed."""
    done = measure(graph, onnx, backend, table, widths=widths, plans=plans, announce=lambda s: say(minutes(s)))
    say(f"{table.path}: {done.measured} networks measured, {done.disturbed} disturbed")


def _forget_other_work(here: Path, case: Case, budget: Budget, settings: LoopSettings) -> None:
    """Rounds of another network, target or budget do not count; what this search is about is noted in ``search.json``."""
    scores = hashlib.sha256(b"".join(case.scores[name].tobytes() for name in sorted(case.scores))).hexdigest()
    about = {"graph": case.graph.fingerprint, "scores": scores, "target": case.backend.target().fingerprint,
             "budget": asdict(budget), "settings": asdict(replace(settings, rounds=0)), "table": str(case.table)}  # fmt: skip
    note = here / "search.json"
    try:
        same = note.is_file() and read_json(note) == about
    except DataError:
        same = False
    if not same:
        closed_loop.forget(here)
        write_json(note, about)
