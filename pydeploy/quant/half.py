"""Typed half-precision models: every tensor that may be is float16 or bfloat16, written down in the ONNX file.

* A layer's type is what its ONNX definition allows; what has no half form stays float32 between two Casts. Arguments
  that are float32 by definition (the scales of Resize) stay so. Inputs and outputs stay float32 on request.
* float16 ends at 65504. Layers whose values come near it on the calibration set, or whose sum does before it is
  divided (spatial means), stay float32. bfloat16 has the range of float32 and needs no such set.
* Q/DQ models become typed ones: half scales (so that what is not int8 runs in half), opset 19 or later. A pair that only
  float32 layers read keeps float32 scales. Scales below 2^-20 are raised to it: float16 would round them badly, or to 0.
* Q/DQ in float16 need opset 19, convolutions in bfloat16 opset 22: older models are converted.

Sources: IEEE 754-2008; Micikevicius et al., "Mixed precision training", arXiv 1710.03740; ONNX operator definitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pydeploy.backends.base import Feeds
from pydeploy.errors import ConfigError, DataError, nearest
from pydeploy.files import replacing
from pydeploy.onnxfile.control_flow import enclose, release
from pydeploy.onnxfile.load import Loaded, opset_of, read_model
from pydeploy.onnxfile.prepare import export_graph, prepare
from pydeploy.quant.retype import PAIRS, Converter, element_types, node_name
from pydeploy.quant.tapped import count_samples

HalfType = Literal["float16", "bfloat16"]
_TYPES: Mapping[str, int] = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
LARGEST = 65504.0
"""The largest finite float16."""
MARGIN = 2.0
"""Layers stay float32 where values come within this factor of `LARGEST`: other samples may reach further."""
_SUMS = frozenset({"ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "GlobalAveragePool", "AveragePool"})


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
    are checked. `keep` names nodes that stay float32. ``keep_io=False`` makes inputs and outputs half as well.
    Raises `DataError` for a model that cannot be converted, `ConfigError` for an unknown type or node name.
    """
    half_type(dtype)
    source = read_model(Path(onnx_path))
    _check_convertible(source.model, Path(onnx_path))
    model = _float_model(source, dtype, Path(onnx_path))
    known = [node_name(node) for node in model.graph.node]
    for name in keep:
        if name not in known:
            raise ConfigError(f"cannot keep '{name}' in float32: the model has no such node{nearest(name, known)}")
    largest, samples = _largest(model, batches, Path(onnx_path)) if dtype == "float16" else ({}, 0)
    reasons = dict.fromkeys(keep, "kept by name") | (_overflowing(model, largest) if dtype == "float16" else {})
    enclose(model)
    converter = Converter(model, _TYPES[dtype], keep_io, reasons)
    converter.convert()
    release(model)
    onnx.checker.check_model(model, full_check=True)
    with replacing(Path(out)) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))
    return HalfReport(dtype, tuple(converter.converted), converter.kept, samples)


def half_type(name: str) -> HalfType:
    """The half-precision type of that name; raises `ConfigError` for an unknown one."""
    if name not in _TYPES:
        raise ConfigError(f"unknown half-precision type '{name}'{nearest(name, _TYPES)}")
    return "float16" if name == "float16" else "bfloat16"


def _check_convertible(model: onnx.ModelProto, path: Path) -> None:
    if any(tensor.data_type in _TYPES.values() for tensor in model.graph.initializer):
        raise DataError(f"{path} is in half precision already; start from the float32 model")


def _float_model(source: Loaded, dtype: str, path: Path) -> onnx.ModelProto:
    """A copy to edit: normalized where it is a float model, and of an opset that has the type."""
    quantized = any(node.op_type in PAIRS for node in source.model.graph.node)
    if quantized:
        model = source.whole()
    else:
        model = export_graph(prepare(source).cleanup(remove_unused_graph_inputs=False))
        model.ir_version = source.model.ir_version
        model.metadata_props.extend(source.model.metadata_props)
    wanted = 22 if dtype == "bfloat16" else 19 if quantized else 13
    if opset_of(model) < wanted:
        try:
            model = onnx.version_converter.convert_version(model, wanted)
        except Exception as error:  # the converter raises bare RuntimeErrors
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"{path} has opset {source.opset}, {dtype} needs {wanted} here and the conversion fails ({reason}); "
                f"export with opset {wanted} or later"
            ) from None
    model.ir_version = max(model.ir_version, 10 if wanted == 22 else 9 if wanted == 19 else 7)
    return onnx.shape_inference.infer_shapes(model)


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


def _overflowing(model: onnx.ModelProto, largest: Mapping[str, float]) -> dict[str, str]:
    """Nodes whose values, weights or sums come near the end of float16, with the fact."""
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in [*model.graph.input, *model.graph.value_info, *model.graph.output]
    }
    weights = {
        t.name: float(np.abs(numpy_helper.to_array(t)).max(initial=0.0))
        for t in model.graph.initializer
        if t.data_type == TensorProto.FLOAT
    }
    tops, limit = {**weights, **largest}, LARGEST / MARGIN
    found: dict[str, str] = {}
    for node in model.graph.node:
        widest = max([*node.input, *node.output], key=lambda tensor: tops.get(tensor, 0.0))
        if tops.get(widest, 0.0) > limit:
            found[node_name(node)] = f"'{widest}' reaches {tops[widest]:.3g}, float16 ends at {LARGEST:g}"
        elif node.op_type in _SUMS:
            count = prod(shapes.get(node.input[0], [])) // max(1, prod(shapes.get(node.output[0], [])))
            top = tops.get(node.input[0], 0.0)
            total = count * (top * top if node.op_type in ("ReduceL2", "ReduceSumSquare") else top)
            if total > limit:
                found[node_name(node)] = (
                    f"a sum of {count} values up to {top:.3g} may reach {total:.3g}, float16 ends at {LARGEST:g}"
                )
    return found
