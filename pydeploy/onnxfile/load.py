"""Whole ONNX models as quantization reads them: checked, with all their weights.

* Weights in other files (external data) are read in; results are one file. ONNX cannot hold more than 2 GB in one file.
* A model is known by `files_hash`: the file's bytes and those of its external data.
* Old and modular files are brought into one form: initializers are no inputs (IR version 3 lists them there), functions of
  the file's own are inlined, half-precision float models are float32 inside (`pydeploy.onnxfile.widen`).
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types
from onnx import inliner

from pydeploy.errors import DataError
from pydeploy.onnxfile.widen import is_half, widen

MIN_OPSET = 13
"""The first opset with scales per channel."""
LARGEST_BYTES = 2**31 - 1
"""What one ONNX file can hold."""
_SEPARATE = 4
"""The first IR version in which initializers need not be inputs."""
_LARGE = 1024
"""Values; tensors that decide shapes have fewer."""
_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
                        "ConvInteger", "MatMulInteger"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid ONNX file, its large weights apart: with them in it, every check and every edit would copy them."""

    model: onnx.ModelProto
    """All of it but the values of the tensors in `weights`."""
    weights: Mapping[str, bytes]
    """Values of large float32 initializers by name, as stored."""
    files: tuple[Path, ...]
    """The file, and those that hold external data."""

    @property
    def opset(self) -> int:
        return opset_of(self.model)

    def whole(self) -> onnx.ModelProto:
        """A copy that holds all weights."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in self.weights:
                tensor.raw_data = self.weights[tensor.name]
        return model


def read_model(path: Path) -> Loaded:
    """The valid ONNX model in `path` with all its weights; raises `DataError` for anything else."""
    path = Path(path)
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
        external = _external(model)
        _check_size(external, path)
        onnx.load_external_data_for_model(model, str(path.parent))
        for tensor in model.graph.initializer:
            tensor.ClearField("data_location")
        model = _modern(model)
        weights = _take_weights(model)
        _check(model, weights)
    except FileNotFoundError as error:
        missing = Path(error.filename or path)
        raise DataError(
            f"{missing} does not exist" + (f"; {path} keeps its weights there" if missing != path else "")
        ) from None
    except (OSError, DecodeError, onnx.checker.ValidationError, ValueError) as error:
        fact = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is not a valid ONNX file ({fact}); export the model again") from None
    return Loaded(model, weights, (path, *(path.parent / name for name in sorted(external))))


def _modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its own functions inlined and without initializers among its inputs."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) < len(model.graph.input):
        kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in inputs]
        del model.graph.input[:]
        model.graph.input.extend(kept)
    if model.ir_version < _SEPARATE:
        model.ir_version = max(_SEPARATE, _least_ir(model))
    return model


def _least_ir(model: onnx.ModelProto) -> int:
    """The IR version that came with the model's operator set."""
    own = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return int(onnx.helper.find_min_ir_version_for(own)) if own else _SEPARATE


def _take_weights(model: onnx.ModelProto) -> dict[str, bytes]:
    """Remove the values of large weights from `model` and return them; raises `ValueError` where some are missing."""
    found: dict[str, bytes] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) > _LARGE and tensor.HasField("raw_data"):
            values = tensor.raw_data
            if len(values) != 4 * np.prod(tensor.dims):
                raise ValueError(
                    f"weight '{tensor.name}' of shape {list(tensor.dims)} is stored in {len(values)} bytes"
                )
            found[tensor.name] = values
            tensor.ClearField("raw_data")
    return found


def _check(model: onnx.ModelProto, weights: Mapping[str, bytes]) -> None:
    """ONNX's own check; tensors whose values are in `weights` take part as empty ones."""
    stripped = [(tensor, list(tensor.dims)) for tensor in model.graph.initializer if tensor.name in weights]
    for tensor, _ in stripped:
        tensor.dims[:] = [0]
    try:
        onnx.checker.check_model(model)
    finally:
        for tensor, shape in stripped:
            tensor.dims[:] = shape


def read_float_model(path: Path) -> Loaded:
    """The model in `path`, half-precision values as float32 ones.

    Raises `DataError` unless it is valid, unquantized and of opset 13 or later.
    """
    loaded = read_model(path)
    if loaded.opset < MIN_OPSET:
        raise DataError(f"{path} has opset {loaded.opset}, int8 needs {MIN_OPSET} or later; export with a newer opset")
    for node in loaded.model.graph.node:
        if node.op_type in _QUANTIZED:
            raise DataError(f"{path} is already quantized ({node.op_type} '{node.name}'); start from the float model")
    if is_half(loaded.model):
        widen(loaded.model)
        return Loaded(loaded.model, {**loaded.weights, **_take_weights(loaded.model)}, loaded.files)
    return loaded


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operator set; 0 where the model uses none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _external(model: onnx.ModelProto) -> dict[str, list[onnx.TensorProto]]:
    """Weights that lie in other files, by file name."""
    found: dict[str, list[onnx.TensorProto]] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            found.setdefault(place, []).append(tensor)
    return found


def _check_size(external: Mapping[str, list[onnx.TensorProto]], path: Path) -> None:
    weights = [tensor for tensors in external.values() for tensor in tensors]
    outside = sum(int(np.prod(t.dims)) * onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize for t in weights)
    size = path.stat().st_size + outside  # the message's own ByteSize() takes as long as writing it
    if size > LARGEST_BYTES:
        raise DataError(
            f"{path} holds {size / 1e9:.1f} GB with its external data; models are quantized as "
            "one ONNX file, which holds at most 2.1 GB: split the network and quantize its parts"
        )


def files_hash(files: Sequence[Path]) -> str:
    """SHA-256 of a file; of several, that of theirs. It may run in a thread: it hardly ever holds Python's lock."""
    digests = [_digest(path) for path in files]
    return (
        digests[0].hex()
        if len(digests) == 1
        else hashlib.sha256("".join(d.hex() for d in digests).encode()).hexdigest()
    )


def _digest(path: Path) -> bytes:
    if not path.stat().st_size:
        return hashlib.sha256().digest()
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return hashlib.sha256(content).digest()
