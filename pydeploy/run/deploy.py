"""`deploy`: the whole way for a module at hand, with a program's own data, evaluation and training.

The stages are those of a run (`pydeploy.run.pipeline`), and so are the folder and the report; the program's functions stand in
for the task and the training of a config (`pydeploy.tasks.guest`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydeploy.backends.base import Engine, open_target, parse_target
from pydeploy.errors import ConfigError
from pydeploy.files import write_json
from pydeploy.latency.table.table import Table
from pydeploy.plan import Plan, Scores
from pydeploy.planning.engine_files import samples_in
from pydeploy.planning.meet_budget import budget_named, cuttable
from pydeploy.planning.rounds import RoundResult, read_rounds
from pydeploy.planning.solve import check_scores
from pydeploy.report import Report
from pydeploy.run import pipeline
from pydeploy.run.artefacts import Artefacts, Files
from pydeploy.run.config import Config, ModelSection, QuantizeSection, TaskSection, parse
from pydeploy.run.folder import RunFolder, Tick
from pydeploy.run.job import Job
from pydeploy.run.stages import final
from pydeploy.run.stages.judging import metrics_of
from pydeploy.tasks.metric import Metric

if TYPE_CHECKING:
    from torch import nn

    from pydeploy.prune.criteria.passes import Loss
    from pydeploy.tasks.guest import Guest

MAY_LOSE = 0.01
"""Share of the dense network's value that a recommended engine may lose, where the metric's unit is not ``%`` (then: one point)."""


@dataclass(frozen=True)
class Deployed:
    """What `deploy` made; all of it lies in `folder` as well."""

    model: nn.Module
    """Cut, and trained by `finetune`."""
    plan: Plan
    engine: Engine
    """Of `model`, measured beside the dense engine."""
    table: Table
    rounds: tuple[RoundResult, ...]
    report: Report
    folder: Path

    @property
    def met(self) -> bool:
        """Whether the engine was measured to meet the budget at the end."""
        return self.report.met


def deploy(
    model: nn.Module,
    example: Any,
    target: str = "onnxruntime:fp32",
    budget: float = 0.6,
    scores: str | Scores = "l1",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    evaluate: Callable[[Callable[..., Any]], Any] | None = None,
    finetune: Callable[[nn.Module], nn.Module] | None = None,
    out: Path | str = "runs/deploy",
    *,
    metric: Metric | None = None,
    threads: int = 0,
    points: int = 7,
    min_width: int = 1,
    say: Callable[[str], None] | None = None,
) -> Deployed:
    """Cut `model` to a latency budget measured on `target`, train it with `finetune`, build and judge the engine, write a report.

    `example`, `target`, `budget` and `scores` are those of `meet_budget`. `data` is a DataLoader or another iterable of
    ``(inputs, target)`` with a tensor or a tuple of tensors for inputs: its first 20 batches, read once, score channels,
    calibrate INT8 (where that is the target) and check engines. `loss(outputs, target)` is what gradient criteria derive.
    ``evaluate(predict)`` returns a number; `predict` is called as the network is, with any number of samples, and computes on the
    engine. `metric` says what that number is: ``Metric("accuracy")`` a share shown in %, higher is better; by default a score.
    Without `evaluate` no accuracy is claimed. ``finetune(module)`` trains the cut module and returns it; without it nothing is
    trained. `model` is left as it was. `say` is told what happens.

    ``out`` becomes a run directory with ``report.html`` and ``deploy/``, the engine to ship. Where a call failed or was stopped,
    the next one goes on after the last finished step that nothing has changed for: network, budget, settings, and the functions
    and data, which count by their code and values as far as those can be told (`pydeploy.guests.functions`); what generators,
    open files and the like would give cannot: delete `out` where only that has changed. Where other load disturbed the last
    measurement, it is made again.
    Raises `Infeasible` when no engine met the budget, and
    `ConfigError`, `DataError`, `TraceError`, `Mismatch` for input that does not fit.
    """
    guest = _guest(model, example, scores, data, loss, evaluate, finetune, metric)
    job = _job(guest, target, budget, threads, points, min_width, _Told(say or _nothing))
    at = Artefacts(Path(out))
    if at.report.is_file() and not pipeline.doubted(job, at):
        raise ConfigError(f"{out} holds a finished deployment; give another folder as out, or delete that one")
    folder = RunFolder.open(at.root, job.console, resume=True)
    write_json(at.config, _told(guest, target, budget))
    pipeline.make_stages(job, at, folder)
    final.write_report(_judged(job, at), at, folder.seconds, "pydeploy.deploy")
    return _deployed(guest, at)


def _guest(
    model: Any, example: Any, scores: Any, data: Any, loss: Any, evaluate: Any, finetune: Any, metric: Any
) -> Guest:
    from torch import Tensor, nn

    from pydeploy.tasks.guest import DEVIATION, Guest, first_batches

    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {type(model).__name__}; expected a torch.nn.Module")
    inputs = (example,) if isinstance(example, Tensor) else example
    if not isinstance(inputs, tuple) or not inputs or not all(isinstance(one, Tensor) and one.dim() for one in inputs):
        raise ConfigError(
            f"example is {type(example).__name__}; expected a tensor or a tuple of tensors, samples along the first axis"
        )
    for name, function in (("loss", loss), ("evaluate", evaluate), ("finetune", finetune)):
        if function is not None and not callable(function):
            raise ConfigError(f"{name} is {type(function).__name__}; expected a function")
    if metric is not None and not isinstance(metric, Metric):
        raise ConfigError(
            f"metric is {type(metric).__name__}; expected pd.Metric(name), which says what evaluate's number is"
        )
    if not isinstance(scores, str):
        scores = {name: scores[name] for name in scores} if hasattr(scores, "keys") else scores
        if not isinstance(scores, dict):
            raise ConfigError(
                f"scores is {type(scores).__name__}; expected a criterion's name or what pd.score returns"
            )
    chosen = DEVIATION if evaluate is None else metric or Metric("score", unit="")
    return Guest(model, inputs, first_batches(data, inputs), loss, evaluate, finetune, scores, chosen)


def _job(guest: Guest, target: str, budget: Any, threads: int, points: int, min_width: int, console: _Told) -> Job:
    """A job of stages on the guest's network; what can be refused is refused here."""
    from pydeploy.prune.structure.trace import trace
    from pydeploy.tasks.guest import GuestTask

    wanted, choice = budget_named(budget), parse_target(target)
    backend = open_target(target, batch=samples_in(guest.example), threads=threads)
    graph = trace(guest.model, guest.example)
    cuttable(graph, points, backend.align, min_width)
    if not isinstance(guest.scores, str):
        check_scores(graph, guest.scores)
    else:
        _check_criterion(guest, guest.scores)
    if backend.precision == "int8" and not guest.batches:
        raise ConfigError(f"target {target} needs data to calibrate INT8: pass data=, batches of (inputs, target)")
    config = parse({
        "model": {"name": "resnet8"}, "table": {"points": points},
        "target": {"backend": choice.backend, "precision": backend.precision, "batch": backend.batch, "threads": threads,
                   "options": choice.options},
        "prune": {"criterion": guest.scores if isinstance(guest.scores, str) else "l1", "min_width": min_width,
                  "budget": wanted.share, "budget_us": wanted.absolute_us},
        "quantize": {"calibration": "fashion_mnist"} if backend.precision == "int8" else None,
    }, "deploy")  # fmt: skip
    return Job(_named(config, guest), GuestTask(guest), backend, console, guest=guest)


def _check_criterion(guest: Guest, criterion: str) -> None:
    from pydeploy.prune.criteria.score import chosen

    for one in chosen(criterion, {})[:2]:
        if (
            one is not None
            and one.batches
            and (not guest.batches or (one.batches == "labelled batches" and guest.loss is None))
        ):
            more = " and loss=" if one.batches == "labelled batches" else ""
            raise ConfigError(f"criterion '{criterion}' needs {one.batches}: pass data={more}")


def _named(config: Config, guest: Guest) -> Config:
    """The config with what the program handed over in place of names that a file would have."""
    model = ModelSection.model_construct(name=type(guest.model).__name__, options={})
    task = TaskSection.model_construct(name="your own", data=None, options={})
    quantize = config.quantize and QuantizeSection.model_construct(
        observer=config.quantize.observer, calibration=Path("your-data"), exclude=[], table=None
    )
    return config.model_copy(update={"model": model, "task": task, "quantize": quantize})


def _judged(job: Job, at: Artefacts) -> Job:
    """The job with the loss that is allowed in the metric's own unit: one point of a share, else `MAY_LOSE` of dense."""
    metric = job.task.metric
    if metric.share:
        return job
    allowed = (
        1.0
        if job.guest is not None and job.guest.evaluate is None
        else MAY_LOSE * abs(metrics_of(job, at, at.dense)[metric.name])
    )
    compare = job.config.compare.model_copy(update={"limit": allowed})
    return replace(job, config=job.config.model_copy(update={"compare": compare}))


def _deployed(guest: Guest, at: Artefacts) -> Deployed:
    from pydeploy.prune.surgery.save import load

    small = load(at.tuned_weights, guest.network()).eval()
    engine = Engine.load(Files(at.pruned).engine)
    return Deployed(small, Plan.load(at.plan), engine, Table.open(at.table), tuple(read_rounds(at.search)),
                    Report.load(at.report), at.root)  # fmt: skip


def _told(guest: Guest, target: str, budget: float) -> dict[str, Any]:
    """What the call said, for the report."""
    functions = {"loss": guest.loss, "evaluate": guest.evaluate, "finetune": guest.finetune}
    given = {
        name: getattr(one, "__qualname__", type(one).__name__) for name, one in functions.items() if one is not None
    }
    scores = guest.scores if isinstance(guest.scores, str) else "given"
    return {"model": type(guest.model).__name__, "target": target, "budget": budget, "scores": scores,
            "batches": len(guest.batches), **given}  # fmt: skip


class _Told:
    """A console whose lines go to a function."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    @contextmanager
    def bar(self, title: str) -> Iterator[Tick]:  # noqa: ARG002
        yield lambda done, total, told="": None  # noqa: ARG005


def _nothing(_text: str) -> None:
    pass
