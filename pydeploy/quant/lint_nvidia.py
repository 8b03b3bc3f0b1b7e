"""Rules of the lint for TensorRT: what its parser has no import for, and what keeps layers from being fused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from pydeploy.onnxfile.half import NOT_HALF
from pydeploy.onnxfile.nodes import QUANTIZE, RESTORE, WEIGHTED, label
from pydeploy.quant.lint_model import Finding, Model, error, integers, older, scale_value, warning
from pydeploy.quant.styles import ACTIVATIONS

_REFUSED = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
NO_IMPORT = _REFUSED | {
    "AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "CumProd", "DFT", "DeformConv", "Det", "ImageDecoder",
    "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional",
    "OptionalGetElement", "OptionalHasElement", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty",
    "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence",
    "StringConcat", "StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique",
}  # fmt: skip
"""ONNX's operators that the parser has no import for (TensorRT for RTX 1.7, asked for every operator)."""
NOT_IN_RTX = frozenset({"NonMaxSuppression", "NonZero"})
"""Operators with an import whose layer or plugin TensorRT for RTX lacks; TensorRT has them."""
_POOLS = ("MaxPool", "AveragePool", "LpPool")
_RESIZE = {
    "antialias": (0,),
    "keep_aspect_ratio_policy": ("stretch",),
    "coordinate_transformation_mode": (
        "half_pixel",
        "pytorch_half_pixel",
        "align_corners",
        "asymmetric",
        "tf_half_pixel_for_nn",
    ),
}
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_FLOATS = (TensorProto.FLOAT, *_HALVES)


def _parser(model: Model, node: gs.Node) -> Iterator[Finding]:
    """What TensorRT's parser has no import for."""
    if node.op in _REFUSED:
        yield error(node, f"TensorRT has no {node.op}; use QuantizeLinear and DequantizeLinear around a float layer")
    elif node.op in NO_IMPORT:
        yield error(node, f"TensorRT has no {node.op}; end the network before it, or write it with other operators")
    if model.style.lax and node.op in NOT_IN_RTX:
        yield error(node, f"TensorRT for RTX has no {node.op}; end the network before it and do the rest outside")
    if model.style.lax and node.op == "RoiAlign":
        yield warning(node, "TensorRT for RTX takes RoiAlign only on a machine with an NVIDIA driver; build it there")
    if node.op not in (QUANTIZE, RESTORE):
        return
    if node.op == RESTORE and model.types.get(node.inputs[0].name) == TensorProto.INT32:
        yield error(node, "it restores int32 (a quantized bias); TensorRT takes float biases only")
        return
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    kind = integers(model, node)
    shifted = isinstance(zero, gs.Constant) and bool(np.asarray(zero.values).any())
    if kind != TensorProto.INT8:
        text = f"its integers are {TensorProto.DataType.Name(kind).lower()}; TensorRT takes int8"
        accepted = not shifted and kind in (TensorProto.UINT8, TensorProto.INT4)
        yield older(model, node, text, "slower: its integer layers read int8") if accepted else error(node, text)
    elif shifted:
        assert zero is not None
        yield error(node, f"its zero point is {int(np.abs(zero.values).max())}; TensorRT takes 0 only (symmetric)")


def _forms(model: Model, node: gs.Node) -> Iterator[Finding]:
    """Forms of operators that the parser refuses although it has the operator."""
    attributes = node.attrs
    if node.op in _POOLS and any(step != 1 for step in attributes.get("dilations", ())):
        yield error(node, f"TensorRT has no {node.op} with dilations")
    if node.op in ("MaxPool", "LayerNormalization") and sum(bool(tensor.name) for tensor in node.outputs) > 1:
        yield error(node, f"TensorRT has {node.op} with one output only")
    if node.op == "LpPool" and attributes.get("p", 2) not in (1, 2):
        yield error(node, f"TensorRT has LpPool with p of 1 and 2 only, got {attributes['p']}")
    if node.op == "Mod" and not attributes.get("fmod", 0) and model.types.get(node.inputs[0].name) in _FLOATS:
        yield error(node, "TensorRT has Mod of floats with fmod=1 only")
    if node.op == "Resize":
        for key, known in _RESIZE.items():
            if (value := attributes.get(key)) is not None and value not in known:
                yield error(node, f"TensorRT has no Resize with {key} {value}; it knows {', '.join(map(str, known))}")
    if attributes.get("reduction", "none") != "none":
        if node.op == "ScatterND":
            yield error(node, "TensorRT has no ScatterND with a reduction")
        if node.op == "ScatterElements" and model.style.lax:
            yield error(node, "TensorRT for RTX has no ScatterElements with a reduction")


def _halves(model: Model, node: gs.Node) -> Iterator[Finding]:
    """Operators that stay float32."""
    kinds = {model.types.get(tensor.name) for tensor in node.inputs}
    for dtype, kind in (("float16", TensorProto.FLOAT16), ("bfloat16", TensorProto.BFLOAT16)):
        if kind in kinds and node.op in NOT_HALF[dtype]:
            yield error(node, f"TensorRT has no {dtype} {node.op}; keep it in float32 (pydeploy half does)")


def _fusion(model: Model, node: gs.Node) -> Iterator[Finding]:
    """Nothing stands between a layer with weights and what is fused into it."""
    if node.op == "BatchNormalization" and (before := model.producer(node.inputs[0])) and before.op in WEIGHTED:
        yield warning(node, f"it follows '{label(before)}'; fold it, so that the scales of the weights hold for both")
    if node.op in ACTIVATIONS or node.op == "BatchNormalization":
        pair = model.pair_behind(node.inputs[0])
        layer = None if pair is None else model.producer(pair.inputs[0])
        if layer is not None and layer.op in WEIGHTED:
            yield warning(node, f"a pair stands between '{label(layer)}' and it, so the two are not fused")


def _concat(model: Model, node: gs.Node) -> Iterator[Finding]:
    """Inputs of a Concat share one scale."""
    if node.op != "Concat":
        return
    restorers = [model.producer(tensor, RESTORE) for tensor in node.inputs]
    scales = {scale_value(restorer) for restorer in restorers if restorer is not None}
    if len(scales) > 1 or (scales and any(restorer is None for restorer in restorers)):
        yield warning(
            node, "its inputs have different scales or only some a pair, so they are requantized; share one scale"
        )


def _residual(model: Model, node: gs.Node) -> Iterator[Finding]:
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
        yield warning(
            node,
            f"a pair stands between '{label(layer)}' and it, so the addition is not fused; quantize the skip input only",
        )
    elif not any(pairs) and mains[model.fused.get(id(node), 0)] is not None:
        yield warning(node, "its skip input carries no pair, so the addition runs in float")


def _typed(model: Model, node: gs.Node) -> Iterator[Finding]:
    """In a half-precision network scales are half-precision as well."""
    halves = any(kind in _HALVES for name, kind in model.types.items())
    if node.op == RESTORE and halves and model.types.get(node.inputs[1].name) == TensorProto.FLOAT:
        readers = {label(reader) for tensor in node.outputs for reader in tensor.outputs if reader.op in WEIGHTED}
        if readers:
            yield warning(
                node, f"its scale is float32 in a half-precision network: {', '.join(sorted(readers))} returns float32"
            )


NVIDIA = (_parser, _forms, _halves, _fusion, _concat, _residual, _typed)
