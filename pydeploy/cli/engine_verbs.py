"""Verbs on ONNX files and engines: calibrate, build, profile. None of them needs torch but calibrate --config."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from pydeploy.cli.arguments import EXAMPLE_HELP, GPUS_HELP, TARGET_HELP, Json

if TYPE_CHECKING:
    from pydeploy.backends.base import Backend, Engine, Feeds

Threads = Annotated[
    int, typer.Option(min=0, max=1024, help="Threads of the engine; 0 = all cores this process may use.")
]


def calibrate(
    model: Annotated[Path, typer.Argument(help="ONNX file (float).")],
    data: Annotated[Path, typer.Option(help="Calibration manifest.")],
    out: Annotated[Path, typer.Option(help="Ranges file (JSON); the counts go to <out>.counts.json.")],
    observer: Annotated[str, typer.Option(help="mse, entropy, percentile, moving_average or minmax.")] = "mse",
    style: Annotated[Optional[str], typer.Option(help="onnxruntime, openvino or tensorrt; all without.")] = None,
    config: Annotated[Optional[Path], typer.Option(help="Config whose task gives the samples.")] = None,
    threads: Threads = 0,
    cache: Annotated[Optional[Path], typer.Option(help="Also write a TensorRT calibration cache here.")] = None,
    tensorrt: Annotated[
        Optional[str], typer.Option(help="For --cache: version of TensorRT that reads it [default: 8.6.1].")
    ] = None,
    json: Json = False,
) -> None:
    """Find the range of every tensor that INT8 needs, by running the calibration images. Goes on where it was stopped.

    Example: pydeploy calibrate model.onnx --data calib/fashion_mnist.yaml --out ranges.json
    """
    from pydeploy.cli.console import Terminal, tell
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
    told = f"{out}: {len(ranges.tensors)} tensors, {ranges.count} samples, observer {observer}\n"
    if cache is not None:
        write_cache(ranges, cache, version)
        told += f"{cache}: calibration cache for TensorRT {version}\n"
    files = {"ranges": str(out), "cache": None if cache is None else str(cache)}
    tell(json, {**files, "tensors": len(ranges.tensors), "samples": ranges.count, "observer": observer}, told)


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
    json: Json = False,
) -> None:
    """Build an engine for a target. An int8 or half-precision one is compared with the file on a few random inputs.

    Example: pydeploy build model.onnx --target openvino:bf16 --out model.engine
    """
    from pydeploy.cli.arguments import backend_named, for_gpus, named_shapes
    from pydeploy.cli.console import tell
    from pydeploy.errors import ConfigError
    from pydeploy.profiling.agreement import build as checked_build

    if config is not None and data is None:
        raise ConfigError("--config goes with --data: it gives the samples that the calibration manifest names")
    fixed = named_shapes(shape or [])
    size = batch or next((first for first, *_ in fixed.values()), 1)
    backend = backend_named(for_gpus(target, gpus), batch=size, threads=threads)
    source = _with_fixed_shapes(model, out, fixed, backend)
    engine = checked_build(backend, source, out) if data is None else _calibrated(backend, source, out, data, config)
    told = f"{source}: {model.name} with all weights inside and fixed shapes, what the engine is built from\n"
    size = engine.path.stat().st_size
    tell(json, {"engine": str(engine.path), "onnx": str(source), "bytes": size, "target": engine.target.to_json()},
         f"{told if source != model else ''}{engine.path}: {size:,} bytes for {engine.target}\n")  # fmt: skip


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
