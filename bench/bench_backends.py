"""What the backends add to a runtime: one inference through them against the runtime's own plain call.

The answer is checked in every case. A session's `time` must not cost more than a loop around the plain call.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from onnx_nets import residual
from pydeploy.backends.base import open_backend
from pydeploy.profiling.profile import random_feeds

WIDTH = 64
RUNS = 20
SETTINGS = [
    pytest.param("onnxruntime", "fp32", 1e-4, id="onnxruntime-fp32"),
    pytest.param("openvino", "fp32", 1e-4, id="openvino-fp32", marks=pytest.mark.openvino),
    pytest.param("openvino", "bf16", 0.03, id="openvino-bf16", marks=pytest.mark.openvino),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return residual(tmp_path_factory.mktemp("bench") / "net.onnx", width=WIDTH)


@pytest.fixture(scope="module")
def plain(source: Path) -> ort.InferenceSession:
    """ONNX Runtime as anyone would call it, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def feeds_of(plain: ort.InferenceSession) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(0).standard_normal(plain.get_inputs()[0].shape).astype(np.float32)}


@pytest.mark.benchmark(group="one inference")
def test_baseline_plain_onnxruntime(benchmark: BenchmarkFixture, plain: ort.InferenceSession) -> None:
    (logits,) = benchmark(plain.run, ["logits"], feeds_of(plain))
    assert logits.shape == (1, 10)


@pytest.mark.benchmark(group="one inference")
@pytest.mark.parametrize(("name", "precision", "tolerance"), SETTINGS)
def test_run(
    benchmark: BenchmarkFixture, plain: ort.InferenceSession, source: Path, tmp_path: Path,
    name: str, precision: str, tolerance: float,
) -> None:  # fmt: skip
    if name == "openvino":
        pytest.importorskip("openvino", reason="needs the package openvino: pip install 'pydeploy-hil[openvino]'")
    backend = open_backend(name, precision=precision, threads=1)
    feeds = feeds_of(plain)
    (expected,) = plain.run(["logits"], feeds)
    with backend.open(backend.build(source, tmp_path / "net.engine")) as session:
        logits = benchmark(session.run, feeds)["logits"]
    benchmark.extra_info["target"] = str(backend.target())
    assert np.linalg.norm(logits - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.benchmark(group=f"{RUNS} timed inferences")
def test_baseline_loop_of_plain_calls(benchmark: BenchmarkFixture, plain: ort.InferenceSession) -> None:
    feeds = feeds_of(plain)
    outputs = benchmark(lambda: [plain.run(["logits"], feeds) for _ in range(RUNS)])
    assert len(outputs) == RUNS


@pytest.mark.benchmark(group=f"{RUNS} timed inferences")
def test_time(benchmark: BenchmarkFixture, source: Path, tmp_path: Path) -> None:
    backend = open_backend("onnxruntime", threads=1)
    with backend.open(backend.build(source, tmp_path / "net.engine")) as session:
        samples = benchmark(session.time, random_feeds(session.inputs), RUNS)
    assert samples.shape == (RUNS,)
    assert samples.min() > 0
