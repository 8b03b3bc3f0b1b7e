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
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from pydeploy.onnxfile.half import NOT_HALF
from pydeploy.onnxfile.load import read_model
from pydeploy.onnxfile.nodes import QUANTIZE, RESTORE, WEIGHTED, channel_axis, label
from pydeploy.onnxfile.prepare import import_graph
from pydeploy.quant.placement import fused_additions, moves
from pydeploy.quant.styles import ACTIVATIONS, Style, style_named

_REFUSED = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
_INTEGERS = (TensorProto.INT8, TensorProto.UINT8)
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_FLOATS = (TensorProto.FLOAT, *_HALVES)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong at one layer."""

    severity: Literal["error", "warning"]
    layer: str
    """Name of the ONNX node."""
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: '{self.layer}': {self.text}"


@dataclass(frozen=True)
class _Model:
    """What the checks read."""

    graph: gs.Graph
    opset: int
    style: Style
    types: Mapping[str, int]
    """Element types of tensors, as far as known."""
    fused: Mapping[int, int]
    """By id of a residual addition: which input comes from the layer that it is fused into."""

    def producer(self, tensor: gs.Tensor, op: str = "") -> gs.Node | None:
        """The node that computes `tensor`, if there is one (of type `op`)."""
        node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
        return node if node is not None and op in ("", node.op) else None

    def pair_behind(self, tensor: gs.Tensor) -> gs.Node | None:
        """The QuantizeLinear whose restored values `tensor` holds."""
        restorer = self.producer(tensor, RESTORE)
        return None if restorer is None else self.producer(restorer.inputs[0], QUANTIZE)


def lint(path: Path, style: str = "tensorrt") -> tuple[Finding, ...]:
    """All findings for the Q/DQ model in `path`, errors first, then in graph order.

    Raises `DataError` for a file that is no valid ONNX model, `ConfigError` for an unknown style.
    """
    rules, source = style_named(style), read_model(Path(path))
    graph = import_graph(source)
    fused = {id(node): main for node, main in fused_additions(graph)}
    model = _Model(graph, source.opset, rules, _element_types(source.model), fused)
    checks = (*_COMMON, *_OWN.get(style, ()))
    found = [finding for node in model.graph.nodes for check in checks for finding in check(model, node)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))


def _element_types(proto: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(proto).graph
    found = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.value_info, *graph.output]}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _error(node: gs.Node, text: str) -> Finding:
    return Finding("error", label(node), text)


def _warning(node: gs.Node, text: str) -> Finding:
    return Finding("warning", label(node), text)


def _older(model: _Model, node: gs.Node, text: str, price: str) -> Finding:
    """An error, unless the parser is that of TensorRT for RTX: it takes the file at a price."""
    return _warning(node, f"{text}; TensorRT for RTX takes it, but {price}") if model.style.lax else _error(node, text)


def _grid(model: _Model, node: gs.Node) -> Iterator[Finding]:
    """Scales and zero points: stored, positive, of fitting sizes."""
    if node.op not in (QUANTIZE, RESTORE):
        return
    scale = node.inputs[1]
    if not isinstance(scale, gs.Constant):
        text = "its scale is computed; it must be stored in the model"
        yield _older(model, node, text, "slower: what reads it is not fused with it")
        return
    values = np.asarray(scale.values, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all() or (values <= 0).any():
        text = f"its smallest scale is {'empty' if values.size == 0 else f'{values.min():g}'}; all scales must be above 0 and finite"
        accepted = values.size > 0 and bool((values > 0).all())  # infinity is
        yield _older(model, node, text, "what it restores is no number") if accepted else _error(node, text)
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if isinstance(zero, gs.Constant) and zero.values.size != values.size:
        yield _error(node, f"it has {values.size} scales and {zero.values.size} zero points; expected equally many")
    weight = _weight_of(model, node)
    if values.size > 1 and weight is None:
        text = f"an activation has {values.size} scales; activations take one"
        yield _older(model, node, text, "slower: integer layers take one scale for all channels")
    if values.size > 1 and weight is not None:
        axis = node.attrs.get("axis", 1)
        if model.opset < 13:
            yield _error(node, f"scales per channel need opset 13, the model has {model.opset}")
        if not -len(weight.shape) <= axis < len(weight.shape) or weight.shape[axis] != values.size:
            yield _error(
                node, f"it has {values.size} scales along axis {axis} of a weight of shape {list(weight.shape)}"
            )
    if model.types.get(scale.name) in _HALVES and model.opset < 19:
        text = f"half-precision scales need opset 19, the model has {model.opset}"
        yield _older(model, node, text, "nothing else does")


def _weight_of(model: _Model, node: gs.Node) -> gs.Constant | None:
    """The stored tensor that this Q or DQ node works on, if it does."""
    data = node.inputs[0]
    if not isinstance(data, gs.Constant) and node.op == RESTORE and (before := model.producer(data, QUANTIZE)):
        data = before.inputs[0]
    return data if isinstance(data, gs.Constant) else None


def _parser(model: _Model, node: gs.Node) -> Iterator[Finding]:
    """What TensorRT's parser has no import for."""
    if node.op in _REFUSED:
        yield _error(node, f"TensorRT has no {node.op}; use QuantizeLinear and DequantizeLinear around a float layer")
    if node.op not in (QUANTIZE, RESTORE):
        return
    if node.op == RESTORE and model.types.get(node.inputs[0].name) == TensorProto.INT32:
        yield _error(node, "it restores int32 (a quantized bias); TensorRT takes float biases only")
        return
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    kind = _integers(model, node)
    shifted = isinstance(zero, gs.Constant) and bool(np.asarray(zero.values).any())
    if kind != TensorProto.INT8:
        text = f"its integers are {TensorProto.DataType.Name(kind).lower()}; TensorRT takes int8"
        accepted = not shifted and kind in (TensorProto.UINT8, TensorProto.INT4)
        yield _older(model, node, text, "slower: its integer layers read int8") if accepted else _error(node, text)
    elif shifted:
        assert zero is not None
        yield _error(node, f"its zero point is {int(np.abs(zero.values).max())}; TensorRT takes 0 only (symmetric)")


def _integers(model: _Model, node: gs.Node) -> int:
    """Element type of the integers that a Q or DQ node writes or reads."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    default = node.attrs.get("output_dtype", TensorProto.UINT8) if node.op == QUANTIZE else TensorProto.INT8
    return int(default if zero is None else model.types.get(zero.name, TensorProto.INT8))


def _halves(model: _Model, node: gs.Node) -> Iterator[Finding]:
    """Operators that stay float32."""
    kinds = {model.types.get(tensor.name) for tensor in node.inputs}
    for dtype, kind in (("float16", TensorProto.FLOAT16), ("bfloat16", TensorProto.BFLOAT16)):
        if kind in kinds and node.op in NOT_HALF[dtype]:
            yield _error(node, f"TensorRT has no {dtype} {node.op}; keep it in float32 (pydeploy half does)")


def _unrestored(model: _Model, node: gs.Node) -> Iterator[Finding]:
    """Layers with weights read restored values, never integers."""
    if node.op in WEIGHTED and any(model.types.get(tensor.name) in _INTEGERS for tensor in node.inputs[:2]):
        yield _error(node, "it reads integers; put a DequantizeLinear between")


def _one_type(model: _Model, node: gs.Node) -> Iterator[Finding]:
    """Input, weight and bias of a layer are of one float type."""
    if node.op not in WEIGHTED:
        return
    # What is restored is of its scale's type, which ONNX's own inference knows only from opset 19 on.
    sources = {tensor.name: model.producer(tensor, RESTORE) for tensor in node.inputs if tensor.name}
    kinds = {name: model.types.get(dq.inputs[1].name if dq else name, 0) for name, dq in sources.items()}
    found = {name: TensorProto.DataType.Name(kind).lower() for name, kind in kinds.items() if kind in _FLOATS}
    if len(set(found.values())) > 1:
        shown = ", ".join(f"'{name}' {kind}" for name, kind in found.items())
        yield _error(node, f"its inputs are of several types ({shown}); a layer reads one")


def _inputs(model: _Model, node: gs.Node) -> Iterator[Finding]:
    """A layer with weights takes both its inputs through pairs, or neither; its weights have a scale per channel."""
    if node.op not in WEIGHTED:
        return
    restorers = [model.producer(tensor, RESTORE) for tensor in node.inputs[:2]]
    if restorers[0] is None and restorers[1] is not None:
        yield _warning(node, "only one of its inputs carries a pair, the activation does not, so it runs in float")
    if restorers[1] is None and restorers[0] is not None and model.style.placement == "inputs":
        # A float layer may read what other layers need rounded; a pair for float layers alone is of no use.
        readers = [
            other
            for other in node.inputs[0].outputs
            if other.op not in WEIGHTED or model.producer(other.inputs[1], RESTORE)
        ]
        if not readers:
            yield _warning(node, "only one of its inputs carries a pair, the weight does not, so it runs in float")
    second = restorers[1]
    if second is not None and (weight := _weight_of(model, second)) is not None:
        wide = node.op != "MatMul" and weight.shape[channel_axis(node)] > 1
        if wide and isinstance(second.inputs[1], gs.Constant) and second.inputs[1].values.size == 1:
            yield _warning(node, "its weights have one scale for all output channels; one per channel is more accurate")


def _fusion(model: _Model, node: gs.Node) -> Iterator[Finding]:
    """Nothing stands between a layer with weights and what is fused into it."""
    if node.op == "BatchNormalization" and (before := model.producer(node.inputs[0])) and before.op in WEIGHTED:
        yield _warning(node, f"it follows '{label(before)}'; fold it, so that the scales of the weights hold for both")
    if node.op in ACTIVATIONS or node.op == "BatchNormalization":
        pair = model.pair_behind(node.inputs[0])
        layer = None if pair is None else model.producer(pair.inputs[0])
        if layer is not None and layer.op in WEIGHTED:
            yield _warning(node, f"a pair stands between '{label(layer)}' and it, so the two are not fused")


def _twice(model: _Model, node: gs.Node) -> Iterator[Finding]:
    """No pair directly behind a pair; no tensor with several scales."""
    if node.op != QUANTIZE:
        return
    if model.producer(node.inputs[0], RESTORE):
        yield _warning(node, "it quantizes what was just restored; one pair is enough")
    others = [other for other in node.inputs[0].outputs if other.op == QUANTIZE and other is not node]
    if (
        others
        and all(label(node) < label(other) for other in others)
        and any(_scale(o) != _scale(node) for o in others)
    ):
        yield _warning(
            node, f"'{node.inputs[0].name}' is quantized with different scales; give all its readers one pair"
        )


def _scale(node: gs.Node) -> float | None:
    scale = node.inputs[1]
    return float(np.asarray(scale.values).ravel()[0]) if isinstance(scale, gs.Constant) and scale.values.size else None


def _concat(model: _Model, node: gs.Node) -> Iterator[Finding]:
    """Inputs of a Concat share one scale."""
    if node.op != "Concat":
        return
    restorers = [model.producer(tensor, RESTORE) for tensor in node.inputs]
    scales = {_scale(restorer) for restorer in restorers if restorer is not None}
    if len(scales) > 1 or (scales and any(restorer is None for restorer in restorers)):
        yield _warning(
            node, "its inputs have different scales or only some a pair, so they are requantized; share one scale"
        )


def _signed(model: _Model, node: gs.Node) -> Iterator[Finding]:
    """No int8 maps are joined before an integer layer."""
    if node.op != "Concat" or (layer := _integer_reader(model, node)) is None:
        return
    quantizers = [reader for tensor in node.outputs for reader in tensor.outputs if reader.op == QUANTIZE]
    pairs = [*(model.producer(tensor, RESTORE) for tensor in node.inputs), *quantizers]
    if any(pair is not None and _integers(model, pair) == TensorProto.INT8 for pair in pairs):
        yield _error(
            node,
            f"it joins int8 maps that '{label(layer)}' reads, which OpenVINO computes wrongly on processors without AMX; "
            "give them uint8 with a zero point",
        )


def _integer_reader(model: _Model, node: gs.Node) -> gs.Node | None:
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


def _residual(model: _Model, node: gs.Node) -> Iterator[Finding]:
    """The skip input of an addition behind an int8 convolution carries the pair, the convolution's output does not."""
    if node.op != "Add" or len(node.inputs) != 2 or any(isinstance(tensor, gs.Constant) for tensor in node.inputs):
        return

    def integer(tensor: gs.Tensor) -> gs.Node | None:
        layer = model.producer(tensor)
        quantized = layer is not None and layer.op in WEIGHTED and model.producer(layer.inputs[0], RESTORE) is not None
        return layer if quantized and len(tensor.outputs) == 1 else None

    pairs = [model.pair_behind(tensor) for tensor in node.inputs]
    mains = [integer(tensor) for tensor in node.inputs]
    behind = [None if pair is None else integer(pair.inputs[0]) for pair in pairs]
    if all(pairs) and any(behind) and not any(mains):
        layer = next(layer for layer in behind if layer is not None)
        yield _warning(
            node,
            f"a pair stands between '{label(layer)}' and it, so the addition is not fused; quantize the skip input only",
        )
    elif not any(pairs) and mains[model.fused.get(id(node), 0)] is not None:
        yield _warning(node, "its skip input carries no pair, so the addition runs in float")


def _typed(model: _Model, node: gs.Node) -> Iterator[Finding]:
    """In a half-precision network scales are half-precision as well."""
    halves = any(kind in _HALVES for name, kind in model.types.items())
    if node.op == RESTORE and halves and model.types.get(node.inputs[1].name) == TensorProto.FLOAT:
        readers = {label(reader) for tensor in node.outputs for reader in tensor.outputs if reader.op in WEIGHTED}
        if readers:
            yield _warning(
                node, f"its scale is float32 in a half-precision network: {', '.join(sorted(readers))} returns float32"
            )


Check = Callable[[_Model, gs.Node], Iterator[Finding]]
_COMMON: tuple[Check, ...] = (_grid, _unrestored, _one_type, _inputs, _twice)
_NVIDIA: tuple[Check, ...] = (_parser, _halves, _fusion, _concat, _residual, _typed)
_OWN: Mapping[str, tuple[Check, ...]] = {
    "tensorrt": _NVIDIA,
    "tensorrt-rtx": _NVIDIA,
    "openvino": (_signed,),
}
