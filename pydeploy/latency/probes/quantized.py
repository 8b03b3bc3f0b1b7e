"""Int8 where only latency counts: models calibrated on random inputs; all probes get the dense model's ranges.

Latency does not depend on the ranges' values, only on where Q/DQ pairs lie, and that is the same at all widths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from pydeploy.backends.base import Backend
from pydeploy.files import sha256
from pydeploy.onnxfile.read import input_specs
from pydeploy.profiling.profile import random_feeds
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.observe import Ranges
from pydeploy.quant.qdq import quantize


def needs_pairs(backend: Backend) -> bool:
    """Whether a float model must get Q/DQ pairs first: int8, unless the backend has ranges of its own (`implicit`)."""
    return backend.precision == "int8" and not backend.implicit


def random_ranges(path: Path, style: str, threads: int = 0) -> Ranges:
    """Ranges of a float model for an int8 file of that style, from one batch of random inputs."""
    feeds = random_feeds(input_specs(onnx.load(path), path))
    return calibrate(path, [feeds], observer="minmax", style=style, threads=threads, few=0)


def int8_transform(
    dense: Path, style: str, folder: Path, threads: int = 0, *, exclude: Sequence[str] = ()
) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """A function that turns a float probe into an int8 file of that style; `folder` holds files in between.

    `exclude` names layers that stay float, as in `quantize`.
    """
    ranges = random_ranges(dense, style, threads)
    source, result = folder / "float.onnx", folder / "int8.onnx"

    def transform(model: onnx.ModelProto) -> onnx.ModelProto:
        onnx.save(model, source)
        quantize(source, replace(ranges, model=sha256(source), means={}), result, style=style, exclude=exclude)
        return onnx.load(result)

    return transform
