"""An analytic device for tests: computes a latency from the ONNX file, runs nothing. Its numbers are not measured.

A layer (convolution, Gemm, MatMul) takes the longer of computing and moving its data, plus a constant (the roofline of
Williams, Waterman, Patterson, CACM 2009). Channels are padded to `LANES`, which makes the staircase of real devices.
bf16 computes twice and int8 four times as fast as fp32, and moves half and a quarter of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pydeploy.backends.base import Backend, Engine, Feeds, LayerTime, TensorSpec, check_feeds
from pydeploy.backends.fused_nodes import node_name
from pydeploy.errors import BackendUnavailable, DataError
from pydeploy.files import read_json, sha256, write_json
from pydeploy.onnxfile.read import input_specs, read_onnx, tensor_spec
from pydeploy.timing.records import Target

BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
LANES = 16
MACS_PER_US = 20_000.0  # of one core in fp32
BYTES_PER_US = 10_000.0
LAYER_US = 5.0
NETWORK_US = 10.0

Shapes = Mapping[str, tuple[int, ...]]


class Null(Backend):
    """The analytic device at one precision, batch size and thread count (0 = 1: it has one core)."""

    name = "null"
    int8_style = "tensorrt"  # channels in steps of `LANES`, as tensor cores have them
    halves = ("bf16",)
    analytic = True

    def __init__(self, precision: str = "fp32", batch: int = 1, threads: int = 0) -> None:
        if precision not in BYTES:
            raise BackendUnavailable(f"backend 'null' computes {', '.join(BYTES)}; '{precision}' was asked for")
        self.precision = precision
        self.batch = batch
        self.threads = threads or 1

    @classmethod
    def align_at(cls, precision: str, options: str = "") -> int:  # noqa: ARG003
        return LANES

    def target(self) -> Target:
        return Target("analytic", self.name, "1", self.precision, self.batch, self.threads, measured=not self.analytic)

    def build(self, onnx: Path, out: Path) -> Engine:
        onnx, out = Path(onnx), Path(out)
        graph = read_onnx(onnx, precision=self.precision, batch=self.batch).graph
        shapes = _shapes(onnx)
        restored = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        layers = []
        for node in graph.node:
            if (cost := _cost(node, shapes)) is not None:
                # What an int8 file leaves unquantized runs in fp32.
                plain = self.precision == "int8" and node.input[0] not in restored
                layers.append(
                    [node_name(node), _layer_us(*cost, BYTES["fp32" if plain else self.precision], self.threads)]
                )
        specs = {"inputs": input_specs(_inferred(onnx), onnx),
                 "outputs": [tensor_spec(value, onnx) for value in _inferred(onnx).graph.output]}  # fmt: skip
        rows = {key: [[s.name, s.dtype, list(s.shape)] for s in found] for key, found in specs.items()}
        write_json(out, {"schema": 1, "layers": layers, **rows})
        return Engine(out, self.name, self.target(), sha256(onnx)).save()

    @contextmanager
    def open(self, engine: Engine) -> Iterator[NullSession]:
        engine.require(self.target())
        yield NullSession(engine.path)


def _inferred(path: Path) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)


def _shapes(path: Path) -> Shapes:
    """Static shape of every tensor of the file whose shape is known."""
    graph = _inferred(path).graph
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        found[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return found


def _cost(node: onnx.NodeProto, shapes: Shapes) -> tuple[float, float] | None:
    """Multiply-accumulates with padded channels, and number of entries moved, of one layer; None for other nodes."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    try:
        taken, weight, given = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    except KeyError as error:
        raise DataError(f"node '{node_name(node)}': the shape of {error} is unknown; export the model again") from None
    moved = float(prod(taken) + prod(weight) + prod(given))
    if node.op_type == "Conv":
        return float(given[0] * prod(given[2:]) * prod(weight[2:]) * _pad(weight[0]) * _pad_in(weight[1])), moved
    rows, depth = prod(given[:-1]), prod(weight) // given[-1]
    return float(rows * _pad(given[-1]) * _pad(depth)), moved


def _pad(channels: int) -> int:
    return -(-channels // LANES) * LANES


def _pad_in(channels: int) -> int:
    # A depthwise convolution has one input channel per group and is not padded on that side.
    return channels if channels == 1 else _pad(channels)


def _layer_us(macs: float, moved: float, size: int, threads: int) -> float:
    compute = macs / (MACS_PER_US * threads * 4 / size)
    return max(compute, moved * size / BYTES_PER_US) + LAYER_US


class NullSession:
    """A loaded analytic engine; see `pydeploy.backends.base.Session`. Outputs are zeros."""

    def __init__(self, path: Path) -> None:
        try:
            facts = read_json(path)
            self._layers = [(str(name), float(time_us)) for name, time_us in facts["layers"]]
            self.inputs: Sequence[TensorSpec] = [_spec(row) for row in facts["inputs"]]
            self.outputs: Sequence[TensorSpec] = [_spec(row) for row in facts["outputs"]]
        except (DataError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is not an engine of backend 'null' ({error!r}); build the engine again") from None

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        check_feeds(feeds, self.inputs)
        return {spec.name: np.zeros(spec.shape, spec.dtype) for spec in self.outputs}

    def time(self, feeds: Feeds, n: int) -> NDArray[np.float64]:
        check_feeds(feeds, self.inputs)
        return np.full(n, NETWORK_US + sum(time_us for _, time_us in self._layers))

    def layers(self, feeds: Feeds, n: int) -> Sequence[LayerTime]:
        check_feeds(feeds, self.inputs)
        return [LayerTime(name, (name,), np.full(n, time_us)) for name, time_us in self._layers]


def _spec(row: Sequence[Any]) -> TensorSpec:
    name, dtype, shape = row
    return TensorSpec(name, dtype, tuple(shape))
