"""Float ONNX models as quantisation reads, edits and writes them.

* Weights in other files (external data) are read in; results are one file. ONNX cannot hold more than 2 GB in one file.
* A model is known by `files_hash`: the file's bytes and those of its external data.
* `prepare` normalises what exporters write in several ways: constants are initialisers, batch normalisation is part of
  the layer before it, spatial means are GlobalAveragePool. Values stay the same up to rounding of float32.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types

from pydeploy.errors import DataError
from pydeploy.files import replacing
from pydeploy.onnxfile.nodes import channel_axis, label

MIN_OPSET = 13
"""The first opset with scales per channel."""
LARGEST_BYTES = 2**31 - 1
"""What one ONNX file can hold."""
_LARGE = 1024
"""Values; tensors that decide shapes have fewer."""
_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
                        "ConvInteger", "MatMulInteger"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid ONNX file, its large weights apart: with them in it, every check and every edit would copy them."""

    model: onnx.ModelProto
    """All of it but the values of the tensors in `weights`."""
    weights: Mapping[str, bytes]
    """Values of large float32 initialisers by name, as stored."""
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
    """The model in `path`; raises `DataError` unless it is valid, unquantised and of opset 13 or later."""
    loaded = read_model(path)
    if loaded.opset < MIN_OPSET:
        raise DataError(f"{path} has opset {loaded.opset}, int8 needs {MIN_OPSET} or later; export with a newer opset")
    for node in loaded.model.graph.node:
        if node.op_type in _QUANTISED:
            raise DataError(f"{path} is already quantised ({node.op_type} '{node.name}'); start from the float model")
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
            f"{path} holds {size / 1e9:.1f} GB with its external data; models are quantised as "
            "one ONNX file, which holds at most 2.1 GB: split the network and quantise its parts"
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


def save_graph(graph: gs.Graph, source: onnx.ModelProto, out: Path) -> None:
    """Write an edited copy of `source`, checked, atomically; the same graph gives the same bytes."""
    graph.cleanup(remove_unused_graph_inputs=False)
    model = gs.export_onnx(graph)
    # graphsurgeon drops the metadata and, left alone, writes the newest IR version, which older runtimes refuse.
    model.ir_version = source.ir_version
    model.metadata_props.extend(source.metadata_props)
    onnx.checker.check_model(model)
    with replacing(Path(out)) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))


def import_graph(source: Loaded) -> gs.Graph:
    """An editable copy of a model with the shapes of its tensors; constants of nodes become initialisers."""
    # Exporting a graph writes into the tensors that it was imported from; shape inference returns a copy.
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(source.model))
    shapes = {tensor.name: tuple(tensor.dims) for tensor in source.model.graph.initializer}
    for name, tensor in graph.tensors().items():
        if name in source.weights:
            tensor.values = np.frombuffer(source.weights[name], "<f4").reshape(shapes[name])
    for node in graph.nodes:
        if node.op == "Constant" and isinstance(node.attrs.get("value"), gs.Constant):
            values = node.attrs["value"].values
            result = node.outputs[0]
            node.outputs = []
            result.to_constant(values)
    graph.nodes = [node for node in graph.nodes if node.outputs]
    return graph


def prepare(source: Loaded) -> gs.Graph:
    """An editable copy of a model: batch normalisation folded, spatial means as GlobalAveragePool."""
    graph = import_graph(source)
    ends = {tensor.name for tensor in graph.outputs}
    nodes: list[gs.Node] = []
    for node in graph.nodes:
        if node.op == "BatchNormalization" and _fold(node, ends):
            continue
        nodes.append(node)
        if _is_spatial_mean(node):
            nodes.extend(_as_pooling(node))
    graph.nodes = nodes
    return graph


def _fold(norm: gs.Node, ends: set[str]) -> bool:
    """Make a batch normalisation part of the layer before it, where only it reads that layer's output.

    Jacob et al., arXiv 1712.05877, section 3.2: ``w * gamma / sqrt(var + eps)``, bias likewise.
    """
    data = norm.inputs[0]
    layer = data.inputs[0] if len(data.inputs) == 1 else None
    stored = all(isinstance(tensor, gs.Constant) for tensor in norm.inputs[1:])
    if (
        layer is None
        or layer.op not in ("Conv", "ConvTranspose", "Gemm")
        or len(data.outputs) != 1
        or data.name in ends
    ):
        return False
    if not stored or len(norm.outputs) != 1 or not all(isinstance(t, gs.Constant) for t in layer.inputs[1:]):
        return False
    if any(layer.attrs.get(key, 1.0) != 1.0 for key in ("alpha", "beta")) or (
        layer.op == "ConvTranspose" and layer.attrs.get("group", 1) != 1
    ):
        return False
    gamma, beta, mean, variance = (tensor.values.astype(np.float64) for tensor in norm.inputs[1:])
    factor = gamma / np.sqrt(variance + norm.attrs.get("epsilon", 1e-5))
    weight, axis = layer.inputs[1].values, channel_axis(layer)
    bias = layer.inputs[2].values.astype(np.float64) if len(layer.inputs) > 2 else 0.0
    along = factor.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    name = label(layer)
    shared = f"_{name}" if len(layer.inputs[1].outputs) > 1 else ""
    folded = gs.Constant(layer.inputs[1].name + shared, (weight * along).astype(weight.dtype))
    shift = gs.Constant(f"{name}_folded_bias", ((bias - mean) * factor + beta).astype(weight.dtype))
    layer.inputs = [layer.inputs[0], folded, shift]
    result = norm.outputs[0]
    norm.inputs, norm.outputs = [], []
    layer.outputs = [result]
    return True


def _is_spatial_mean(node: gs.Node) -> bool:
    shape = node.inputs[0].shape if node.inputs else None
    if node.op != "ReduceMean" or shape is None or len(shape) != 4:
        return False
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
        axes = node.inputs[1].values.ravel().tolist()
    return axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]


def _as_pooling(node: gs.Node) -> list[gs.Node]:
    """Turn a mean over height and width into GlobalAveragePool; returns the Flatten that has to follow, if any."""
    keep = node.attrs.get("keepdims", 1)
    node.op, node.attrs, node.inputs = "GlobalAveragePool", {}, node.inputs[:1]
    if keep:
        return []
    result = node.outputs[0]
    pooled = gs.Variable(f"{result.name}_pooled", dtype=result.dtype)
    node.outputs = [pooled]
    return [gs.Node("Flatten", f"{label(node)}_flatten", {"axis": 1}, [pooled], [result])]
