"""The ONNX file as it goes to TensorRT: read, checked, and with types written in where the version asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import onnx

from pydeploy.backends.tensorrt import compat
from pydeploy.onnxfile.half import is_typed, typed_copy
from pydeploy.onnxfile.read import read_onnx


@dataclass(frozen=True, slots=True)
class Source:
    """What is built: the model as it goes to TensorRT, and the file that it came from (for messages)."""

    path: Path
    model: onnx.ModelProto
    typed: bool
    """The file itself states half precision (fp16 or bf16 tensors)."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Full shape of every input whose batch dimension is dynamic."""


def read(trt: ModuleType, path: Path, precision: str, batch: int, *, implicit: bool = False) -> Source:
    """The file at `path` for an engine of that precision and batch; `implicit` int8 takes a float file.

    Raises `DataError` for a file that cannot be built so.
    """
    model = read_onnx(path, precision="implicit int8" if implicit else precision, batch=batch, dynamic_batch=True)
    typed = is_typed(model)
    source = Source(path, model, typed, dynamic_inputs(model, batch))
    wants_half = precision in ("fp16", "bf16", "int8") and not typed and not implicit
    if wants_half and compat.is_typed(compat.version(trt), typed_file=False):
        return replace(source, model=typed_copy(path, precision), typed=True)
    return source


def dynamic_inputs(model: onnx.ModelProto, batch: int) -> dict[str, tuple[int, ...]]:
    """Full shape at `batch` of every input whose first dimension is dynamic."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and dims and not dims[0].dim_value:
            found[value.name] = (batch, *(dim.dim_value for dim in dims[1:]))
    return found
