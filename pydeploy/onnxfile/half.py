"""Half precision written down in an ONNX file: every tensor that may be is float16 or bfloat16.

* A layer's type is what its ONNX definition allows; what has no half form stays float32 between two Casts. Arguments
  that are float32 by definition (the scales of Resize) stay so. Inputs and outputs stay float32 on request.
* Q/DQ models become typed ones: half scales (so that what is not int8 runs in half), opset 19 or later. A pair that only
  float32 layers read keeps float32 scales. Scales below 2^-20 are raised to it: float16 would round them badly, or to 0.
* Q/DQ in float16 need opset 19, convolutions in bfloat16 opset 22: older models are converted.

Sources: IEEE 754-2008; Micikevicius et al., "Mixed precision training", arXiv 1710.03740; ONNX operator definitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from pydeploy.errors import ConfigError, DataError, nearest
from pydeploy.onnxfile.control_flow import enclose, release
from pydeploy.onnxfile.load import opset_of, read_model
from pydeploy.onnxfile.prepare import export_graph, prepare
from pydeploy.onnxfile.retype import PAIRS, Converter, node_name

HalfType = Literal["float16", "bfloat16"]
_TYPES: Mapping[str, int] = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
LARGEST = 65504.0
"""The largest finite float16."""
MARGIN = 2.0
"""Layers stay float32 where values come within this factor of `LARGEST`: other samples may reach further."""
_SUMS = frozenset({"ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "GlobalAveragePool", "AveragePool"})


NOT_HALF: Mapping[str, frozenset[str]] = {
    "float16": frozenset({"Celu"}),
    "bfloat16": frozenset({"Celu", "ConvTranspose", "HardSwish", "LpNormalization", "LpPool", "Mish"}),
}
"""Operators that NVIDIA's parser, or its builder, takes in float32 only (TensorRT for RTX 1.7, asked for every operator)."""


def half_type(name: str) -> HalfType:
    """The half-precision type of that name; raises `ConfigError` for an unknown one."""
    if name not in _TYPES:
        raise ConfigError(f"unknown half-precision type '{name}'{nearest(name, _TYPES)}")
    return "float16" if name == "float16" else "bfloat16"


def is_typed(model: onnx.ModelProto) -> bool:
    """Whether the file states half precision itself: some weight is stored in float16 or bfloat16."""
    return any(tensor.data_type in _TYPES.values() for tensor in model.graph.initializer)


def typed_copy(path: Path, precision: str) -> onnx.ModelProto:
    """The model in `path` with bfloat16 ("bf16") or float16 tensors, but float inputs and outputs; Q/DQ nodes stay.

    Weights beyond float16 stay float32. Raises `DataError` for a model that cannot be converted.
    """
    dtype: HalfType = "bfloat16" if precision == "bf16" else "float16"
    model = editable(path, dtype)
    write_types(model, dtype, keep_io=True, kept=reasons_to_keep(model, dtype, {}))
    return model


def editable(path: Path, dtype: HalfType) -> onnx.ModelProto:
    """A float32 copy of the model in `path`: normalized where it has no Q/DQ pairs, and of an opset that has the type.

    Raises `DataError` for a model that cannot be converted.
    """
    source = read_model(path)
    if is_typed(source.model):
        raise DataError(f"{path} is in half precision already; start from the float32 model")
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


def write_types(model: onnx.ModelProto, dtype: HalfType, *, keep_io: bool, kept: Mapping[str, str]) -> Converter:
    """Retype an `editable` model in place, all but the nodes `kept` (with reasons); the converter tells what was done."""
    enclose(model)
    converter = Converter(model, _TYPES[dtype], keep_io, dict(kept))
    converter.convert()
    release(model)
    onnx.checker.check_model(model, full_check=True)
    return converter


def reasons_to_keep(model: onnx.ModelProto, dtype: HalfType, largest: Mapping[str, float]) -> dict[str, str]:
    """Nodes that must stay float32, each with the reason; `largest` has the largest values of tensors, as far as known."""
    refused = {node_name(node): f"TensorRT has no {dtype} {node.op_type}"
               for node in model.graph.node if node.op_type in NOT_HALF[dtype]}  # fmt: skip
    return {**refused, **(overflowing(model, largest) if dtype == "float16" else {})}


def overflowing(model: onnx.ModelProto, largest: Mapping[str, float]) -> dict[str, str]:
    """Nodes whose values (`largest`, by tensor), weights or sums come near the end of float16, with the fact."""
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
