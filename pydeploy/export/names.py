"""Names in an exported file: inputs and outputs as asked for, parameters and layers as in the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import onnx

LAYER_NODES: Mapping[str, int] = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "DeformConv": 1}
"""Node types that implement a layer, and which of their inputs is the weight."""


def set_names(
    model: onnx.ModelProto,
    inputs: Sequence[str],
    outputs: Sequence[str],
    parameter_of: Mapping[str, str],
    own: Mapping[str, str],
) -> None:
    """Rename the graph's inputs and outputs in order, parameters to what the model calls them (`own`), and layers' nodes after
    their weights.

    A weight that was computed from a parameter (`parameter_of`) takes its name where it is free. An output that is an input, a
    parameter or a second name of another output gets a node of its own.
    """
    graph = model.graph
    _separate_outputs(graph)
    weights = [tensor.name for tensor in graph.initializer]
    new = dict(zip([value.name for value in graph.input], inputs, strict=True))
    new |= dict(zip([value.name for value in graph.output], outputs, strict=True))
    new |= {name: own[name] for name in weights if name in own}
    layers = {node.output[0]: own.get(parameter_of[weight], parameter_of[weight])
              for node in graph.node if (weight := _weight(node)) in parameter_of}  # fmt: skip
    taken = set(new.values())
    for node in graph.node:
        name, wanted = _weight(node), layers.get(node.output[0], "")
        if name not in new and name in weights and wanted and wanted not in taken:
            new[name] = wanted
            taken.add(wanted)
    inner = [name for part in _graphs(graph) for node in part.node for name in node.output if name]
    for name in [*weights, *inner]:
        if name not in new:
            fresh = name
            while fresh in taken:
                fresh += "_"
            new[name] = fresh
            taken.add(fresh)
    _name_layers(graph, layers)
    _rename(graph, new)


def _weight(node: onnx.NodeProto) -> str:
    """The input that is a layer's weight, if the node can be one."""
    slot = LAYER_NODES.get(node.op_type)
    return "" if slot is None or len(node.input) <= slot else str(node.input[slot])


def _name_layers(graph: onnx.GraphProto, layers: Mapping[str, str]) -> None:
    """Name nodes by the parameter that their weight is; `layers` has it by the node's first output."""
    seen: Counter[str] = Counter()
    for node in graph.node:
        if node.output[0] in layers:
            layer = layers[node.output[0]].removesuffix(".weight")
            seen[layer] += 1
            node.name = layer if seen[layer] == 1 else f"{layer}:{seen[layer]}"


def _separate_outputs(graph: onnx.GraphProto) -> None:
    taken = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for index, value in enumerate(graph.output):
        if value.name in taken:
            graph.node.append(onnx.helper.make_node("Identity", [value.name], [f"{value.name}/output_{index}"],
                                                    f"output_{index}"))  # fmt: skip
            value.name = f"{value.name}/output_{index}"
        taken.add(value.name)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _rename(graph: onnx.GraphProto, new: Mapping[str, str]) -> None:
    for part in _graphs(graph):
        for value in (*part.input, *part.output, *part.value_info, *part.initializer):
            value.name = new.get(value.name, value.name)
        for node in part.node:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]
