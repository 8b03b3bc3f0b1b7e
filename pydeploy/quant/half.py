"""Typed half-precision files of float and Q/DQ models, with what overflows float16 on the calibration set kept in float32.

float16 ends at 65504. Layers whose values come near it on the calibration set, or whose sum does before it is divided (spatial
means), stay float32. bfloat16 has the range of float32 and needs no such set. How types are written: `pydeploy.onnxfile.half`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from pydeploy.backends.base import Feeds
from pydeploy.errors import ConfigError, DataError, nearest
from pydeploy.files import replacing
from pydeploy.guests.patterns import meant, unknown
from pydeploy.onnxfile.half import HalfType, editable, half_type, reasons_to_keep, write_types
from pydeploy.onnxfile.retype import element_types, node_name
from pydeploy.quant.tapped import count_samples


@dataclass(frozen=True, slots=True)
class HalfReport:
    """What `to_half` did."""

    dtype: str
    converted: tuple[str, ...]
    """Nodes that compute in half precision, in graph order."""
    kept: dict[str, str]
    """Nodes that stay float32, each with the reason."""
    samples: int
    """How many calibration samples were run to find overflows."""


def to_half(
    onnx_path: Path,
    out: Path,
    *,
    dtype: HalfType = "float16",
    keep_io: bool = True,
    batches: Iterable[Feeds] = (),
    keep: Sequence[str] = (),
) -> HalfReport:
    """Write the half-precision form of a float or Q/DQ model to `out` and say what stays float32.

    `batches` are feeds of the calibration set, run in float32 to find what overflows float16; without any, only weights
    are checked. `keep` holds nodes that stay float32, names or patterns. ``keep_io=False`` makes inputs and outputs half as well.
    Raises `DataError` for a model that cannot be converted, `ConfigError` for an unknown type or node name.
    """
    half_type(dtype)
    model = editable(Path(onnx_path), dtype)
    known = [node_name(node) for node in model.graph.node]
    if (name := unknown(keep, known)) is not None:
        raise ConfigError(f"cannot keep '{name}' in float32: the model has no such node{nearest(name, known)}")
    largest, samples = _largest(model, batches, Path(onnx_path)) if dtype == "float16" else ({}, 0)
    reasons = dict.fromkeys(sorted(meant(keep, known)), "kept by name") | reasons_to_keep(model, dtype, largest)
    done = write_types(model, dtype, keep_io=keep_io, kept=reasons)
    with replacing(Path(out)) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))
    return HalfReport(dtype, tuple(done.converted), done.kept, samples)


def _largest(model: onnx.ModelProto, batches: Iterable[Feeds], source: Path) -> tuple[dict[str, float], int]:
    """Largest magnitude of every float tensor over the samples, and how many samples there were."""
    import onnxruntime as ort

    names = [name for name, kind in element_types(model).items() if kind == TensorProto.FLOAT]
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: _type_of(value) for value in model.graph.input if value.name not in weights}
    taps = [name for name in names if name not in inputs and name not in weights]
    found: dict[str, float] = {}
    session: Any = None
    samples = 0
    for feeds in batches:
        samples += count_samples(feeds, inputs, source)
        if session is None:
            tapped = onnx.ModelProto()
            tapped.CopyFrom(model)
            del tapped.graph.output[:]
            tapped.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in taps)
            options = ort.SessionOptions()
            options.log_severity_level = 3
            session = ort.InferenceSession(tapped.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = {**feeds, **dict(zip(taps, session.run(taps, dict(feeds)), strict=True))}
        for name, array in values.items():
            top = float(np.abs(array).max(initial=0.0))
            if not np.isfinite(top):
                raise DataError(f"tensor '{name}' holds NaN or infinity in float32; check the samples and the weights")
            found[name] = max(found.get(name, 0.0), top)
    return found, samples


def _type_of(value: onnx.ValueInfoProto) -> tuple[str, tuple[int | str, ...]]:
    """NumPy's name of an input's type, and its shape; open sizes by name."""
    kind = value.type.tensor_type
    dims = kind.shape.dim
    return helper.tensor_dtype_to_np_dtype(kind.elem_type).name, tuple(d.dim_value or d.dim_param for d in dims)
