"""Float ONNX models as quantization edits and writes them.

`prepare` normalizes what exporters write in several ways: constants are folded into initializers, nodes that change nothing
are gone, batch normalization is part of the layer before it, spatial means are GlobalAveragePool. Values stay the same
up to rounding of float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from pydeploy.files import replacing
from pydeploy.onnxfile.control_flow import enclose, release
from pydeploy.onnxfile.fold_constants import fold_constants
from pydeploy.onnxfile.load import Loaded
from pydeploy.onnxfile.nodes import channel_axis, label


def export_graph(graph: gs.Graph) -> onnx.ModelProto:
    """An edited graph as a model, control flow put back."""
    model: onnx.ModelProto = gs.export_onnx(graph)
    release(model)
    return model


def save_graph(graph: gs.Graph, source: onnx.ModelProto, out: Path) -> None:
    """Write an edited copy of `source`, checked, atomically; the same graph gives the same bytes."""
    graph.cleanup(remove_unused_graph_inputs=False)
    model = export_graph(graph)
    # graphsurgeon drops the metadata and, left alone, writes the newest IR version, which older runtimes refuse.
    model.ir_version = source.ir_version
    model.metadata_props.extend(source.metadata_props)
    onnx.checker.check_model(model)
    with replacing(Path(out)) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))


def import_graph(source: Loaded) -> gs.Graph:
    """An editable copy of a model with the shapes of its tensors; constants of nodes become initializers.

    Nodes with bodies are stand-ins (`pydeploy.onnxfile.control_flow`) until `export_graph`.
    """
    # Exporting a graph writes into the tensors that it was imported from; shape inference returns a copy.
    inferred = onnx.shape_inference.infer_shapes(source.model)
    enclose(inferred)
    graph = gs.import_onnx(inferred)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in source.model.graph.initializer}
    for name, tensor in graph.tensors().items():
        if name in source.weights:
            tensor.values = np.frombuffer(source.weights[name], "<f4").reshape(shapes[name])
    ends = {tensor.name for tensor in graph.outputs}
    for node in graph.nodes:
        if (
            node.op == "Constant"
            and isinstance(node.attrs.get("value"), gs.Constant)
            and node.outputs[0].name not in ends
        ):
            values = node.attrs["value"].values
            result = node.outputs[0]
            node.outputs = []
            result.to_constant(values)
    graph.nodes = [node for node in graph.nodes if node.outputs]
    return graph


def prepare(source: Loaded) -> gs.Graph:
    """An editable copy of a model: constants and batch normalization folded, spatial means as GlobalAveragePool."""
    graph = import_graph(source)
    fold_constants(graph)
    ends = {tensor.name for tensor in graph.outputs}
    nodes: list[gs.Node] = []
    for node in graph.nodes:
        if (_is_idle(node) and _bypass(node, ends)) or (node.op == "BatchNormalization" and _fold(node, ends)):
            continue
        nodes.append(node)
        if _is_spatial_mean(node):
            nodes.extend(_as_pooling(node))
    graph.nodes = nodes
    return graph


def _is_idle(node: gs.Node) -> bool:
    """Whether a node gives back what it takes."""
    if node.op == "Cast":
        given = node.inputs[0].dtype
        return given is not None and onnx.helper.np_dtype_to_tensor_dtype(np.dtype(given)) == node.attrs["to"]
    return node.op == "Identity" or (node.op == "Dropout" and len(node.inputs) < 3)


def _bypass(node: gs.Node, ends: set[str]) -> bool:
    """Let the readers of what a node gives read what it takes, and take it out; False where its output is needed."""
    data, result, others = node.inputs[0], node.outputs[0], node.outputs[1:]
    if result.name in ends or any(other.outputs or other.name in ends for other in others):
        return False
    for reader in list(result.outputs):
        reader.inputs = [data if given is result else given for given in reader.inputs]
    node.inputs, node.outputs = [], []
    return True


def _fold(norm: gs.Node, ends: set[str]) -> bool:
    """Make a batch normalization part of the layer before it, where only it reads that layer's output.

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
