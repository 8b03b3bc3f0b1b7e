"""Q/DQ models: an ONNX file whose int8 layers are written down as QuantizeLinear/DequantizeLinear pairs.

Rules (where the pairs go is `pydeploy.quant.placement`, per runtime):

* Weights: per output channel, symmetric int8 in -127..127, scale ``max|w| / 127`` (63 in place of 127 where the target
  adds products in 16 bits). A channel of zeros gets a finite, non-zero scale.
* Activations: per tensor. Symmetric: int8, zero point 0, scale ``max(|lo|, |hi|) / 127``. Asymmetric: uint8, the
  interval widened to hold zero, scale ``(hi - lo) / 255``, so zero is exact in both. By sign: the second where nothing is
  negative and beside Concat, the first elsewhere.
* Biases: float, or int32 with the scale ``input scale * weight scale`` that the integer sum has anyway; a weight scale
  is raised where the bias would not fit into 30 bits, which leaves room for the sum. (ONNX Runtime 1.31 makes int32
  of float biases by itself and does not look whether they fit.)
* Biases are corrected for what rounding the weights adds to a channel's mean (`pydeploy.quant.correction`).
* Batch normalization is folded before the weights' scales are chosen (`pydeploy.onnxfile.prepare`).
* Node and tensor names stay; only spatial means become GlobalAveragePool (the node keeps its name).

Sources: Jacob et al., arXiv 1712.05877; Wu et al., arXiv 2004.09602; Krishnamoorthi, arXiv 1806.08342.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from pydeploy.errors import DataError, Mismatch
from pydeploy.onnxfile.load import files_hash, read_float_model
from pydeploy.onnxfile.nodes import channel_axis, label, new_name
from pydeploy.onnxfile.prepare import prepare, save_graph
from pydeploy.quant.correction import shift, stored_bias
from pydeploy.quant.observe import Range, Ranges
from pydeploy.quant.placement import Placement, plan
from pydeploy.quant.styles import Style, style_on
from pydeploy.timing.records import Target

_SMALLEST_SCALE = 1e-30
_BIAS_LIMIT = 2.0**30
_LARGEST_RATIO = 200.0


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """What `quantize` did."""

    style: str
    quantized: tuple[str, ...]
    """Layers with weights that became int8, in graph order."""
    skipped: dict[str, str]
    """Layers with weights that stay in float, each with the reason."""
    tensors: tuple[str, ...]
    """Activations that carry a Q/DQ pair."""
    weight_top: int
    """Largest integer among the weights: 127, or 63 where the target's sums of products would saturate."""


def quantize(
    onnx_path: Path,
    ranges: Ranges,
    out: Path,
    *,
    style: str = "onnxruntime",
    target: Target | None = None,
    exclude: Sequence[str] = (),
    min_channels: int | None = None,
    float_ends: Sequence[str] = (),
) -> QuantizeReport:
    """Write the int8 form of a float model to `out` and say which layers are int8.

    The grids suit the instruction sets of `target`'s processor (None: this computer's; see `pydeploy.quant.styles`).
    `exclude` holds layers that keep float weights, names or patterns; where such a layer shares its input with an int8 layer, it reads
    the rounded values. `float_ends` keeps the 'first' and 'last' layers in float. `min_channels` overrides the style's
    (1: every layer). The same input gives the same bytes.
    Raises `DataError` for a model that cannot be quantized, `Mismatch` where `ranges` are another model's,
    `ConfigError` for an unknown style or layer name.
    """
    onnx_path, rules = Path(onnx_path), style_on(style, target)
    source = read_float_model(onnx_path)
    if ranges.model != files_hash(source.files):
        raise Mismatch(f"the ranges were calibrated on another file than {onnx_path}; calibrate this model")
    graph = prepare(source)
    placement = plan(graph, rules, exclude=exclude, min_channels=min_channels, float_ends=float_ends)
    if not placement.nodes:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(placement.skipped.items())[:5])
        reasons += f"; and {len(placement.skipped) - 5} more" if len(placement.skipped) > 5 else ""
        raise DataError(f"no layer of {onnx_path} can be int8 ({reasons or 'it has no layer with weights'})")
    _insert(_Editor(graph), placement, rules, ranges)
    save_graph(graph, source.model, Path(out))
    names = tuple(label(node) for node in placement.nodes)
    return QuantizeReport(style, names, dict(placement.skipped), tuple(placement.sources), rules.weight_top)


@dataclass
class _Editor:
    """A graph being edited: new nodes are placed before or behind existing ones, names stay unique."""

    graph: gs.Graph
    before: dict[int, list[gs.Node]] = field(default_factory=dict)
    behind: dict[str, list[gs.Node]] = field(default_factory=dict)
    scales: dict[str, np.float32] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.names.update(self.graph.tensors())
        self.names.update(node.name for node in self.graph.nodes)

    def unique(self, name: str) -> str:
        """`name`, with a number behind it where it is taken."""
        return new_name(name, self.names)

    def constant(self, name: str, values: NDArray[np.generic]) -> gs.Constant:
        return gs.Constant(self.unique(name), values)

    def node(self, op: str, base: str, inputs: list[gs.Tensor], axis: int | None, dtype: type[np.generic]) -> gs.Node:
        """A Q or DQ node behind `base`, with a new output tensor."""
        output = gs.Variable(self.unique(f"{base}_{'q' if op == 'QuantizeLinear' else 'dq'}"), dtype=dtype)
        attributes = {} if axis is None else {"axis": axis}
        return gs.Node(op, self.unique(f"{base}_{op}"), attributes, inputs, [output])

    def finish(self) -> None:
        """Put the new nodes into the graph's list, which stays in execution order."""
        nodes = [new for tensor in self.graph.inputs for new in self.behind.get(tensor.name, [])]
        for node in self.graph.nodes:
            nodes += [*self.before.get(id(node), []), node]
            nodes += [new for tensor in node.outputs for new in self.behind.get(tensor.name, [])]
        self.graph.nodes = nodes


def _insert(editor: _Editor, placement: Placement, style: Style, ranges: Ranges) -> None:
    tensors = editor.graph.tensors()
    read = {id(node): node.inputs[0].name for node in placement.nodes}
    means = {node.outputs[0].name: node.inputs[0] for node in editor.graph.nodes if node.op == "GlobalAveragePool"}
    for name, sources in placement.sources.items():
        known = [ranges[source] for source in sources]
        interval = (min(lo for lo, _ in known), max(hi for _, hi in known))
        if style.kernels:
            interval = _wide_enough(interval, means.get(name), editor.scales)
        _quantize_tensor(
            editor, tensors[name], interval, symmetric=_symmetric(style, interval, name in placement.joined)
        )
    for node in placement.nodes:
        name = read[id(node)]
        _quantize_weights(editor, node, style, editor.scales[name], ranges.means.get(name))
    editor.finish()


def _wide_enough(interval: Range, mean_of: gs.Tensor | None, scales: Mapping[str, np.float32]) -> Range:
    """A wider interval where that of a spatial mean is so narrow beside its input's that ONNX Runtime's kernel refuses the ratio.

    It takes ``input scale / (pixels * output scale)`` from 2^-32 to below 256; a mean of nearly nothing is far above.
    """
    shape = mean_of.shape if mean_of is not None else None
    if mean_of is None or mean_of.name not in scales or shape is None or not all(isinstance(n, int) for n in shape[2:]):
        return interval
    least = 255 * float(scales[mean_of.name]) / (math.prod(shape[2:]) * _LARGEST_RATIO)
    lo, hi = min(interval[0], 0.0), max(interval[1], 0.0)
    return (lo, hi) if hi - lo >= least else (lo, lo + least)


def _symmetric(style: Style, interval: Range, joined: bool) -> bool:
    if style.scheme == "by sign":
        return interval[0] < 0 and not joined
    return style.scheme == "symmetric"


def activation_grid(interval: Range, *, symmetric: bool) -> tuple[np.float32, np.generic]:
    """Scale and zero point (int8 or uint8) of the grid that covers `interval` and zero."""
    lo, hi = min(interval[0], 0.0), max(interval[1], 0.0)
    scale = np.float32(max(-lo, hi) / 127 if symmetric else (hi - lo) / 255)
    if scale < _SMALLEST_SCALE:  # the tensor is zero for all that float32 arithmetic can tell
        scale = np.float32(1.0)
    return scale, np.int8(0) if symmetric else np.uint8(np.clip(np.rint(-lo / float(scale)), 0, 255))


def weight_scales(
    weight: NDArray[np.float32], axis: int, least: NDArray[np.float64] | None = None, top: int = 127
) -> NDArray[np.float32]:
    """Scale of each output channel, shape ``(channels,)``: ``max|w| / top``, at least `least`, never zero."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = np.max(np.abs(weight), axis=others).astype(np.float64) / top
    if least is not None:
        scales = np.maximum(scales, least)
    return np.where(scales < _SMALLEST_SCALE, 1.0, scales).astype(np.float32)


def _quantize_tensor(editor: _Editor, tensor: gs.Tensor, interval: Range, *, symmetric: bool) -> None:
    """Put a pair behind `tensor` and let every reader read it; a model output keeps the float tensor."""
    scale, zero = activation_grid(interval, symmetric=symmetric)
    readers = list(dict.fromkeys(map(id, tensor.outputs)))
    by_id = {id(node): node for node in tensor.outputs}
    grid = [editor.constant(f"{tensor.name}_scale", np.array(scale)),
            editor.constant(f"{tensor.name}_zero_point", np.array(zero))]  # fmt: skip
    quantizer = editor.node("QuantizeLinear", tensor.name, [tensor, *grid], None, type(zero))
    restorer = editor.node("DequantizeLinear", tensor.name, [*quantizer.outputs, *grid], None, np.float32)
    for reader in (by_id[key] for key in readers):
        reader.inputs = [restorer.outputs[0] if given is tensor else given for given in reader.inputs]
    editor.behind[tensor.name] = [quantizer, restorer]
    editor.scales[tensor.name] = scale


def _quantize_weights(
    editor: _Editor, node: gs.Node, style: Style, input_scale: np.float32, means: Sequence[float] | None
) -> None:
    weight, axis = node.inputs[1], channel_axis(node)
    values = weight.values
    if not np.isfinite(values).all():
        raise DataError(f"the weight '{weight.name}' of '{label(node)}' holds NaN or infinity; train the model again")
    bias = stored_bias(node)
    least = None
    if bias is not None and style.bias == "int32":
        least = np.abs(bias.values.astype(np.float64)) / (float(input_scale) * _BIAS_LIMIT)
    scales = weight_scales(values, axis, least, style.weight_top)
    along = scales.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    rounded = np.clip(np.rint(values / along), -style.weight_top, style.weight_top).astype(np.int8)
    if bias is not None and means is not None:
        added = shift(node, rounded * along.astype(np.float64) - values, np.asarray(means))
        alone = len(bias.outputs) == 1
        name = bias.name if alone else editor.unique(bias.name)
        node.inputs[2] = bias = gs.Constant(name, (bias.values - added).astype(np.float32))
    grid = [editor.constant(f"{weight.name}_scale", scales),
            editor.constant(f"{weight.name}_zero_point", np.zeros(scales.shape, np.int8))]  # fmt: skip
    steps = []
    if style.weights == "float":
        steps.append(editor.node("QuantizeLinear", weight.name, [weight, *grid], axis, np.int8))
        stored = steps[0].outputs[0]
    else:
        stored = editor.constant(f"{weight.name}_int8", rounded)
    steps.append(editor.node("DequantizeLinear", weight.name, [stored, *grid], axis, np.float32))
    node.inputs[1] = steps[-1].outputs[0]
    if bias is not None and style.bias == "int32":
        node.inputs[2], restorer = _quantize_bias(editor, bias, (input_scale * scales).astype(np.float32))
        steps.append(restorer)
    editor.before[id(node)] = steps


def _quantize_bias(editor: _Editor, bias: gs.Constant, scales: NDArray[np.float32]) -> tuple[gs.Tensor, gs.Node]:
    steps = np.rint(bias.values.astype(np.float64) / scales.astype(np.float64))
    inputs = [
        editor.constant(f"{bias.name}_int32", np.clip(steps, -_BIAS_LIMIT, _BIAS_LIMIT).astype(np.int32)),
        editor.constant(f"{bias.name}_scale", scales),
        editor.constant(f"{bias.name}_zero_point", np.zeros(scales.shape, np.int32)),
    ]
    restorer = editor.node("DequantizeLinear", bias.name, inputs, 0, np.float32)
    return restorer.outputs[0], restorer
