"""Typed half-precision models: every tensor that may be is float16 or bfloat16, written down in the ONNX file.

* A layer's type is what its ONNX definition allows; what has no half form stays float32 between two Casts. Arguments
  that are float32 by definition (the scales of Resize) stay so. Inputs and outputs stay float32 on request.
* float16 ends at 65504. Layers whose values come near it on the calibration set, or whose sum does before it is
  divided (spatial means), stay float32. bfloat16 has the range of float32 and needs no such set.
* Q/DQ models become typed ones: half scales (so that what is not int8 runs in half), opset 19 or later. A pair that only
  float32 layers read keeps float32 scales. Scales below 2^-20 are raised to it: float16 would round them badly, or to 0.
* Q/DQ in float16 need opset 19, convolutions in bfloat16 opset 22: older models are converted.

Sources: IEEE 754-2008; Micikevicius et al., "Mixed precision training", arXiv 1710.03740; ONNX operator definitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pydeploy.backends.base import Feeds
from pydeploy.errors import ConfigError, DataError, nearest
from pydeploy.files import replacing
from pydeploy.onnxfile.control_flow import DOMAIN, enclose, release
from pydeploy.onnxfile.load import Loaded, opset_of, read_model
from pydeploy.onnxfile.nodes import new_name
from pydeploy.onnxfile.prepare import export_graph, prepare

HalfType = Literal["float16", "bfloat16"]
_TYPES: Mapping[str, int] = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
LARGEST = 65504.0
"""The largest finite float16."""
MARGIN = 2.0
"""Layers stay float32 where values come within this factor of `LARGEST`: other samples may reach further."""
SMALLEST_SCALE = 2.0**-20
_PAIRS = ("QuantizeLinear", "DequantizeLinear")
_SUMS = frozenset({"ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "GlobalAveragePool", "AveragePool"})
_MADE_FLOAT = frozenset({"Cast", "DequantizeLinear", "ConstantOfShape"})
"""Nodes without float inputs whose output type can be chosen."""


@dataclass(frozen=True, slots=True)
class HalfReport:
    """What `to_half` did."""

    dtype: str
    converted: tuple[str, ...]
    """Nodes that compute in half precision, in graph order."""
    kept: dict[str, str]
    """Nodes that stay float32, each with the reason."""
    samples: int
    """How many calibration samples were run to find overflows."""


def to_half(
    onnx_path: Path,
    out: Path,
    *,
    dtype: HalfType = "float16",
    keep_io: bool = True,
    batches: Iterable[Feeds] = (),
    keep: Sequence[str] = (),
) -> HalfReport:
    """Write the half-precision form of a float or Q/DQ model to `out` and say what stays float32.

    `batches` are feeds of the calibration set, run in float32 to find what overflows float16; without any, only weights
    are checked. `keep` names nodes that stay float32. ``keep_io=False`` makes inputs and outputs half as well.
    Raises `DataError` for a model that cannot be converted, `ConfigError` for an unknown type or node name.
    """
    half_type(dtype)
    source = read_model(Path(onnx_path))
    _check_convertible(source.model, Path(onnx_path))
    model = _float_model(source, dtype, Path(onnx_path))
    known = [_name(node) for node in model.graph.node]
    for name in keep:
        if name not in known:
            raise ConfigError(f"cannot keep '{name}' in float32: the model has no such node{nearest(name, known)}")
    largest, samples = _largest(model, batches) if dtype == "float16" else ({}, 0)
    reasons = dict.fromkeys(keep, "kept by name") | (_overflowing(model, largest) if dtype == "float16" else {})
    enclose(model)
    converter = _Converter(model, _TYPES[dtype], keep_io, reasons)
    converter.convert()
    release(model)
    onnx.checker.check_model(model, full_check=True)
    with replacing(Path(out)) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))
    return HalfReport(dtype, tuple(converter.converted), converter.kept, samples)


def half_type(name: str) -> HalfType:
    """The half-precision type of that name; raises `ConfigError` for an unknown one."""
    if name not in _TYPES:
        raise ConfigError(f"unknown half-precision type '{name}'{nearest(name, _TYPES)}")
    return "float16" if name == "float16" else "bfloat16"


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])


def _check_convertible(model: onnx.ModelProto, path: Path) -> None:
    if any(tensor.data_type in _TYPES.values() for tensor in model.graph.initializer):
        raise DataError(f"{path} is in half precision already; start from the float32 model")


def _float_model(source: Loaded, dtype: str, path: Path) -> onnx.ModelProto:
    """A copy to edit: normalised where it is a float model, and of an opset that has the type."""
    quantised = any(node.op_type in _PAIRS for node in source.model.graph.node)
    if quantised:
        model = source.whole()
    else:
        model = export_graph(prepare(source).cleanup(remove_unused_graph_inputs=False))
        model.ir_version = source.model.ir_version
        model.metadata_props.extend(source.model.metadata_props)
    wanted = 22 if dtype == "bfloat16" else 19 if quantised else 13
    if opset_of(model) < wanted:
        try:
            model = onnx.version_converter.convert_version(model, wanted)
        except Exception as error:  # the converter raises bare RuntimeErrors
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"{path} has opset {source.opset}, {dtype} needs {wanted} here and the conversion fails ({reason}); "
                f"export with opset {wanted} or later"
            ) from None
    model.ir_version = max(model.ir_version, 10 if wanted == 22 else 9 if wanted == 19 else 7)
    return onnx.shape_inference.infer_shapes(model)


def _largest(model: onnx.ModelProto, batches: Iterable[Feeds]) -> tuple[dict[str, float], int]:
    """Largest magnitude of every float tensor over the samples, and how many samples there were."""
    import onnxruntime as ort

    names = [name for name, kind in _element_types(model).items() if kind == TensorProto.FLOAT]
    inputs = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    taps = [name for name in names if name not in inputs]
    found: dict[str, float] = {}
    session: Any = None
    samples = 0
    for feeds in batches:
        if session is None:
            tapped = onnx.ModelProto()
            tapped.CopyFrom(model)
            del tapped.graph.output[:]
            tapped.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in taps)
            options = ort.SessionOptions()
            options.log_severity_level = 3
            session = ort.InferenceSession(tapped.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = {**feeds, **dict(zip(taps, session.run(taps, dict(feeds)), strict=True))}
        for name, array in values.items():
            top = float(np.abs(array).max(initial=0.0))
            if not np.isfinite(top):
                raise DataError(f"tensor '{name}' holds NaN or infinity in float32; check the samples and the weights")
            found[name] = max(found.get(name, 0.0), top)
        samples += len(next(iter(feeds.values())))
    return found, samples


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    found = {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.value_info, *graph.output]}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _overflowing(model: onnx.ModelProto, largest: Mapping[str, float]) -> dict[str, str]:
    """Nodes whose values, weights or sums come near the end of float16, with the fact."""
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in [*model.graph.input, *model.graph.value_info, *model.graph.output]
    }
    weights = {
        t.name: float(np.abs(numpy_helper.to_array(t)).max(initial=0.0))
        for t in model.graph.initializer
        if t.data_type == TensorProto.FLOAT
    }
    tops, limit = {**weights, **largest}, LARGEST / MARGIN
    found: dict[str, str] = {}
    for node in model.graph.node:
        widest = max([*node.input, *node.output], key=lambda tensor: tops.get(tensor, 0.0))
        if tops.get(widest, 0.0) > limit:
            found[_name(node)] = f"'{widest}' reaches {tops[widest]:.3g}, float16 ends at {LARGEST:g}"
        elif node.op_type in _SUMS:
            count = prod(shapes.get(node.input[0], [])) // max(1, prod(shapes.get(node.output[0], [])))
            top = tops.get(node.input[0], 0.0)
            total = count * (top * top if node.op_type in ("ReduceL2", "ReduceSumSquare") else top)
            if total > limit:
                found[_name(node)] = (
                    f"a sum of {count} values up to {top:.3g} may reach {total:.3g}, float16 ends at {LARGEST:g}"
                )
    return found


@dataclass
class _Converter:
    """A model being retyped in place: node by node in execution order, Casts where the types of two nodes differ."""

    model: onnx.ModelProto
    half: int
    keep_io: bool
    kept: dict[str, str]
    converted: list[str] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    types: dict[str, int] = field(default_factory=dict)
    """Types that tensors have by now."""
    casts: dict[tuple[str, int], str] = field(default_factory=dict)
    stored: dict[str, onnx.TensorProto] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def convert(self) -> None:
        """Retype everything."""
        graph = self.model.graph
        self.types = _element_types(self.model)
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.names.update([*self.types, *(_name(node) for node in graph.node)])
        was_float = {name for name, kind in self.types.items() if kind == TensorProto.FLOAT}
        ends = {value.name for value in graph.output}
        halves = self._choose(was_float)
        if not self.keep_io:
            self._retype(value for value in graph.input if value.name in was_float and value.name not in self.stored)
        for node in graph.node:
            self._node(node, halves, was_float, ends if self.keep_io else set())
        if not self.keep_io:
            self._retype(value for value in graph.output if self.types.get(value.name) == self.half)
        used = {name for node in self.nodes for name in node.input} | ends
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(tensor for name, tensor in self.stored.items() if name in used)

    def _retype(self, values: Iterable[onnx.ValueInfoProto]) -> None:
        for value in values:
            value.type.tensor_type.elem_type = self.half
            self.types[value.name] = self.half

    def _choose(self, was_float: set[str]) -> set[str]:
        """Nodes that become half. A pair stays with the layers that read it."""
        graph, halves = self.model.graph, set[str]()
        readers: dict[str, list[str]] = {}
        for node in reversed(graph.node):
            name = _name(node)
            reading = {reader for tensor in node.output for reader in readers.get(tensor, [])}
            touched = was_float.intersection([*node.input, *node.output])
            # A pair is as its readers are: all of them float32 (the Q of such a DQ included) keep it float32.
            if node.op_type in _PAIRS and reading and not reading & halves:
                pass
            elif touched and name not in self.kept:
                reason = self._obstacle(node, was_float)
                if reason:
                    self.kept[name] = reason
                else:
                    halves.add(name)
            for tensor in node.input:
                readers.setdefault(tensor, []).append(name)
        order = {_name(node): index for index, node in enumerate(graph.node)}
        self.converted = sorted(halves, key=order.__getitem__)
        self.kept = dict(sorted(self.kept.items(), key=lambda item: order[item[0]]))
        return halves

    def _obstacle(self, node: onnx.NodeProto, was_float: set[str]) -> str:
        if node.domain == DOMAIN:
            return "it is control flow, whose bodies stay float32"
        floats = [t for t in node.input if t in was_float]
        if not floats and node.op_type not in _MADE_FLOAT:
            return f"{node.op_type} makes float32 from other types"
        if not any(self._allows(node, index, side) for side in ("inputs", "outputs") for index in range(8)):
            return f"{node.op_type} has no half-precision form in opset {opset_of(self.model)}"
        return ""

    def _allows(self, node: onnx.NodeProto, index: int, side: Literal["inputs", "outputs"]) -> bool:
        """Whether ONNX allows the half type for this input or output of the node."""
        try:
            schema = onnx.defs.get_schema(node.op_type, opset_of(self.model), node.domain)
        except onnx.defs.SchemaError:
            return False
        formal = schema.inputs if side == "inputs" else schema.outputs
        if not formal or (
            index >= len(formal) and formal[-1].option != onnx.defs.OpSchema.FormalParameterOption.Variadic
        ):
            return False
        text = "tensor(float16)" if self.half == TensorProto.FLOAT16 else "tensor(bfloat16)"
        return text in formal[min(index, len(formal) - 1)].types

    def _node(self, node: onnx.NodeProto, halves: set[str], was_float: set[str], ends: set[str]) -> None:
        is_half = _name(node) in halves
        for index, tensor in enumerate(node.input):
            if tensor in was_float:
                wanted = self.half if is_half and self._allows(node, index, "inputs") else TensorProto.FLOAT
                node.input[index] = self._as(tensor, wanted, scale=node.op_type in _PAIRS and index == 1)
        if is_half and node.op_type in _PAIRS:
            self._fit_stored_integers(node)
        if is_half and node.op_type in ("Cast", "ConstantOfShape"):
            self._retype_attribute(node)
        behind: list[onnx.NodeProto] = []
        for index, tensor in enumerate(node.output):
            if tensor not in was_float:
                continue
            self.types[tensor] = self.half if is_half and self._allows(node, index, "outputs") else TensorProto.FLOAT
            if tensor in ends and self.types[tensor] == self.half:
                inner = self._unique(f"{tensor}_half")
                node.output[index] = inner
                self.types[inner] = self.half
                behind.append(self._cast(inner, tensor, TensorProto.FLOAT))
                self.casts[tensor, self.half], self.types[tensor] = inner, TensorProto.FLOAT
        self.nodes += [node, *behind]

    def _unique(self, name: str) -> str:
        return new_name(name, self.names)

    def _cast(self, source: str, target: str, kind: int) -> onnx.NodeProto:
        return helper.make_node("Cast", [source], [target], name=self._unique(f"{target}_Cast"), to=kind)

    def _as(self, tensor: str, kind: int, *, scale: bool) -> str:
        """The name under which `tensor` exists with the wanted type."""
        if tensor not in self.stored and self.types[tensor] == kind:
            return tensor
        if kind == TensorProto.FLOAT and tensor in self.stored:
            return tensor
        if (tensor, kind) not in self.casts:
            name = self._unique(f"{tensor}_{'half' if kind == self.half else 'float'}")
            if tensor in self.stored:
                values = numpy_helper.to_array(self.stored[tensor])
                self.stored[name] = half_tensor(np.maximum(values, SMALLEST_SCALE) if scale else values, name, kind)
            else:
                self.nodes.append(self._cast(tensor, name, kind))
            self.casts[tensor, kind], self.types[name] = name, kind
        return self.casts[tensor, kind]

    def _fit_stored_integers(self, node: onnx.NodeProto) -> None:
        """Stored int8 weights whose scale had to be raised are rounded anew, so that their values stay."""
        integers = self.stored.get(node.input[0])
        before = next((t for (t, _), name in self.casts.items() if name == node.input[1]), "")
        if integers is None or integers.data_type != TensorProto.INT8 or before not in self.stored:
            return
        scales = numpy_helper.to_array(self.stored[before]).astype(np.float64)
        if (scales >= SMALLEST_SCALE).all():
            return
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        values = numpy_helper.to_array(integers)
        along = (
            scales.reshape([-1 if i == axis % values.ndim else 1 for i in range(values.ndim)])
            if scales.ndim
            else scales
        )
        fitted = np.rint(values * np.minimum(along / SMALLEST_SCALE, 1.0)).astype(np.int8)
        name = self._unique(f"{integers.name}_half")
        self.stored[name] = numpy_helper.from_array(fitted, name)
        node.input[0] = name

    def _retype_attribute(self, node: onnx.NodeProto) -> None:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = self.half
            if node.op_type == "ConstantOfShape" and attribute.name == "value":
                attribute.t.CopyFrom(half_tensor(numpy_helper.to_array(attribute.t), "", self.half))


def half_tensor(values: NDArray[Any], name: str, kind: int) -> onnx.TensorProto:
    """`values` rounded to the nearest float16 or bfloat16 (ties to even), as an ONNX tensor."""
    tensor = TensorProto(name=name, data_type=kind, dims=values.shape)
    single = np.ascontiguousarray(values, dtype=np.float32)
    if kind == TensorProto.FLOAT16:
        tensor.raw_data = single.astype("<f2").tobytes()
    else:
        bits = single.view(np.uint32).astype(np.uint64)
        tensor.raw_data = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return tensor
