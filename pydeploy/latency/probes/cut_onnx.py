"""A model at other widths, cut from its dense ONNX without torch: what latency probes are made of.

* A parameter that the graph's slices name keeps the entries of each group's first channels. A depthwise layer's ``group``
  attribute follows.
* What stays of every other tensor follows from that, node by node (`kept_axes`). Constants that lie along a cut axis (a
  bias, a scale per channel, a reshape's target) are cut where they are used; a constant used twice may so become two.
* Every node's shapes are inferred and checked on the way, so a contradiction is reported with the node's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference

from pydeploy.errors import Mismatch
from pydeploy.graph import Graph, Op, Widths
from pydeploy.latency.probes.kept_axes import follow
from pydeploy.latency.probes.node_shapes import NodeShapes, Tensors, fold
from pydeploy.latency.probes.sites import ALL, Cut, Kept, Site, Tangled, taken

Entries = Mapping[tuple[str, int], NDArray[np.bool_]]
"""Whether each entry stays, by (parameter, dim); dims that keep all their entries are absent."""


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
    parameters = {piece.param for group in graph.groups for piece in group.slices} | {op.weight for op in graph.ops}
    sites = _sites(small, fold(small, tensors, parameters))
    layers = list(_layers(small, graph))
    _require_dense(tensors, graph)
    entries = _entries(graph, full)
    kept: dict[str, Kept] = {}
    for node, op in layers:
        _cut_layer(node, op, tensors, entries, kept, full, rng)
    _cut_parameters(graph, tensors, entries, kept)
    cuts = _stays(sites, small, kept)
    for node, cut in zip(small.graph.node, cuts, strict=True):
        _cut_node(node, cut, tensors)
    _check(small, tensors)
    _store(small, tensors)
    return _checked(small)


def _require_dense(tensors: Tensors, graph: Graph) -> None:
    """Parameters may lie transposed in the file, but each has as many values as the graph says."""
    for name in dict.fromkeys(piece.param for group in graph.prunable for piece in group.slices):
        shape = graph.params[name]
        dims = list(tensors[name].dims) if name in tensors else list(shape)
        if prod(dims) != prod(shape):
            raise Mismatch(
                f"'{name}' is {dims} in the ONNX model and {list(shape)} in the graph; take the graph of this very model"
            )


def _entries(graph: Graph, widths: Widths) -> Entries:
    stays: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for group in graph.groups:
        gone = np.arange(widths[group.name], group.width, dtype=np.int64)
        for piece in group.slices if gone.size else ():
            size = graph.params[piece.param][piece.dim]
            stays.setdefault((piece.param, piece.dim), np.ones(size, dtype=np.bool_))[piece.entries(gone)] = False
    return stays


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
    """Nodes of the graph's layers. Of layers that share a weight the file may hold fewer: one product for query, key and value."""
    nodes = {node.name: node for node in model.graph.node}
    found = {op.weight for op in graph.ops if op.name in nodes}
    for op in graph.ops:
        if op.name in nodes:
            yield nodes[op.name], op
        elif op.weight not in found:
            raise Mismatch(
                f"the ONNX model has no node named '{op.name}', which the graph lists as a {op.kind} layer: "
                "use the graph and the ONNX file of the same model, both written by pydeploy"
            )


def _cut_layer(
    node: onnx.NodeProto, op: Op, tensors: Tensors, entries: Entries, kept: dict[str, Kept], widths: Widths,
    rng: np.random.Generator | None,
) -> None:  # fmt: skip
    """Cut a layer's weight (once, where layers share it) and set its ``group`` attribute. A weight that the file computes from a
    parameter follows from that.
    """
    for attribute in node.attribute:
        if attribute.name == "group" and op.depthwise:
            attribute.i = op.cin.at(widths)
    weight = node.input[1]
    if weight not in tensors or weight in kept:
        return
    turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB"))
    rank = len(tensors[weight].dims)
    kept[weight] = {
        rank - 1 - dim if turned else dim: which for (param, dim), which in entries.items() if param == op.weight
    }
    cut = _taken(tensors[weight], kept[weight], node.name)
    _set(tensors, weight, _drawn(cut, cut.size // max(1, op.cout.at(widths)), rng))


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), 0)


def _taken(tensor: onnx.TensorProto, kept: Kept, where: str) -> NDArray[Any]:
    array = numpy_helper.to_array(tensor)
    for axis, which in kept.items():
        if axis >= array.ndim or len(which) != array.shape[axis]:
            raise Mismatch(
                f"node '{where}': '{tensor.name}' has shape {list(array.shape)}, the graph cuts {len(which)} entries of "
                f"axis {axis}: the graph belongs to another model"
            )
    return taken(array, kept)


def _set(tensors: Tensors, name: str, array: NDArray[Any]) -> None:
    tensors[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)


def _drawn(cut: NDArray[Any], fan_in: int, rng: np.random.Generator | None) -> NDArray[Any]:
    """`cut` itself, or uniform weights of He's variance 2 / fan_in (He et al. 2015) in its place."""
    if rng is None or not np.issubdtype(cut.dtype, np.floating):
        return cut
    limit = np.float32(np.sqrt(6.0 / max(1, fan_in)))
    return ((rng.random(cut.shape, dtype=np.float32) * 2 - 1) * limit).astype(cut.dtype)


def _cut_parameters(graph: Graph, tensors: Tensors, entries: Entries, kept: dict[str, Kept]) -> None:
    """Cut the other parameters that kept their name and shape in the file (unfused normalization and the like)."""
    for name in dict.fromkeys(param for param, _ in entries):
        if name in tensors and name not in kept and tuple(tensors[name].dims) == graph.params[name]:
            kept[name] = {dim: which for (param, dim), which in entries.items() if param == name}
            _set(tensors, name, _taken(tensors[name], kept[name], name))


def _sites(model: onnx.ModelProto, dense: NodeShapes) -> list[Site]:
    """Every node of the dense model, before anything is cut."""
    return [
        Site(
            node.op_type,
            [dense.shape(name) for name in node.input],
            [dense.shape(name) for name in node.output],
            [numpy_helper.to_array(dense.tensors[name]) if name in dense.tensors else None for name in node.input],
            [],
            {attribute.name: _value(attribute) for attribute in node.attribute},
            values=[dense.value(name) for name in node.input],
        )
        for node in model.graph.node
    ]


def _value(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def _stays(sites: Sequence[Site], model: onnx.ModelProto, parameters: Mapping[str, Kept]) -> list[Cut]:
    """What follows from the cut `parameters` at every node. Values that only their readers can size, such as zeros, are found by
    going through the nodes again until nothing new is wanted.
    """
    wanted: dict[str, Kept] = {}
    while True:
        kept = dict(parameters)
        cuts = []
        asked: dict[str, Kept] = {}
        for node, site in zip(model.graph.node, sites, strict=True):
            here = replace(
                site, kept=[kept.get(name, ALL) for name in node.input], wanted=wanted.get(node.output[0], ALL)
            )
            try:
                cut = follow(here)
            except Tangled:
                text = "no axes hold what stays of its input; the graph does not describe this model"
                raise Mismatch(f"{_where(node)}: {text}") from None
            kept |= {name: found for name, found in zip(node.output, cut.kept, strict=True) if found}
            asked |= {node.input[index]: need for index, need in cut.wanted.items() if node.input[index] not in wanted}
            cuts.append(cut)
        if not asked:
            return cuts
        wanted |= asked


def _cut_node(node: onnx.NodeProto, cut: Cut, tensors: Tensors) -> None:
    for index, array in cut.constants.items():
        name = f"{node.input[index]}@{node.name or node.output[0]}"
        _set(tensors, name, array)
        node.input[index] = name
    for attribute in node.attribute:
        if attribute.name in cut.attributes:
            attribute.CopyFrom(onnx.helper.make_attribute(attribute.name, cut.attributes[attribute.name]))


def _check(model: onnx.ModelProto, tensors: Tensors) -> None:
    """Infer the shapes of the cut model node by node, so that a contradiction is reported with the node's name."""
    shapes = NodeShapes(model, tensors)
    for node in model.graph.node:
        _check_channels(node, shapes)
        try:
            shapes.step(node)
        except shape_inference.InferenceError as error:
            raise Mismatch(
                f"{_where(node)}: its input shapes contradict each other at these widths ({_first(error)})"
            ) from None
    for output in model.graph.output:
        if output.name in shapes.types:
            output.type.CopyFrom(shapes.types[output.name])


def _check_channels(node: onnx.NodeProto, shapes: NodeShapes) -> None:
    """ONNX's own inference does not compare a convolution's channels with its weight's."""
    if node.op_type not in ("Conv", "ConvTranspose"):
        return
    data, weight = shapes.shape(node.input[0]), shapes.shape(node.input[1])
    if data is None or weight is None:
        return
    groups = _attribute(node, "group") or 1
    expected = weight[1] * groups if node.op_type == "Conv" else weight[0]
    made = weight[0] if node.op_type == "Conv" else weight[1] * groups
    bias = shapes.shape(node.input[2]) if len(node.input) > 2 and node.input[2] else (made,)
    if data[1] != expected or made % groups or bias != (made,):
        raise Mismatch(
            f"{_where(node)}: its input has {data[1]} channels, its weight {list(weight)} with group={groups} "
            f"takes {expected} and its bias is {list(bias or ())}; the graph does not describe this model"
        )


def _where(node: onnx.NodeProto) -> str:
    return f"node '{node.name or node.output[0]}' ({node.op_type})"


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


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
