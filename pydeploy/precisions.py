"""The fine-tuned network in other precisions: half, int8, and int8 where it pays. Measured like everything else.

Which of them is shipped is decided at the end of the run, on latencies measured in turns (`pydeploy.report.verdict`):
the fastest one within the accuracy limit, so that int8 is never recommended where it is slower.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydeploy import stages
from pydeploy.artefacts import Artefacts
from pydeploy.backends.base import Backend, Engine, Feeds, reopen
from pydeploy.errors import BackendUnavailable
from pydeploy.files import read_json, write_json
from pydeploy.graph import Graph
from pydeploy.profile import profile
from pydeploy.quant.mixed import Choice, LayerOption, choose, conversion_us, neighbours, sensitivity
from pydeploy.quant.observe import Ranges
from pydeploy.quant.placement import style_for
from pydeploy.stages import Job
from pydeploy.timing import Target

HALVES = ("fp16", "bf16")
"""Half precisions in the order of preference; the first that the backend has is used."""
BESIDE_INT8 = {"tensorrt": "fp16"}
"""The precision of what an int8 file leaves unquantised, where it is not fp32."""
SENSITIVITY_SAMPLES = 128
MIXED_ROUNDS = 3
TIGHTEN = 0.7
"""A choice that lost too much is repeated with this share of the limit that would have fitted."""


def half_backend(job: Job) -> Backend | None:
    """The job's backend in half precision; None where it has none, or the job itself is not fp32."""
    target = job.backend.target()
    found = (_backend(replace(target, precision=half)) for half in HALVES if target.precision == "fp32")
    return next((backend for backend in found if backend is not None), None)


def _backend(target: Target) -> Backend | None:
    try:
        return reopen(target)
    except BackendUnavailable:
        return None


def build_half(job: Job, at: Artefacts, here: Path) -> None:
    """The pruned engine's file built in half precision; ``facts.json`` as everywhere."""
    backend = half_backend(job)
    assert backend is not None
    shutil.copyfile(at.pruned / "model.onnx", here / "model.onnx")
    engine = backend.build(here / "model.onnx", here / "model.engine")
    _facts(job, at, backend, engine, here)


def quantize(job: Job, at: Artefacts, here: Path) -> None:
    """Calibrate the pruned engine's ONNX, insert Q/DQ, build the INT8 engine; ``facts.json`` as everywhere."""
    from pydeploy.quant.calibrate import calibrate

    settings, manifest = job.config.quantize, stages.check_calibration(job.config)
    assert settings is not None
    assert manifest is not None
    source, style = at.pruned / "model.onnx", style_for(job.backend.name)
    with job.console.bar("calibrate") as tick:
        ranges = calibrate(source, stages.calibration_batches(job.task, manifest), observer=settings.observer, style=style,
                           threads=job.backend.threads, progress=lambda done: tick(done, manifest.count),
                           resume=here / "counts.json", key=manifest.key())  # fmt: skip
    ranges.save(here / "ranges.json")
    _int8(job, at, ranges, settings.exclude, here)


def mix(job: Job, at: Artefacts, here: Path) -> None:
    """``mixed.json``: which layers are int8 and why; an engine and ``facts.json`` unless that is all of them or none.

    The layers' times are those inside the float and the int8 engine, what they cost in accuracy is measured one by one.
    """
    settings = job.config.quantize
    assert settings is not None
    if job.backend.precision != BESIDE_INT8.get(job.backend.name, "fp32"):
        write_json(
            here / "mixed.json", {"note": f"not tried: what is not int8 would not run in {job.backend.precision}"}
        )
        return
    int8 = reopen(replace(job.backend.target(), precision="int8"))
    pair = {
        "float": (job.backend, Engine.load(at.pruned / "model.engine")),
        "int8": (int8, Engine.load(at.quantized / "model.engine")),
    }
    options = _options(job, at, pair)
    edges = _edges(job, at, options, pair["float"], int8, here)
    metric = job.task.metric
    reached = {name: float(read_json(place / "facts.json")["metrics"][metric])
               for name, place in (("dense", at.dense), ("float", at.pruned), ("int8", at.quantized))}  # fmt: skip
    # Where the float network itself lost more than the limit, int8 may not lose anything on top of it.
    allowed = max(0.0, job.config.compare.limit / 100 - (reached["dense"] - reached["float"]))
    lost = reached["float"] - reached["int8"]
    total = sum(option.error for option in options)
    # Points of accuracy are taken to be lost in proportion to the error of the outputs; the engine decides.
    limit = float("inf") if lost <= allowed else total * allowed / lost
    tried: list[dict[str, Any]] = []
    names = [option.name for option in options]
    for _ in range(MIXED_ROUNDS):
        choice = choose(options, edges, limit)
        if set(choice.int8) in (set(), set(names)):
            break
        _int8(job, at, Ranges.load(at.quantized / "ranges.json"), _floating(names, choice.int8, settings.exclude), here)
        found = float(read_json(here / "facts.json")["metrics"][metric])
        tried.append({**choice.to_json(), "limit": limit, metric: found})
        over = reached["float"] - found
        if over <= allowed:
            break
        limit = TIGHTEN * choice.error * allowed / over
    _report_mix(job, here, options, choice, tried)


def _floating(names: Sequence[str], int8: Sequence[str], excluded: Sequence[str]) -> list[str]:
    """Layers to exclude so that of `names` only `int8` are quantised."""
    return sorted({*excluded, *names} - set(int8))


def _report_mix(
    job: Job, here: Path, options: Sequence[LayerOption], choice: Choice, tried: Sequence[dict[str, Any]]
) -> None:
    """``mixed.json``; files of a choice that was given up are removed."""
    whole = len(choice.int8) == len(options)
    if not choice.int8 or whole:
        for name in ("model.engine", "model.engine.json", "model.onnx", "facts.json"):
            (here / name).unlink(missing_ok=True)
    note = (
        "all layers are best in int8"
        if whole
        else "no layer is best in int8 within the limit"
        if not choice.int8
        else ""
    )
    job.console.say(f"mixed: {note or f'{len(choice.int8)} of {len(options)} layers int8'}")
    write_json(here / "mixed.json", {"note": note, "int8": list(choice.int8), "tried": list(tried),
                                     "layers": [asdict(option) for option in options]})  # fmt: skip


def has_engine(folder: Path) -> bool:
    """Whether a stage of this module left an engine."""
    return (folder / "facts.json").is_file()


def _options(job: Job, at: Artefacts, pair: dict[str, tuple[Backend, Engine]]) -> list[LayerOption]:
    """Times of every int8 layer in both engines and its sensitivity."""
    layers = read_json(at.quantized / "quantized.json")["quantized"]
    ops = [op.name for op in Graph.load(at.graph).ops]
    times = {side: profile(backend, engine, ops, rounds=5, runs=20).layers for side, (backend, engine) in pair.items()}
    manifest = stages.check_calibration(job.config)
    assert manifest is not None
    batches = stages.exact_batches(stages.calibration_batches(job.task, manifest), job.backend.batch)
    feeds: list[Feeds] = list(islice(batches, max(1, SENSITIVITY_SAMPLES // job.backend.batch)))
    with job.console.bar("sensitivity of layers") as tick:
        errors = sensitivity(at.pruned / "model.onnx", Ranges.load(at.quantized / "ranges.json"), feeds, layers,
                             style=style_for(job.backend.name), threads=job.backend.threads, progress=tick)  # fmt: skip

    def median_us(side: str, layer: str) -> float:
        return times[side][layer].median_us if layer in times[side] else 0.0

    return [LayerOption(layer, median_us("float", layer), median_us("int8", layer), errors[layer]) for layer in layers]


def _edges(
    job: Job, at: Artefacts, options: Sequence[LayerOption], plain: tuple[Backend, Engine], int8: Backend, here: Path
) -> dict[tuple[str, str], float]:
    """Time of converting what passes between neighbouring layers, from a network in which every second layer is int8."""
    values = neighbours(at.pruned / "model.onnx")
    names = [option.name for option in options]
    every_second = names[::2]
    if len(names) < 2:
        return dict.fromkeys(values, 0.0)
    ranges = Ranges.load(at.quantized / "ranges.json")
    _insert(job, at, ranges, names[1::2], here / "second.onnx")
    engine = int8.build(here / "second.onnx", here / "second.engine")
    times = stages.measure_engines({"float": plain, "second": (int8, engine)})
    for name in ("second.onnx", "second.engine", "second.engine.json"):
        (here / name).unlink(missing_ok=True)
    each_us = conversion_us(options, values, every_second, times["float"].median_us, times["second"].median_us)
    return {edge: count * each_us for edge, count in values.items()}


def _insert(job: Job, at: Artefacts, ranges: Ranges, exclude: Sequence[str], out: Path) -> dict[str, Any]:
    from pydeploy.quant.qdq import quantize as insert

    return asdict(insert(at.pruned / "model.onnx", ranges, out, style=style_for(job.backend.name), exclude=exclude))


def _int8(job: Job, at: Artefacts, ranges: Ranges, exclude: Sequence[str], here: Path) -> None:
    """``model.onnx``, ``quantized.json``, ``model.engine`` and ``facts.json`` of the pruned file with int8 layers."""
    write_json(here / "quantized.json", _insert(job, at, ranges, exclude, here / "model.onnx"))
    backend = reopen(replace(job.backend.target(), precision="int8"))
    _facts(job, at, backend, backend.build(here / "model.onnx", here / "model.engine"), here)


def _facts(job: Job, at: Artefacts, backend: Backend, engine: Engine, here: Path) -> None:
    pruned = read_json(at.pruned / "facts.json")
    stages.write_facts(job, backend, engine, here, params=pruned["params"], macs=pruned["macs"])
