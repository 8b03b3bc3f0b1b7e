"""The checks of ``pydeploy gpu-check``: each gathers numbers from the finished run and has them judged (`promises`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from pydeploy.backends.base import Engine, open_backend, reopen
from pydeploy.backends.tensorrt import compat
from pydeploy.backends.tensorrt.backend import TensorRt
from pydeploy.cli.gpu_check import promises
from pydeploy.cli.gpu_check.checked_run import CheckedRun, answers, describe, median_us, relative_error
from pydeploy.data.manifest import load_manifest
from pydeploy.files import read_json
from pydeploy.graph import Graph
from pydeploy.latency.probes.cut_onnx import resize
from pydeploy.latency.table.table import Table
from pydeploy.profiling.profile import profile, time_engines
from pydeploy.quant.implicit import entropy_calibrator, write_cache
from pydeploy.quant.observe import Ranges
from pydeploy.run.artefacts import Files
from pydeploy.run.job import open_task
from pydeploy.tasks import samples
from pydeploy.tasks.evaluate import batches


def _budget(run: CheckedRun) -> str:
    report = run.report
    return promises.budget(report.met, report.models.pruned.latency_us.median, report.budget_us, report.dense_us)


def _kept(run: CheckedRun) -> str:
    metric, models = run.report.metric, run.report.models
    return promises.kept(metric, models.dense.value, models.pruned.value, 1.0, "dense, pruned")


def _kept_by_int8(run: CheckedRun) -> str | None:
    models = run.report.models
    if models.quantized is None:
        return None
    what = f"pruned, int8 (which takes {models.quantized.latency_us.median:.1f} us)"
    return promises.kept(run.report.metric, models.pruned.value, models.quantized.value, 0.5, what)


def _prediction(run: CheckedRun) -> str:
    return promises.prediction(run.report.rounds[-1].error)


def _table_error(run: CheckedRun) -> str:
    """Random plans that the table was not made from: predicted against measured, in turns."""
    graph = Graph.load(run.at.graph)
    table = Table.open(run.at.table, run.backend.target())
    dense, random = onnx.load(Files(run.at.dense).onnx), np.random.default_rng(1)
    predictions = table.predictions(graph)
    predicted, measured = [], []
    for number in range(run.unseen_plans):
        plan = {name: int(random.choice(widths)) for name, widths in predictions.widths.items()}
        source = run.folder / f"unseen{number}.onnx"
        onnx.save(resize(dense, graph, plan, random), source)
        measured.append(median_us(run.backend, run.backend.build(source, source.with_suffix(".engine"))))
        predicted.append(predictions.predict_us(plan))
    return promises.table(predicted, measured)


def _outputs(run: CheckedRun) -> str:
    """The same file on ONNX Runtime and on TensorRT."""
    errors = {}
    for folder, precision in (("pruned", "fp32"), ("pruned", "fp16"), ("quantized", "int8")):
        source = Files(getattr(run.at, folder)).onnx
        if not source.exists():
            continue
        backend = reopen(replace(run.backend.target(), precision=precision))
        other = open_backend("onnxruntime", precision="int8" if precision == "int8" else "fp32", batch=backend.batch)
        mine = answers(backend, source, run.folder / f"outputs-{precision}.engine")
        errors[precision] = relative_error(mine, answers(other, source, run.folder / f"outputs-{precision}-ort.engine"))
    return promises.outputs(errors)


def _formats(run: CheckedRun) -> str:
    """fp16 engines hold fp16 layers, int8 engines int8 ones; and to which multiple channels are padded."""
    there = [(name, dtype) for name, dtype in (("pruned", "float16"), ("quantized", "int8"))
             if Files(getattr(run.at, name)).engine.exists()]  # fmt: skip
    needed = run.backend.precision != "fp32"
    return "; ".join(promises.formats(name, dtype, describe(run, name), needed=needed) for name, dtype in there)


def _layers(run: CheckedRun) -> str:
    """Every operator of the model that takes time is found in the engine, and layers add up to the network."""
    ops, (backend, engine) = [op.name for op in Graph.load(run.at.graph).ops], run.opened("dense")
    return promises.layers(ops, profile(backend, engine, ops, rounds=5, runs=20))


def _steady(run: CheckedRun) -> str:
    backend, engine = run.opened("dense")
    return promises.steady(profile(backend, engine, rounds=5, runs=40).condition)


def _rebuild(run: CheckedRun) -> str:
    """Two builds of one file take equally long to run, and the second is built from the timing cache."""
    source = Files(run.at.pruned).onnx
    engines = [run.backend.build(source, run.folder / f"again{index}.engine") for index in range(2)]
    seconds = [read_json(Path(f"{engine.path}.build.json"))["seconds"] for engine in engines]
    found = time_engines({str(index): (run.backend, engine) for index, engine in enumerate(engines)})
    return promises.rebuild(found["0"].timing, found["1"].timing, seconds)


def _dynamic(run: CheckedRun) -> str:
    """A file with a dynamic batch, run at the target's batch."""
    model = onnx.load(Files(run.at.pruned).onnx)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    source = run.folder / "dynamic.onnx"
    onnx.save(model, source)
    outputs = answers(run.backend, source, run.folder / "dynamic.engine")
    return promises.rows({name: list(array.shape) for name, array in outputs.items()}, run.backend.batch)


def _sparse(run: CheckedRun) -> str:
    backend = open_backend(run.backend.name, precision=run.backend.precision, batch=run.backend.batch, options="sparse")
    engine = backend.build(Files(run.at.pruned).onnx, run.folder / "sparse.engine")
    return f"builds with 2:4 sparse kernels allowed, {median_us(backend, engine):.1f} us"


def _implicit(run: CheckedRun) -> str | None:
    """Int8 by a calibration cache made of the run's ranges, where the version still has calibrators."""
    ranges = Files(run.at.quantized).ranges
    if not _has_calibrators(run) or not ranges.exists():
        return None
    cache = run.folder / "calibration.cache"
    write_cache(Ranges.load(ranges), cache, run.backend.target().backend_version)
    backend = _int8_backend(run, f"calibration={cache}")
    return _implicit_int8(run, backend, backend.build(Files(run.at.pruned).onnx, run.folder / "implicit.engine"))


def _calibrator(run: CheckedRun) -> str | None:
    """Int8 by TensorRT's own calibrator, fed with the run's calibration samples, where the version still has one."""
    if not _has_calibrators(run) or run.config.quantize is None:
        return None
    manifest = load_manifest(run.config.quantize.calibration)
    backend, task = _int8_backend(run), open_task(run.config)
    feeds = samples.exact_batches(samples.calibration_batches(task, manifest), backend.batch)
    make = partial(entropy_calibrator, batches=feeds, batch=backend.batch)
    engine = backend.build(Files(run.at.pruned).onnx, run.folder / "calibrated.engine", make)
    return f"{manifest.count} samples, {_implicit_int8(run, backend, engine)}"


def _has_calibrators(run: CheckedRun) -> bool:
    if not isinstance(run.backend, TensorRt):
        return False
    return compat.has_calibrators(compat.parse_version(run.backend.target().backend_version))


def _int8_backend(run: CheckedRun, options: str = "") -> TensorRt:
    backend = open_backend("tensorrt", precision="int8", batch=run.backend.batch, options=options)
    assert isinstance(backend, TensorRt)
    return backend


def _implicit_int8(run: CheckedRun, backend: TensorRt, engine: Engine) -> str:
    """The engine of a float file has int8 layers and answers test images nearly as the float file does."""
    task = open_task(run.config)
    images = next(batches(task, "test", backend.batch)).inputs
    feeds = {name: tensor.numpy() for name, tensor in zip(task.input_names, images, strict=True)}
    with backend.open(engine) as session:
        layers, mine = session.describe(), session.run(feeds)
    other = open_backend("onnxruntime", batch=backend.batch)
    with other.open(other.build(Files(run.at.pruned).onnx, run.folder / "implicit-ort.engine")) as session:
        error = relative_error(mine, session.run(feeds))
    return promises.implicit_int8([[tensor.dtype for tensor in info.inputs] for info in layers], error)


def _engines(run: CheckedRun) -> str:
    """What TensorRT says of the run's engines, layer by layer, for the bug report."""
    names = [name for name in ("dense", "pruned", "quantized") if Files(getattr(run.at, name)).engine.exists()]
    run.facts["engines"] = {name: describe(run, name) for name in names}
    return ", ".join(f"{name}: {len(layers)} layers" for name, layers in run.facts["engines"].items())


CHECKS: dict[str, Callable[[CheckedRun], str | None]] = {
    "the budget is met": _budget,
    "pruned: within 1 point of dense": _kept,
    "int8: within 0.5 points of pruned": _kept_by_int8,
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
