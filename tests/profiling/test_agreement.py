"""Int8 and half-precision engines are compared with their files: no false alarms, and wrong layers are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

import quant_nets as nets
import quant_zoo as zoo
from pydeploy.backends.base import Backend, Engine, open_backend
from pydeploy.backends.onnxruntime import OnnxRuntime
from pydeploy.errors import Mismatch
from pydeploy.onnxfile.rounding import rounded, smooth
from pydeploy.profiling.agreement import build
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.qdq import quantize
from pydeploy.quant.styles import processor
from test_quant_engines import PAIRED, joined


def int8(path: Path, style: str, **options: Any) -> Path:
    out = path.with_name("int8.onnx")
    quantize(
        path, calibrate(path, nets.random_feeds(path), observer="minmax"), out, style=style, min_channels=1, **options
    )
    return out


class Faulty(OnnxRuntime):
    """ONNX Runtime with a fault: one layer's weights are read wrongly."""

    def __init__(self, layer: str, precision: str = "int8") -> None:
        super().__init__(precision=precision, threads=1)
        self.layer = layer

    def build(self, path: Path, out: Path) -> Engine:
        model = onnx.load(path)
        for node in model.graph.node:
            if node.name == self.layer:
                restorer = next(n for n in model.graph.node if n.output[0] == node.input[1])
                weight = next(t for t in model.graph.initializer if t.name == restorer.input[0])
                weight.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(weight), 1, axis=0), weight.name))
        broken = path.with_name("broken.onnx")
        onnx.save(model, broken)
        return super().build(broken, out)


@pytest.mark.parametrize(("block", "act"), PAIRED[1::2], ids=str)
def test_sound_engines_agree(tmp_path: Path, block: str, act: str) -> None:
    path = zoo.build(tmp_path / "net.onnx", block, act)
    feeds = nets.random_feeds(path, 4, seed=3)
    for runtime, precision, style in (("onnxruntime", "int8", "onnxruntime"), ("openvino", "int8", "openvino"),
                                      ("openvino", "int8", "tensorrt"), ("openvino", "bf16", "")):  # fmt: skip
        try:
            backend = open_backend(runtime, precision=precision, threads=1)
        except Exception:  # not installed, or no such instructions
            continue
        source = int8(path, style, target=backend.target()) if style else path
        for samples in (feeds, []):
            assert build(backend, source, tmp_path / "net.engine", samples).path.is_file()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), block=st.sampled_from(["c2f", "csp", "residual", "unet-nearest", "mobile"]))
def test_the_first_wrong_layer_is_named(tmp_path: Path, data: st.DataObject, block: str) -> None:
    path = zoo.build(tmp_path / "net.onnx", block, "relu")
    source = int8(path, "onnxruntime")
    restored = {node.output[0] for node in onnx.load(source).graph.node if node.op_type == "DequantizeLinear"}
    layers = [n.name for n in onnx.load(source).graph.node if n.op_type == "Conv" and n.input[1] in restored]
    wrong = data.draw(st.sampled_from(layers))
    backend: Backend = Faulty(wrong)  # type: ignore[assignment]
    with pytest.raises(Mismatch, match=rf"first layer that differs is '{wrong}'.*--exclude") as caught:
        build(backend, source, tmp_path / "net.engine", nets.random_feeds(path, 4))
    assert "where rounding explains" in str(caught.value)
    assert not (tmp_path / "net.engine").exists()
    assert not (tmp_path / "net.engine.json").exists()


@pytest.mark.openvino
def test_openvinos_own_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Int8 maps behind a Concat, on processors where OpenVINO computes them wrongly, read without the rewriting."""
    module = pytest.importorskip("pydeploy.backends.openvino")
    backend = open_backend("openvino", precision="int8", threads=1)
    if backend.target().has_amx:
        pytest.skip("OpenVINO computes int8 maps rightly with AMX")
    monkeypatch.setattr(module, "unsigned", lambda model: model)
    path = joined(tmp_path / "net.onnx")
    source = int8(path, "tensorrt", target=backend.target())
    last = [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"][-1]
    with pytest.raises(Mismatch, match=rf"the first layer that differs is '{last}'"):
        build(backend, source, tmp_path / "net.engine", nets.random_feeds(path, 4))


def large_sums(path: Path) -> Path:
    """A layer of bright maps and weights of one sign: its sums of products reach far beyond 16 bits."""
    part = nets.conv("a", "x", "c", 16, 16)
    part[1]["a.weight"][:] = np.abs(part[1]["a.weight"]).max()
    last = [nets.NODE("Relu", ["c"], ["r"], name="relu"), nets.conv("b", "r", "y", 16, 8, kernel=1)]
    return nets.save(path, [part, *last], {"x": [1, 16, 8, 8]}, ["y"])


@pytest.mark.openvino
def test_saturating_sums_are_found_and_said(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    backend = open_backend("openvino", precision="int8", threads=1)
    path = large_sums(tmp_path / "net.onnx")
    feeds = [{"x": np.abs(feed["x"])} for feed in nets.random_feeds(path)]
    ranges = calibrate(path, feeds, observer="minmax")
    out = tmp_path / "int8.onnx"
    quantize(path, ranges, out, style="openvino", target=backend.target())
    build(backend, out, tmp_path / "net.engine", feeds)  # for this processor, whichever it is
    quantize(path, ranges, out, style="openvino", target=processor("openvino", "avx2 avx512f avx512_vnni"))
    if not backend.target().saturates:
        build(backend, out, tmp_path / "net.engine", feeds)
        return
    with pytest.raises(
        Mismatch, match=r"8 bits and this processor adds their products in 16: quantize for this processor"
    ):
        build(backend, out, tmp_path / "net.engine", feeds)


def test_smooth_clips_and_does_not_round(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    source = int8(path, "openvino")
    onnx.save(smooth(onnx.load(source)), tmp_path / "smooth.onnx")
    feeds = nets.random_feeds(path)
    original, whole, smoothed = (nets.run(p, feeds, optimize=False) for p in (path, source, tmp_path / "smooth.onnx"))
    # What is left is the rounding of the weights.
    assert 0 < np.abs(smoothed - original).max() < np.abs(whole - original).max()
    far = [{"x": 100 * feed["x"]} for feed in feeds]
    clipped, rounded_too = nets.run(tmp_path / "smooth.onnx", far), nets.run(source, far)
    assert np.abs(clipped - rounded_too).max() < 0.1 * np.abs(rounded_too).max()


@pytest.mark.parametrize(("kind", "bits"), [(TensorProto.FLOAT16, 11), (TensorProto.BFLOAT16, 8)])
def test_rounded_rounds_to_half_precision(tmp_path: Path, kind: int, bits: int) -> None:
    path = nets.save(tmp_path / "net.onnx", [nets.NODE("Neg", ["x"], ["y"], name="neg")], {"x": [1, 64]}, ["y"])
    onnx.save(rounded(onnx.load(path), kind), tmp_path / "rounded.onnx")
    feeds = nets.random_feeds(path)
    apart = np.abs(nets.run(tmp_path / "rounded.onnx", feeds) / nets.run(path, feeds) - 1)
    assert 2.0 ** -(bits + 2) < apart.max() <= 2.0**-bits


def test_float_and_analytic_engines_are_not_compared(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    for name, precision in (("onnxruntime", "fp32"), ("null", "bf16")):
        assert build(
            open_backend(name, precision=precision, threads=1), path, tmp_path / f"{name}.engine"
        ).path.is_file()
