"""What can be computed before a network runs: nodes that read only stored tensors become stored tensors themselves.

So weights are found behind Identity, Transpose, Reshape, Unsqueeze, Cast, Mul, Dropout and whatever else stands before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from pydeploy.onnxfile.control_flow import DOMAIN
from pydeploy.onnxfile.execute import as_written

_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_ROOM = 1 << 20
"""Values that results may have; larger ones only up to the number of values that they are made from."""


def fold_constants(graph: gs.Graph) -> None:
    """Replace the outputs of constant nodes by their values, as ONNX Runtime computes them; nodes in execution order.

    What it cannot compute stays, and so do the graph's outputs and large tensors made of small ones.
    """
    ends = {tensor.name for tensor in graph.outputs}
    constant: set[int] = set()
    nodes = []
    for node in graph.nodes:
        known = all(isinstance(t, gs.Constant) or t.is_empty() or id(t) in constant for t in node.inputs)
        if known and _fixed(node) and ends.isdisjoint(tensor.name for tensor in node.outputs):
            constant.update(map(id, node.outputs))
            nodes.append(node)
    if not nodes:
        return
    inside = set(map(id, nodes))
    wanted = [tensor for node in nodes for tensor in node.outputs
              if any(id(reader) not in inside for reader in tensor.outputs)]  # fmt: skip
    found = _computed(graph, nodes, wanted)
    fits = [values is not None and values.size <= max(_ROOM, _given(tensor))
            for tensor, values in zip(wanted, found, strict=True)]  # fmt: skip
    needed = {id(node) for tensor, fit in zip(wanted, fits, strict=True) if not fit for node in _before(tensor)}
    for node in nodes:
        if id(node) not in needed:
            node.inputs, node.outputs = [], []
    for tensor, values, fit in zip(wanted, found, fits, strict=True):
        if fit and not tensor.inputs:
            tensor.to_constant(values)
    graph.nodes = [node for node in graph.nodes if id(node) not in inside or id(node) in needed]


def _fixed(node: gs.Node) -> bool:
    """Whether a node gives the same every time."""
    training = node.op == "Dropout" and len(node.inputs) > 2 and not node.inputs[2].is_empty()
    return node.op not in _RANDOM and not training and node.domain != DOMAIN


def _given(tensor: gs.Tensor) -> int:
    """How many stored values `tensor` is made from."""
    seen: dict[int, int] = {}
    front = [tensor]
    while front:
        one = front.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = int(np.prod(one.shape)) if isinstance(one, gs.Constant) else 0
        front += [given for maker in one.inputs for given in maker.inputs]
    return sum(seen.values())


def _computed(graph: gs.Graph, nodes: Sequence[gs.Node], wanted: Sequence[gs.Tensor]) -> list[NDArray[Any] | None]:
    """Values of the wanted tensors; None where there are none to be had."""
    try:
        return list(_run(graph, nodes, wanted))
    except Exception:  # ONNX Runtime's own types
        if len(wanted) == 1:
            return [None]
        return [_computed(graph, _before(tensor), [tensor])[0] for tensor in wanted]


def _before(tensor: gs.Tensor) -> list[gs.Node]:
    """The nodes that `tensor` is computed by, in execution order."""
    found: list[gs.Node] = []
    for maker in tensor.inputs:
        for given in maker.inputs:
            found += [node for node in _before(given) if not any(node is other for other in found)]
        found.append(maker)
    return found


def _run(graph: gs.Graph, nodes: Sequence[gs.Node], wanted: Sequence[gs.Tensor]) -> list[NDArray[Any]]:
    alone = gs.Graph(list(nodes), [], list(wanted), opset=graph.opset, import_domains=graph.import_domains)
    model = gs.export_onnx(alone, do_type_check=False)
    model.ir_version = min(model.ir_version, 10)
    for value in model.graph.output:  # their types are found by ONNX Runtime
        value.ClearField("type")
    return list(as_written(model).run(None, {}))
