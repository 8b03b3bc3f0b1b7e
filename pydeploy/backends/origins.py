"""Which ONNX nodes each layer of a built engine came from.

A runtime fuses nodes and names what results by its own rules; reading them back is done here, on names and the
source graph alone:

* a node of the engine that keeps a source node's name (perhaps with a decoration, see `_DECORATION`) is that node;
* one named after a tensor (ONNX Runtime's blocked-layout nodes are called ``<output tensor>_nchwc``) is the node
  that computes the tensor, or the nearest node before it that does the same operation and is not yet taken;
* a source node that no node of the engine claimed was fused into the one its last computed input came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import onnx

_DECORATION = re.compile(
    r"(_token_\d+|_nchwc|_qdq|_quant|_split|/duplicated|/MatMulAddFusion.*|/ConvAddFusion.*|_\d+)$"
)
_PREFIX = re.compile(r"^(fused |Fused)")
_SEARCH_DEPTH = 6


def node_name(node: onnx.NodeProto) -> str:
    """What a source node is called here: its name, or its first output where it has none."""
    return str(node.name or next(iter(node.output), ""))


def trace_origins(source: onnx.GraphProto, engine: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Source node names of each engine node, in source order.

    `engine` lists (name, operation) in execution order, names unique. Nodes that the runtime inserted
    (layout conversions) have no origin.
    """
    nodes = {node_name(node): node for node in source.node}
    producer = {output: node_name(node) for node in source.node for output in node.output}
    owner: dict[str, str] = {}
    pending = []
    for name, operation in engine:
        origin = _named_node(name, nodes)
        if origin is not None and origin not in owner:
            owner[origin] = name
        elif (tensor := _named_tensor(name, producer)) is not None:
            pending.append((name, operation, producer[tensor]))
    _claim_by_tensor(pending, nodes, producer, owner)
    _claim_fused(source, producer, owner)
    order = {name: index for index, name in enumerate(nodes)}
    found: dict[str, list[str]] = {name: [] for name, _ in engine}
    for origin in sorted(owner, key=order.__getitem__):
        found[owner[origin]].append(origin)
    return {name: tuple(origins) for name, origins in found.items()}


def _spellings(name: str) -> Iterator[str]:
    """`name`, then with its decorations taken off one by one."""
    yield name
    name = _PREFIX.sub("", name)
    yield name
    while (shorter := _DECORATION.sub("", name)) != name:
        name = shorter
        yield name


def _named_node(name: str, nodes: Mapping[str, onnx.NodeProto]) -> str | None:
    # A blocked-layout node is named after a tensor, and a tensor may be called like another node.
    if "_nchwc" in name:
        return None
    return next((spelling for spelling in _spellings(name) if spelling in nodes), None)


def _named_tensor(name: str, producer: Mapping[str, str]) -> str | None:
    return next((spelling for spelling in _spellings(name) if spelling in producer), None)


def _claim_by_tensor(
    pending: Sequence[tuple[str, str, str]],
    nodes: Mapping[str, onnx.NodeProto],
    producer: Mapping[str, str],
    owner: dict[str, str],
) -> None:
    """Give each pending engine node the nearest source node of its operation, nearest pairs first."""
    left = list(pending)
    for depth in range(_SEARCH_DEPTH + 1):
        rest = []
        for name, operation, start in left:
            reached = [origin for origin in _at_depth(start, depth, nodes, producer) if origin not in owner]
            origin = next((origin for origin in reached if _same(nodes[origin].op_type, operation)), None)
            if origin is None:
                rest.append((name, operation, start))
            else:
                owner[origin] = name
        left = rest


def _same(source: str, engine: str) -> bool:
    return engine.removeprefix("Fused").removeprefix("QLinear") == source


def _at_depth(start: str, depth: int, nodes: Mapping[str, onnx.NodeProto], producer: Mapping[str, str]) -> list[str]:
    front = [start]
    for _ in range(depth):
        front = [producer[value] for name in front for value in nodes[name].input if value in producer]
    return list(dict.fromkeys(front))


def _claim_fused(source: onnx.GraphProto, producer: Mapping[str, str], owner: dict[str, str]) -> None:
    """Count source nodes that vanished to the engine node in which their last computed input ended up."""
    order = {node_name(node): index for index, node in enumerate(source.node)}
    for node in source.node:
        name = node_name(node)
        if name in owner:
            continue
        before = [producer[value] for value in node.input if value in producer and producer[value] in owner]
        if before:
            owner[name] = owner[max(before, key=order.__getitem__)]
