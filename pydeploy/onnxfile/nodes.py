"""What is asked of single nodes and tensors of an ONNX graph."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Layers with weights."""
QUANTIZE, RESTORE = "QuantizeLinear", "DequantizeLinear"


def label(node: gs.Node) -> str:
    """A node's name, or its first output's where it has none."""
    return str(node.name or node.outputs[0].name)


def channel_axis(node: gs.Node) -> int:
    """The axis of a weight that runs over output channels."""
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return 0 if node.op == "Conv" else 1


def channels(node: gs.Node) -> tuple[int, int]:
    """Input and output channels of a weighted layer; both are the whole layer's, not one group's."""
    shape, axis, groups = node.inputs[1].shape, channel_axis(node), node.attrs.get("group", 1)
    cin, cout = shape[1 - axis], shape[axis]
    return (cin * groups, cout) if node.op == "Conv" else (cin, cout * groups)


def new_name(name: str, taken: set[str]) -> str:
    """`name`, with a number behind it where it is `taken`; it is taken from then on."""
    found, count = name, 1
    while found in taken:
        found, count = f"{name}_{count}", count + 1
    taken.add(found)
    return found


def stored(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Tensors that the file holds, as initializers or in Constant nodes, by name."""
    nodes = {node.output[0]: attribute.t for node in graph.node if node.op_type == "Constant"
             for attribute in node.attribute if attribute.name == "value"}  # fmt: skip
    return {**{tensor.name: tensor for tensor in graph.initializer}, **nodes}
