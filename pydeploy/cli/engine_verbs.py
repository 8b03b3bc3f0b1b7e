"""Verbs on ONNX files and engines: calibrate, build, profile, compare. None of them needs torch but calibrate and compare --config."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from pydeploy.cli.arguments import EXAMPLE_HELP, GPUS_HELP, TARGET_HELP

if TYPE_CHECKING:
    from pydeploy.backends.base import Backend, Engine, Feeds
    from pydeploy.profiling.compare_layers import LayerDifference
    from pydeploy.timing.ratio import Ratio
    from pydeploy.timing.records import Timing

COMPARE_RETRIES, COMPARE_PATIENCE_S = 30, 15.0
"""How often ``compare`` measures disturbed rounds again, and for how long."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Threads = Annotated[
    int, typer.Option(min=0, max=1024, help="Threads of the engine; 0 = all cores this process may use.")
]


def calibrate(
    model: Annotated[Path, typer.Argument(help="ONNX file (float).")],
    data: Annotated[Path, typer.Option(help="Calibration manifest.")],
    out: Annotated[Path, typer.Option(help="Ranges file (JSON); the counts go to <out>.counts.json.")],
    observer: Annotated[str, typer.Option(help="entropy, percentile, mse, minmax or moving_average.")] = "entropy",
    style: Annotated[Optional[str], typer.Option(help="onnxruntime, openvino or tensorrt; all without.")] = None,
    config: Annotated[Optional[Path], typer.Option(help="Config whose task gives the samples.")] = None,
    threads: Threads = 0,
    cache: Annotated[Optional[Path], typer.Option(help="Also write a TensorRT calibration cache here.")] = None,
    tensorrt: Annotated[
        Optional[str], typer.Option(help="For --cache: version of TensorRT that reads it [default: 8.6.1].")
    ] = None,
) -> None:
    """Find the range of every tensor that INT8 needs, by running the calibration images. Goes on where it was stopped.

    Example: pydeploy calibrate model.onnx --data calib/fashion_mnist.yaml --out ranges.json
    """
    from pydeploy.cli.console import Terminal
    from pydeploy.data.manifest import load_manifest
    from pydeploy.errors import ConfigError
    from pydeploy.files import check_writable
    from pydeploy.quant.calibrate import calibrate as observe
    from pydeploy.quant.implicit import cache_version, write_cache
    from pydeploy.run.config import load
    from pydeploy.run.job import open_task
    from pydeploy.tasks import samples

    if tensorrt is not None and cache is None:
        raise ConfigError("--tensorrt goes with --cache: it is the version that the calibration cache is written for")
    version = "8.6.1" if tensorrt is None else tensorrt
    for path in (out, cache):
        if path is not None:
            check_writable(path)
    manifest = load_manifest(data)
    if cache is not None:
        cache_version(version)  # a wrong one is found before any work
    if config is not None:
        taken = samples.calibration_batches(open_task(load(config)), manifest)
        feeds: Iterable[Feeds] = samples.under(inputs_of(model), taken)
    else:
        name = input_of(model)
        feeds = ({name: images} for images in samples.manifest_batches(manifest, threads))
    with Terminal().bar("calibrate") as tick:
        ranges = observe(model, feeds, observer=observer, style=style, every=cache is not None, threads=threads,
                         progress=lambda done: tick(done, manifest.count),
                         resume=out.with_name(out.name + ".counts.json"), key=manifest.key())  # fmt: skip
    ranges.save(out)
    sys.stdout.write(f"{out}: {len(ranges.tensors)} tensors, {ranges.count} samples, observer {observer}\n")
    if cache is not None:
        write_cache(ranges, cache, version)
        sys.stdout.write(f"{cache}: calibration cache for TensorRT {version}\n")


def inputs_of(path: Path, *, quantized: bool = False) -> list[str]:
    """Names of the inputs of a float ONNX file, or where `quantized` of any."""
    from pydeploy.onnxfile.load import read_float_model, read_model

    graph = (read_model if quantized else read_float_model)(path).model.graph
    weights = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in weights]


def input_of(path: Path, *, quantized: bool = False) -> str:
    """Name of the only input."""
    from pydeploy.errors import ConfigError

    names = inputs_of(path, quantized=quantized)
    if len(names) != 1:
        raise ConfigError(f"{path} takes inputs {names}; a manifest alone feeds one input, give --config")
    return names[0]


def batch_of(path: Path) -> int:
    """Static batch size of an ONNX file's first input."""
    from pydeploy.onnxfile.load import read_model

    model = read_model(path).model
    return int(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value) or 1


def build(
    model: Annotated[Path, typer.Argument(help="ONNX file.")],
    target: Annotated[str, typer.Option(help=TARGET_HELP)],
    out: Annotated[Path, typer.Option(help="Engine file; its facts go to <out>.json.")],
    batch: Annotated[
        Optional[int], typer.Option(min=1, max=1_000_000, help=f"{EXAMPLE_HELP[:-1]} [default: that of --shape, or 1].")
    ] = None,
    shape: Annotated[
        Optional[list[str]],
        typer.Option(help="Shape of an input that the file leaves open, as NAME=1x3x224x224; repeat for several."),
    ] = None,
    threads: Threads = 0,
    data: Annotated[
        Optional[Path],
        typer.Option(help="Calibration manifest: int8 from a float file, by TensorRT 8.6 to 10's own calibrator."),
    ] = None,
    config: Annotated[Optional[Path], typer.Option(help="For --data: config whose task gives the samples.")] = None,
    gpus: Annotated[Optional[str], typer.Option("--for", help=GPUS_HELP)] = None,
) -> None:
    """Build an engine for a target. An int8 or half-precision one is compared with the file on a few random inputs.

    Example: pydeploy build model.onnx --target openvino:bf16 --out model.engine
    """
    from pydeploy.cli.arguments import backend_named, for_gpus, named_shapes
    from pydeploy.errors import ConfigError
    from pydeploy.profiling.agreement import build as checked_build

    if config is not None and data is None:
        raise ConfigError("--config goes with --data: it gives the samples that the calibration manifest names")
    fixed = named_shapes(shape or [])
    size = batch or next((first for first, *_ in fixed.values()), 1)
    backend = backend_named(for_gpus(target, gpus), batch=size, threads=threads)
    model = _with_fixed_shapes(model, out, fixed, backend)
    engine = checked_build(backend, model, out) if data is None else _calibrated(backend, model, out, data, config)
    sys.stdout.write(f"{engine.path}: {engine.path.stat().st_size:,} bytes for {engine.target}\n")


def _with_fixed_shapes(model: Path, out: Path, shapes: dict[str, tuple[int, ...]], backend: Backend) -> Path:
    """`model`, or where its weights lie elsewhere or its shapes are open, a file beside `out` that is whole and fixed."""
    import onnx

    from pydeploy.files import replacing
    from pydeploy.onnxfile.fixed_shapes import with_fixed_shapes

    made = with_fixed_shapes(model, shapes, backend.batch, dynamic_batch=backend.dynamic_batch)
    if made is None:
        return model
    whole = out.with_name(f"{out.name}.onnx")
    with replacing(whole) as partial:
        onnx.save(made, str(partial))
    sys.stdout.write(f"{whole}: {model.name} with all weights inside and fixed shapes, what the engine is built from\n")
    return whole


def _calibrated(backend: Backend, model: Path, out: Path, data: Path, config: Path | None) -> Engine:
    """Build with TensorRT's own calibrator. What it finds is kept beside the engine, for the same file and samples."""
    import hashlib
    from functools import partial

    from pydeploy.backends.tensorrt.backend import TensorRt
    from pydeploy.data.manifest import load_manifest
    from pydeploy.errors import ConfigError
    from pydeploy.files import sha256
    from pydeploy.quant.implicit import entropy_calibrator
    from pydeploy.run.config import load
    from pydeploy.run.job import open_task
    from pydeploy.tasks import samples

    if not isinstance(backend, TensorRt):
        raise ConfigError(
            f"--data is for TensorRT's calibrator, the target is '{backend.name}'; for an int8 file use 'pydeploy "
            "calibrate' and 'pydeploy quantize', then build that"
        )
    manifest, name, batch = load_manifest(data), input_of(model), backend.batch
    if config is None:
        feeds: Iterable[Feeds] = ({name: images} for images in samples.manifest_batches(manifest, batch=batch))
    else:
        feeds = samples.exact_batches(samples.calibration_batches(open_task(load(config)), manifest), batch)
    key = f"{sha256(model)} {manifest.key()} {batch} {backend.target().backend_version}"
    cache = out.with_name(f"{out.name}.{hashlib.sha256(key.encode()).hexdigest()[:12]}.calibration")
    return backend.build(model, out, partial(entropy_calibrator, batches=feeds, batch=batch, cache=cache))


def measure(
    engine: Annotated[Path, typer.Argument(help="Engine file written by 'pydeploy build' or a run.")],
    rounds: Annotated[int, typer.Option(min=1, max=1_000_000, help="Rounds of measurement.")] = 10,
    runs: Annotated[int, typer.Option(min=1, max=1_000_000, help="Runs in a round.")] = 20,
    onnx: Annotated[Optional[Path], typer.Option(help="Refuse the engine unless it was built from this file.")] = None,
    json: Json = False,
) -> None:
    """Measure an engine: the whole network and every layer, with the machine's condition.

    Example: pydeploy profile runs/demo/08_pruned/model.engine
    """
    from pydeploy.cli.arguments import backend_of
    from pydeploy.cli.console import show_json, show_profile
    from pydeploy.profiling.profile import profile
    from pydeploy.timing.overhead import net

    backend, record = backend_of(engine)
    if onnx is not None:
        record.require_onnx(onnx)
    found = net(profile(backend, record, rounds=rounds, runs=runs))
    if json:
        show_json(found.to_json())
    else:
        show_profile(found)


def compare(
    reference: Annotated[Path, typer.Argument(help="Engine file.")],
    other: Annotated[Path, typer.Argument(help="Engine file with the same inputs and outputs.")],
    feeds: Annotated[int, typer.Option(min=1, max=1_000_000, help="Batches of inputs to compare on.")] = 8,
    config: Annotated[
        Optional[Path], typer.Option(help="Config whose task gives test images [default: random inputs].")
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Compare inside as well: the first layer that differs.")
    ] = False,
    tolerance: Annotated[float, typer.Option(min=0, help="Relative difference that counts as diverged.")] = 0.05,
    onnx: Annotated[
        Optional[list[Path]],
        typer.Option(help="ONNX file of an engine; twice, in order [default: beside the engines]."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare two engines: outputs on the same inputs, latency measured in turns, and with --layers where they part.

    Example: pydeploy compare runs/demo/08_pruned/model.engine runs/demo/09_quantized/model.engine --layers
    """
    from pydeploy.cli.arguments import backend_of
    from pydeploy.cli.console import show_json, show_table
    from pydeploy.errors import ConfigError
    from pydeploy.profiling.compare_layers import first_divergence
    from pydeploy.profiling.compare_outputs import compare as judge
    from pydeploy.profiling.profile import random_feeds, time_engines
    from pydeploy.timing.ratio import ratio

    if onnx and not layers:
        raise ConfigError("--onnx goes with --layers: the files tell where the engines' layers come from")
    (one, first), (two, second) = backend_of(reference), backend_of(other)
    with one.open(first) as a, two.open(second) as b:
        random = [random_feeds(a.inputs, seed) for seed in range(feeds)]
        samples = random if config is None else _test_feeds(config, [spec.name for spec in a.inputs], one.batch, feeds)
        result = judge(a, b, samples)
    inside = _inside((one, first), (two, second), onnx or [], samples) if layers else ()
    diverged = first_divergence(inside, tolerance)
    engines = {"reference": (one, first), "other": (two, second)}
    samples_us = time_engines(engines, retries=COMPARE_RETRIES, patience_s=COMPARE_PATIENCE_S)
    times = {name: found.timing for name, found in samples_us.items()}
    taken = ratio(times["other"], times["reference"])
    if json:
        data: dict[str, Any] = {
            **result.to_json(),
            "latency": {name: timing.to_json() for name, timing in times.items()},
            "ratio": taken.to_json(),
        }
        if layers:
            data["layers"] = [difference.to_json() for difference in inside]
            data["first_divergence"] = None if diverged is None else diverged.layer
        show_json(data)
        return
    rows = [(d.output, f"{d.max_abs:.3g}", f"{d.relative_l2:.3g}", f"{d.cosine:.6f}") for d in result.outputs]
    show_table(("output", "max_abs", "relative_l2", "cosine"), rows)
    if layers:
        sys.stdout.write("\n")
        show_table(
            ("layer", "max_abs", "relative_l2"), [(d.layer, f"{d.max_abs:.3g}", f"{d.relative_l2:.3g}") for d in inside]
        )
        where = "none" if diverged is None else f"{diverged.layer} ({diverged.relative_l2:.3g})"
        sys.stdout.write(f"first layer that differs by more than {tolerance:g}: {where}\n")
    sys.stdout.write(
        f"\nreference: {times['reference']}\nother:     {times['other']}\n{verdict(taken, times['other'])}\n"
    )


def verdict(taken: Ratio, timing: Timing) -> str:
    """The last line of ``compare``: how many times as long the other engine takes, and whether that was disturbed."""
    text = f"other takes {taken.value:.3f} of the reference's time ({taken.interval}, in turns)"
    if not taken.disturbed:
        return text
    loud = sum(not turn.calm for turn in timing.turns)
    return (
        f"DISTURBED: other load was noticed in {loud} of {len(timing.turns)} rounds; {text}; "
        "compare again when the computer is quiet"
    )


def _test_feeds(config: Path, names: Sequence[str], batch: int, count: int) -> list[Feeds]:
    """For inputs `names`: the first batches of the task's test images. INT8 clips random inputs that no image reaches."""
    from pydeploy.run.config import load
    from pydeploy.run.job import open_task
    from pydeploy.tasks import samples
    from pydeploy.tasks.evaluate import batches

    task = open_task(load(config))
    first = next(batches(task, "test", batch * count))
    arrays = [tensor.numpy() for tensor in first.inputs]
    feeds = samples.exact_batches([dict(zip(task.input_names, arrays, strict=True))], batch)
    return [one for one, _ in zip(samples.under(names, feeds), range(count), strict=False)]


def _inside(
    reference: tuple[Backend, Engine], other: tuple[Backend, Engine], onnx: Sequence[Path], samples: Sequence[Feeds]
) -> tuple[LayerDifference, ...]:
    """Differences layer by layer; the ONNX files are those given, or lie beside the engines."""
    from pydeploy.errors import ConfigError, DataError
    from pydeploy.profiling.compare_layers import layer_differences

    if len(onnx) not in (0, 2):
        raise ConfigError(f"give --onnx twice, for the reference and for the other engine; got {len(onnx)}")
    sides = []
    for index, (backend, engine) in enumerate((reference, other)):
        source = onnx[index] if onnx else engine.path.with_suffix(".onnx")
        if not source.is_file():
            raise DataError(f"{source} does not exist; name the ONNX files of both engines with --onnx")
        engine.require_onnx(source)
        sides.append((backend, source))
    return layer_differences(sides[0], sides[1], samples)
