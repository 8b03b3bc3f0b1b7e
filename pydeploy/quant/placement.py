"""Where a model is quantized: which layers, which tensors, and which tensors share one scale, per runtime.

Runtimes find int8 layers by patterns of Q/DQ pairs and run what does not match in float, silently.
What each one matches is `pydeploy.quant.styles`.

Common to all: no pair between a layer and its fused activation; one scale per tensor, however many layers read it; what
only moves or selects values (MaxPool, Reshape, ...) has the scale of its input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from pydeploy.errors import ConfigError, nearest
from pydeploy.guests.patterns import meant, unknown
from pydeploy.onnxfile.control_flow import layers_inside
from pydeploy.onnxfile.nodes import WEIGHTED, channels, label
from pydeploy.quant.styles import Style

_MOVES_VALUES = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice",
                           "Split", "DepthToSpace", "SpaceToDepth"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Placement:
    """What `plan` decided for one model."""

    nodes: tuple[gs.Node, ...]
    """Weighted layers to quantize, in graph order."""
    skipped: Mapping[str, str]
    """Weighted layers that stay in float, with the reason."""
    sources: Mapping[str, tuple[str, ...]]
    """Tensors that get a Q/DQ pair, in graph order, each with the tensors whose ranges its range is the union of."""
    joined: frozenset[str]
    """Tensors that a Concat reads or writes, directly or through what only moves values."""


def plan(
    graph: gs.Graph,
    style: Style,
    *,
    exclude: Sequence[str] = (),
    min_channels: int | None = None,
    float_ends: Sequence[str] = (),
) -> Placement:
    """Decide what is quantized; `graph` is not changed and its nodes must be in execution order.

    `float_ends` may hold 'first' and 'last': layers with weights that have none before or behind them stay in float.
    `exclude` holds names of layers or patterns (`pydeploy.guests.patterns`). Raises `ConfigError` where one of them means no layer of
    the model, or for an unknown end.
    """
    left = _excluded(graph, exclude)
    least = style.min_channels if min_channels is None else min_channels
    ends = frozenset(tensor.name for tensor in graph.outputs)
    kept = _kept_ends(graph, float_ends)
    nodes, skipped = [], {}
    for node in graph.nodes:
        if node.op in WEIGHTED:
            reason = "excluded by name" if label(node) in left else kept.get(id(node), "")
            reason = reason or _obstacle(node, style, least, ends)
            if reason:
                skipped[label(node)] = reason
            else:
                nodes.append(node)
        skipped.update(dict.fromkeys(layers_inside(node), f"it is inside of '{label(node)}', which is control flow"))
    carried = {node.inputs[0].name for node in nodes}
    if style.placement == "outputs-too":
        _carry_outputs(graph, style, {id(node) for node in nodes}, left, ends, carried)
    else:
        if style.add_inputs != "none":
            carried |= _add_inputs(graph, {id(node) for node in nodes}, both=style.add_inputs == "both")
        if style.moved_inputs:
            _carry_moved(graph, style, carried)
    sources = _sources(graph, style)
    order = [tensor.name for tensor in graph.inputs] + [t.name for node in graph.nodes for t in node.outputs]
    return Placement(tuple(nodes), skipped, {name: sources[name] for name in order if name in carried}, _joined(graph))


def _excluded(graph: gs.Graph, exclude: Sequence[str]) -> frozenset[str]:
    known = {name for node in graph.nodes for name in [label(node), *layers_inside(node)]}
    if (name := unknown(exclude, known)) is not None:
        layers = {label(node) for node in graph.nodes if node.op in WEIGHTED}
        raise ConfigError(f"cannot exclude '{name}': the model has no such layer{nearest(name, layers)}")
    return meant(exclude, known)


def excludable(graph: gs.Graph, style: Style) -> set[str]:
    """Names of the layers whose exclusion makes a difference to `plan`."""
    kernels = style.kernels if style.placement == "outputs-too" else frozenset()
    return {label(node) for node in graph.nodes if node.op in WEIGHTED | kernels}


def _kept_ends(graph: gs.Graph, float_ends: Sequence[str]) -> dict[int, str]:
    """By node id, why the first and last layers with weights stay in float, for the ends asked for."""
    if unknown := sorted(set(float_ends) - {"first", "last"}):
        raise ConfigError(f"unknown end '{unknown[0]}' of the network{nearest(unknown[0], ('first', 'last'))}")
    found: dict[int, str] = {}
    for end, nodes in (("first", graph.nodes), ("last", list(reversed(graph.nodes)))):
        behind: set[str] = set()  # tensors with a layer with weights between them and this end
        for node in nodes if end in float_ends else ():
            given = node.inputs if end == "first" else node.outputs
            reached = not behind.isdisjoint(tensor.name for tensor in given)
            if node.op in WEIGHTED and not reached:
                found[id(node)] = f"{end} layer with weights, kept in float by policy"
            if node.op in WEIGHTED or reached:
                behind.update(tensor.name for tensor in (node.outputs if end == "first" else node.inputs))
    return found


def _obstacle(node: gs.Node, style: Style, min_channels: int, ends: frozenset[str]) -> str:
    """Why this weighted layer cannot be an integer layer; '' where it can."""
    weight = node.inputs[1]
    if node.op not in style.weighted:
        return f"the runtime has no integer {node.op}"
    if isinstance(node.inputs[0], gs.Constant) or not isinstance(weight, gs.Constant):
        return "its weight is computed, not stored" if not isinstance(weight, gs.Constant) else "its input is constant"
    if weight.dtype != np.float32:
        return f"its weight is {np.dtype(weight.dtype).name}, expected float32"
    if node.op == "MatMul" and len(weight.shape) != 2:
        return f"its weight has {len(weight.shape)} dimensions, expected 2"
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    if node.op == "Gemm" and any(node.attrs.get(key, usual) != usual for key, usual in plain.items()):
        return "it scales or transposes its input"
    if max(channels(node)) < min_channels:
        return (
            f"{channels(node)[0]} input and {channels(node)[1]} output channels, fewer than min_channels={min_channels}"
        )
    if style.tensor_cores and min_channels > 1 and (reason := _awkward(node)):
        return reason
    if style.placement == "outputs-too" and node.op == "Conv" and _end(node, style, ends).name in ends:
        return "its output is an output of the model and must stay float"
    return ""


def _awkward(node: gs.Node) -> str:
    """Why integer tensor cores gain nothing on a convolution ('' = they do).

    The rule of NVIDIA's Model Optimizer (``find_nodes_from_convs_to_exclude``): what is neither wide nor a multiple of 8
    is padded, and depthwise kernels below 3x3 have no integer form.
    """
    if node.op != "Conv":
        return ""
    cin, cout = channels(node)
    groups, kernel = node.attrs.get("group", 1), node.inputs[1].shape[2:]
    if cout >= 16 and cin // groups >= 16:
        return ""
    if groups > 1:
        return (
            ""
            if cout % 8 == 0 and min(kernel) >= 3
            else f"{groups} groups, {cout} output channels, kernel {list(kernel)}: no integer kernel for tensor cores"
        )
    if cin % 8 and cout % 8:
        return f"{cin} input and {cout} output channels: neither is a multiple of 8"
    return "" if len(set(kernel)) == 1 else f"kernel {list(kernel)} is not square and it has fewer than 16 channels"


def _end(node: gs.Node, style: Style, ends: frozenset[str]) -> gs.Tensor:
    """The tensor behind the activations that are fused into `node`."""
    tensor = node.outputs[0]
    while tensor.name not in ends and len(tensor.outputs) == 1 and _fuses(tensor.outputs[0], style):
        tensor = tensor.outputs[0].outputs[0]
    return tensor


def _fuses(node: gs.Node, style: Style) -> bool:
    if node.op == "Clip" and style.placement == "outputs-too":
        # The grid of Q replaces the clipping only where it starts at the same value, which zero alone guarantees.
        low = node.inputs[1] if len(node.inputs) > 1 else None
        return "Clip" in style.fused and isinstance(low, gs.Constant) and float(np.min(low.values)) == 0.0
    return node.op in style.fused


def moves(node: gs.Node) -> bool:
    """Whether a node only moves or selects values of its first input, so that its output has the same scale."""
    return node.op in _MOVES_VALUES or (node.op == "Resize" and node.attrs.get("mode", "nearest") == "nearest")


def _carry_outputs(
    graph: gs.Graph, style: Style, chosen: set[int], exclude: frozenset[str], ends: frozenset[str], carried: set[str]
) -> None:
    """Add to `carried` what the integer layers write, and what integer kernels between them read and write."""
    for node in graph.nodes:
        if id(node) in chosen:
            # Gemm and MatMul have integer kernels with float output: their result is rounded only where it is read so.
            if node.op == "Conv":
                carried.add(_end(node, style, ends).name)
        elif node.op in style.kernels and label(node) not in exclude:
            inputs = [tensor.name for tensor in node.inputs]
            end = _end(node, style, ends).name
            if carried.isdisjoint(inputs) or end in ends or any(isinstance(t, gs.Constant) for t in node.inputs):
                continue
            if _statistic(node):
                continue
            carried.update(inputs)
            carried.add(end)
        elif moves(node) and node.inputs[0].name in carried:
            carried.update(tensor.name for tensor in node.outputs if tensor.name not in ends)


def _statistic(node: gs.Node) -> bool:
    """Whether a mean is subtracted from what it is the mean of, as norms do that a model writes out: rounding it shifts whole maps."""
    return node.op == "GlobalAveragePool" and any(
        reader.op == "Sub" and node.inputs[0] in reader.inputs for reader in node.outputs[0].outputs
    )


def _carry_moved(graph: gs.Graph, style: Style, carried: set[str]) -> None:
    """Where a tensor in `carried` was only moved or joined from others, add those: pooling then runs on integers."""
    for node in reversed(graph.nodes):
        if carried.isdisjoint(tensor.name for tensor in node.outputs):
            continue
        if moves(node):
            carried.add(node.inputs[0].name)
        elif _joins(node, style):
            carried.update(tensor.name for tensor in node.inputs)


def _joins(node: gs.Node, style: Style) -> bool:
    return node.op == "Concat" and style.shared_concat and not any(isinstance(t, gs.Constant) for t in node.inputs)


def _add_inputs(graph: gs.Graph, chosen: set[int], *, both: bool) -> set[str]:
    """The inputs of residual additions that are not the output of the int8 convolution the addition is fused into.

    With `both`, that output as well.
    """
    found: set[str] = set()
    for node, main in fused_additions(graph):
        skip = node.inputs[1 - main]
        if id(node.inputs[main].inputs[0]) in chosen and not isinstance(skip, gs.Constant):
            found.update(tensor.name for tensor in (node.inputs if both else [skip]))
    return found


def fused_additions(graph: gs.Graph) -> list[tuple[gs.Node, int]]:
    """Residual additions, each with the index of the input that comes from the layer it is fused into.

    Where both come from layers with weights, the addition belongs to the one at the end of the longer path. That does not
    depend on which layers are int8, so that ranges for all layers serve any choice of them.
    """
    depth: dict[str, int] = {}
    found = []
    for node in graph.nodes:
        depths = [depth.get(tensor.name, 0) for tensor in node.inputs]
        for tensor in node.outputs:
            depth[tensor.name] = max(depths, default=0) + (node.op in WEIGHTED)
        if node.op == "Add" and len(node.inputs) == 2:
            mains = [i for i, t in enumerate(node.inputs)
                     if len(t.inputs) == 1 and t.inputs[0].op in WEIGHTED and len(t.outputs) == 1]  # fmt: skip
            if mains:
                found.append((node, max(mains, key=lambda i: (depths[i], -i))))
    return found


def _joined(graph: gs.Graph) -> frozenset[str]:
    found = {tensor.name for node in graph.nodes if node.op == "Concat" for tensor in [*node.inputs, *node.outputs]}
    linked = [{node.inputs[0].name, *(tensor.name for tensor in node.outputs)} for node in graph.nodes if moves(node)]
    before = -1
    while before != len(found):
        before = len(found)
        for names in [*linked, *reversed(linked)]:
            if not names.isdisjoint(found):
                found |= names
    return frozenset(found)


def _sources(graph: gs.Graph, style: Style) -> dict[str, tuple[str, ...]]:
    """For each tensor, the tensors from which its values were moved or joined, directly or not (itself if none)."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while (above := parent.setdefault(name, name)) != name:
            parent[name] = parent[above]
            name = above
        return name

    derived: set[str] = set()
    for node in graph.nodes:
        joined = _joins(node, style)
        if joined or moves(node):
            derived.update(tensor.name for tensor in node.outputs)
            for tensor in [*(node.inputs if joined else node.inputs[:1]), *node.outputs]:
                parent[root(tensor.name)] = root(node.outputs[0].name)
    names = [t.name for t in graph.inputs] + [t.name for node in graph.nodes for t in node.outputs]
    members: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        if name not in derived:
            members.setdefault(root(name), []).append(name)
    return {name: tuple(members.get(root(name), (name,))) for name in names}
