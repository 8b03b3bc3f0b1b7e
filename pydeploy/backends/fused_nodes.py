"""Which ONNX nodes each layer of a built engine came from.

A runtime fuses nodes and names what results by its own rules; reading them back is done here, on names and the
source graph alone, in this order:

* a node of the engine that keeps a source node's name, first bare, then with a decoration, is that node;
* one named after a tensor (ONNX Runtime calls its blocked-layout nodes ``<output tensor>_nchwc``) is the node that
  computes the tensor, or the nearest node before it that does the same operation and is not yet taken;
* a source node that is still unclaimed was fused into the engine node that computes the last of its inputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import onnx

_BLOCKED = "_nchwc"
_COPY = "/duplicated"  # ONNX Runtime repeats a cheap node rather than keep its result
_DECORATION = re.compile(rf"(_token_\d+|{_BLOCKED}|_bn|{_COPY}|/\w+Fusion/?|_\d+)$")
_SEARCH_DEPTH = 6  # convolution, normalization, activation and add lie closer together than this

Owner = dict[str, str]
"""The engine node that each source node ended up in."""


def node_name(node: onnx.NodeProto) -> str:
    """What a source node is called here: its name, or its first output where it has none."""
    return str(node.name or next(iter(node.output), ""))


def source_nodes(source: onnx.GraphProto, engine: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Source node names of each engine node, in source order.

    `engine` lists (name, operation) in execution order, names unique. Nodes that the runtime inserted
    (layout conversions) come from none.
    """
    nodes = {node_name(node): node for node in source.node}
    producer = {output: node_name(node) for node in source.node for output in node.output}
    owner = _claim_by_name([name for name, _ in engine], nodes)
    taken = set(owner.values())
    _claim_by_tensor([pair for pair in engine if pair[0] not in taken], nodes, producer, owner)
    _claim_fused(source, producer, owner, {name: index for index, (name, _) in enumerate(engine)})
    order = {name: index for index, name in enumerate(nodes)}
    found: dict[str, list[str]] = {name: [] for name, _ in engine}
    for node in sorted(owner, key=order.__getitem__):
        found[owner[node]].append(node)
    for name, fused in found.items():
        if not fused and name.endswith(_COPY) and name.removesuffix(_COPY) in nodes:
            fused.append(name.removesuffix(_COPY))
    return {name: tuple(fused) for name, fused in found.items()}


def _spellings(name: str) -> Iterator[str]:
    """`name` with its decorations taken off one by one."""
    name = name.removeprefix("fused ")
    yield name
    while (shorter := _DECORATION.sub("", name)) != name:
        name = shorter
        yield name


def _claim_by_name(engine: Sequence[str], nodes: Mapping[str, onnx.NodeProto]) -> Owner:
    owner = {name: name for name in engine if name in nodes}
    for name in engine:
        # Blocked-layout nodes are named after a tensor, and a tensor may be called like some other node.
        if name not in nodes and _BLOCKED not in name:
            node = next((spelling for spelling in _spellings(name) if spelling in nodes), None)
            if node is not None:
                owner.setdefault(node, name)
    return owner


def _claim_by_tensor(
    engine: Sequence[tuple[str, str]], nodes: Mapping[str, onnx.NodeProto], producer: Mapping[str, str], owner: Owner
) -> None:
    """Give each engine node named after a tensor the nearest free source node of its operation, nearest pairs first."""
    tensors = {name: next((s for s in _spellings(name) if s in producer), None) for name, _ in engine}
    left = [(name, operation, [producer[t]]) for name, operation in engine if (t := tensors[name]) is not None]
    for _ in range(_SEARCH_DEPTH):
        further = []
        for name, operation, front in left:
            node = next((o for o in front if o not in owner and _same(nodes[o].op_type, operation)), None)
            if node is not None:
                owner[node] = name
            else:
                before = [producer[value] for node in front for value in nodes[node].input if value in producer]
                further.append((name, operation, list(dict.fromkeys(before))))
        left = further


def _same(source: str, engine: str) -> bool:
    # In the blocked layout a lone normalization is computed as a convolution.
    return engine.removeprefix("Fused") == source or (source, engine) == ("BatchNormalization", "Conv")


def _claim_fused(source: onnx.GraphProto, producer: Mapping[str, str], owner: Owner, place: Mapping[str, int]) -> None:
    """Count vanished source nodes to the engine node that computes the last of their inputs; `place` orders those."""
    for node in source.node:
        before = [owner[producer[value]] for value in node.input if producer.get(value) in owner]
        if node_name(node) not in owner and before:
            owner[node_name(node)] = max(before, key=place.__getitem__)
