"""INT8 engines beside the float one and NNCF's, with their answers; full figures are written by int8_report.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quant_nets as nets
from pydeploy.backends.base import Engine, open_backend
from pydeploy.files import sha256
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.qdq import quantize

METHODS = ["fp32", "int8", "nncf"]


def engine_of(path: Path, method: str, work: Path) -> tuple[Any, Engine]:
    """OpenVINO's engine of the file: float, by our Q/DQ, or by NNCF's defaults."""
    backend: Any = open_backend("openvino", precision="fp32" if method == "fp32" else "int8", threads=2)
    out = work / f"{method}.engine"
    if method == "fp32":
        return backend, backend.build(path, out)
    feeds = nets.random_feeds(path, count=32)
    if method == "int8":
        quantize(path, calibrate(path, feeds, style="openvino"), work / "int8.onnx", style="openvino")
        return backend, backend.build(work / "int8.onnx", out)
    import nncf

    model = nncf.quantize(backend._core.read_model(path), nncf.Dataset(feeds), subset_size=len(feeds))
    out.write_bytes(
        b"{}\n" + backend._core.compile_model(model, "CPU", backend._properties()).export_model().getvalue()
    )
    return backend, Engine(out, backend.name, backend.target(), sha256(path)).save()


@pytest.mark.openvino
@pytest.mark.benchmark(group="int8 on openvino")
@pytest.mark.parametrize("method", METHODS)
def test_residual_block(benchmark: Any, tmp_path: Path, method: str) -> None:
    pytest.importorskip("openvino")
    if method == "nncf" and importlib.util.find_spec("nncf") is None:
        pytest.skip("NNCF is not installed")
    path = nets.residual(tmp_path / "net.onnx", width=64)
    backend, engine = engine_of(path, method, tmp_path)
    feed = nets.random_feeds(path, count=1, seed=1)[0]
    expected = nets.run(path, [feed])
    with backend.open(engine) as session:
        found = benchmark(session.run, feed)["y"]
    assert np.abs(found - expected).max() < (1e-4 if method == "fp32" else 0.1) * np.abs(expected).max()


@pytest.mark.benchmark(group="quantize")
def test_insert_pairs(benchmark: Any, tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx", width=64)
    ranges = calibrate(path, nets.random_feeds(path, count=4))
    report = benchmark(quantize, path, ranges, tmp_path / "q.onnx", style="tensorrt")
    assert len(report.quantized) == 4
