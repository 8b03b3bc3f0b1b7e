"""Tiny ONNX networks with random weights; convolutions and Gemms are named like a model's operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

RESIDUAL_OPS = ("stem", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.downsample.0", "fc")
DEPTHWISE_OPS = ("stem", "features.1.depthwise", "features.1.pointwise", "classifier")


class Net:
    """Collects nodes and weights; `qdq` wraps every layer's input and weight in Q/DQ pairs.

    Quantized activations are int8, or with `unsigned` uint8 (zero point 0 where nothing is negative, else 128). Quantized
    weights have `weight_bits`: 7 for processors that cut sums of two uint8 x int8 products off at 16 bits.
    """

    def __init__(self, *, qdq: bool = False, unsigned: bool = False, weight_bits: int = 8, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)
        self.qdq = qdq
        self.unsigned = unsigned
        self.steps = 2 ** (weight_bits - 1) - 1

    def add(self, operation: str, inputs: list[str], output: str, name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operation, inputs, [output], name=name, **attributes))
        return output

    def constant(self, name: str, values: NDArray[Any]) -> str:
        if name not in {tensor.name for tensor in self.weights}:
            self.weights.append(numpy_helper.from_array(values, name))
        return name

    def quantized(self, value: str) -> str:
        """`value` through a per-tensor Q/DQ pair (added once), or `value` itself in a float net."""
        done = f"{value}_dq"
        if self.qdq and done not in {output for node in self.nodes for output in node.output}:
            positive = value.endswith(("relu", "pooled", "flat"))
            zero = np.uint8(0 if positive else 128) if self.unsigned else np.int8(0)
            pair = [self.constant("act_scale", np.float32(0.05)), self.constant(f"act_zero_{zero}", np.array(zero))]
            self.add("QuantizeLinear", [value, *pair], f"{value}_q", f"{value}_Q")
            self.add("DequantizeLinear", [f"{value}_q", *pair], done, f"{value}_DQ")
        return done if self.qdq else value

    def weight(self, name: str, *shape: int) -> str:
        values = (self.random.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))).astype(np.float32)
        if not self.qdq:
            return self.constant(name, values)
        scale = np.abs(values).reshape(shape[0], -1).max(axis=1) / self.steps
        rounded = np.round(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
        inputs = [self.constant(name, rounded), self.constant(f"{name}_scale", scale.astype(np.float32)),
                  self.constant(f"{name}_zero", np.zeros(shape[0], np.int8))]  # fmt: skip
        return self.add("DequantizeLinear", inputs, f"{name}_dq", f"{name}_DQ", axis=0)

    def bias(self, name: str, width: int) -> str:
        return self.constant(name, (self.random.standard_normal(width) * 0.1).astype(np.float32))

    def conv(self, name: str, value: str, cin: int, cout: int, k: int, *, stride: int = 1, groups: int = 1) -> str:
        inputs = [self.quantized(value), self.weight(f"{name}.weight", cout, cin // groups, k, k)]
        inputs.append(self.bias(f"{name}.bias", cout))
        return self.add("Conv", inputs, f"{name}_out", name, kernel_shape=[k, k], pads=[k // 2] * 4,
                        strides=[stride] * 2, group=groups)  # fmt: skip

    def relu(self, value: str) -> str:
        return self.add("Relu", [value], f"{value}_relu", f"{value}.relu")

    def head(self, name: str, value: str, cin: int, classes: int) -> str:
        pooled = self.add("GlobalAveragePool", [self.quantized(value)], f"{value}_pooled", "pool")
        flat = self.quantized(self.add("Flatten", [pooled], f"{value}_flat", "flatten"))
        inputs = [flat, self.weight(f"{name}.weight", classes, cin), self.bias(f"{name}.bias", classes)]
        return self.add("Gemm", inputs, "logits", name, transB=1)

    def save(self, path: Path, *, batch: int | str, size: int, classes: int) -> Path:
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, size, size])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])
        graph = helper.make_graph(self.nodes, "net", [image], [logits], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


def residual(
    path: Path, *, batch: int | str = 1, width: int = 16, qdq: bool = False, unsigned: bool = False,
    weight_bits: int = 8, seed: int = 0,
) -> Path:  # fmt: skip
    """Stem, a residual block whose shortcut is a convolution too, pooling, Gemm (`RESIDUAL_OPS`)."""
    net = Net(qdq=qdq, unsigned=unsigned, weight_bits=weight_bits, seed=seed)
    stem = net.relu(net.conv("stem", "image", 3, width, 3))
    first = net.relu(net.conv("layer1.0.conv1", stem, width, width, 3, stride=2))
    second = net.conv("layer1.0.conv2", first, width, 2 * width, 3)
    shortcut = net.conv("layer1.0.downsample.0", stem, width, 2 * width, 1, stride=2)
    total = net.add("Add", [net.quantized(second), net.quantized(shortcut)], "sum", "layer1.0.add")
    net.head("fc", net.relu(total), 2 * width, 10)
    return net.save(path, batch=batch, size=12, classes=10)


def depthwise(path: Path, *, batch: int | str = 1, width: int = 16, seed: int = 0) -> Path:
    """Stem, a depthwise-separable block with a clipped and a plain activation, max pooling, Gemm (`DEPTHWISE_OPS`)."""
    net = Net(seed=seed)
    stem = net.relu(net.conv("stem", "image", 3, width, 3))
    deep = net.conv("features.1.depthwise", stem, width, width, 3, stride=2, groups=width)
    bounds = [net.constant("zero", np.float32(0)), net.constant("six", np.float32(6))]
    clipped = net.add("Clip", [deep, *bounds], "clipped", "features.1.relu6")
    wide = net.relu(net.conv("features.1.pointwise", clipped, width, 2 * width, 1))
    pooled = net.add("MaxPool", [wide], "pooled", "maxpool", kernel_shape=[2, 2], strides=[2, 2])
    net.head("classifier", pooled, 2 * width, 7)
    return net.save(path, batch=batch, size=12, classes=7)
