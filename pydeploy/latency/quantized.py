"""Probes in int8: the dense model is calibrated once on random inputs, and every probe gets the same ranges.

Latency does not depend on the ranges' values, only on where Q/DQ pairs lie, and that is the same at all widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx

from pydeploy.backends.source import input_specs
from pydeploy.files import sha256
from pydeploy.profile import random_feeds
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.placement import STYLES
from pydeploy.quant.qdq import quantize


def int8_transform(
    dense: Path, backend: str, folder: Path, threads: int = 0
) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """A function that turns a float probe into the int8 file that a backend wants; `folder` holds files in between."""
    style = backend if backend in STYLES else "onnxruntime"
    feeds = random_feeds(input_specs(onnx.load(dense), dense))
    ranges = calibrate(dense, [feeds], observer="minmax", style=style, threads=threads)
    source, result = folder / "float.onnx", folder / "int8.onnx"

    def transform(model: onnx.ModelProto) -> onnx.ModelProto:
        onnx.save(model, source)
        quantize(source, replace(ranges, model=sha256(source)), result, style=style)
        return onnx.load(result)

    return transform
