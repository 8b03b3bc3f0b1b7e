"""Small networks that are wrong in one place each, or right where a rule might think otherwise: for the lint and NVIDIA's parser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import quant_nets as nets
from pydeploy.onnxfile.half import typed_copy
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.qdq import quantize

Change = Callable[[onnx.ModelProto], None]
NODE = helper.make_node


def quantized(folder: Path, style: str = "tensorrt") -> onnx.ModelProto:
    """The small ResNet with pairs: ``stem``, ``block.conv1``, ``block.conv2``, ``add``, ``fc``; maps ``x``, ``r0``, ``r1``, ``r2``."""
    path = nets.residual(folder / "net.onnx")
    ranges = calibrate(path, nets.random_feeds(path, 4), style=style, threads=1)
    quantize(path, ranges, folder / "int8.onnx", style=style)
    return onnx.load(folder / "int8.onnx")


def typed(folder: Path) -> onnx.ModelProto:
    onnx.save(quantized(folder), folder / "pairs.onnx")
    return typed_copy(folder / "pairs.onnx", "fp16")


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def store(model: onnx.ModelProto, name: str, values: Any) -> None:
    """Add or replace an initializer."""
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(np.asarray(values), name)])


def stored(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def before(model: onnx.ModelProto, reader: str, *nodes: onnx.NodeProto) -> None:
    """Insert nodes in front of the node `reader`."""
    place = [one.name for one in model.graph.node].index(reader)
    for one in reversed(nodes):
        model.graph.node.insert(place, one)


def scales(name: str, values: Any, zero: Any = None) -> Change:
    """Other scales for a pair, with fitting zero points."""
    values = np.asarray(values, np.float32)

    def change(model: onnx.ModelProto) -> None:
        store(model, f"{name}_scale", values)
        store(model, f"{name}_zero_point", np.zeros(values.shape, np.int8) if zero is None else np.asarray(zero))

    return change


def zero_points(name: str, values: Any) -> Change:
    return lambda model: store(model, f"{name}_zero_point", values)


def attribute(names: tuple[str, ...], key: str, value: Any) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for name in names:
            one = node(model, name)
            kept = [found for found in one.attribute if found.name != key]
            del one.attribute[:]
            one.attribute.extend([*kept, helper.make_attribute(key, value)])

    return change


def computed(name: str, index: int) -> Change:
    """The scale (1) or the zero point (2) of a Q node is computed from what is stored."""

    def change(model: onnx.ModelProto) -> None:
        target = node(model, name)
        given = target.input[index]
        op = "Abs" if index == 1 else "Identity"
        before(model, name, NODE(op, [given, *()], [f"{given}_made"], name="maker"))
        target.input[index] = f"{given}_made"

    return change


def scale_of_input(model: onnx.ModelProto) -> None:
    """A scale that depends on the data: the largest value of the input."""
    axes = [*range(4)]
    store(model, "all_axes", np.array(axes, np.int64))
    before(model, "x_QuantizeLinear", NODE("ReduceMax", ["x", "all_axes"], ["x_top"], name="top", keepdims=0))
    node(model, "x_QuantizeLinear").input[1] = "x_top"


def integer_bias(model: onnx.ModelProto) -> None:
    store(model, "b32", np.zeros(16, np.int32))
    store(model, "b32_scale", np.full(16, 0.1, np.float32))
    before(model, "stem", NODE("DequantizeLinear", ["b32", "b32_scale"], ["b32_f"], name="bias_dq", axis=0))
    node(model, "stem").input[2] = "b32_f"


def float_bias_pair(model: onnx.ModelProto) -> None:
    """An int8 bias behind a pair of its own."""
    store(model, "b8_scale", np.float32(0.01))
    store(model, "b8_zero", np.int8(0))
    bias = node(model, "stem").input[2]
    before(model, "stem", NODE("QuantizeLinear", [bias, "b8_scale", "b8_zero"], ["b8"], name="bias_q"),
           NODE("DequantizeLinear", ["b8", "b8_scale", "b8_zero"], ["b8_f"], name="bias_dq"))  # fmt: skip
    node(model, "stem").input[2] = "b8_f"


def unsigned(tensor: str) -> Change:
    return lambda model: store(model, f"{tensor}_zero_point", np.uint8(0))


def no_zero_point(*names: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for name in names:
            del node(model, name).input[2]

    return change


def drop_restorer(tensor: str, *readers: str) -> Change:
    """A Q whose integers go where float values belong."""

    def change(model: onnx.ModelProto) -> None:
        for reader in readers:
            one = node(model, reader)
            one.input[0] = f"{tensor}_q"
        restorer = node(model, f"{tensor}_DequantizeLinear")
        quantizer = node(model, f"{tensor}_QuantizeLinear")
        for reader in readers:
            node(model, reader).input[0] = quantizer.output[0]
        model.graph.node.remove(restorer)

    return change


def integers_into(op: str, reader: str, place: int = 0) -> Change:
    """An operator other than DequantizeLinear that reads the integers of `r1`; what comes out is restored before `reader`."""

    def change(model: onnx.ModelProto) -> None:
        given = node(model, "r1_QuantizeLinear").output[0]
        scale, zero = node(model, "r1_DequantizeLinear").input[1:]
        store(model, "flat_shape", np.array([1, -1, 8, 8], np.int64))
        inputs = {"Reshape": [given, "flat_shape"], "Add": [given, given], "Concat": [given, given]}.get(op, [given])
        settings = {
            "MaxPool": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
            "Concat": {"axis": 1},
            "Transpose": {"perm": [0, 1, 3, 2]},
        }
        before(model, reader, NODE(op, inputs, ["moved"], name="mover", **settings.get(op, {})),
               NODE("DequantizeLinear", ["moved", scale, zero], ["moved_f"], name="moved_dq"))  # fmt: skip
        node(model, reader).input[place] = "moved_f"

    return change


def integer_layer(op: str) -> Change:
    """An operator that computes on integers, in the place of the last layer."""

    def change(model: onnx.ModelProto) -> None:
        store(model, "w8", np.ones((16, 10), np.int8))
        store(model, "one", np.float32(1))
        store(model, "nil", np.int8(0))
        last = node(model, "fc")
        place = list(model.graph.node).index(last)
        made = {
            "MatMulInteger": [NODE("QuantizeLinear", ["m", "one", "nil"], ["m8"], name="to8"),
                              NODE("MatMulInteger", ["m8", "w8", "nil", "nil"], ["y32"], name="integer"),
                              NODE("Cast", ["y32"], ["y"], name="back", to=TensorProto.FLOAT)],
            "QLinearMatMul": [NODE("QuantizeLinear", ["m", "one", "nil"], ["m8"], name="to8"),
                              NODE("QLinearMatMul", ["m8", "one", "nil", "w8", "one", "nil", "one", "nil"], ["y8"], name="integer"),
                              NODE("DequantizeLinear", ["y8", "one", "nil"], ["y"], name="back")],
            "DynamicQuantizeLinear": [NODE("DynamicQuantizeLinear", ["m"], ["m8", "ms", "mz"], name="integer"),
                                      NODE("DequantizeLinear", ["m8", "ms", "mz"], ["mf"], name="back"),
                                      NODE("Gemm", ["mf", "fc.weight", "fc.bias"], ["y"], name="fc2", transB=1)],
        }[op]  # fmt: skip
        model.graph.node.remove(last)
        for offset, one in enumerate(made):
            model.graph.node.insert(place + offset, one)

    return change


def integer_convolution(op: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        store(model, "w8", np.ones((16, 3, 3, 3), np.int8))
        store(model, "one", np.float32(1))
        store(model, "nil", np.int8(0))
        store(model, "wz", np.int8(0))
        stem = node(model, "stem")
        place = list(model.graph.node).index(stem)
        quantizer = node(model, "x_QuantizeLinear").output[0]
        sizes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        made = {
            "ConvInteger": [NODE("ConvInteger", [quantizer, "w8", "nil", "wz"], ["c32"], name="integer", **sizes),
                            NODE("Cast", ["c32"], ["c0"], name="back", to=TensorProto.FLOAT)],
            "QLinearConv": [NODE("QLinearConv", [quantizer, "one", "nil", "w8", "one", "wz", "one", "nil"], ["c8"], name="integer",
                                 **sizes),
                            NODE("DequantizeLinear", ["c8", "one", "nil"], ["c0"], name="back")],
        }[op]  # fmt: skip
        model.graph.node.remove(stem)
        for offset, one in enumerate(made):
            model.graph.node.insert(place + offset, one)

    return change


def old_opset(model: onnx.ModelProto) -> None:
    """Opset 12, which has no axis."""
    per_tensor_weights(model)
    for one in model.graph.node:
        kept = [found for found in one.attribute if found.name != "axis" or "quantize" not in one.op_type.lower()]
        del one.attribute[:]
        one.attribute.extend(kept)
    opset(12)(model)


def opset(number: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = number
        if number < 18:  # axes were an attribute
            pool = node(model, "pool")
            if pool.op_type == "ReduceMean" and len(pool.input) > 1:
                del pool.input[1]
                pool.attribute.append(helper.make_attribute("axes", [-1, -2]))

    return change


def per_tensor_weights(model: onnx.ModelProto) -> None:
    for name in ("stem", "block.conv1", "block.conv2", "fc"):
        scales(f"{name}.weight", 0.01)(model)


def stored_integers(model: onnx.ModelProto) -> None:
    """An int8 weight behind DequantizeLinear alone."""
    weight, scale = stored(model, "stem.weight"), stored(model, "stem.weight_scale")
    store(model, "stem.w8", np.clip(np.round(weight / scale.reshape(-1, 1, 1, 1)), -127, 127).astype(np.int8))
    restorer = node(model, "stem.weight_DequantizeLinear")
    model.graph.node.remove(node(model, "stem.weight_QuantizeLinear"))
    restorer.input[0] = "stem.w8"


def only_weight(model: onnx.ModelProto) -> None:
    node(model, "block.conv1").input[0] = "r0"


def only_activation(model: onnx.ModelProto) -> None:
    node(model, "block.conv2").input[1] = "block.conv2.weight"


def mixed_scales(model: onnx.ModelProto) -> None:
    """A float32 scale in a float16 network."""
    store(model, "x_scale_half", stored(model, "x_scale_half").astype(np.float32))


def mixed_weights(model: onnx.ModelProto) -> None:
    """A float32 weight in a float16 network."""
    store(model, "fc.bias_half", stored(model, "fc.bias_half").astype(np.float32))


def float8(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "r0_zero_point"]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, helper.make_tensor("r0_zero_point", TensorProto.FLOAT8E4M3FN, [], [0.0])])


def int16(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21
    store(model, "r0_zero_point", np.int16(0))


def int4_weight(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "fc.weight_zero_point"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(
        [*kept, helper.make_tensor("fc.weight_zero_point", TensorProto.INT4, [10], [0] * 10)]
    )


def blocked(model: onnx.ModelProto) -> None:
    """Scales per block of eight inputs."""
    model.opset_import[0].version = 21
    scales("fc.weight", np.full((10, 2), 0.01, np.float32))(model)
    attribute(("fc.weight_QuantizeLinear", "fc.weight_DequantizeLinear"), "axis", 1)(model)
    attribute(("fc.weight_QuantizeLinear", "fc.weight_DequantizeLinear"), "block_size", 8)(model)


def two_pairs(model: onnx.ModelProto) -> None:
    store(model, "again_scale", np.float32(0.3))
    store(model, "again_zero", np.int8(0))
    given = node(model, "block.conv1").input[0]
    before(model, "block.conv1", NODE("QuantizeLinear", [given, "again_scale", "again_zero"], ["again"], name="again_q"),
           NODE("DequantizeLinear", ["again", "again_scale", "again_zero"], ["again_f"], name="again_dq"))  # fmt: skip
    node(model, "block.conv1").input[0] = "again_f"


def different_twin(model: onnx.ModelProto) -> None:
    """The DQ of a pair has another scale than its Q."""
    store(model, "other_scale", np.float32(0.7))
    node(model, "r0_DequantizeLinear").input[1] = "other_scale"


def nothing(_model: onnx.ModelProto) -> None:
    """As it is written."""


WEIGHT = ("stem.weight_QuantizeLinear", "stem.weight_DequantizeLinear")
CHANGES: dict[str, Change] = {
    "as written": nothing,
    "zero point 3": zero_points("r0", np.int8(3)),
    "zero point of a weight": zero_points("stem.weight", np.arange(16).astype(np.int8)),
    "uint8, zero point 0": unsigned("r0"),
    "uint8, zero point 128": zero_points("r0", np.uint8(128)),
    "uint8 weight": zero_points("stem.weight", np.zeros(16, np.uint8)),
    "no zero point: uint8": no_zero_point("r0_QuantizeLinear", "r0_DequantizeLinear"),
    "no zero point of DQ": no_zero_point("r0_DequantizeLinear"),
    "int16": int16,
    "float8": float8,
    "int4 weight": int4_weight,
    "scale 0": scales("r0", 0.0),
    "negative scale": scales("r0", -0.1),
    "NaN scale": scales("r0", np.nan),
    "infinite scale": scales("r0", np.inf),
    "tiny scale": scales("r0", 1e-30),
    "scale 0 of one channel": scales("stem.weight", [0.1] * 15 + [0.0]),
    "NaN scale of one channel": scales("stem.weight", [0.1] * 15 + [np.nan]),
    "negative scale of one channel": scales("stem.weight", [0.1] * 15 + [-0.1]),
    "activation per channel": scales("r0", np.full(16, 0.1)),
    "vector of one scale": scales("r0", [0.1]),
    "empty scales": scales("r0", np.zeros(0)),
    "too few scales": scales("fc.weight", np.full(4, 0.1)),
    "too many scales": scales("stem.weight", np.full(32, 0.1)),
    "zero points of another size": zero_points("fc.weight", np.zeros(3, np.int8)),
    "scalar zero point beside many scales": zero_points("fc.weight", np.int8(0)),
    "axis 1 of 16 channels, 3 inputs": attribute(WEIGHT, "axis", 1),
    "axis 9": attribute(WEIGHT, "axis", 9),
    "axis -4": attribute(WEIGHT, "axis", -4),
    "axes of Q and DQ differ": attribute(WEIGHT[1:], "axis", 1),
    "axis 1 of a square weight": attribute(
        ("block.conv1.weight_QuantizeLinear", "block.conv1.weight_DequantizeLinear"), "axis", 1
    ),
    "per tensor weights": per_tensor_weights,
    "blocked weights": blocked,
    "computed scale": computed("x_QuantizeLinear", 1),
    "scale of the data": scale_of_input,
    "computed zero point": computed("x_QuantizeLinear", 2),
    "int32 bias": integer_bias,
    "int8 bias": float_bias_pair,
    "stored int8 weight": stored_integers,
    "Q without DQ": drop_restorer("r1", "block.conv2"),
    **{
        f"{op} of integers": integers_into(op, "block.conv2")
        for op in ("Relu", "Add", "MaxPool", "Reshape", "Transpose")
    },
    "only the weight": only_weight,
    "only the activation": only_activation,
    "two pairs": two_pairs,
    "DQ of another scale": different_twin,
    "MatMulInteger": integer_layer("MatMulInteger"),
    "QLinearMatMul": integer_layer("QLinearMatMul"),
    "DynamicQuantizeLinear": integer_layer("DynamicQuantizeLinear"),
    "ConvInteger": integer_convolution("ConvInteger"),
    "QLinearConv": integer_convolution("QLinearConv"),
    "opset 12": old_opset,
    "opset 13": opset(13),
    "opset 17": opset(17),
}
"""Changes of the int8 file in TensorRT's style."""


def one_operator(
    op: str, kind: int, settings: dict[str, Any], weights: dict[str, Any] | None = None
) -> onnx.ModelProto:
    """A float32 network whose only layer, named ``op``, computes in the type `kind`."""
    given = weights or {}
    stored = [
        helper.make_tensor(name, kind, list(np.shape(values)), np.ravel(values)) for name, values in given.items()
    ]
    nodes = [
        NODE("Cast", ["x"], ["x_typed"], name="to", to=kind),
        NODE(op, ["x_typed", *given], ["y_typed"], name="op", **settings),
        NODE("Cast", ["y_typed"], ["y"], name="from", to=TensorProto.FLOAT),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "net", [x], [y], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


OPERATORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Celu": ({}, {}), "HardSwish": ({}, {}), "Mish": ({}, {}), "LpNormalization": ({"axis": 1}, {}),
    "LpPool": ({"kernel_shape": [2, 2]}, {}), "ConvTranspose": ({"strides": [2, 2]}, {"w": np.ones((4, 4, 2, 2))}),
    "Relu": ({}, {}), "Sigmoid": ({}, {}), "HardSigmoid": ({}, {}), "Gelu": ({}, {}), "LeakyRelu": ({}, {}), "Elu": ({}, {}),
    "AveragePool": ({"kernel_shape": [2, 2]}, {}), "GlobalAveragePool": ({}, {}), "Softmax": ({"axis": 1}, {}),
    "Conv": ({}, {"w": np.ones((4, 4, 3, 3))}),
}  # fmt: skip
"""Settings and weights of operators that networks compute in half precision."""

_FLAT = (NODE("Reshape", ["x", "all"], ["flat"], name="flat"), {"all": np.array([-1])})
_ROWS = np.array([0, 0, 0], np.int64)
PLAIN: dict[str, list[tuple[onnx.NodeProto, dict[str, Any]]]] = {
    "Relu": [(NODE("Relu", ["x"], ["y"], name="op"), {})],
    "NonMaxSuppression": [
        (NODE("Reshape", ["x", "rows"], ["b"]), {"rows": np.array([1, 64, 4])}),
        (NODE("NonMaxSuppression", ["b", "s", "most"], ["y"], name="op"),
         {"s": np.ones((1, 1, 64), np.float32), "most": np.array([8])}),
    ],
    "NonZero": [(NODE("NonZero", ["x"], ["y"], name="op"), {})],
    "Unique": [_FLAT, (NODE("Unique", ["flat"], ["y"], name="op"), {})],
    "Compress": [(NODE("Compress", ["x", "m"], ["y"], name="op", axis=1), {"m": np.array([True, False, True, True])})],
    "DeformConv": [(NODE("DeformConv", ["x", "w", "o"], ["y"], name="op"),
                    {"w": np.ones((2, 4, 3, 3), np.float32), "o": np.zeros((1, 18, 6, 6), np.float32)})],
    "Det": [(NODE("Det", ["x"], ["y"], name="op"), {})],
    "RoiAlign": [(NODE("RoiAlign", ["x", "r", "rows"], ["y"], name="op", output_height=2, output_width=2),
                  {"r": np.ones((3, 4), np.float32), "rows": _ROWS})],
    "TopK": [_FLAT, (NODE("TopK", ["flat", "most"], ["y", "i"], name="op"), {"most": np.array([5])})],
    "GridSample": [(NODE("GridSample", ["x", "g"], ["y"], name="op"), {"g": np.zeros((1, 5, 5, 2), np.float32)})],
    "ArgMax": [(NODE("ArgMax", ["x"], ["y"], name="op", axis=1), {})],
    "DepthToSpace": [(NODE("DepthToSpace", ["x"], ["y"], name="op", blocksize=2), {})],
    "InstanceNormalization": [(NODE("InstanceNormalization", ["x", "a", "a"], ["y"], name="op"), {"a": np.ones(4, np.float32)})],
    "LayerNormalization": [(NODE("LayerNormalization", ["x", "a", "a"], ["y"], name="op"), {"a": np.ones(8, np.float32)})],
    "LRN": [(NODE("LRN", ["x"], ["y"], name="op", size=3), {})],
    "Einsum": [(NODE("Einsum", ["x", "x"], ["y"], name="op", equation="bchw,bchw->bhw"), {})],
    "ScatterND": [(NODE("ScatterND", ["x", "at", "new"], ["y"], name="op"),
                   {"at": np.zeros((1, 2), np.int64), "new": np.zeros((1, 8, 8), np.float32)})],
    "MaxPool": [(NODE("MaxPool", ["x"], ["y"], name="op", kernel_shape=[2, 2], dilations=[1, 1]), {})],
    "MaxPool, dilated": [(NODE("MaxPool", ["x"], ["y"], name="op", kernel_shape=[2, 2], dilations=[2, 2]), {})],
    "MaxPool with indices": [(NODE("MaxPool", ["x"], ["y", "i"], name="op", kernel_shape=[2, 2]), {})],
    "AveragePool, dilated": [(NODE("AveragePool", ["x"], ["y"], name="op", kernel_shape=[2, 2], dilations=[1, 2]), {})],
    "LpPool of 3": [(NODE("LpPool", ["x"], ["y"], name="op", kernel_shape=[2, 2], p=3), {})],
    "LayerNormalization with means": [(NODE("LayerNormalization", ["x", "a"], ["y", "m"], name="op"), {"a": np.ones(8, np.float32)})],
    "Mod": [(NODE("Mod", ["x", "two"], ["y"], name="op", fmod=1), {"two": np.float32(2)})],
    "Mod of floats": [(NODE("Mod", ["x", "two"], ["y"], name="op"), {"two": np.float32(2)})],
    "ScatterND, adding": [(NODE("ScatterND", ["x", "at", "new"], ["y"], name="op", reduction="add"),
                           {"at": np.zeros((1, 2), np.int64), "new": np.zeros((1, 8, 8), np.float32)})],
    **{f"ScatterElements, {how}": [(NODE("ScatterElements", ["x", "at", "new"], ["y"], name="op", reduction=how),
                                    {"at": np.zeros((1, 1, 1, 1), np.int64), "new": np.zeros((1, 1, 1, 1), np.float32)})]
       for how in ("add", "max", "mul")},
    **{f"Resize, {places}": [(NODE("Resize", ["x", "", "by"], ["y"], name="op", mode="linear", coordinate_transformation_mode=places),
                              {"by": np.array([1, 1, 2, 2], np.float32)})]
       for places in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")},
    "Resize, antialias": [(NODE("Resize", ["x", "", "by"], ["y"], name="op", mode="linear", antialias=1),
                           {"by": np.array([1, 1, 0.5, 0.5], np.float32)})],
    "Resize, not larger": [(NODE("Resize", ["x", "", "", "size"], ["y"], name="op", keep_aspect_ratio_policy="not_larger"),
                            {"size": np.array([1, 4, 16, 16])})],
}  # fmt: skip
"""Nodes, with their weights, that end in a node ``op``, by operator and form."""


def plain(op: str) -> onnx.ModelProto:
    """A float32 network that ends in a layer ``op`` of that operator."""
    weights = {name: values for _, own in PLAIN[op] for name, values in own.items()}
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])
    kind = TensorProto.INT64 if op in ("NonMaxSuppression", "NonZero", "ArgMax") else TensorProto.FLOAT
    graph = helper.make_graph([node for node, _ in PLAIN[op]], "net", [x],
                              [helper.make_tensor_value_info("y", kind, None)],
                              [numpy_helper.from_array(values, name) for name, values in weights.items()])  # fmt: skip
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )


TYPED: dict[str, Change] = {
    "typed as written": nothing,
    "typed, opset 17": opset(17),
    "typed, opset 18": opset(18),
    "typed, a float32 scale": mixed_scales,
    "typed, a float32 bias": mixed_weights,
    "typed, scale 0": lambda model: store(model, "x_scale_half", np.float16(0)),
    "typed, NaN scale": lambda model: store(model, "x_scale_half", np.float16(np.nan)),
    "typed, zero point 3": zero_points("r0", np.int8(3)),
}
"""Changes of the same in float16."""
