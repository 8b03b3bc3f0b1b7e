"""Control flow (If, Loop, Scan) while a graph is edited: such a node becomes one opaque node that reads what its bodies read.

Bodies read tensors of the graph around them by name, which editors of graphs do not see. `enclose` makes these reads inputs
of a stand-in that keeps the node in an attribute, so that nothing they need is removed, and what is put behind
a tensor reaches them; `release` puts the node back, its bodies reading by the names that the tensors have by then.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping

import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from pydeploy.onnxfile.nodes import WEIGHTED

STAND_IN = "ControlFlow"
DOMAIN = "pydeploy.control_flow"


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def captured(node: onnx.NodeProto) -> list[str]:
    """Tensors of the graph around it that a node's bodies read, each once, in order of reading."""
    found: dict[str, None] = {}
    for body in bodies(node):
        own = {tensor.name for tensor in body.initializer} | {value.name for value in body.input}
        for inner in body.node:
            found.update((name, None) for name in [*inner.input, *captured(inner)] if name and name not in own)
            own.update(inner.output)
        found.update((value.name, None) for value in body.output if value.name not in own)
    return list(found)


def enclose(model: onnx.ModelProto) -> None:
    """Put a stand-in in place of every node with bodies."""
    for node in model.graph.node:
        if any(True for _ in bodies(node)):
            kept = onnx.NodeProto()
            kept.CopyFrom(node)
            inside = [inner.name or inner.output[0] for body in bodies(node) for inner in _all_nodes(body)
                      if inner.op_type in WEIGHTED]  # fmt: skip
            node.input.extend(captured(node))
            del node.attribute[:]
            node.op_type, node.domain = STAND_IN, DOMAIN
            node.attribute.extend(
                [
                    helper.make_attribute("op", kept.op_type),
                    helper.make_attribute("node", base64.b64encode(kept.SerializeToString()).decode()),
                    helper.make_attribute("layers", "\n".join(inside)),
                ]
            )
    if any(node.domain == DOMAIN for node in model.graph.node):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def layers_inside(node: gs.Node) -> list[str]:
    """Names of the layers with weights in the bodies of a stand-in; none for any other node."""
    return str(node.attrs["layers"]).split("\n") if node.domain == DOMAIN and node.attrs["layers"] else []


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from _all_nodes(body)


def release(model: onnx.ModelProto) -> None:
    """Put the nodes back that `enclose` took away."""
    for node in model.graph.node:
        if node.domain == DOMAIN:
            attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            kept = onnx.NodeProto.FromString(base64.b64decode(attributes["node"]))
            count = len(kept.input)
            renamed = {old: new for old, new in zip(captured(kept), node.input[count:], strict=True) if old != new}
            if renamed:
                for body in bodies(kept):
                    _rename(body, renamed)
            kept.input[:], kept.output[:], kept.name = node.input[:count], node.output, node.name
            node.CopyFrom(kept)
    remaining = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    if len(remaining) < len(model.opset_import):
        kept_entries = [onnx.OperatorSetIdProto.FromString(entry.SerializeToString()) for entry in remaining]
        del model.opset_import[:]
        model.opset_import.extend(kept_entries)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Read tensors of the graph around this one by other names."""
    own = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    for node in graph.node:
        outer = {old: new for old, new in names.items() if old not in own}
        node.input[:] = [outer.get(name, name) for name in node.input]
        for body in bodies(node):
            _rename(body, outer)
        own.update(node.output)
    for value in graph.output:
        if value.name in names and value.name not in own:
            value.name = names[value.name]
