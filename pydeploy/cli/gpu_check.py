"""``pydeploy gpu-check``: what pydeploy promises on an NVIDIA GPU, tried there and told as a table.

Nothing here is needed for work: it is the acceptance test for machines that the developers do not have.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pydeploy.backends.base import Backend, Engine, open_backend, reopen
from pydeploy.backends.tensorrt import compat
from pydeploy.backends.tensorrt.backend import TensorRt
from pydeploy.backends.tensorrt.checkup import checkup
from pydeploy.data.manifest import load_manifest
from pydeploy.errors import DeployError
from pydeploy.files import read_json, write_json
from pydeploy.graph import Graph
from pydeploy.latency.probes.cut_onnx import resize
from pydeploy.latency.table.table import Table
from pydeploy.profiling.profile import profile, random_feeds, time_engines
from pydeploy.quant.implicit import entropy_calibrator, write_cache
from pydeploy.quant.observe import Ranges
from pydeploy.report import Report
from pydeploy.run.artefacts import Artefacts
from pydeploy.run.config import Config
from pydeploy.run.folder import Console
from pydeploy.run.pipeline import run
from pydeploy.run.stages import shared as stages
from pydeploy.tasks import samples
from pydeploy.timing.ratio import ratio
from pydeploy.timing.rounds import interleave

UNSEEN_PLANS = 8
LIMITS = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.15}
"""Relative error of an engine's outputs against ONNX Runtime's on the same file (int8: rounding may fall elsewhere)."""


@dataclass(frozen=True, slots=True)
class Check:
    """One promise: kept, broken, or (None) not applicable here."""

    name: str
    passed: bool | None
    detail: str


class Broken(Exception):
    """A promise that was not kept; the text says what was seen."""


@dataclass(frozen=True)
class Bench:
    """What the checks look at: the finished run."""

    config: Config
    at: Artefacts
    report: Report
    backend: TensorRt
    folder: Path
    facts: dict[str, Any]
    """For the bug report."""

    def opened(self, name: str) -> tuple[Backend, Engine]:
        """Backend and engine of a folder of the run ('dense', 'pruned', 'quantized')."""
        engine = Engine.load(getattr(self.at, name) / "model.engine")
        return reopen(engine.target), engine


def check_all(config: Config, out: Path, console: Console) -> list[Check]:
    """Every check in order; ``gpu-check.json`` in `out` holds them with all facts for a bug report.

    It is written after each check: a driver that takes the process down leaves what was found before.
    """
    parts = checkup()
    facts: dict[str, Any] = {"schema": 1, "machine": parts}
    checks: list[Check] = []

    def passes(name: str, check: Callable[[], str | None]) -> bool:
        checks.append(_check(name, check))
        write_json(out / "gpu-check.json", {**facts, "checks": [asdict(check) for check in checks]})
        return bool(checks[-1].passed)

    if not passes("GPU and packages", partial(_packages, parts)):
        return checks
    console.say("run the whole job; this takes most of the time")
    made: list[Report] = []
    passes("the whole job runs", partial(_run, config, out / "run", console, made))
    if made:
        backend = open_backend("tensorrt", precision=config.target.precision, batch=config.target.batch,
                               options=config.target.options)  # fmt: skip
        assert isinstance(backend, TensorRt)
        facts |= {"target": backend.target().to_json(), "report": made[0].to_json()}
        bench = Bench(config, Artefacts(out / "run"), made[0], backend, out, facts)
        for name, check in CHECKS.items():
            console.say(f"check: {name}")
            passes(name, partial(check, bench))
    return checks


def _check(name: str, check: Callable[[], str | None]) -> Check:
    try:
        detail = check()
    except (Broken, DeployError) as error:
        return Check(name, passed=False, detail=str(error))
    except Exception as error:  # whatever it is, the other checks and the file for the bug report still matter
        return Check(name, passed=False, detail=f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    return Check(
        name, passed=None if detail is None else True, detail=detail or "does not apply to this version or run"
    )


def _require(kept: bool, text: str) -> str:
    if not kept:
        raise Broken(text)
    return text


def _packages(parts: dict[str, str]) -> str:
    missing = [f"{part}: {text}" for part, text in parts.items() if text.startswith("missing")]
    return _require(
        not [m for m in missing if not m.startswith("NVML")],
        "; ".join(missing) or parts["GPU"] + "; " + parts["bindings"],
    )


def _run(config: Config, out: Path, console: Console, made: list[Report]) -> str:
    run(config, out, console, resume=out.exists(), command="pydeploy gpu-check")
    made.append(Report.load(out / "report.json"))
    return f"{made[0].total_seconds / 60:.0f} minutes"


def _budget(bench: Bench) -> str:
    pruned, report = bench.report.models.pruned.latency_us.median, bench.report
    return _require(
        report.met, f"measured {pruned:.1f} us, budget {report.budget_us:.1f} us, dense {report.dense_us:.1f} us"
    )


def _accuracy(bench: Bench) -> str:
    models = bench.report.models
    lost = 100 * (models.dense.accuracy - models.pruned.accuracy)
    return _require(lost <= 1.0, f"dense {models.dense.accuracy:.2%}, pruned {models.pruned.accuracy:.2%}")


def _int8_accuracy(bench: Bench) -> str | None:
    models = bench.report.models
    if models.quantized is None:
        return None
    lost = 100 * (models.pruned.accuracy - models.quantized.accuracy)
    return _require(lost <= 0.5, f"pruned {models.pruned.accuracy:.2%}, int8 {models.quantized.accuracy:.2%}, "
                                 f"int8 takes {models.quantized.latency_us.median:.1f} us")  # fmt: skip


def _prediction(bench: Bench) -> str:
    error = abs(bench.report.rounds[-1].error)
    return _require(error <= 0.10, f"last round: {error:.1%} off")


def _table_error(bench: Bench) -> str:
    """Random plans that the table was not made from: predicted against measured."""
    graph = Graph.load(bench.at.graph)
    table = Table.open(bench.at.table, bench.backend.target())
    dense, random = onnx.load(bench.at.dense / "model.onnx"), np.random.default_rng(1)
    choices = table.widths(graph)
    errors = []
    for number in range(UNSEEN_PLANS):
        plan = {name: int(random.choice(widths)) for name, widths in choices.items()}
        source = bench.folder / f"unseen{number}.onnx"
        onnx.save(resize(dense, graph, plan, random), source)
        engine = bench.backend.build(source, source.with_suffix(".engine"))
        errors.append(abs(table.predict_us(graph, plan) / _median_us(bench.backend, engine) - 1))
    text = f"{len(errors)} unseen plans: median {np.median(errors):.1%}, largest {max(errors):.1%}"
    return _require(float(np.median(errors)) <= 0.05, text)


def _median_us(backend: Backend, engine: Engine) -> float:
    with backend.open(engine) as session:
        timer = partial(session.time, random_feeds(session.inputs))
        return interleave({"": timer}, rounds=10, runs=20)[""].timing.median_us


def _outputs(bench: Bench) -> str:
    """The same file on ONNX Runtime and on TensorRT."""
    texts = []
    for folder, precision in (("pruned", "fp32"), ("pruned", "fp16"), ("quantized", "int8")):
        source = getattr(bench.at, folder) / "model.onnx"
        if not source.exists():
            continue
        backend = reopen(replace(bench.backend.target(), precision=precision))
        other = open_backend("onnxruntime", precision="int8" if precision == "int8" else "fp32", batch=backend.batch)
        mine = _answers(backend, source, bench.folder / f"outputs-{precision}.engine")
        reference = _answers(other, source, bench.folder / f"outputs-{precision}-ort.engine")
        error = _relative_error(mine, reference)
        texts.append(f"{precision} {error:.2g}")
        _require(
            error <= LIMITS[precision], f"{precision}: relative error {error:.3g}, at most {LIMITS[precision]} expected"
        )
    return "relative error: " + ", ".join(texts)


def _relative_error(mine: dict[str, Any], reference: dict[str, Any]) -> float:
    return max(float(np.linalg.norm(mine[k] - reference[k]) / np.linalg.norm(reference[k])) for k in reference)


def _answers(backend: Backend, source: Path, out: Path) -> dict[str, Any]:
    with backend.open(backend.build(source, out)) as session:
        return session.run(random_feeds(session.inputs, seed=3))


def _formats(bench: Bench) -> str:
    """fp16 engines hold fp16 layers, int8 engines int8 ones; and to which multiple channels are padded."""
    texts = []
    for name, dtype in (("pruned", "float16"), ("quantized", "int8")):
        if not (getattr(bench.at, name) / "model.engine").exists():
            continue
        layers = _describe(bench, name)
        used = [layer for layer in layers if any(tensor["dtype"] == dtype for tensor in layer["inputs"])]
        padded = sorted({multiple for layer in layers for multiple in layer["padding"]})
        texts.append(f"{name}: {len(used)} of {len(layers)} layers read {dtype}, channels in multiples of {padded}")
        _require(bool(used) or bench.backend.precision == "fp32", texts[-1])
    return "; ".join(texts)


def _describe(bench: Bench, name: str) -> list[dict[str, Any]]:
    backend, engine = bench.opened(name)
    assert isinstance(backend, TensorRt)
    with backend.open(engine) as session:
        return [{**asdict(info), "padding": info.padding} for info in session.describe()]


def _layers(bench: Bench) -> str:
    """Every operator of the model that takes time is found in the engine, and layers add up to the network."""
    graph, (backend, engine) = Graph.load(bench.at.graph), bench.opened("dense")
    found = profile(backend, engine, [op.name for op in graph.ops], rounds=5, runs=20)
    missing = [op.name for op in graph.ops if op.name not in found.layers]
    total = sum(timing.median_us for timing in found.layers.values())
    text = f"{len(graph.ops) - len(missing)} of {len(graph.ops)} operators found, layers {total:.1f} us, network {found.whole}"
    return _require(len(missing) <= 0.1 * len(graph.ops) and abs(total / found.whole.median_us - 1) <= 0.05, text)


def _steady(bench: Bench) -> str:
    backend, engine = bench.opened("dense")
    found = profile(backend, engine, rounds=5, runs=40)
    facts = {key: round(value, 3) for key, value in found.condition.items()}
    kept = not found.condition["unstable"] and found.condition["cuda_graph"] == 1.0
    return _require(kept, f"{facts}; lock the clocks where they move (nvidia-smi -lgc, jetson_clocks)")


def _rebuild(bench: Bench) -> str:
    """Two builds of one file take equally long to run, and the second is built from the timing cache."""
    source = bench.at.pruned / "model.onnx"
    engines = [bench.backend.build(source, bench.folder / f"again{index}.engine") for index in range(2)]
    seconds = [read_json(Path(f"{engine.path}.build.json"))["seconds"] for engine in engines]
    found = time_engines({str(index): (bench.backend, engine) for index, engine in enumerate(engines)})
    first, second = (found[name].timing for name in "01")
    taken = ratio(first, second)
    return _require(
        abs(taken.value - 1) <= 0.05,
        f"{first.median_us:.1f} and {second.median_us:.1f} us, {taken} in turns; built in {seconds[0]:.0f} and "
        f"{seconds[1]:.0f} s",
    )


def _dynamic(bench: Bench) -> str:
    """A file with a dynamic batch, run at the target's batch."""
    model = onnx.load(bench.at.pruned / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    source = bench.folder / "dynamic.onnx"
    onnx.save(model, source)
    outputs = _answers(bench.backend, source, bench.folder / "dynamic.engine")
    shapes = {name: list(array.shape) for name, array in outputs.items()}
    return _require(all(shape[0] == bench.backend.batch for shape in shapes.values()), f"outputs {shapes}")


def _sparse(bench: Bench) -> str:
    backend = open_backend("tensorrt", precision=bench.backend.precision, batch=bench.backend.batch, options="sparse")
    engine = backend.build(bench.at.pruned / "model.onnx", bench.folder / "sparse.engine")
    return f"builds with 2:4 sparse kernels allowed, {_median_us(backend, engine):.1f} us"


def _implicit(bench: Bench) -> str | None:
    """Int8 by a calibration cache made of the run's ranges, where the version still has calibrators."""
    ranges = bench.at.quantized / "ranges.json"
    if not _has_calibrators(bench) or not ranges.exists():
        return None
    cache = bench.folder / "calibration.cache"
    write_cache(Ranges.load(ranges), cache, bench.backend.target().backend_version)
    backend = _int8_backend(bench, f"calibration={cache}")
    return _implicit_int8(
        bench, backend, backend.build(bench.at.pruned / "model.onnx", bench.folder / "implicit.engine")
    )


def _calibrator(bench: Bench) -> str | None:
    """Int8 by TensorRT's own calibrator, fed with the run's calibration samples, where the version still has one."""
    if not _has_calibrators(bench) or bench.config.quantize is None:
        return None
    manifest = load_manifest(bench.config.quantize.calibration)
    backend, task = _int8_backend(bench), stages.open_task(bench.config)
    feeds = samples.exact_batches(samples.calibration_batches(task, manifest), backend.batch)
    make = partial(entropy_calibrator, batches=feeds, batch=backend.batch)
    engine = backend.build(bench.at.pruned / "model.onnx", bench.folder / "calibrated.engine", make)
    return f"{manifest.count} samples, {_implicit_int8(bench, backend, engine)}"


def _has_calibrators(bench: Bench) -> bool:
    return compat.has_calibrators(compat.parse_version(bench.backend.target().backend_version))


def _int8_backend(bench: Bench, options: str = "") -> TensorRt:
    backend = open_backend("tensorrt", precision="int8", batch=bench.backend.batch, options=options)
    assert isinstance(backend, TensorRt)
    return backend


def _implicit_int8(bench: Bench, backend: TensorRt, engine: Engine) -> str:
    """The engine of a float file has int8 layers and answers test images nearly as the float file does."""
    task = stages.open_task(bench.config)
    images = next(iter(task.eval_batches(backend.batch))).inputs
    feeds = {name: tensor.numpy() for name, tensor in zip(task.input_names, images, strict=True)}
    with backend.open(engine) as session:
        layers, mine = session.describe(), session.run(feeds)
    other = open_backend("onnxruntime", batch=backend.batch)
    with other.open(other.build(bench.at.pruned / "model.onnx", bench.folder / "implicit-ort.engine")) as session:
        error = _relative_error(mine, session.run(feeds))
    used = [info for info in layers if any(tensor.dtype == "int8" for tensor in info.inputs)]
    text = f"{len(used)} of {len(layers)} layers read int8, relative error {error:.2g}"
    return _require(bool(used) and error <= LIMITS["int8"], text)


def _engines(bench: Bench) -> str:
    """What TensorRT says of the run's engines, layer by layer, for the bug report."""
    names = [name for name in ("dense", "pruned", "quantized") if (getattr(bench.at, name) / "model.engine").exists()]
    bench.facts["engines"] = {name: _describe(bench, name) for name in names}
    return ", ".join(f"{name}: {len(layers)} layers" for name, layers in bench.facts["engines"].items())


CHECKS: dict[str, Callable[[Bench], str | None]] = {
    "the budget is met": _budget,
    "pruned: within 1 point of dense": _accuracy,
    "int8: within 0.5 points of pruned": _int8_accuracy,
    "the last prediction is within 10 %": _prediction,
    "the table predicts unseen plans": _table_error,
    "outputs equal ONNX Runtime's": _outputs,
    "engines compute in the precision asked for": _formats,
    "layers are the model's and add up": _layers,
    "clocks are steady, CUDA graphs work": _steady,
    "two builds agree": _rebuild,
    "dynamic batch": _dynamic,
    "2:4 sparsity": _sparse,
    "int8 from a calibration cache": _implicit,
    "int8 by TensorRT's own calibrator": _calibrator,
    "engines describe themselves": _engines,
}
