"""Verbs that change or check the precision of an ONNX file: quantize, lint. None of them needs torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from pydeploy.quant.lint import Finding

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
STYLE_HELP = "onnxruntime, openvino or tensorrt (null: as tensorrt)."


def quantize(
    model: Annotated[Path, typer.Argument(help="ONNX file (float).")],
    ranges: Annotated[Path, typer.Option(help="Ranges file written by 'pydeploy calibrate'.")],
    out: Annotated[Path, typer.Option(help="ONNX file with Q/DQ.")],
    style: Annotated[str, typer.Option(help=STYLE_HELP)] = "onnxruntime",
    exclude: Annotated[Optional[list[str]], typer.Option(help="Layer that stays in float; repeat for several.")] = None,
    float_ends: Annotated[
        Optional[list[str]], typer.Option(help="first or last layer stays in float; repeatable.")
    ] = None,
    min_channels: Annotated[Optional[int], typer.Option(min=1, help="Fewer channels stay in float; 1 = none.")] = None,
    json: Json = False,
) -> None:
    """Insert quantize/dequantize pairs the way a runtime likes them, and check the result.

    Example: pydeploy quantize model.onnx --ranges ranges.json --style openvino --out model.int8.onnx
    """
    from dataclasses import asdict

    from pydeploy.cli.console import show_json, show_table
    from pydeploy.quant.lint import lint as check
    from pydeploy.quant.observe import Ranges
    from pydeploy.quant.placement import style_for
    from pydeploy.quant.qdq import quantize as insert

    done = insert(model, Ranges.load(ranges), out, style=style_for(style), exclude=exclude or [],
                  min_channels=min_channels, float_ends=float_ends or [])  # fmt: skip
    findings = check(out, done.style)
    if json:
        show_json({**asdict(done), "findings": [asdict(finding) for finding in findings]})
        return
    sys.stdout.write(f"{out}: {len(done.quantized)} layers int8, {len(done.skipped)} in float\n")
    if done.skipped:
        show_table(("layer in float", "because"), list(done.skipped.items()))
    _show_findings(findings)


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
    from pydeploy.quant.placement import style_for

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
