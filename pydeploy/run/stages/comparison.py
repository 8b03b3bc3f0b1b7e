"""Further points of the comparison: our plan at other budgets, and other rules' plans. Same fine-tuning for all."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from pydeploy.backends.base import Engine
from pydeploy.errors import ConfigError, Infeasible
from pydeploy.files import write_json
from pydeploy.graph import Graph
from pydeploy.latency.probes.cut_onnx import resize
from pydeploy.plan import Plan
from pydeploy.planning.baselines import fit_budget, global_threshold, halp, uniform
from pydeploy.planning.case import Planner
from pydeploy.planning.rounds import Budget
from pydeploy.planning.solve import solve
from pydeploy.profiling.engines import measure_at_level
from pydeploy.run.artefacts import Artefacts, Files
from pydeploy.run.config import Config
from pydeploy.run.job import Job, model_of
from pydeploy.run.stages import engines, scoring, training
from pydeploy.run.stages.search import best_plan, level_us, search
from pydeploy.timing.ratio import ratio

if TYPE_CHECKING:
    from torch import nn


PLANNERS: Mapping[str, Planner] = {
    "joint": solve,
    "halp": halp,
    "global-threshold": partial(fit_budget, global_threshold),
}
"""Rules whose plans are made from the latency table, in the closed loop."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One point: `method` and its strength (share of the dense latency, or channel ratio for torch-pruning)."""

    method: str
    strength: float

    @property
    def slug(self) -> str:
        short = f"{self.strength:g}"
        return f"{self.method}-{short if float(short) == self.strength else self.strength}"

    @property
    def label(self) -> str:
        """Name in the report."""
        what = "of channels removed" if self.method == "torch-pruning" else "of dense latency"
        return f"{self.method}, {self.strength:.0%} {what}"


def wanted(config: Config) -> list[Wanted]:
    """The points that the config asks for; Torch-Pruning's only where it is installed."""
    compare = config.compare
    shares = {"joint": compare.budgets, "uniform": compare.uniform, "global-threshold": compare.global_threshold,
              "halp": compare.halp}  # fmt: skip
    points = [Wanted(method, share) for method, chosen in shares.items() for share in chosen]
    if importlib.util.find_spec("torch_pruning") is not None:
        points += [Wanted("torch-pruning", ratio) for ratio in compare.torch_pruning]
    return points


def make(job: Job, at: Artefacts, here: Path, *, point: Wanted) -> None:
    """Fine-tune, build and evaluate one point: the files of `stages.finished_engine`, and ``note.json``."""
    title = f"fine-tune {point.label}"
    note = ""
    if point.method == "torch-pruning":
        from pydeploy.tasks.evaluate import example

        small = torch_pruning_l1(model_of(job, at.dense_weights), example(job.task), point.strength)
        training.finetune(job, at, small, here, title=title)
        note = "global L1, widths rounded to 16"
    else:
        plan = (
            _uniform(job, at, point.strength, here)
            if point.method == "uniform"
            else _planned(job, at, point.strength, here, PLANNERS[point.method])
        )
        training.cut_and_finetune(job, at, plan, here, title=title)
    engines.finished_engine(job, model_of(job, Files(here).weights), here)
    write_json(Files(here).note, {"note": note})


def _planned(job: Job, at: Artefacts, share: float, here: Path, planner: Planner) -> Plan:
    rounds = here / "search"
    rounds.mkdir(exist_ok=True)
    budget = Budget(share)
    return best_plan(job, at, budget, rounds, search(job, at, budget, rounds, planner))


def _uniform(job: Job, at: Artefacts, share: float, here: Path) -> Plan:
    """The mildest uniform cut (in steps of 5 %, widths rounded to 8) whose engine is measured within the share."""
    place = Files(here).uniform
    if place.is_file():
        return Plan.load(place)
    graph, scores = Graph.load(at.graph), scoring.read_scores(at.scores)
    source = onnx.load(str(Files(at.dense).source))
    dense, level = Engine.load(Files(at.dense).engine), level_us(job, at)
    low, high, found, disturbed = 1, 19, None, False
    while low <= high:
        middle = (low + high) // 2
        plan = uniform(graph, scores, ratio=middle / 20, align=8)
        cut = _cut_engine(job, graph, plan, source, here)
        times = measure_at_level({"dense": (job.backend, dense), "cut": (job.backend, cut)}, level)
        level = times["dense"].median_us  # what prevails now: not waited for again
        taken = ratio(times["cut"], times["dense"])
        disturbed = disturbed or taken.disturbed
        if taken.value <= share:
            found, high = plan, middle - 1
        else:
            low = middle + 1
    if found is None:
        text = f"no uniform cut reaches {share:.0%} of the dense latency"
        if disturbed:
            raise Infeasible(
                f"{text}, but other load disturbed that measurement, so it proves nothing: run again with --resume"
            )
        raise Infeasible(f"{text}; remove it from compare.uniform")
    found.save(place)
    return found


def _cut_engine(job: Job, graph: Graph, plan: Plan, source: onnx.ModelProto, here: Path) -> Engine:
    """The dense file cut to the plan's widths and built."""
    trial = here / "uniform"
    trial.mkdir(exist_ok=True)
    int8 = job.backend.precision == "int8"
    path = Files(trial).float_onnx if int8 else Files(trial).onnx
    onnx.save(resize(source, graph, plan.widths), str(path))
    if int8:
        return engines.build_int8(job, path, trial)
    return engines.build(job, job.backend, path, Files(trial).engine)


def torch_pruning_l1(model: nn.Module, example: tuple[Any, ...], ratio: float) -> nn.Module:
    """`model` cut by Torch-Pruning's global L1 criterion at `ratio`, widths rounded to 16: the classical way.

    The layers that make the outputs are left whole. Raises `ConfigError` where it cannot cut this network.
    """
    import copy

    import torch_pruning

    small = copy.deepcopy(model).eval()
    pruner = torch_pruning.pruner.BasePruner(
        small, example, importance=torch_pruning.importance.MagnitudeImportance(p=1), global_pruning=True,
        pruning_ratio=ratio, round_to=16, ignored_layers=_last_layers(small, example),
    )  # fmt: skip
    try:
        pruner.step()
        small(*example)
    except Exception as error:  # whatever another tool raises
        raise ConfigError(
            f"Torch-Pruning cannot cut this network ({type(error).__name__}: {error}); remove it from compare.torch_pruning"
        ) from None
    return small


def _last_layers(model: nn.Module, example: tuple[Any, ...]) -> list[nn.Module]:
    """The modules whose outputs are the network's."""
    from pydeploy.prune.structure.trace import trace

    frozen = [group for group in trace(model, example).groups if group.frozen == "model output"]
    names = {piece.param.rpartition(".")[0] for group in frozen for piece in group.slices if piece.dim == 0}
    return [model.get_submodule(name) for name in sorted(names)]
