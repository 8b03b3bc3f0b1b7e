"""The fine-tuned network in other precisions: half, int8, and int8 where it pays. Measured like everything else.

Which of them is shipped is decided at the end of the run, on latencies measured in turns (`pydeploy.report.verdict`):
the fastest one within the limit of `compare`, so that int8 is never recommended where it is slower.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydeploy.backends.base import Backend, Engine, Feeds, reopen
from pydeploy.errors import BackendUnavailable, MissingTiming
from pydeploy.files import read_json, write_json
from pydeploy.graph import Graph
from pydeploy.latency.table.by_precision import layer_times, other_table
from pydeploy.latency.table.table import Table
from pydeploy.plan import Plan
from pydeploy.profiling.engines import measure_engines
from pydeploy.profiling.profile import profile
from pydeploy.quant.mixed import Choice, LayerOption, choose, conversion_us, neighbours, sensitivity
from pydeploy.quant.observe import Ranges
from pydeploy.run.artefacts import Artefacts, Files
from pydeploy.run.job import Job
from pydeploy.run.stages import engines
from pydeploy.run.stages.engines import facts_of, float_backend, float_metrics
from pydeploy.timing.overhead import net
from pydeploy.timing.ratio import ratio
from pydeploy.timing.records import Target

SENSITIVITY_SAMPLES = 128
MIXED_ROUNDS = 3
TIGHTEN = 0.7
"""A choice that lost too much is repeated with this share of the limit that would have fitted."""


@dataclass(frozen=True)
class Pair:
    """The fine-tuned network twice: in float and in int8. One of the two is the run's pruned engine."""

    onnx: Path
    """The float file that both were built from."""
    float_folder: Path
    int8_folder: Path
    float_backend: Backend
    int8_backend: Backend

    def engines(self) -> dict[str, tuple[Backend, Engine]]:
        return {
            "float": (self.float_backend, Engine.load(Files(self.float_folder).engine)),
            "int8": (self.int8_backend, Engine.load(Files(self.int8_folder).engine)),
        }

    @property
    def ranges(self) -> Ranges:
        return Ranges.load(Files(self.int8_folder).ranges)


def _pair(job: Job, at: Artefacts) -> Pair:
    onnx = Files(at.pruned).source
    if job.backend.precision == "int8":
        return Pair(onnx, at.unquantized, at.pruned, float_backend(job), job.backend)
    int8 = reopen(replace(job.backend.target(), precision="int8"))
    return Pair(onnx, at.pruned, at.quantized, job.backend, int8)


def half_backend(job: Job) -> Backend | None:
    """The job's backend in half precision; None where it has none, or the run has such an engine anyway."""
    own = job.backend
    if own.precision not in ("fp32", "int8"):
        return None
    halves = [half for half in own.halves if own.precision == "fp32" or half != own.beside_int8]
    found = (_backend(replace(own.target(), precision=half)) for half in halves)
    return next((backend for backend in found if backend is not None), None)


def _backend(target: Target) -> Backend | None:
    try:
        return reopen(target)
    except BackendUnavailable:
        return None


def build_half(job: Job, at: Artefacts, here: Path) -> None:
    """The fine-tuned network's file built in half precision; ``facts.json`` as everywhere."""
    backend = half_backend(job)
    assert backend is not None
    _build_float(job, at, backend, here)


def unquantize(job: Job, at: Artefacts, here: Path) -> None:
    """Where the target is int8: the fine-tuned network in float, so that int8 is not shipped where it is slower."""
    _build_float(job, at, float_backend(job), here)


def _build_float(job: Job, at: Artefacts, backend: Backend, here: Path) -> None:
    shutil.copyfile(Files(at.pruned).source, Files(here).onnx)
    engine = engines.build(job, backend, Files(here).onnx, Files(here).engine)
    _facts(job, at, backend, engine, here)


def quantize(job: Job, at: Artefacts, here: Path) -> None:
    """Calibrate the pruned engine's ONNX, insert Q/DQ, build the INT8 engine; ``facts.json`` as everywhere."""
    pair = _pair(job, at)
    _int8(job, at, pair, engines.calibrated(job, pair.onnx, here), None, here)


def mix(job: Job, at: Artefacts, here: Path) -> None:
    """``mixed.json``: which layers are int8 and why; an engine and ``facts.json`` unless that is all of them or none.

    The layers' times are those of the latency tables in both precisions where the config names the second one, else those
    inside the float and the int8 engine; what they cost in outputs is measured one by one.
    """
    settings = job.config.quantize
    assert settings is not None
    if job.backend.precision not in ("int8", job.backend.beside_int8):
        write_json(Files(here).mixed, {"note": f"not tried: what is not int8 would not run in {job.backend.precision}"})
        return
    pair, metric = _pair(job, at), job.task.metric
    ranges = pair.ranges
    times, source = _times(job, at, pair)
    options = _options(job, pair, ranges, times)
    edges = _edges(job, pair, ranges, options, settings.exclude, here)
    reached = {name: facts_of(place).metrics[metric.name]
               for name, place in (("float", pair.float_folder), ("int8", pair.int8_folder))}  # fmt: skip
    reached["dense"] = float_metrics(at.dense)[metric.name]
    # Where the float network itself lost more than the limit, int8 may not lose anything on top of it.
    allowed = max(0.0, job.config.compare.limit - metric.lost(reached["dense"], reached["float"]))
    lost = metric.lost(reached["float"], reached["int8"])
    total = sum(option.error for option in options)
    # The metric is taken to be lost in proportion to the error of the outputs; the engine decides.
    limit = float("inf") if lost <= allowed else total * allowed / lost
    tried: list[dict[str, Any]] = []
    names = [option.name for option in options]
    for _ in range(MIXED_ROUNDS):
        choice = choose(options, edges, limit)
        if set(choice.int8) in (set(), set(names)):
            break
        _int8(job, at, pair, ranges, _floating(names, choice.int8, settings.exclude), here)
        found = facts_of(here).metrics[metric.name]
        tried.append({**choice.to_json(), "limit": limit, metric.name: found})
        over = metric.lost(reached["float"], found)
        if over <= allowed:
            break
        limit = TIGHTEN * choice.error * allowed / over
    _report_mix(job, here, options, source, choice, tried)


def _floating(names: Sequence[str], int8: Sequence[str], excluded: Sequence[str]) -> list[str]:
    """Layers to exclude so that of `names` only `int8` are quantized."""
    return sorted({*excluded, *names} - set(int8))


def _report_mix(
    job: Job, here: Path, options: Sequence[LayerOption], times: str, choice: Choice, tried: Sequence[dict[str, Any]]
) -> None:
    """``mixed.json``; files of a choice that was given up are removed."""
    whole = len(choice.int8) == len(options)
    if not choice.int8 or whole:
        for path in Files(here).of_engine:
            path.unlink(missing_ok=True)
    note = (
        "all layers are best in int8"
        if whole
        else "no layer is best in int8 within the limit"
        if not choice.int8
        else ""
    )
    job.console.say(f"mixed: {note or f'{len(choice.int8)} of {len(options)} layers int8'}")
    write_json(Files(here).mixed, {"note": note, "int8": list(choice.int8), "times": times, "tried": list(tried),
                                     "layers": [asdict(option) for option in options]})  # fmt: skip


def has_engine(folder: Path) -> bool:
    """Whether a stage of this module left an engine."""
    return Files(folder).facts.is_file()


Times = Mapping[str, Mapping[str, float]]
"""By 'float' or 'int8', then by layer, in us."""


def _times(job: Job, at: Artefacts, pair: Pair) -> tuple[Times, str]:
    """Times of the layers in both precisions, and in words where they come from."""
    graph, settings = Graph.load(at.graph), job.config.quantize
    if settings is not None and settings.table is not None:
        own, other = Table.open(at.table), other_table(settings.table, job.backend)
        tables = {"float": other, "int8": own} if job.backend.precision == "int8" else {"float": own, "int8": other}
        widths, now = Plan.load(at.plan).widths, measure_engines(pair.engines())
        try:
            return {side: layer_times(graph, widths, table, now[side])
                    for side, table in tables.items()}, "latency tables"  # fmt: skip
        except MissingTiming as error:
            job.console.say(f"mixed: the engines tell the layers' times, not the latency tables: {error}")
    ops = [op.name for op in graph.ops]
    inside = {side: net(profile(backend, engine, ops, rounds=5, runs=20)).layers
              for side, (backend, engine) in pair.engines().items()}  # fmt: skip
    return {side: {name: time.median_us for name, time in found.items()} for side, found in inside.items()}, "engines"


def _options(job: Job, pair: Pair, ranges: Ranges, times: Times) -> list[LayerOption]:
    """Times of every int8 layer in both precisions and its sensitivity."""
    from pydeploy.tasks.samples import calibration_batches, exact_batches

    layers = read_json(Files(pair.int8_folder).quantized)["quantized"]
    assert job.manifest is not None
    batches = exact_batches(calibration_batches(job.task, job.manifest), job.backend.batch)
    feeds: list[Feeds] = list(islice(batches, max(1, SENSITIVITY_SAMPLES // job.backend.batch)))
    with job.console.bar("sensitivity of layers") as tick:
        errors = sensitivity(pair.onnx, ranges, feeds, layers, style=job.backend.int8_style,
                             threads=job.backend.threads, progress=tick)  # fmt: skip
    # A layer that the runtime merged into another one takes no time of its own.
    return [LayerOption(layer, times["float"].get(layer, 0.0), times["int8"].get(layer, 0.0), errors[layer])
            for layer in layers]  # fmt: skip


def _edges(
    job: Job, pair: Pair, ranges: Ranges, options: Sequence[LayerOption], excluded: Sequence[str], here: Path
) -> dict[tuple[str, str], float]:
    """Time of converting what passes between neighbouring layers, from a network in which every second layer is int8."""
    values = neighbours(pair.onnx)
    names = [option.name for option in options]
    every_second = names[::2]
    if len(names) < 2:
        return dict.fromkeys(values, 0.0)
    with tempfile.TemporaryDirectory(prefix="second-", dir=here) as folder:
        trial = Path(folder)
        engines.insert_pairs(job, pair.onnx, ranges, trial, _floating(names, every_second, excluded))
        engine = engines.build(job, pair.int8_backend, Files(trial).onnx, Files(trial).engine)
        running = {"float": pair.engines()["float"], "second": (pair.int8_backend, engine)}
        times = measure_engines(running)
    float_us = times["float"].median_us
    second_us = float_us * ratio(times["second"], times["float"]).value
    each_us = conversion_us(options, values, every_second, float_us, second_us)
    return {edge: count * each_us for edge, count in values.items()}


def _int8(job: Job, at: Artefacts, pair: Pair, ranges: Ranges, exclude: Sequence[str] | None, here: Path) -> None:
    """``model.onnx``, ``quantized.json``, ``model.engine`` and ``facts.json`` of the float file with int8 layers."""
    engines.insert_pairs(job, pair.onnx, ranges, here, exclude)
    backend = pair.int8_backend
    _facts(job, at, backend, engines.build(job, backend, Files(here).onnx, Files(here).engine), here)


def _facts(job: Job, at: Artefacts, backend: Backend, engine: Engine, here: Path) -> None:
    pruned = facts_of(at.pruned)
    engines.write_facts(job, backend, engine, here, params=pruned.params, macs=pruned.macs)
