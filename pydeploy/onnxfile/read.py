"""The ONNX file that an engine is built from: read and checked once, for every backend alike.

* Shapes are static and the first dimension of each input is the batch: a latency belongs to one shape. Where the
  backend can, that first dimension may be dynamic.
* Precision lives in the file: int8 means Q/DQ nodes, any other precision means none.
* Weights lie inside the file, so that one hash says all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types

from pydeploy.backends.base import TensorSpec
from pydeploy.errors import DataError

QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})


def read_onnx(path: Path, *, precision: str, batch: int, dynamic_batch: bool = False) -> onnx.ModelProto:
    """The model in `path`; raises `DataError` unless it can be built at `precision` and `batch`.

    With `dynamic_batch` the first dimension of an input may be dynamic.
    """
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
        _refuse_external(model, path)
        onnx.checker.check_model(model)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as error:
        raise DataError(f"{path} is not a valid ONNX file ({_first_line(error)}); export the model again") from None
    for spec in input_specs(with_batch(model, batch) if dynamic_batch else model, path):
        if not spec.shape or spec.shape[0] != batch:
            raise DataError(
                f"{path}: input '{spec.name}' has shape {list(spec.shape)}, the backend is set to batch {batch}; "
                "export the model at this batch size or open the backend with the file's"
            )
    check_precision(model, path, precision)
    return model


def load_whole(path: Path) -> onnx.ModelProto:
    """The model in `path` with the weights that lie in other files, unchecked; raises `DataError` where there is none."""
    try:
        return onnx.load(path, format="protobuf")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except Exception as error:  # protobuf's parse errors share no base with the file system's
        raise DataError(f"{path} is not a readable ONNX file ({error}); export the model again") from None


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy without weights in which dynamic first dimensions of the inputs are `batch`."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [
        type(value).FromString(value.SerializeToString()) for value in model.graph.input if value.name not in weights
    ]
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value:
            dims[0].dim_value = batch
    return onnx.helper.make_model(onnx.helper.make_graph([], model.graph.name, inputs, []))


def _refuse_external(model: onnx.ModelProto, path: Path) -> None:
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise DataError(
            f"{path} keeps its weights in a second file; build it with 'pydeploy build', which puts them inside"
        )


def check_precision(model: onnx.ModelProto, path: Path, precision: str) -> None:
    """Raise `DataError` unless the file has Q/DQ nodes for int8, and none for any other precision."""
    quantized = any(node.op_type in QDQ for node in model.graph.node)
    if precision == "int8" and not quantized:
        raise DataError(
            f"{path} holds no Q/DQ nodes, so it cannot be built as int8; run 'pydeploy quantize' on it first"
        )
    if precision != "int8" and quantized:
        raise DataError(
            f"{path} holds Q/DQ nodes, so it cannot be built as {precision}; "
            "build it as int8, or take the file from before quantization"
        )


def input_specs(model: onnx.ModelProto, path: Path) -> tuple[TensorSpec, ...]:
    """Name, dtype and shape of the inputs that a caller feeds; `DataError` where a shape is not static."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(tensor_spec(value, path) for value in model.graph.input if value.name not in weights)


def tensor_spec(value: onnx.ValueInfoProto, path: Path) -> TensorSpec:
    """The static type of one input or output of the file."""
    kind = value.type.tensor_type
    dims: Sequence[int | str] = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]
    static = tuple(d for d in dims if isinstance(d, int) and d > 0)
    if len(static) != len(dims) or not kind.HasField("shape"):
        shown = "[" + ", ".join(map(str, dims)) + "]"
        raise DataError(f"{path}: '{value.name}' has the dynamic shape {shown}; fix it with 'pydeploy build --shape'")
    return TensorSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, static)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
