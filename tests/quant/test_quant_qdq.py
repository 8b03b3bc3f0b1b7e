from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from onnx import numpy_helper
from torch.nn import functional

import quant_nets as nets
from pydeploy.backends.base import open_backend
from pydeploy.errors import ConfigError, DataError, Mismatch
from pydeploy.files import sha256
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.lint import lint
from pydeploy.quant.observe import Ranges
from pydeploy.quant.qdq import QuantizeReport, activation_grid, quantize, weight_scales
from pydeploy.quant.styles import STYLES, processor

Build = Callable[..., Path]


NVIDIA = ("tensorrt", "tensorrt-rtx")
PROCESSORS = {"avx2": "avx2 fma", "vnni": "avx2 fma avx512f avx512_vnni", "amx": "avx2 avx512f avx512_vnni amx_int8"}
"""What the tests take the target's processor for; without one it is the computer that they run on."""


def quantized(
    path: Path, style: str, observer: str = "minmax", on: str = "", **options: Any
) -> tuple[Path, QuantizeReport, Ranges]:
    ranges = calibrate(path, nets.random_feeds(path), observer=observer)
    out = path.with_name(f"{path.stem}.{style}.onnx")
    if on:
        sets = (
            PROCESSORS[on]
            if on in PROCESSORS
            else open_backend(on, precision="int8").target().facts["instruction_sets"]
        )
        options["target"] = processor(style, sets)
    return out, quantize(path, ranges, out, style=style, **options), ranges


def nodes_of(path: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(path).graph.node)


def weights_of(path: Path) -> dict[str, nets.Array]:
    return {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}


def pairs(path: Path) -> set[str]:
    """Activations with a pair: what the Q nodes read that is not a weight."""
    stored = weights_of(path)
    return {n.input[0] for n in nodes_of(path) if n.op_type == "QuantizeLinear" and n.input[0] not in stored}


# The grids


@given(lo=st.floats(-1e6, 1e6), span=st.floats(0, 1e6), symmetric=st.booleans(), share=st.floats(0, 1))
def test_the_grid_holds_zero_exactly_and_everything_else_to_one_step(
    lo: float, span: float, *, symmetric: bool, share: float
) -> None:
    scale, zero = activation_grid((lo, lo + span), symmetric=symmetric)
    assert np.isfinite(scale)
    assert scale > 0
    assert zero.dtype == (np.int8 if symmetric else np.uint8)
    low, high = (-127, 127) if symmetric else (0, 255)
    value = lo + share * span
    step = np.clip(np.rint(value / float(scale)) + float(zero), low, high) - float(zero)
    # Rounding the zero point moves the interval by up to half a step, so the ends may be off by a whole one.
    assert abs(step * float(scale) - value) <= float(scale) * (0.5001 if symmetric else 1.0001)


def test_grids_of_one_sided_and_empty_intervals() -> None:
    assert activation_grid((0.0, 2.55), symmetric=False) == (np.float32(0.01), 0)
    assert activation_grid((-2.55, -1.0), symmetric=False) == (np.float32(0.01), 255)
    assert activation_grid((-2.54, 1.0), symmetric=True) == (np.float32(0.02), 0)
    assert activation_grid((0.0, 0.0), symmetric=False) == (1.0, 0)
    assert activation_grid((0.0, 1e-44), symmetric=True) == (1.0, 0)


def test_weight_scales_per_channel_and_along_any_axis() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float32)
    weight[2] = 0
    scales = weight_scales(weight, 0)
    assert scales.dtype == np.float32
    assert scales.tolist() == pytest.approx([np.abs(weight[i]).max() / 127 if i != 2 else 1.0 for i in range(4)])
    along = weight_scales(weight, 1)
    assert along.tolist() == pytest.approx([np.abs(weight[:, i]).max() / 127 for i in range(3)])
    assert weight_scales(weight, 0, np.full(4, 5.0)).tolist() == [5.0] * 4


# Against fake quantization in NumPy


def convolve(x: nets.Array, weight: nets.Array, bias: nets.Array) -> nets.Array:
    pad = weight.shape[2] // 2
    windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))), weight.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]


def simulate(path: Path, ranges: Ranges, style: str, on: str, x: nets.Array) -> nets.Array:
    """`nets.residual` with rounding where the style's rules say, in float64."""
    stored = {name: array.astype(np.float64) for name, array in weights_of(path).items()}
    outputs_too = style == "onnxruntime"
    add_inputs = style not in NVIDIA

    def act(name: str, values: nets.Array) -> nets.Array:
        lo, hi = min(ranges[name][0], 0), max(ranges[name][1], 0)
        if style in NVIDIA or (style == "openvino" and on == "amx" and lo < 0):
            scale = max(-lo, hi) / 127
            return np.clip(np.rint(values / scale), -128, 127) * scale
        scale = (hi - lo) / 255
        zero = np.rint(-lo / scale)
        return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale

    def weight(name: str) -> nets.Array:
        values = stored[f"{name}.weight"]
        top = 63 if on == "avx2" else 127
        scale = np.abs(values).reshape(len(values), -1).max(1).reshape(-1, *[1] * (values.ndim - 1)) / top
        return np.rint(values / scale) * scale

    def bias(name: str, read: str) -> nets.Array:
        """Less what rounding the weights adds on average."""
        error = (weight(name) - stored[f"{name}.weight"]).reshape(len(weight(name)), len(ranges.means[read]), -1)
        return stored[f"{name}.bias"] - np.einsum("oik,i->o", error, np.array(ranges.means[read]))

    def layer(name: str, values: nets.Array, read: str) -> nets.Array:
        return convolve(values, weight(name), bias(name, read))

    x = act("x", x.astype(np.float64))
    r0 = act("r0", np.maximum(layer("stem", x, "x"), 0))
    r1 = act("r1", np.maximum(layer("block.conv1", r0, "r0"), 0))
    c2 = layer("block.conv2", r1, "r1")
    r2 = np.maximum((act("c2", c2) if add_inputs else c2) + r0, 0)
    m = act("m_pooled", (act("r2", r2) if outputs_too else r2).mean((2, 3)))
    return m @ weight("fc").T + bias("fc", "m")


@pytest.mark.parametrize("on", PROCESSORS)
@pytest.mark.parametrize("style", STYLES)
def test_the_file_says_what_a_numpy_simulation_computes(tmp_path: Path, style: str, on: str) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    out, report, ranges = quantized(path, style, on=on)
    assert report.quantized == ("stem", "block.conv1", "block.conv2", "fc")
    feeds = nets.random_feeds(path, seed=1)
    simulated = np.concatenate([simulate(path, ranges, style, on, feed["x"]) for feed in feeds])
    exact, fast, original = nets.run(out, feeds, optimize=False), nets.run(out, feeds), nets.run(path, feeds)
    span = np.abs(original).max()
    # A float32 sum near the middle between two steps may round the other way: rare, and worth one small step each.
    assert np.median(np.abs(exact - simulated)) < 1e-3 * span
    assert np.abs(exact - simulated).max() < 0.01 * span
    assert np.abs(fast - simulated).max() < 0.02 * span
    assert 0 < np.abs(fast - original).max() < 0.06 * span


# What the runtimes execute


def depthwise_squeeze_excite(path: Path) -> Path:
    node = nets.NODE
    clip = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    parts = [nets.conv("stem", "x", "c0", 3, 16), (node("Clip", ["c0", "zero", "six"], ["r0"], name="clip0"), clip),
             nets.conv("depthwise", "r0", "c1", 16, 16, groups=16),
             node("Clip", ["c1", "zero", "six"], ["r1"], name="clip1"),
             node("GlobalAveragePool", ["r1"], ["p"], name="squeeze"), nets.conv("reduce", "p", "e0", 16, 8, kernel=1),
             node("Relu", ["e0"], ["e1"], name="relu"), nets.conv("expand", "e1", "e2", 8, 16, kernel=1),
             node("HardSigmoid", ["e2"], ["e3"], name="gate"), node("Mul", ["r1", "e3"], ["s"], name="scale"),
             nets.conv("project", "s", "c2", 16, 16, kernel=1), node("Add", ["c2", "r0"], ["t"], name="add"),
             node("GlobalAveragePool", ["t"], ["g"], name="pool"), node("Flatten", ["g"], ["f"], name="flatten"),
             nets.gemm("fc", "f", "y", 16, 10)]  # fmt: skip
    return nets.save(path, parts, {"x": [1, 3, 8, 8]}, ["y"])


def concat_with_pooling(path: Path) -> Path:
    node = nets.NODE
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    parts = [nets.conv("a", "x", "c0", 3, 16), node("Relu", ["c0"], ["r0"], name="r0"),
             node("MaxPool", ["r0"], ["p0"], name="pool0", **pool),
             nets.conv("b", "p0", "c1", 16, 16), node("Relu", ["c1"], ["r1"], name="r1"),
             nets.conv("c", "p0", "c2", 16, 16, kernel=1), node("Concat", ["r1", "c2"], ["j"], name="join", axis=1),
             nets.conv("d", "j", "c3", 32, 16), node("Relu", ["c3"], ["r3"], name="r3"),
             node("MaxPool", ["r3"], ["p1"], name="pool1", **pool), node("Flatten", ["p1"], ["f"], name="flatten"),
             nets.gemm("fc", "f", "y", 64, 10)]  # fmt: skip
    return nets.save(path, parts, {"x": [1, 3, 8, 8]}, ["y"])


NETS: dict[str, tuple[Build, int]] = {
    "residual": (nets.residual, 3),
    "depthwise-se": (depthwise_squeeze_excite, 5),
    "concat": (concat_with_pooling, 4),
}
FLOAT_WORK = {"Conv", "FusedConv", "Gemm", "FusedGemm", "Add", "Concat", "GlobalAveragePool", "MaxPool", "ReduceMean"}


@pytest.mark.parametrize("name", NETS)
def test_onnxruntime_executes_integers(tmp_path: Path, name: str) -> None:
    build, convolutions = NETS[name]
    path = build(tmp_path / "net.onnx")
    out, report, _ = quantized(path, "onnxruntime")
    assert not report.skipped
    found = nets.executed(out, tmp_path)
    assert found["QLinearConv"] == convolutions
    assert found["QGemm"] == 1
    # MaxPool runs on integers under its own name once convolutions keep channels last.
    assert not FLOAT_WORK & set(found), found
    if name == "residual":
        assert (found["QLinearAdd"], found["QLinearGlobalAveragePool"]) == (1, 1)
        assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 0)
    if name == "concat":
        assert (found["QLinearConcat"], found["NhwcMaxPool"], found["DequantizeLinear"]) == (1, 2, 0)


@pytest.mark.openvino
@pytest.mark.parametrize("style", ["openvino", "tensorrt"])
@pytest.mark.parametrize("name", NETS)
def test_openvino_executes_integers(tmp_path: Path, name: str, style: str) -> None:
    pytest.importorskip("openvino", reason="needs the extra 'openvino'")
    build, convolutions = NETS[name]
    path = build(tmp_path / "net.onnx")
    out, _, _ = quantized(path, style, min_channels=1, on="openvino")
    compiled = nets.openvino_model(out)
    layers = nets.openvino_layers(compiled)
    weighted = [precision for kind, precision in layers if kind in ("Convolution", "FullyConnected")]
    assert len(weighted) == convolutions + 1
    assert set(weighted) <= {"i8", "u8"}, layers
    if name == "concat" and style == "openvino":
        assert {precision for kind, precision in layers if kind in ("Pooling", "Concatenation")} <= {"u8", "i8"}
    feeds = nets.random_feeds(path, seed=1)
    original = nets.run(path, feeds)
    answers = np.concatenate([compiled(feed)[0].copy() for feed in feeds])
    assert np.abs(answers - original).max() < 0.06 * np.abs(original).max()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("observer", ["minmax", "entropy"])
def test_answers_stay_close_to_float(tmp_path: Path, name: str, style: str, observer: str) -> None:
    path = NETS[name][0](tmp_path / "net.onnx")
    out, _, _ = quantized(path, style, observer)
    feeds = nets.random_feeds(path, seed=1)
    original = nets.run(path, feeds)
    # Entropy clips: with 16 images of noise the largest values are no small part of the data.
    assert np.abs(nets.run(out, feeds) - original).max() < 0.1 * np.abs(original).max()


@pytest.mark.parametrize(
    ("activation", "convolutions"),
    [
        (nets.NODE("Relu", ["c"], ["a"], name="act"), 2),
        (nets.NODE("LeakyRelu", ["c"], ["a"], name="act"), 2),
        (nets.NODE("HardSwish", ["c"], ["a"], name="act"), 2),
        (nets.NODE("Sigmoid", ["c"], ["a"], name="act"), 2),
    ],
    ids=lambda value: getattr(value, "op_type", ""),
)
def test_onnxruntime_convolutions_are_integer_before_any_activation(
    tmp_path: Path, activation: onnx.NodeProto, convolutions: int
) -> None:
    out, _, _ = quantized(nets.chain(tmp_path / "net.onnx", activation), "onnxruntime")
    found = nets.executed(out, tmp_path)
    assert found["QLinearConv"] == convolutions
    assert not {"Conv", "FusedConv"} & set(found), found


def test_a_saturated_clip_still_fuses(tmp_path: Path) -> None:
    # The grid of Q must not reach above 6, or the runtime keeps the Clip and runs the convolution in float.
    limits = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    part = nets.conv("first", "x", "c", 3, 16)
    part[1]["first.weight"] *= 10
    parts = [part, (nets.NODE("Clip", ["c", "zero", "six"], ["a"], name="act"), limits),
             nets.conv("second", "a", "b", 16, 16), nets.NODE("Relu", ["b"], ["d"], name="act2"),
             nets.NODE("GlobalAveragePool", ["d"], ["y"], name="pool")]  # fmt: skip
    out, _, ranges = quantized(nets.save(tmp_path / "net.onnx", parts, {"x": [1, 3, 8, 8]}, ["y"]), "onnxruntime")
    assert ranges["a"] == (0.0, 6.0)
    found = nets.executed(out, tmp_path)
    assert found["QLinearConv"] == 2
    assert "Clip" not in found


# As PyTorch exports it


class Inverted(torch.nn.Module):
    """A MobileNetV3-like block in a small classifier: hard-swish, depthwise, squeeze-excite, residual, view."""

    def __init__(self) -> None:
        super().__init__()
        conv = torch.nn.Conv2d
        self.stem, self.expand = conv(1, 16, 3, 2, 1), conv(16, 32, 1)
        self.depthwise, self.project = conv(32, 32, 3, 1, 1, groups=32), conv(32, 16, 1)
        self.reduce, self.gate, self.fc = conv(32, 8, 1), conv(8, 32, 1), torch.nn.Linear(16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.hardswish(self.stem(image))
        y = functional.relu6(self.depthwise(functional.relu6(self.expand(x))))
        squeezed = functional.relu(self.reduce(functional.adaptive_avg_pool2d(y, 1)))
        x = x + self.project(y * functional.hardsigmoid(self.gate(squeezed)))
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(functional.relu(x), 1), 1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("torch") / "inverted.onnx"
    program = torch.onnx.export(Inverted().eval(), (torch.zeros(1, 1, 28, 28),), dynamo=True, verbose=False)
    assert program is not None
    program.save(path)
    return path


@pytest.mark.parametrize("style", STYLES)
def test_an_exported_model_quantizes(exported: Path, style: str, tmp_path: Path) -> None:
    out, report, _ = quantized(exported, style, min_channels=1)
    assert (len(report.quantized), report.skipped) == (7, {})
    feeds = nets.random_feeds(exported, seed=1)
    original = nets.run(exported, feeds)
    assert np.abs(nets.run(out, feeds) - original).max() < 0.05 * np.abs(original).max()
    if style == "onnxruntime":
        found = nets.executed(out, tmp_path)
        assert (found["QLinearConv"], found["QLinearGlobalAveragePool"], found["QGemm"]) == (6, 2, 1)
        assert not {"Conv", "FusedConv", "Gemm", "ReduceMean"} & set(found), found


# Where the pairs are


def test_no_pair_between_a_layer_and_its_fused_activation_or_addition(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    assert pairs(quantized(path, "onnxruntime")[0]) == {"x", "r0", "r1", "c2", "r2", "m_pooled", "m"}
    assert pairs(quantized(path, "openvino")[0]) == {"x", "r0", "r1", "c2", "m", "m_pooled"}
    assert pairs(quantized(path, "tensorrt")[0]) == {"x", "r0", "r1", "m"}


def test_a_projected_skip_connection_gets_its_pair_for_tensorrt(tmp_path: Path) -> None:
    node = nets.NODE
    parts = [nets.conv("stem", "x", "c0", 16, 16), node("Relu", ["c0"], ["r0"], name="relu0"),
             nets.conv("main1", "r0", "c1", 16, 16), node("Relu", ["c1"], ["r1"], name="relu1"),
             nets.conv("main2", "r1", "c2", 16, 16), nets.conv("short", "r0", "c3", 16, 16, kernel=1),
             node("Add", ["c3", "c2"], ["y"], name="add")]  # fmt: skip
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 16, 8, 8]}, ["y"])
    assert pairs(quantized(path, "tensorrt")[0]) == {"x", "r0", "r1", "c3"}
    assert pairs(quantized(path, "openvino")[0]) == {"x", "r0", "r1", "c2", "c3"}


def test_a_tensor_with_several_readers_has_one_pair(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    for style in STYLES:
        readers = [n.input[0] for n in nodes_of(quantized(path, style)[0]) if n.op_type == "QuantizeLinear"]
        assert len(readers) == len(set(readers))


def test_tensors_of_one_concat_share_a_scale_where_the_runtime_wants_it(tmp_path: Path) -> None:
    path = concat_with_pooling(tmp_path / "net.onnx")
    stored = weights_of(quantized(path, "openvino")[0])
    assert stored["r1_scale"] == stored["c2_scale"] == stored["j_scale"]
    assert stored["r1_zero_point"] == stored["j_zero_point"]
    assert stored["p0_scale"] == stored["r0_scale"]
    # For ONNX Runtime the ReLU keeps zero point 0, or its convolution would run in float.
    stored = weights_of(quantized(path, "onnxruntime")[0])
    assert stored["r1_zero_point"] == 0
    assert stored["c2_zero_point"] > 0


@pytest.mark.parametrize("on", PROCESSORS)
@pytest.mark.parametrize("style", STYLES)
def test_grids_follow_the_scheme(tmp_path: Path, style: str, on: str) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    out, report, _ = quantized(path, style, on=on)
    stored = weights_of(out)
    for name in report.tensors:
        both_signs = name in ("x", "c2")
        symmetric = style in NVIDIA or (style == "openvino" and on == "amx" and both_signs)
        assert stored[f"{name}_zero_point"].dtype == (np.int8 if symmetric else np.uint8)
        assert not symmetric or stored[f"{name}_zero_point"] == 0
    for layer, channels in (("stem", 16), ("block.conv2", 16), ("fc", 10)):
        assert stored[f"{layer}.weight_scale"].shape == (channels,)
        assert not stored[f"{layer}.weight_zero_point"].any()
        assert report.weight_top == (63 if on == "avx2" else 127)
        if style not in NVIDIA:
            assert np.abs(stored[f"{layer}.weight_int8"]).max() == report.weight_top
        assert (f"{layer}.weight" in stored) == (style in NVIDIA)
        assert (f"{layer}.bias" in stored) == (style != "onnxruntime")
    ops = {n.op_type for n in nodes_of(out)}
    assert ops <= {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm", "QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize("style", STYLES)
def test_nodes_keep_their_names_and_io_its_shape(tmp_path: Path, style: str) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    out = quantized(path, style)[0]
    before, after = onnx.load(path), onnx.load(out)
    assert {n.name for n in before.graph.node} <= {n.name for n in after.graph.node}
    assert len({n.name for n in after.graph.node}) == len(after.graph.node)
    assert after.graph.input == before.graph.input
    assert [o.name for o in after.graph.output] == ["y"]
    assert (after.ir_version, after.opset_import[0].version) == (before.ir_version, 20)


# Unusual numbers


@pytest.mark.parametrize("style", STYLES)
def test_a_channel_of_zeros_gives_exactly_its_bias(tmp_path: Path, style: str) -> None:
    path = nets.residual(tmp_path / "net.onnx", zero_channel=5)
    out, _, _ = quantized(path, style)
    stored = weights_of(out)
    scale = stored["block.conv2.weight_scale"][5]
    assert np.isfinite(scale)
    assert scale > 0
    if style == "onnxruntime":
        bias = stored["block.conv2.bias_int32"][5] * np.float64(stored["block.conv2.bias_scale"][5])
        assert bias == pytest.approx(weights_of(path)["block.conv2.bias"][5], rel=1e-6)
    feeds = nets.random_feeds(path, seed=1)
    assert np.abs(nets.run(out, feeds) - nets.run(path, feeds)).max() < 0.06 * np.abs(nets.run(path, feeds)).max()


def test_a_bias_far_larger_than_its_weights_does_not_overflow(tmp_path: Path) -> None:
    part = nets.conv("first", "x", "c", 3, 16)
    part[1]["first.weight"][4] *= 1e-9
    part[1]["first.bias"][4] = 3.0
    parts = [part, nets.NODE("Relu", ["c"], ["a"], name="act"), nets.conv("second", "a", "y", 16, 16)]
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 3, 8, 8]}, ["y"])
    out, _, _ = quantized(path, "onnxruntime")
    assert np.abs(weights_of(out)["first.bias_int32"]).max() <= 2**30
    feeds = nets.random_feeds(path)  # those it was calibrated on: rounding is tested here, not clipping
    original = nets.run(path, feeds)
    for optimize in (True, False):
        assert np.abs(nets.run(out, feeds, optimize=optimize) - original).max() < 0.05 * np.abs(original).max()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0], ids=["zero", "positive", "negative"])
def test_constant_tensors(tmp_path: Path, style: str, shift: float) -> None:
    part = nets.conv("first", "x", "c", 3, 16)
    part[1]["first.weight"][:] = 0
    part[1]["first.bias"][:] = shift
    parts = [part, nets.conv("second", "c", "d", 16, 16), nets.NODE("GlobalAveragePool", ["d"], ["y"], name="pool")]
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 3, 8, 8]}, ["y"])
    out, _, _ = quantized(path, style)
    feeds = nets.random_feeds(path, seed=1)
    original = nets.run(path, feeds)
    assert np.abs(nets.run(out, feeds) - original).max() <= 0.03 * np.abs(original).max() + 1e-6


@pytest.mark.parametrize("style", STYLES)
def test_a_tensor_that_is_never_positive(tmp_path: Path, style: str) -> None:
    node = nets.NODE
    parts = [nets.conv("first", "x", "c", 3, 16), node("Relu", ["c"], ["r"], name="relu"),
             node("Neg", ["r"], ["n"], name="neg"), nets.conv("second", "n", "d", 16, 16),
             node("GlobalAveragePool", ["d"], ["y"], name="pool")]  # fmt: skip
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 3, 8, 8]}, ["y"])
    out, _, ranges = quantized(path, style, on="vnni")
    assert ranges["n"][1] == 0
    assert weights_of(out)["n_zero_point"] == (0 if style in NVIDIA else 255)
    feeds = nets.random_feeds(path, seed=1)
    assert np.abs(nets.run(out, feeds) - nets.run(path, feeds)).max() < 0.06 * np.abs(nets.run(path, feeds)).max()


def test_matmul_gemm_without_transposition_and_transposed_convolution(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    node = nets.NODE
    up = {"up.weight": rng.normal(size=(16, 8, 2, 2)).astype(np.float32)}
    mat = {"mat.weight": rng.normal(size=(8, 12)).astype(np.float32)}
    lin = {"lin.weight": rng.normal(size=(12, 6)).astype(np.float32)}
    parts = [(node("ConvTranspose", ["x", "up.weight"], ["u"], name="up", strides=[2, 2], kernel_shape=[2, 2]), up),
             node("GlobalAveragePool", ["u"], ["p"], name="pool"), node("Flatten", ["p"], ["f"], name="flatten"),
             (node("MatMul", ["f", "mat.weight"], ["m"], name="mat"), mat),
             (node("Gemm", ["m", "lin.weight"], ["y"], name="lin", transB=0), lin)]  # fmt: skip
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 16, 4, 4]}, ["y"])
    out, report, _ = quantized(path, "openvino")
    stored = weights_of(out)
    assert report.quantized == ("up", "mat", "lin")
    assert [len(stored[f"{n}.weight_scale"]) for n in report.quantized] == [8, 12, 6]
    feeds = nets.random_feeds(path)
    assert np.abs(nets.run(out, feeds) - nets.run(path, feeds)).max() < 0.06 * np.abs(nets.run(path, feeds)).max()
    out, report, _ = quantized(path, "onnxruntime")
    assert report.quantized == ("mat", "lin")
    assert report.skipped == {"up": "the runtime has no integer ConvTranspose"}
    found = nets.executed(out, tmp_path)
    assert not {"Gemm", "MatMul"} & set(found), found


# What stays in float, and what is refused


def test_a_pattern_excludes_what_its_names_would(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    one, _, _ = quantized(path, "onnxruntime", exclude=["block.*"])
    first = one.read_bytes()
    other, report, _ = quantized(path, "onnxruntime", exclude=["block.conv1", "block.conv2"])
    assert first == other.read_bytes()
    assert {"block.conv1", "block.conv2"} <= set(report.skipped)


def test_excluded_layers_keep_their_weights(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    for style in STYLES:
        out, report, _ = quantized(path, style, exclude=["fc", "block.conv1"])
        assert report.quantized == ("stem", "block.conv2")
        assert report.skipped == {"fc": "excluded by name", "block.conv1": "excluded by name"}
        before, after = weights_of(path), weights_of(out)
        for name in ("fc.weight", "fc.bias", "block.conv1.weight", "block.conv1.bias"):
            assert np.array_equal(before[name], after[name])


def test_small_layers_and_output_layers_are_reported_with_the_reason(tmp_path: Path) -> None:
    parts = [nets.conv("small", "x", "c", 3, 4), nets.NODE("Relu", ["c"], ["r"], name="relu"),
             nets.conv("last", "r", "y", 4, 16)]  # fmt: skip
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 3, 8, 8]}, ["y"])
    small = {"small": "3 input and 4 output channels, fewer than min_channels=16"}
    assert quantized(path, "tensorrt")[1].skipped == small
    assert quantized(path, "openvino", min_channels=16)[1].skipped == small
    assert quantized(path, "onnxruntime")[1].skipped == {
        "last": "its output is an output of the model and must stay float"
    }


def test_nothing_to_quantize_is_reported_not_hidden(tmp_path: Path) -> None:
    path = nets.save(tmp_path / "net.onnx", [nets.NODE("Relu", ["x"], ["y"], name="relu")], {"x": [1, 3]}, ["y"])
    ranges = calibrate(path, nets.random_feeds(path))
    with pytest.raises(DataError, match=r"no layer of .* can be int8"):
        quantize(path, ranges, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_bad_models_are_refused(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    out, _, ranges = quantized(path, "onnxruntime")
    with pytest.raises(DataError, match="already quantized"):
        calibrate(out, nets.random_feeds(path))
    with pytest.raises(DataError, match="does not exist"):
        quantize(tmp_path / "none.onnx", ranges, out)
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="not a valid ONNX file"):
        quantize(tmp_path / "cut.onnx", ranges, out)
    old = nets.save(tmp_path / "old.onnx", [nets.conv("a", "x", "y", 3, 16)], {"x": [1, 3, 8, 8]}, ["y"], opset=12)
    with pytest.raises(DataError, match="opset 12, int8 needs 13"):
        calibrate(old, nets.random_feeds(old))


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "inf"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    path = nets.chain(tmp_path / "net.onnx")
    _, _, ranges = quantized(path, "openvino")
    model = onnx.load(path)
    weight = next(w for w in model.graph.initializer if w.name == "second.weight")
    array = numpy_helper.to_array(weight).copy()
    array[3, 2, 1, 0] = value
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, path)
    ranges = replace(ranges, model=sha256(path))
    with pytest.raises(DataError, match=r"weight 'second\.weight' of 'second' holds NaN or infinity"):
        quantize(path, ranges, tmp_path / "out.onnx")


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    _, _, ranges = quantized(path, "onnxruntime")
    out = tmp_path / "out.onnx"
    with pytest.raises(ConfigError, match=r"unknown quantization style 'onnxruntim' .did you mean 'onnxruntime'"):
        quantize(path, ranges, out, style="onnxruntim")
    with pytest.raises(ConfigError, match=r"cannot exclude 'block\.conv3'.*did you mean 'block\.conv"):
        quantize(path, ranges, out, exclude=["block.conv3"])
    with pytest.raises(Mismatch, match="calibrated on another file"):
        quantize(path, replace(ranges, model="0" * 64), out)
    with pytest.raises(Mismatch, match="the ranges lack tensor 'r1'"):
        quantize(path, replace(ranges, tensors={k: v for k, v in ranges.tensors.items() if k != "r1"}), out)
    assert not out.exists()


@pytest.mark.parametrize("style", STYLES)
def test_the_same_input_gives_the_same_bytes_and_stays_as_it_was(tmp_path: Path, style: str) -> None:
    path = concat_with_pooling(tmp_path / "net.onnx")
    source = path.read_bytes()
    first = quantized(path, style)[0].read_bytes()
    assert quantized(path, style)[0].read_bytes() == first
    assert path.read_bytes() == source


def test_weights_used_by_two_layers_and_nodes_without_names(tmp_path: Path) -> None:
    first, weights = nets.conv("", "x", "c", 16, 16)
    second = nets.NODE("Conv", ["r", *weights], ["d"], kernel_shape=[3, 3], pads=[1] * 4)
    parts = [(first, weights), nets.NODE("Relu", ["c"], ["r"]), second, nets.NODE("GlobalAveragePool", ["d"], ["y"])]
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 16, 8, 8]}, ["y"])
    feeds = nets.random_feeds(path, seed=1)
    original = nets.run(path, feeds)
    for style in STYLES:
        out, report, _ = quantized(path, style)
        assert report.quantized == ("c", "d")
        assert np.abs(nets.run(out, feeds) - original).max() < 0.06 * np.abs(original).max()


def test_onnxruntimes_integers_are_numpys(tmp_path: Path) -> None:
    """Every integer of two fused layers, by int32 sums and one rounding; ties of float32 may fall the other way."""
    parts = [nets.conv("first", "x", "c", 3, 16), nets.NODE("Relu", ["c"], ["a"], name="act"),
             nets.conv("second", "a", "b", 16, 16, seed=3), nets.NODE("Relu", ["b"], ["d"], name="act2"),
             nets.NODE("GlobalAveragePool", ["d"], ["y"], name="pool")]  # fmt: skip
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 3, 8, 8]}, ["y"])
    out, _, _ = quantized(path, "onnxruntime")
    model = onnx.load(out)
    for name in ("x", "a", "d"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}_q", onnx.TensorProto.UINT8, None))
    onnx.save(model, out)
    assert nets.executed(out, tmp_path)["QLinearConv"] == 2
    stored, session = weights_of(out), nets.session(out)
    for feed in nets.random_feeds(path, count=4, seed=1):
        result = dict(zip(["y", "x", "a", "d"], session.run(None, feed), strict=True))
        steps = np.rint(feed["x"] / stored["x_scale"]) + stored["x_zero_point"]
        assert np.array_equal(result["x"], np.clip(steps, 0, 255).astype(np.uint8))
        for layer, source, target in (("first", "x", "a"), ("second", "a", "d")):
            centred = result[source].astype(np.int64) - int(stored[f"{source}_zero_point"])
            sums = convolve(
                centred, stored[f"{layer}.weight_int8"].astype(np.int64), stored[f"{layer}.bias_int32"].astype(np.int64)
            )
            factor = stored[f"{source}_scale"] * stored[f"{layer}.weight_scale"] / stored[f"{target}_scale"]
            exact = sums * factor[:, None, None].astype(np.float64) + int(stored[f"{target}_zero_point"])
            expected = np.clip(np.rint(exact), 0, 255)
            differs = result[target] != expected
            assert np.abs(result[target] - expected).max() <= 1
            # Where they differ the exact value lies at the middle between two steps.
            assert (np.abs(np.abs(exact[differs] - np.floor(exact[differs])) - 0.5) < 1e-3).all()
            assert differs.mean() < 0.002


@pytest.mark.openvino
def test_one_file_runs_on_both_runtimes_and_passes_the_parsers_rules(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = concat_with_pooling(tmp_path / "net.onnx")
    out, report, _ = quantized(path, "tensorrt", on="openvino")
    assert not report.skipped
    assert lint(out) == ()
    compiled = nets.openvino_model(out)
    kinds = [
        precision for kind, precision in nets.openvino_layers(compiled) if kind in ("Convolution", "FullyConnected")
    ]
    assert kinds
    assert set(kinds) <= {"i8", "u8"}
    feeds = nets.random_feeds(path, seed=1)
    original, exact = nets.run(path, feeds), nets.run(out, feeds, optimize=False)
    openvino = np.concatenate([compiled(feed)[0] for feed in feeds])
    for found in (nets.run(out, feeds), openvino):
        assert np.abs(found - exact).max() < 0.03 * np.abs(original).max()
