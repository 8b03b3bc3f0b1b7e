"""Bias correction: shifts against PyTorch's own layers on inputs that are constant over the picture, sums against NumPy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import quant_nets as nets
from pydeploy.errors import DataError
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.correction import ChannelSums, shift
from pydeploy.quant.observe import Ranges
from pydeploy.quant.qdq import quantize

LAYERS = {
    "conv": torch.nn.Conv2d(6, 8, 3),
    "grouped": torch.nn.Conv2d(6, 8, (3, 1), groups=2, dilation=2),
    "depthwise": torch.nn.Conv2d(6, 12, 5, groups=6, stride=2),
    "1d": torch.nn.Conv1d(6, 8, 3),
    "transposed": torch.nn.ConvTranspose2d(6, 8, 4, stride=2),
    "transposed, grouped": torch.nn.ConvTranspose2d(6, 9, 3, groups=3, stride=(3, 1)),
    "linear": torch.nn.Linear(6, 8),
}


def node_of(layer: torch.nn.Module) -> gs.Node:
    if isinstance(layer, torch.nn.Linear):
        return gs.Node("Gemm", attrs={"transB": 1})
    kind = "ConvTranspose" if "Transpose" in type(layer).__name__ else "Conv"
    return gs.Node(kind, attrs={"group": layer.groups, "strides": list(layer.stride)})


@pytest.mark.parametrize("name", LAYERS)
def test_the_shift_is_what_the_layer_adds_in_the_middle_of_the_picture(name: str) -> None:
    layer, draw = LAYERS[name], torch.Generator().manual_seed(0)
    error, means = torch.randn(layer.weight.shape, generator=draw), torch.randn(6, generator=draw)
    spatial = layer.weight.ndim - 2
    x = means.reshape(1, 6, *[1] * spatial).expand(1, 6, *[36] * spatial)
    torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.weight.copy_(error)
        y = layer(x)
    inside = y[(..., *[slice(6, -6)] * spatial)] if name.startswith("transposed") else y
    found = shift(node_of(layer), error.numpy().astype(np.float64), means.numpy().astype(np.float64))
    wanted = inside.mean(dim=tuple(range(2, y.ndim)))[0] if spatial else y[0]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-4)


@given(st.lists(st.floats(-1e8, 1e8, width=32), min_size=1, max_size=30), st.randoms())
def test_sums_are_exact_and_know_no_order(values: list[float], random: object) -> None:
    arrays = [np.array([[value, -value]], np.float32) for value in values]
    one, other = ChannelSums(), ChannelSums()
    for array in arrays:
        one.add(array)
    random.shuffle(arrays)  # type: ignore[attr-defined]
    for array in arrays:
        other.add(array)
    assert one.mean(len(values)) == other.mean(len(values))
    wanted = np.mean(np.array(values, np.float32).astype(np.float64))
    assert one.mean(len(values))[0] == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    assert one.mean(len(values))[1] == -one.mean(len(values))[0]


@pytest.mark.parametrize("style", ["onnxruntime", "openvino", "tensorrt"])
def test_rounded_weights_no_longer_move_the_mean_of_a_channel(tmp_path: Path, style: str) -> None:
    """One layer whose weights lie between two steps of their grid and whose input has a large mean, float and int8."""
    part = nets.conv("first", "x", "c", 3, 16, kernel=1)
    top = np.abs(part[1]["first.weight"]).max() * 2
    part[1]["first.weight"][:, :2] = top / 127 * 20.4  # rounded down, all of them
    part[1]["first.weight"][:, 2] = top
    parts = [part, nets.NODE("Relu", ["c"], ["r"], name="act"), nets.NODE("MaxPool", ["r"], ["y"], kernel_shape=[1, 1])]
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 3, 8, 8]}, ["y"])
    feeds = [{"x": feed["x"] + 4} for feed in nets.random_feeds(path)]
    ranges = calibrate(path, feeds, observer="minmax", few=1)
    assert ranges.means["x"] == pytest.approx(np.concatenate([feed["x"] for feed in feeds]).mean((0, 2, 3)), rel=1e-5)
    wanted, off = nets.run(path, feeds), {}
    for name, taken in (("with", ranges), ("without", replace(ranges, means={}))):
        quantize(path, taken, tmp_path / "q.onnx", style=style, min_channels=1)
        found = nets.run(tmp_path / "q.onnx", feeds)
        off[name] = float(np.abs((found - wanted).mean((0, 2, 3))).max())
    assert off["with"] < 0.2 * off["without"]


def test_ranges_keep_their_means(tmp_path: Path) -> None:
    ranges = Ranges({"a": (0.0, 1.0)}, "mse", "m", "d", 1, means={"a": (0.1, 1 / 3)})
    ranges.save(tmp_path / "r.json")
    assert Ranges.load(tmp_path / "r.json") == ranges
    before = {key: value for key, value in ranges.to_json().items() if key != "means"}
    assert Ranges.from_json(before).means == {}
    with pytest.raises(DataError, match="channel means of tensor 'a'"):
        Ranges.from_json({**before, "means": {"a": [math.inf]}})
