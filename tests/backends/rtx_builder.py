"""NVIDIA's own ONNX parser and builder, of TensorRT for RTX: they judge files without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from pydeploy.backends.fused_nodes import node_name
from pydeploy.backends.tensorrt import compat
from pydeploy.backends.tensorrt.logger import make_logger

GPUS = ("sm86",)
"""What test engines are built for: one architecture, because each takes its time."""


@dataclass(frozen=True)
class Layer:
    """A layer of the parsed network: its ONNX node, its kind, and the types that it reads and writes."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    reads: tuple[str, ...]
    outputs: tuple[str, ...]
    writes: tuple[str, ...]


def module() -> Any:
    """The module `tensorrt_rtx`; the test is skipped where it is not installed."""
    return pytest.importorskip("tensorrt_rtx", reason="needs NVIDIA's TensorRT for RTX: pip install tensorrt-rtx")


class Parsed:
    """A model as the parser takes it; `errors` names the nodes that it refuses, with its reasons."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.trt = module()
        self.messages = make_logger(self.trt)
        self.messages.errors.clear()
        self.builder = self.trt.Builder(self.messages)
        self.network = self.builder.create_network(compat.network_flags(self.trt, typed=True))
        self.parser = self.trt.OnnxParser(self.network, self.messages)
        names = [node_name(node) for node in model.graph.node]
        self.errors: list[tuple[str, str]] = []
        if not self.parser.parse(model.SerializeToString()):
            found = [self.parser.get_error(index) for index in range(self.parser.num_errors)]
            self.errors = [(_place(error.node(), names), " ".join(error.desc().split())) for error in found]
            assert self.errors, "a refusal has reasons"

    def layers(self) -> list[Layer]:
        """All layers, in the parser's order."""
        assert not self.errors, self.errors
        return [_layer(self.network.get_layer(index)) for index in range(self.network.num_layers)]

    def build(self, gpus: Sequence[str] = GPUS, *, batch: int = 0, sparse: bool = False) -> str:
        """'' or why no engine comes out; `batch` is the largest of an open first dimension."""
        assert not self.errors, self.errors
        config = self.builder.create_builder_config()
        compat.set_gpus(self.trt, config, gpus)
        if sparse:
            config.set_flag(self.trt.BuilderFlag.SPARSE_WEIGHTS)
        if batch:
            profile = self.builder.create_optimization_profile()
            for index in range(self.network.num_inputs):
                value = self.network.get_input(index)
                rest = tuple(value.shape)[1:]
                profile.set_shape(value.name, (1, *rest), (batch, *rest), (batch, *rest))
            config.add_optimization_profile(profile)
        plan = self.builder.build_serialized_network(self.network, config)
        return "" if plan is not None and plan.nbytes > 0 else self.messages.reason()


def accept(path: Path, **choices: Any) -> Parsed:
    """The parsed network of a file that parser and builder take; fails with their reasons where they do not."""
    parsed = Parsed(onnx.load(path))
    assert not parsed.errors, f"{path.name}: {parsed.errors}"
    assert not (why := parsed.build(**choices)), f"{path.name}: {why}"
    return parsed


def _place(index: int, names: list[str]) -> str:
    return names[index] if 0 <= index < len(names) else ""


def _layer(layer: Any) -> Layer:
    inputs = [tensor for index in range(layer.num_inputs) if (tensor := layer.get_input(index)) is not None]
    outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
    return Layer(layer.name, layer.type.name, tuple(t.name for t in inputs), tuple(t.dtype.name for t in inputs),
                 tuple(t.name for t in outputs), tuple(t.dtype.name for t in outputs))  # fmt: skip


WEIGHTED = {"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY"}
TYPES = {TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.BFLOAT16: "BF16"}


def compare_with_the_file(layers: list[Layer], model: onnx.ModelProto) -> None:
    """Layers fed by restored values on both sides, additions by restored inputs, and the types that they compute in."""
    makers = {name: layer for layer in layers for name in layer.outputs}
    restored = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    graph = onnx.shape_inference.infer_shapes(model).graph
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)
    } | stored
    by_name: dict[str, list[Layer]] = {}
    for layer in layers:
        by_name.setdefault(layer.name, []).append(layer)
    seen = 0
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        (layer,) = (found for found in by_name[node_name(node)] if found.kind in WEIGHTED)
        promised = [name in restored for name in node.input[:2]]
        found = [comes_from_restorer(layer, place, makers) for place in range(2)]
        assert found == promised, node_name(node)
        kind = TYPES[kinds[node.input[0]]]
        assert (layer.reads[0], layer.writes[0]) == (kind, kind), node_name(node)
        seen += 1
    assert seen
    for node in model.graph.node:
        if node.op_type == "Add" and not set(node.input) & set(stored):
            (layer,) = (found for found in by_name[node_name(node)] if found.kind == "ELEMENTWISE")
            places = [comes_from_restorer(layer, place, makers) for place in range(2)]
            assert places == [name in restored for name in node.input], node_name(node)
    pairs = [layer for layer in layers if layer.kind == "QUANTIZE"]
    assert len(pairs) == sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    assert {kind for layer in pairs for kind in layer.writes} <= {"INT8"}


def comes_from_restorer(layer: Layer, place: int, makers: dict[str, Layer]) -> bool:
    """Whether an input was restored, past the reshapes that the parser puts in by itself."""
    if place >= len(layer.inputs):
        return False  # a weight that the layer holds
    maker = makers.get(layer.inputs[place])
    while maker is not None and maker.kind == "SHUFFLE" and maker.name.startswith("ONNXTRT_"):
        maker = makers.get(maker.inputs[0])
    return maker is not None and maker.kind == "DEQUANTIZE"
