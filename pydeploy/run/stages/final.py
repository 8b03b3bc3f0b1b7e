"""The end of a run: all engines measured in turns, and ``report.json`` with its renderings."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydeploy.backends.base import Backend, Engine, reopen
from pydeploy.data import deployment
from pydeploy.files import read_json, write_json
from pydeploy.graph import Graph
from pydeploy.latency.table.table import Table
from pydeploy.plan import Plan
from pydeploy.planning.rounds import Budget, read_rounds
from pydeploy.profiling.engines import measure_at_level
from pydeploy.report import (
    Candidate,
    GroupWidth,
    Latency,
    Layer,
    ModelResult,
    Models,
    Report,
    Round,
    TableFacts,
    recommend,
    render,
)
from pydeploy.run import facts as facts_
from pydeploy.run.artefacts import Artefacts, Files
from pydeploy.run.facts import load
from pydeploy.run.job import Job
from pydeploy.run.stages import comparison, pictures, reduced_precision
from pydeploy.run.stages import engines as engine_stages
from pydeploy.run.stages.engines import facts_of
from pydeploy.run.stages.judging import metrics_in_float, metrics_of
from pydeploy.run.stages.search import level_us
from pydeploy.run.stages.shipping import ship
from pydeploy.timing.overhead import net
from pydeploy.timing.ratio import ratio
from pydeploy.timing.records import Timing
from pydeploy.version import __version__


def folders(job: Job, at: Artefacts) -> dict[str, Path]:
    """Folders of all engines of the run, by name: those of `MODELS` that exist, and the further points by slug."""
    found = {"dense": at.dense, "pruned": at.pruned}
    if job.config.quantize is not None:
        more = {"unquantized": at.unquantized, "half": at.half, "quantized": at.quantized, "mixed": at.mixed}
        found |= {name: folder for name, folder in more.items() if reduced_precision.has_engine(folder)}
    return found | {point.slug: at.candidate(point.slug) for point in comparison.wanted(job.config)}


def measure_all(job: Job, at: Artefacts, here: Path) -> None:
    """``timings.json``: every engine's latency, taken in turns, and the layers of the dense and the pruned one."""
    engines: dict[str, tuple[Backend, Engine]] = {}
    for name, folder in folders(job, at).items():
        engine = Engine.load(Files(folder).engine)
        precision = engine.target.precision
        backend = job.backend if precision == job.backend.precision else reopen(engine.target)
        engines[name] = (backend, engine)
    job.console.say(f"measure {len(engines)} engines in turns")
    times = measure_at_level(engines, level_us(job, at))
    graph = Graph.load(at.graph)
    layers = {
        name: net(engine_stages.layer_profile(job, engines[name][1], graph)).layers for name in ("dense", "pruned")
    }
    write_json(Files(here).timings, {
        "engines": {name: timing.to_json() for name, timing in times.items()},
        "layers": {name: {op: t.to_json() for op, t in found.items()} for name, found in layers.items()},
    })  # fmt: skip


def timings(at: Artefacts) -> dict[str, Timing]:
    """What `measure_all` measured, by engine."""
    return {name: Timing.from_json(data) for name, data in read_json(at.timings)["engines"].items()}


def disturbed(at: Artefacts) -> tuple[str, ...]:
    """Engines whose comparison with the dense one rests on disturbed rounds; none where nothing is measured yet."""
    if not at.timings.is_file():
        return ()
    times = timings(at)
    return tuple(name for name, timing in times.items() if ratio(timing, times["dense"]).disturbed)


def misled(at: Artefacts, budget: Budget) -> bool:
    """Whether the pruned engine misses the budget although its search, all of whose rounds were disturbed, said otherwise."""
    if not at.timings.is_file() or disturbed(at):
        return False
    times, tried = timings(at), read_rounds(at.search)
    return budget.used(times["pruned"], times["dense"]).value > 1.0 and all(one.disturbed for one in tried if one.met)


def write_report(job: Job, at: Artefacts, seconds: dict[str, float], command: str) -> Path:
    """Write ``deploy/``, ``report.json``, ``report.md``, ``report.html`` and the charts; returns the path of the HTML page."""
    report = _report(job, at, seconds, command)
    places, best = folders(job, at), report.recommendation.model
    ship(report, places[best], at.deploy)
    report = replace(report, samples=pictures.side_by_side(job, at, {"dense": places["dense"], best: places[best]}))
    report.save(at.report)
    return render(report, at.root)[1]


def _report(job: Job, at: Artefacts, seconds: dict[str, float], command: str) -> Report:
    config, target = job.config, job.backend.target()
    times = timings(at)
    results = {name: _result(job, at, folder, times[name]) for name, folder in folders(job, at).items()}
    models = Models(dense=results["dense"], pruned=results["pruned"], unquantized=results.get("unquantized"),
                    half=results.get("half"), quantized=results.get("quantized"), mixed=results.get("mixed"))  # fmt: skip
    lost = _lost_by_int8(job, at, models.dense)
    graph, plan = Graph.load(at.graph), Plan.load(at.plan)
    dense_us = models.dense.latency_us.median if config.prune.budget else facts_of(at.dense).latency.median_us
    budget_us = config.prune.budget_us or (config.prune.budget or 1.0) * dense_us
    return Report(
        pydeploy_version=__version__, created=datetime.now(timezone.utc).isoformat(timespec="seconds"), command=command,
        config=read_json(at.config), seed=config.seed, task=config.task.name, metric=job.task.metric, model=config.model.name,
        target=target, budget_us=budget_us, budget_share=config.prune.budget, dense_us=dense_us,
        met=Budget(config.prune.budget, config.prune.budget_us).used(times["pruned"], times["dense"]).value <= 1.0,
        models=models,
        recommendation=recommend(models, job.task.metric, limit=max(0.0, round(config.compare.limit - lost, 6)),
                                 measured=target.measured),
        candidates=tuple(_candidate(at, point, results[point.slug]) for point in comparison.wanted(config)),
        rounds=tuple(Round(number=r.number, predicted_us=r.predicted_us, measured_us=r.measured_us, met=r.met,
                           limit_us=r.limit_us, disturbed=r.disturbed,
                           widths=r.plan.widths) for r in read_rounds(at.search)),
        layers=_layers(graph, plan, read_json(at.timings)["layers"]), groups=_groups(graph, plan), table=_table(at), seconds=seconds,
        total_seconds=sum(seconds.values()),
        warnings=(*_disturbances(at), *_of_int8(job, models.dense, lost), *_warnings(job, target.measured)),
        shipped=at.deploy.name, preprocessing=read_json(way) if (way := at.pruned / deployment.FILE).is_file() else None,
        calibration=f"{job.manifest}, sha256 {job.samples[:12]}" if job.manifest is not None else "",
    )  # fmt: skip


def _result(job: Job, at: Artefacts, folder: Path, timing: Timing) -> ModelResult:
    facts, metrics = facts_of(folder), metrics_of(job, at, folder)
    return ModelResult(latency_us=Latency.of(timing), value=metrics[job.task.metric.name], samples=_samples(job, metrics),
                       tables=facts.tables, params=facts.params, macs=facts.macs, bytes=facts.bytes, onnx_bytes=facts.onnx_bytes,
                       precision=facts.precision, target=facts.target)  # fmt: skip


def _samples(job: Job, metrics: Mapping[str, float]) -> int:
    """How many samples an engine was judged on."""
    if job.guest is None:
        return job.task.size("test")
    from pydeploy.tasks.guest import SAMPLES

    return max(1, int(metrics[SAMPLES]))


def _candidate(at: Artefacts, point: comparison.Wanted, result: ModelResult) -> Candidate:
    note = read_json(Files(at.candidate(point.slug)).note)["note"]
    return Candidate(name=point.label, method=point.method, precision=result.precision, latency_us=result.latency_us,
                     value=result.value, params=result.params, macs=result.macs, note=note)  # fmt: skip


def _lost_by_int8(job: Job, at: Artefacts, dense: ModelResult) -> float:
    """How much of the metric the dense engine loses to int8, where that is the target; the limit is counted from float."""
    metric = job.task.metric
    return max(0.0, metric.lost(metrics_in_float(job, at, at.dense)[metric.name], dense.value))


def _of_int8(job: Job, dense: ModelResult, lost: float) -> tuple[str, ...]:
    if job.backend.precision != "int8":
        return ()
    metric = job.task.metric
    told = (
        f"'dense' and 'pruned' are int8 engines; dense reaches {metric.text(dense.value)} in int8, "
        f"{metric.amount(round(lost, 2))} worse than float, which count towards the {job.config.compare.limit:g} that may be lost"
    )
    return (told,)


def _layers(graph: Graph, plan: Plan, times: dict[str, Any]) -> tuple[Layer, ...]:
    before, after = graph.widths, graph.at(plan.widths)

    def median(model: str, op: str) -> float | None:
        found = times[model].get(op)
        return None if found is None else float(found["median_us"])

    return tuple(Layer(name=op.name, kind=op.kind, cin_before=op.cin.at(before), cin_after=op.cin.at(after),
                       cout_before=op.cout.at(before), cout_after=op.cout.at(after),
                       before_us=median("dense", op.name), after_us=median("pruned", op.name))
                 for op in graph.ops)  # fmt: skip


def _groups(graph: Graph, plan: Plan) -> tuple[GroupWidth, ...]:
    after = graph.at(plan.widths)
    return tuple(GroupWidth(name=g.name, before=g.width, after=after[g.name], frozen=g.frozen) for g in graph.groups)


def _table(at: Artefacts) -> TableFacts:
    facts = load(facts_.TableFacts, at.table_facts)
    table, graph = Table.open(at.table), Graph.load(at.graph)
    return TableFacts(probes=facts.probes, keys=facts.keys, seconds=facts.seconds,
                      disturbed=len(table.disturbed(graph)))  # fmt: skip


def _warnings(job: Job, measured: bool) -> tuple[str, ...]:
    found = [] if measured else ["latencies are analytic, not measured"]
    if job.config.compare.torch_pruning and importlib.util.find_spec("torch_pruning") is None:
        found.append(
            "Torch-Pruning is not installed, so it is not in the comparison: pip install 'pydeploy-hil[bench]'"
        )
    if job.guest is not None:
        return (*found, *job.guest.remarks)
    metric = job.task.metric
    seeds = "how much another one changes was not measured"
    if metric.seed_spread is not None:
        seeds = f"another one changes about {metric.amount(metric.seed_spread)}"
    sections = (("train", job.config.train), ("finetune", job.config.finetune))
    if chose := [name for name, section in sections if section.judges and job.task.validation_split == "test"]:
        found.append(f"the best epoch was chosen on the test set ({', '.join(chose)}), as the task has no validation split: values "
                     "are a little too good")  # fmt: skip
    found.append(f"values of the {metric.name} rest on one training seed ({job.seed}); {seeds}")
    return tuple(found)


def _disturbances(at: Artefacts) -> tuple[str, ...]:
    """All that other load disturbed in this run and that was not measured again without it."""
    table, tried, loud = _table(at), read_rounds(at.search), disturbed(at)
    found = []
    if table.disturbed:
        networks = len({network.plan for network in Table.open(at.table).networks(Graph.load(at.graph))})
        found.append(f"other load disturbed {table.disturbed} of the {networks} networks of the latency table")
    if rounds := sum(one.disturbed for one in tried):
        found.append(f"other load disturbed every measurement of {rounds} of the {len(tried)} plans of the search")
    if loud:
        found.append(f"other load disturbed the final comparison of {', '.join(loud)}; measure it again with --resume")
    layers = read_json(at.timings)["layers"]
    found += [f"other load disturbed the layers' times of '{name}'" for name, found_ in layers.items()
              if any(one.get("disturbed") for one in found_.values())]  # fmt: skip
    return tuple(found)
