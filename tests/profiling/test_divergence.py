"""Where two engines part, layer by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import quant_nets as nets
from pydeploy.backends.base import open_backend
from pydeploy.errors import DataError, Mismatch
from pydeploy.profiling.compare_layers import first_divergence, layer_differences
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.half import to_half
from pydeploy.quant.qdq import quantize

FP32 = open_backend("onnxruntime", threads=1)
INT8 = open_backend("onnxruntime", precision="int8", threads=1)


def damaged(path: Path, out: Path, weight: str) -> Path:
    """The same file with one weight changed."""
    model = onnx.load(path)
    tensor = next(w for w in model.graph.initializer if w.name == weight)
    values = numpy_helper.to_array(tensor).copy()
    values[3] *= -2
    tensor.CopyFrom(numpy_helper.from_array(values, weight))
    onnx.save(model, out)
    return out


@pytest.mark.parametrize(
    ("weight", "layer"),
    [
        ("stem.weight", "stem"),
        ("block.conv1.weight", "block.conv1"),
        ("block.conv2.weight", "block.conv2"),
        ("fc.weight", "fc"),
    ],
)
def test_the_first_layer_is_the_damaged_one(tmp_path: Path, weight: str, layer: str) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    other = damaged(path, tmp_path / "other.onnx", weight)
    found = layer_differences((FP32, path), (FP32, other), nets.random_feeds(path, count=3))
    assert [d.layer for d in found] == ["stem", "block.conv1", "block.conv2", "pool", "fc"]
    first = first_divergence(found, 1e-3)
    assert first is not None
    assert first.layer == layer
    assert all(d.max_abs == 0 for d in found[: [d.layer for d in found].index(layer)])


def test_values_are_those_of_the_tensors(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    other = damaged(path, tmp_path / "other.onnx", "stem.weight")
    feeds = nets.random_feeds(path, count=3)
    found = layer_differences((FP32, path), (FP32, other), feeds)
    sides = []
    for source in (path, other):
        model = onnx.load(source)
        model.graph.output.append(onnx.helper.make_tensor_value_info("r0", onnx.TensorProto.FLOAT, None))
        onnx.save(model, tmp_path / "tapped.onnx")
        sides.append(np.concatenate([nets.session(tmp_path / "tapped.onnx").run(["r0"], feed)[0] for feed in feeds]))
    assert found[0].relative_l2 == pytest.approx(
        np.linalg.norm(sides[0] - sides[1]) / np.linalg.norm(sides[0]), rel=1e-5
    )
    assert found[0].max_abs == pytest.approx(np.abs(sides[0] - sides[1]).max(), rel=1e-6)


@pytest.mark.parametrize("style", ["onnxruntime", "tensorrt"])
def test_an_int8_engine_drifts_and_a_clipped_tensor_is_found(tmp_path: Path, style: str) -> None:
    path, feeds = nets.residual(tmp_path / "net.onnx"), nets.random_feeds(nets.residual(tmp_path / "net.onnx"), count=4)
    ranges = calibrate(path, feeds, observer="minmax")
    quantize(path, ranges, tmp_path / "q.onnx", style=style)
    found = layer_differences((FP32, path), (INT8, tmp_path / "q.onnx"), feeds)
    assert first_divergence(found, 0.05) is None
    assert all(0 < d.relative_l2 < 0.05 for d in found)
    tight = {name: (lo, hi / 5) if name == "r1" else (lo, hi) for name, (lo, hi) in ranges.tensors.items()}
    bad = type(ranges)(tight, ranges.observer, ranges.model, ranges.data, ranges.count)
    quantize(path, bad, tmp_path / "bad.onnx", style=style)
    first = first_divergence(layer_differences((FP32, path), (INT8, tmp_path / "bad.onnx"), feeds), 0.05)
    assert first is not None
    assert first.layer == "block.conv1"


def test_a_half_model(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    to_half(path, tmp_path / "half.onnx")
    found = layer_differences((FP32, path), (FP32, tmp_path / "half.onnx"), nets.random_feeds(path, count=2))
    assert len(found) == 5
    assert first_divergence(found, 0.01) is None


def test_nan_counts_as_diverged(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    bad = [{"x": np.full((1, 3, 8, 8), np.nan, np.float32)}]
    first = first_divergence(layer_differences((FP32, path), (FP32, path), bad), 0.5)
    assert first is not None


def test_unlike_files_are_refused(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    other = nets.save(tmp_path / "o.onnx", [nets.conv("z", "x", "other", 3, 16)], {"x": [1, 3, 8, 8]}, ["other"])
    with pytest.raises(Mismatch, match="share no tensor of one shape"):
        layer_differences((FP32, path), (FP32, other), nets.random_feeds(path, count=1))
    with pytest.raises(DataError, match="no feeds"):
        layer_differences((FP32, path), (FP32, path), [])
    with pytest.raises(DataError, match="not a readable ONNX file"):
        layer_differences((FP32, path), (FP32, tmp_path / "none.onnx"), nets.random_feeds(path, count=1))
