"""A model at other widths, cut from its dense ONNX without torch: what latency probes are made of.

* A parameter that the graph's slices name keeps the entries of each group's first channels; so does the bias of
  the layer that owns a weight. A depthwise layer's ``group`` attribute follows.
* Constants that follow a channel axis (a scale per channel, a reshape's target) are cut where they are used; a
  constant used twice may so become two.
* Every node's shapes are inferred and checked on the way, so a contradiction is reported with the node's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference

from pydeploy.errors import Mismatch
from pydeploy.graph import Graph, Op, Widths
from pydeploy.latency.probes.constant_rules import Shape, Site, cut_constants

Kept = Mapping[tuple[str, int], NDArray[np.int64]]
"""Entries that stay, by (parameter, dim); dims that keep all their entries are absent."""

Tensors = dict[str, onnx.TensorProto]
"""The cut model's initializers by name."""


def resize(
    model: onnx.ModelProto, graph: Graph, widths: Widths, rng: np.random.Generator | None = None
) -> onnx.ModelProto:
    """A new model at `widths` (first channels of each group; groups not named stay dense); `model` is unchanged.

    Without `rng` the weights are the dense model's, cut. With it the layers' weights are drawn anew, scaled to their
    fan-in, so that activations neither vanish nor overflow however deep and thin the network is.
    Raises `Mismatch`, naming the node, when shapes contradict each other or the model lacks a layer of `graph`.
    """
    full = graph.at(widths)
    small = onnx.ModelProto()
    small.CopyFrom(model)
    _hoist_constants(small.graph)
    tensors = {tensor.name: tensor for tensor in small.graph.initializer}
    layers = list(_layers(small, graph))
    _require_dense(tensors, graph)
    kept = _kept(graph, full)
    done: set[str] = set()
    for node, op in layers:
        _cut_layer(node, op, tensors, kept, done, full, rng)
    _cut_parameters(graph, tensors, kept, done)
    _cut_uses(small, tensors, _dense_shapes(model))
    _store(small, tensors)
    return _checked(small)


def _require_dense(tensors: Tensors, graph: Graph) -> None:
    """Parameters may lie transposed in the file, but each has as many values as the graph says."""
    for name, shape in graph.params.items():
        dims = list(tensors[name].dims) if name in tensors else list(shape)
        if prod(dims) != prod(shape):
            raise Mismatch(
                f"'{name}' is {dims} in the ONNX model and {list(shape)} in the graph; take the graph of this very model"
            )


def _kept(graph: Graph, widths: Widths) -> Kept:
    removed: dict[tuple[str, int], list[NDArray[np.int64]]] = {}
    for group in graph.groups:
        gone = np.arange(widths[group.name], group.width, dtype=np.int64)
        for piece in group.slices if gone.size else ():
            removed.setdefault((piece.param, piece.dim), []).append(piece.entries(gone))
    return {
        (param, dim): np.setdiff1d(np.arange(graph.params[param][dim], dtype=np.int64), np.concatenate(gone))
        for (param, dim), gone in removed.items()
    }


def _hoist_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers, and initializers that are also inputs into plain initializers."""
    nodes = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            nodes.append(node)
        else:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
    names = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in names]
    _replace(graph.node, nodes)
    _replace(graph.input, inputs)
    del graph.value_info[:]


def _replace(field: Any, items: list[Any]) -> None:
    # Clearing a protobuf list frees its members, so copies go back in.
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)


def _layers(model: onnx.ModelProto, graph: Graph) -> Iterator[tuple[onnx.NodeProto, Op]]:
    nodes = {node.name: node for node in model.graph.node}
    for op in graph.ops:
        if op.name not in nodes:
            raise Mismatch(
                f"the ONNX model has no node named '{op.name}', which the graph lists as a {op.kind} layer: "
                "use the graph and the ONNX file of the same model, both written by pydeploy"
            )
        yield nodes[op.name], op


def _cut_layer(
    node: onnx.NodeProto, op: Op, tensors: Tensors, kept: Kept, done: set[str], widths: Widths,
    rng: np.random.Generator | None,
) -> None:  # fmt: skip
    """Cut a layer's weight and bias (once, where layers share them) and set its ``group`` attribute."""
    for attribute in node.attribute:
        if attribute.name == "group" and op.depthwise:
            attribute.i = op.cin.at(widths)
    weight = node.input[1]
    if weight not in tensors:
        raise Mismatch(f"node '{node.name}' computes its weight '{weight}'; probing needs it as an initializer")
    turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB"))
    rank = len(tensors[weight].dims)
    out_dim = 1 if node.op_type == "ConvTranspose" else 0
    if weight not in done:
        axes = {
            rank - 1 - dim if turned else dim: entries for (param, dim), entries in kept.items() if param == op.weight
        }
        cut = _taken(tensors[weight], axes, node.name)
        _set(tensors, weight, _drawn(cut, cut.size // max(1, op.cout.at(widths)), rng))
        done.add(weight)
    if len(node.input) > 2 and node.input[2] in tensors and node.input[2] not in done:
        entries = kept.get((op.weight, out_dim))
        _set(tensors, node.input[2], _taken(tensors[node.input[2]], {} if entries is None else {0: entries}, node.name))
        done.add(node.input[2])


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), 0)


def _taken(tensor: onnx.TensorProto, axes: Mapping[int, NDArray[np.int64]], where: str) -> NDArray[Any]:
    array = numpy_helper.to_array(tensor)
    for axis, entries in axes.items():
        if axis >= array.ndim or (entries.size and entries[-1] >= array.shape[axis]):
            raise Mismatch(
                f"node '{where}': '{tensor.name}' has shape {list(array.shape)}, too small for the graph's slice "
                f"of axis {axis} (entry {int(entries[-1])}): the graph belongs to another model"
            )
        array = np.take(array, entries, axis=axis)
    return array


def _set(tensors: Tensors, name: str, array: NDArray[Any]) -> None:
    tensors[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)


def _drawn(cut: NDArray[Any], fan_in: int, rng: np.random.Generator | None) -> NDArray[Any]:
    """`cut` itself, or uniform weights of He's variance 2 / fan_in (He et al. 2015) in its place."""
    if rng is None or not np.issubdtype(cut.dtype, np.floating):
        return cut
    limit = np.float32(np.sqrt(6.0 / max(1, fan_in)))
    return ((rng.random(cut.shape, dtype=np.float32) * 2 - 1) * limit).astype(cut.dtype)


def _cut_parameters(graph: Graph, tensors: Tensors, kept: Kept, done: set[str]) -> None:
    """Cut the other parameters that kept their name and shape in the file (unfused normalization and the like)."""
    for name in {param for param, _ in kept} - done:
        if name in tensors and tuple(tensors[name].dims) == graph.params[name]:
            axes = {dim: entries for (param, dim), entries in kept.items() if param == name}
            _set(tensors, name, _taken(tensors[name], axes, name))


def _cut_uses(model: onnx.ModelProto, tensors: Tensors, dense: Mapping[str, Shape]) -> None:
    """Walk the nodes in order: cut the constants that each one needs smaller, infer its outputs, check them."""
    types = {value.name: value.type for value in model.graph.input}
    types |= {name: _tensor_type(tensor) for name, tensor in tensors.items()}
    for node in model.graph.node:
        constants = [numpy_helper.to_array(tensors[name]) if name in tensors else None for name in node.input]
        site = Site(
            [dense.get(name) for name in node.input], [_shape(types.get(name)) for name in node.input], constants
        )
        for index, array in cut_constants(node.op_type, site).items():
            name = f"{node.input[index]}@{node.name or node.output[0]}"
            _set(tensors, name, array)
            types[name] = _tensor_type(tensors[name])
            node.input[index] = name
        types |= _inferred(model, node, types, tensors)
    for output in model.graph.output:
        if output.name in types:
            output.type.CopyFrom(types[output.name])


def _inferred(
    model: onnx.ModelProto, node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto], tensors: Tensors
) -> dict[str, onnx.TypeProto]:
    """Types of a node's outputs; empty where an input's type or the operator is unknown."""
    names = [name for name in node.input if name]
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if any(name not in types for name in names) or not onnx.defs.has(node.op_type, node.domain):
        return {}
    _check_channels(node, types)
    schema = onnx.defs.get_schema(node.op_type, versions[node.domain], node.domain)
    small = {name: tensors[name] for name in names if name in tensors and np.prod(tensors[name].dims) <= _DATA_LIMIT}
    try:
        return shape_inference.infer_node_outputs(
            schema, node, {name: types[name] for name in names}, small,
            opset_imports=list(model.opset_import), ir_version=model.ir_version,
        )  # fmt: skip
    except shape_inference.InferenceError as error:
        raise Mismatch(
            f"{_where(node)}: its input shapes contradict each other at these widths ({_first(error)})"
        ) from None


_DATA_LIMIT = 1024
"""Only shapes, sizes and the like steer shape inference; they are far shorter than this."""


def _check_channels(node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto]) -> None:
    """ONNX's own inference does not compare a convolution's channels with its weight's."""
    if node.op_type not in ("Conv", "ConvTranspose"):
        return
    data, weight = _shape(types[node.input[0]]), _shape(types[node.input[1]])
    if data is None or weight is None:
        return
    groups = _attribute(node, "group") or 1
    expected = weight[1] * groups if node.op_type == "Conv" else weight[0]
    made = weight[0] if node.op_type == "Conv" else weight[1] * groups
    bias = _shape(types[node.input[2]]) if len(node.input) > 2 and node.input[2] else (made,)
    if data[1] != expected or made % groups or bias != (made,):
        raise Mismatch(
            f"{_where(node)}: its input has {data[1]} channels, its weight {list(weight)} with group={groups} "
            f"takes {expected} and its bias is {list(bias or ())}; the graph does not describe this model"
        )


def _where(node: onnx.NodeProto) -> str:
    return f"node '{node.name or node.output[0]}' ({node.op_type})"


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _tensor_type(tensor: onnx.TensorProto) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))


def _shape(kind: onnx.TypeProto | None) -> Shape | None:
    """Static shape, or None where a dimension is unknown."""
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None


def _dense_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {value.name: shape for value in values if (shape := _shape(value.type)) is not None}
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def _store(model: onnx.ModelProto, tensors: Tensors) -> None:
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    kept = [tensor for name, tensor in tensors.items() if name in used]
    _replace(model.graph.initializer, kept)


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise Mismatch(f"the model is not valid at these widths: {_first(error)}") from None
    return model
