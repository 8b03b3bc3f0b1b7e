"""Checks of a Q/DQ model on the CPU: what TensorRT's parser refuses, and what costs speed without an error anywhere.

Refused (errors; onnx-tensorrt ``onnxOpImporters.cpp``, QuantDequantLinearHelper, and its operator list), style 'tensorrt':

* activations in uint8, a zero point other than 0, of another type than int8, or of another size than the scale;
* a scale that is computed, empty, zero, negative or not finite;
* one scale per channel on an activation, or as many scales as the weight has no channels;
* int32 behind DequantizeLinear (a quantized bias), ConvInteger, QLinearConv and the like;
* an axis below opset 13, float16 or bfloat16 scales below opset 19;
* a layer with weights that reads integers or several types, operators in half precision that exist in float32 only.

Style 'tensorrt-rtx' is for the parser of TensorRT for RTX, which takes some of these: they become warnings that say at what
price. Its verdicts are held against the parser itself, file by file (tests/backends/test_rtx_lint.py).

Slow or inaccurate (warnings; TensorRT developer guide, "Q/DQ layer-placement recommendations"):

* a layer with weights of which only some inputs carry a pair: it runs in float, and the pair only costs time;
* a pair between a layer and the activation or normalization that would be fused into it;
* a residual addition without a pair on its skip input, or with one on the convolution that it is fused into;
* inputs of a Concat, or one tensor, with different scales; two pairs in a row;
* batch normalization behind a layer with weights; weights with one scale for all channels;
* float32 scales in a half-precision network: what is not int8 then runs in float32.

For the other styles, whose runtimes accept uint8 and int32 and want pairs elsewhere, what holds for all is checked, and
for 'openvino' an error that it makes itself: int8 maps joined before an integer layer, on processors without AMX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from pydeploy.onnxfile.load import read_model
from pydeploy.onnxfile.nodes import QUANTIZE, RESTORE, WEIGHTED, channel_axis, label
from pydeploy.onnxfile.prepare import import_graph
from pydeploy.quant.lint_model import (
    Finding,
    Model,
    element_types,
    error,
    integers,
    older,
    scale_value,
    warning,
    weight_of,
)
from pydeploy.quant.lint_nvidia import NVIDIA
from pydeploy.quant.placement import fused_additions, moves
from pydeploy.quant.styles import style_named

_INTEGERS = (TensorProto.INT8, TensorProto.UINT8)
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_FLOATS = (TensorProto.FLOAT, *_HALVES)


def lint(path: Path, style: str = "tensorrt") -> tuple[Finding, ...]:
    """All findings for the Q/DQ model in `path`, errors first, then in graph order.

    Raises `DataError` for a file that is no valid ONNX model, `ConfigError` for an unknown style.
    """
    rules, source = style_named(style), read_model(Path(path))
    graph = import_graph(source)
    fused = {id(node): main for node, main in fused_additions(graph)}
    model = Model(graph, source.opset, rules, element_types(source.model), fused)
    checks = (*_COMMON, *_OWN.get(style, ()))
    found = [finding for node in model.graph.nodes for check in checks for finding in check(model, node)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))


def _grid(model: Model, node: gs.Node) -> Iterator[Finding]:
    """Scales and zero points: stored, positive, of fitting sizes."""
    if node.op not in (QUANTIZE, RESTORE):
        return
    scale = node.inputs[1]
    if not isinstance(scale, gs.Constant):
        text = "its scale is computed; it must be stored in the model"
        yield older(model, node, text, "slower: what reads it is not fused with it")
        return
    values = np.asarray(scale.values, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all() or (values <= 0).any():
        text = f"its smallest scale is {'empty' if values.size == 0 else f'{values.min():g}'}; all scales must be above 0 and finite"
        accepted = values.size > 0 and bool((values > 0).all())  # infinity is
        yield older(model, node, text, "what it restores is no number") if accepted else error(node, text)
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if isinstance(zero, gs.Constant) and zero.values.size != values.size:
        yield error(node, f"it has {values.size} scales and {zero.values.size} zero points; expected equally many")
    weight = weight_of(model, node)
    if values.size > 1 and weight is None:
        text = f"an activation has {values.size} scales; activations take one"
        yield older(model, node, text, "slower: integer layers take one scale for all channels")
    if values.size > 1 and weight is not None:
        axis = node.attrs.get("axis", 1)
        if model.opset < 13:
            yield error(node, f"scales per channel need opset 13, the model has {model.opset}")
        if not -len(weight.shape) <= axis < len(weight.shape) or weight.shape[axis] != values.size:
            yield error(
                node, f"it has {values.size} scales along axis {axis} of a weight of shape {list(weight.shape)}"
            )
    if model.types.get(scale.name) in _HALVES and model.opset < 19:
        text = f"half-precision scales need opset 19, the model has {model.opset}"
        yield older(model, node, text, "nothing else does")


def _unrestored(model: Model, node: gs.Node) -> Iterator[Finding]:
    """Layers with weights read restored values, never integers."""
    if node.op in WEIGHTED and any(model.types.get(tensor.name) in _INTEGERS for tensor in node.inputs[:2]):
        yield error(node, "it reads integers; put a DequantizeLinear between")


def _one_type(model: Model, node: gs.Node) -> Iterator[Finding]:
    """Input, weight and bias of a layer are of one float type."""
    if node.op not in WEIGHTED:
        return
    # What is restored is of its scale's type, which ONNX's own inference knows only from opset 19 on.
    sources = {tensor.name: model.producer(tensor, RESTORE) for tensor in node.inputs if tensor.name}
    kinds = {name: model.types.get(dq.inputs[1].name if dq else name, 0) for name, dq in sources.items()}
    found = {name: TensorProto.DataType.Name(kind).lower() for name, kind in kinds.items() if kind in _FLOATS}
    if len(set(found.values())) > 1:
        shown = ", ".join(f"'{name}' {kind}" for name, kind in found.items())
        yield error(node, f"its inputs are of several types ({shown}); a layer reads one")


def _inputs(model: Model, node: gs.Node) -> Iterator[Finding]:
    """A layer with weights takes both its inputs through pairs, or neither; its weights have a scale per channel."""
    if node.op not in WEIGHTED:
        return
    restorers = [model.producer(tensor, RESTORE) for tensor in node.inputs[:2]]
    if restorers[0] is None and restorers[1] is not None:
        yield warning(node, "only one of its inputs carries a pair, the activation does not, so it runs in float")
    if restorers[1] is None and restorers[0] is not None and model.style.placement == "inputs":
        # A float layer may read what other layers need rounded; a pair for float layers alone is of no use.
        readers = [
            other
            for other in node.inputs[0].outputs
            if other.op not in WEIGHTED or model.producer(other.inputs[1], RESTORE)
        ]
        if not readers:
            yield warning(node, "only one of its inputs carries a pair, the weight does not, so it runs in float")
    second = restorers[1]
    if second is not None and (weight := weight_of(model, second)) is not None:
        wide = node.op != "MatMul" and weight.shape[channel_axis(node)] > 1
        if wide and isinstance(second.inputs[1], gs.Constant) and second.inputs[1].values.size == 1:
            yield warning(node, "its weights have one scale for all output channels; one per channel is more accurate")


def _twice(model: Model, node: gs.Node) -> Iterator[Finding]:
    """No pair directly behind a pair; no tensor with several scales."""
    if node.op != QUANTIZE:
        return
    if model.producer(node.inputs[0], RESTORE):
        yield warning(node, "it quantizes what was just restored; one pair is enough")
    others = [other for other in node.inputs[0].outputs if other.op == QUANTIZE and other is not node]
    if (
        others
        and all(label(node) < label(other) for other in others)
        and any(scale_value(o) != scale_value(node) for o in others)
    ):
        yield warning(
            node, f"'{node.inputs[0].name}' is quantized with different scales; give all its readers one pair"
        )


def _signed(model: Model, node: gs.Node) -> Iterator[Finding]:
    """No int8 maps are joined before an integer layer."""
    if node.op != "Concat" or (layer := _integer_reader(model, node)) is None:
        return
    quantizers = [reader for tensor in node.outputs for reader in tensor.outputs if reader.op == QUANTIZE]
    pairs = [*(model.producer(tensor, RESTORE) for tensor in node.inputs), *quantizers]
    if any(pair is not None and integers(model, pair) == TensorProto.INT8 for pair in pairs):
        yield error(
            node,
            f"it joins int8 maps that '{label(layer)}' reads, which OpenVINO computes wrongly on processors without AMX; "
            "give them uint8 with a zero point",
        )


def _integer_reader(model: Model, node: gs.Node) -> gs.Node | None:
    """The first layer with integer weights that reads what `node` writes, past pairs and what moves values."""
    seen: set[int] = set()
    front = [node]
    while front:
        for reader in (
            reader for tensor in front.pop(0).outputs for reader in tensor.outputs if id(reader) not in seen
        ):
            seen.add(id(reader))
            if reader.op in WEIGHTED and model.producer(reader.inputs[1], RESTORE) is not None:
                return reader
            if reader.op in (QUANTIZE, RESTORE, "Concat") or moves(reader):
                front.append(reader)
    return None


Check = Callable[[Model, gs.Node], Iterator[Finding]]
_COMMON: tuple[Check, ...] = (_grid, _unrestored, _one_type, _inputs, _twice)
_OWN: Mapping[str, tuple[Check, ...]] = {
    "tensorrt": NVIDIA,
    "tensorrt-rtx": NVIDIA,
    "openvino": (_signed,),
}
