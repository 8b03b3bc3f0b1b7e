"""Verbs that change or check the precision of an ONNX file: quantize, half, lint. None of them needs torch but half --config."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from pydeploy.cli.arguments import Json

if TYPE_CHECKING:
    from pydeploy.backends.base import Feeds
    from pydeploy.quant.lint_model import Finding

STYLE_HELP = "onnxruntime, openvino, tensorrt or tensorrt-rtx; or a backend, whose style it is."


def quantize(
    model: Annotated[Path, typer.Argument(help="ONNX file (float).")],
    ranges: Annotated[Path, typer.Option(help="Ranges file written by 'pydeploy calibrate'.")],
    out: Annotated[Path, typer.Option(help="ONNX file with Q/DQ.")],
    style: Annotated[str, typer.Option(help=STYLE_HELP)] = "onnxruntime",
    exclude: Annotated[
        Optional[list[str]], typer.Option(help="Layers that stay in float (pattern with *); repeat.")
    ] = None,
    float_ends: Annotated[
        Optional[list[str]], typer.Option(help="first or last layer stays in float; repeatable.")
    ] = None,
    min_channels: Annotated[
        Optional[int], typer.Option(min=1, max=1_000_000, help="Fewer channels stay in float; 1 = none.")
    ] = None,
    processor: Annotated[
        Optional[str],
        typer.Option(help="Instruction sets of the processor that runs it, as in /proc/cpuinfo [default: this one's]."),
    ] = None,
    json: Json = False,
) -> None:
    """Insert quantize/dequantize pairs the way a runtime likes them, and check the result.

    Example: pydeploy quantize model.onnx --ranges ranges.json --style openvino --out model.int8.onnx
    """
    from dataclasses import asdict

    from pydeploy.cli.console import show_json, show_table
    from pydeploy.quant.lint import lint as check
    from pydeploy.quant.observe import Ranges
    from pydeploy.quant.qdq import quantize as insert
    from pydeploy.quant.styles import processor as known
    from pydeploy.quant.styles import style_for

    target = None if processor is None else known(style, processor)
    done = insert(model, Ranges.load(ranges), out, style=style_for(style), target=target, exclude=exclude or [],
                  min_channels=min_channels, float_ends=float_ends or [])  # fmt: skip
    findings = check(out, done.style)
    if json:
        show_json({**asdict(done), "findings": [asdict(finding) for finding in findings]})
        return
    bits = "" if done.weight_top == 127 else ", weights of 7 bits, as its sums of products saturate at 16"
    sys.stdout.write(f"{out}: {len(done.quantized)} layers int8, {len(done.skipped)} in float{bits}\n")
    if done.skipped:
        show_table(("layer in float", "because"), list(done.skipped.items()))
    _show_findings(findings)


def half(
    model: Annotated[Path, typer.Argument(help="ONNX file, float or with Q/DQ.")],
    out: Annotated[Path, typer.Option(help="ONNX file in half precision.")],
    dtype: Annotated[str, typer.Option(help="float16 or bfloat16.")] = "float16",
    half_io: Annotated[bool, typer.Option("--half-io", help="Inputs and outputs become half as well.")] = False,
    keep: Annotated[Optional[list[str]], typer.Option(help="Nodes that stay float32 (pattern with *); repeat.")] = None,
    data: Annotated[Optional[Path], typer.Option(help="Calibration manifest, to find what overflows float16.")] = None,
    config: Annotated[
        Optional[Path], typer.Option(help="Config whose task gives the samples; without --data, of its own manifest.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a typed half-precision model; what would overflow float16 on the calibration images stays float32.

    Example: pydeploy half model.onnx --data calib/fashion_mnist.yaml --out model.fp16.onnx
    """
    from dataclasses import asdict

    from pydeploy.cli.console import show_json, show_table
    from pydeploy.onnxfile.half import half_type
    from pydeploy.quant.half import to_half

    batches = _calibration_batches(model, data, config) if data or config else []
    done = to_half(model, out, dtype=half_type(dtype), keep_io=not half_io, batches=batches, keep=keep or [])
    if json:
        show_json(asdict(done))
        return
    checked = f"{done.samples} samples checked for overflow" if done.samples else "overflow checked on weights only"
    sys.stdout.write(f"{out}: {len(done.converted)} nodes {done.dtype}, {len(done.kept)} float32; {checked}\n")
    if done.kept:
        show_table(("node in float32", "because"), list(done.kept.items()))


def _calibration_batches(model: Path, data: Path | None, config: Path | None) -> Iterable[Feeds]:
    from pydeploy.cli.engine_verbs import batch_of, input_of
    from pydeploy.data.manifest import load_manifest
    from pydeploy.errors import ConfigError
    from pydeploy.run.config import load
    from pydeploy.run.job import calibration_of, open_task
    from pydeploy.tasks import samples

    batch, settings = batch_of(model), None if config is None else load(config)
    manifest = None if settings is None else calibration_of(settings)
    manifest = manifest if data is None else load_manifest(data)
    if manifest is None:
        raise ConfigError(f"{config} names no calibration samples (section 'quantize'); give --data")
    if settings is not None:
        return samples.exact_batches(samples.calibration_batches(open_task(settings), manifest), batch)
    name = input_of(model, quantized=True)
    return samples.exact_batches(({name: part} for part in samples.manifest_batches(manifest, batch=batch)), batch)


def lint(
    model: Annotated[Path, typer.Argument(help="ONNX file with Q/DQ, from here or elsewhere.")],
    style: Annotated[str, typer.Option(help=STYLE_HELP)] = "tensorrt",
    json: Json = False,
) -> None:
    """Check a Q/DQ file without a GPU: what TensorRT's parser refuses, and pairs that cost speed. Exit code 1 on errors.

    Example: pydeploy lint model.int8.onnx
    """
    from dataclasses import asdict

    from pydeploy.cli.console import show_json
    from pydeploy.quant.lint import lint as check
    from pydeploy.quant.styles import style_for

    findings = check(model, style_for(style))
    if json:
        show_json([asdict(finding) for finding in findings])
    else:
        _show_findings(findings)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


def _show_findings(findings: Sequence[Finding]) -> None:
    from pydeploy.cli.console import show_table

    if findings:
        show_table(("", "layer", "finding"), [(finding.severity, finding.layer, finding.text) for finding in findings])
    else:
        sys.stdout.write("checked: no findings\n")
