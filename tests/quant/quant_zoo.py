"""Blocks that detectors, segmenters and classifiers are made of, as small ONNX networks: signed maps, joins, splits, resizing.

Weights are drawn so that every map keeps a spread of about 1: what INT8 does to such a network is rounding, not chaos.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import quant_nets as nets

ACTIVATIONS = ("none", "relu", "silu", "hardswish", "leaky", "gelu", "mish")
SIZE = 12


class Net:
    """A network being written: every method adds nodes and returns the name of the new map."""

    def __init__(self, act: str, seed: int = 0) -> None:
        self.act, self.rng = act, np.random.default_rng([seed, ACTIVATIONS.index(act)])
        self.parts: list[Any] = []
        self.width = {"x": 3}
        """Channels of each map."""

    def node(
        self, op: str, inputs: list[str], width: int = 0, weights: dict[str, Any] | None = None, **attrs: Any
    ) -> str:
        name = f"{op.lower()}{len(self.parts)}"
        node = nets.NODE(op, inputs, [name], name=name, **attrs)
        self.parts.append((node, weights or {}))
        self.width[name] = width or self.width.get(inputs[0], 0)
        return name

    def stored(self, name: str, values: Any, dtype: Any = np.float32) -> dict[str, Any]:
        return {f"{name}{len(self.parts)}": np.asarray(values, dtype)}

    def conv(
        self, x: str, width: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: str | None = None
    ) -> str:
        fan = self.width[x] // groups
        # A small output for a sum of many values, and a bias that keeps most values on one side, as training does.
        w = self.rng.normal(0, 0.7 * (fan * kernel * kernel) ** -0.5, (width, fan, kernel, kernel))
        weights = {**self.stored("weight", w), **self.stored("bias", self.rng.uniform(-0.3, 0.8, width))}
        y = self.node("Conv", [x, *weights], width, weights, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4,
                      strides=[stride] * 2, group=groups)  # fmt: skip
        return self.activation(y, self.act if act is None else act)

    def deconv(self, x: str, width: int) -> str:
        w = self.rng.normal(0, self.width[x] ** -0.5, (self.width[x], width, 2, 2))
        weights = self.stored("weight", w)
        return self.node("ConvTranspose", [x, *weights], width, weights, kernel_shape=[2, 2], strides=[2, 2])

    def activation(self, x: str, act: str) -> str:
        if act == "none":
            return x
        if act == "silu":
            return self.node("Mul", [x, self.node("Sigmoid", [x])])
        if act == "mish":
            return self.node("Mul", [x, self.node("Tanh", [self.node("Softplus", [x])])])
        return self.node({"relu": "Relu", "hardswish": "HardSwish", "leaky": "LeakyRelu", "gelu": "Gelu"}[act], [x])

    def join(self, *maps: str) -> str:
        return self.node("Concat", list(maps), sum(self.width[name] for name in maps), axis=1)

    def add(self, a: str, b: str) -> str:
        return self.node("Add", [a, b])

    def halves(self, x: str) -> tuple[str, str]:
        name, width = f"split{len(self.parts)}", self.width[x] // 2
        self.parts.append(nets.NODE("Split", [x], [f"{name}_a", f"{name}_b"], name=name, axis=1, num_outputs=2))
        self.width |= {f"{name}_a": width, f"{name}_b": width}
        return f"{name}_a", f"{name}_b"

    def pool(self, x: str, kernel: int, stride: int = 1) -> str:
        pad = kernel // 2 if stride == 1 else 0
        return self.node("MaxPool", [x], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def up(self, x: str, mode: str = "nearest") -> str:
        scales = self.stored("scales", [1, 1, 2, 2])
        return self.node("Resize", [x, "", *scales], 0, scales, mode=mode, coordinate_transformation_mode="asymmetric",
                         nearest_mode="floor")  # fmt: skip

    def shuffle(self, x: str, size: int = SIZE) -> str:
        width = self.width[x]
        apart, whole = self.stored("apart", [1, 2, width // 2, size, size], np.int64), {}
        y = self.node("Reshape", [x, *apart], width, apart)
        y = self.node("Transpose", [y], width, perm=[0, 2, 1, 3, 4])
        whole = self.stored("whole", [1, width, size, size], np.int64)
        return self.node("Reshape", [y, *whole], width, whole)

    def gate(self, x: str) -> str:
        squeezed = self.conv(self.node("GlobalAveragePool", [x]), 8, 1, act="relu")
        return self.node("Mul", [x, self.node("Sigmoid", [self.conv(squeezed, self.width[x], 1, act="none")])])

    def save(self, path: Path, *outputs: str) -> Path:
        return nets.save(path, self.parts, {"x": [1, 3, SIZE, SIZE]}, list(outputs))


def c2f(net: Net) -> list[str]:
    """YOLO's C2f block and its fast pyramid pooling."""
    parts = list(net.halves(net.conv(net.conv("x", 16), 16, 1)))
    for _ in range(2):
        parts.append(net.add(parts[-1], net.conv(net.conv(parts[-1], 8), 8)))
    x = net.conv(net.join(*parts), 16, 1)
    pools = [net.conv(x, 8, 1)]
    for _ in range(3):
        pools.append(net.pool(pools[-1], 5))
    return [net.conv(net.conv(net.join(*pools), 16, 1), 8, 1, act="none")]


def csp(net: Net) -> list[str]:
    """A cross-stage partial block: one branch passes residual blocks, the other goes around."""
    x = net.conv("x", 16)
    a, b = net.conv(x, 16, 1), net.conv(x, 16, 1)
    for _ in range(2):
        a = net.add(a, net.conv(net.conv(a, 8, 1), 16))
    return [net.conv(net.conv(net.join(a, b), 16, 1), 8, act="none")]


def dense(net: Net) -> list[str]:
    """DenseNet: every layer reads all maps before it."""
    maps = [net.conv("x", 16)]
    for _ in range(3):
        maps.append(net.conv(net.conv(net.join(*maps) if len(maps) > 1 else maps[0], 16, 1), 8))
    return [net.conv(net.join(*maps), 8, 1, act="none")]


def inception(net: Net) -> list[str]:
    """Branches of different kernels and pooling, joined twice."""
    x = net.conv("x", 16)
    for _ in range(2):
        average = net.node("AveragePool", [x], kernel_shape=[3, 3], pads=[1] * 4)
        x = net.join(
            net.conv(x, 8, 1), net.conv(net.conv(x, 8, 1), 8), net.conv(net.pool(x, 3), 8, 1), net.conv(average, 8, 1)
        )
    return [net.conv(x, 8, 1, act="none")]


def shuffle(net: Net) -> list[str]:
    """ShuffleNet: half of the channels passes by, then they are mixed."""
    x = net.conv("x", 16)
    for _ in range(2):
        a, b = net.halves(x)
        b = net.conv(net.conv(net.conv(b, 8, 1), 8, groups=8, act="none"), 8, 1)
        x = net.shuffle(net.join(a, b))
    return [net.conv(x, 8, 1, act="none")]


def unet(net: Net, up: str = "deconv") -> list[str]:
    """Down and up again, with skips that are joined."""
    a = net.conv("x", 16)
    b = net.conv(net.pool(a, 2, 2), 16)
    raised = net.deconv(b, 16) if up == "deconv" else net.conv(net.up(b, up), 16, 1, act="none")
    return [net.conv(net.conv(net.join(raised, a), 16), 4, 1, act="none")]


def hrnet(net: Net) -> list[str]:
    """Two resolutions that exchange their maps by addition; both are outputs."""
    a = net.conv("x", 16)
    b = net.conv(a, 16, stride=2)
    a, b = net.conv(a, 16), net.conv(b, 16)
    raised = net.up(net.conv(b, 16, 1, act="none"))
    fine = net.activation(net.add(a, raised), net.act)
    coarse = net.activation(net.add(b, net.conv(a, 16, stride=2, act="none")), net.act)
    return [net.conv(fine, 8, 1, act="none"), net.conv(coarse, 8, 1, act="none")]


def mobile(net: Net) -> list[str]:
    """Inverted residuals with a gate, and a classifier behind the spatial mean."""
    x = net.conv("x", 16)
    y = net.gate(net.conv(net.conv(x, 32, 1), 32, groups=32))
    x = net.add(x, net.conv(y, 16, 1, act="none"))
    pooled = net.node("Flatten", [net.node("GlobalAveragePool", [net.conv(x, 32, 1)])], 32)
    weights = net.stored("weight", net.rng.normal(0, 32**-0.5, (10, 32))) | net.stored(
        "bias", net.rng.normal(0, 0.1, 10)
    )
    return [net.node("Gemm", [pooled, *weights], 10, weights, transB=1)]


def residual(net: Net) -> list[str]:
    """A plain and a projected residual block."""
    x = net.conv("x", 16)
    x = net.activation(net.add(x, net.conv(net.conv(x, 16), 16, act="none")), net.act)
    x = net.activation(
        net.add(net.conv(x, 24, 1, 2, act="none"), net.conv(net.conv(x, 24, 3, 2), 24, act="none")), net.act
    )
    return [net.conv(x, 8, 1, act="none")]


BLOCKS: dict[str, Callable[[Net], list[str]]] = {
    "c2f": c2f, "csp": csp, "dense": dense, "inception": inception, "shuffle": shuffle, "unet-deconv": unet,
    "unet-nearest": lambda net: unet(net, "nearest"), "unet-linear": lambda net: unet(net, "linear"), "hrnet": hrnet,
    "mobile": mobile, "residual": residual,
}  # fmt: skip


def build(path: Path, block: str, act: str, seed: int = 0) -> Path:
    """The network of that name in `BLOCKS` with one of `ACTIVATIONS`, at `path`."""
    net = Net(act, seed)
    return net.save(path, *BLOCKS[block](net))
