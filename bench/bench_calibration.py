"""Calibration of ResNet-50 beside ONNX Runtime's and ModelOpt's calibrators and plain inference; batching; thresholds.

The networks run in processes of their own, because a peak of memory belongs to a whole process. As a smoke test (benchmarks
disabled) everything is small; ``python bench/bench_calibration.py`` prints the comparison in full.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pydeploy._core import Histogram, entropy_threshold
from pydeploy.data.preprocessing import IMAGENET
from pydeploy.quant.observe import OBSERVERS, Seen, observe

RNG = np.random.default_rng(0)
BATCH = np.maximum(RNG.normal(size=(16, 64, 28, 28)), 0).astype(np.float32)
MEGABYTE = 1024.0  # /proc counts in kB


def inputs(count: int, size: int) -> Iterator[dict[str, Any]]:
    """Normalized images of low-frequency noise, made one at a time."""
    for index in range(count):
        coarse = np.random.default_rng(index).normal(size=(3, 8, 8)).astype(np.float32)
        yield {"x": np.kron(coarse, np.ones((size // 8, size // 8), np.float32))[None]}


def peak_mb() -> float:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / MEGABYTE


def run_plain(model: Path, count: int, size: int) -> dict[str, float]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    session.run(None, next(inputs(1, size)))
    started = time.perf_counter()
    for feeds in inputs(count, size):
        session.run(None, feeds)
    return {"seconds": time.perf_counter() - started}


def run_pydeploy(model: Path, count: int, size: int) -> dict[str, float]:
    import onnxruntime  # noqa: F401  # as for the others, importing is not part of the time

    from pydeploy.quant.calibrate import calibrate

    started = time.perf_counter()
    ranges = calibrate(model, inputs(count, size), observer="entropy")
    seconds = time.perf_counter() - started
    assert ranges.count == count
    assert all(lo <= hi for lo, hi in ranges.tensors.values())
    return {"seconds": seconds, "tensors": len(ranges.tensors)}


def run_onnxruntime(model: Path, count: int, size: int) -> dict[str, float]:
    """The default entropy calibrator: 128 bins."""
    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.source = inputs(count, size)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.source, None)

    started = time.perf_counter()
    calibrator = create_calibrator(
        str(model), None, str(model.with_suffix(".augmented.onnx")), CalibrationMethod.Entropy
    )
    calibrator.collect_data(Reader())
    found = calibrator.compute_data()
    return {"seconds": time.perf_counter() - started, "tensors": len(list(found.keys()))}


def run_modelopt(model: Path, count: int, size: int) -> dict[str, float]:
    from modelopt.onnx.quantization import quantize

    samples = np.concatenate([feeds["x"] for feeds in inputs(count, size)])
    started = time.perf_counter()
    quantize(str(model), quantize_mode="int8", calibration_data={"x": samples}, calibration_method="entropy",
             calibration_eps=["cpu"], output_path=str(model.with_suffix(".modelopt.onnx")), high_precision_dtype="fp32")  # fmt: skip
    return {"seconds": time.perf_counter() - started}


RUNS: dict[str, Callable[[Path, int, int], dict[str, float]]] = {
    "plain": run_plain, "pydeploy": run_pydeploy, "onnxruntime": run_onnxruntime, "modelopt": run_modelopt}  # fmt: skip


def child(name: str, model: Path, count: int, size: int) -> dict[str, float]:
    """`RUNS[name]` in a process of its own; its result with the peak of that process' memory in MB."""
    command = [sys.executable, __file__, name, str(model), str(count), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def export_network(folder: Path, name: str, size: int) -> Path:
    """A torchvision network with random weights whose normalization statistics fit its values."""
    import torch
    from torchvision import models

    from pydeploy.export import export

    torch.manual_seed(0)
    model = models.get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean of all batches
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.from_numpy(np.concatenate([feeds["x"] for feeds in inputs(8, size)])))
    return export(
        model.eval(), (torch.zeros(1, 3, size, size),), folder / f"{name}.onnx", input_names=("x",), output_names=("y",)
    )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, int, int]:
    """Network, images and their size: ResNet-50 at 224, or something quick as a smoke test."""
    full = not request.config.getoption("benchmark_disable")
    folder = tmp_path_factory.mktemp("net")
    return (
        (export_network(folder, "resnet50", 224), 32, 224) if full else (export_network(folder, "resnet18", 64), 2, 64)
    )


@pytest.mark.benchmark(group="calibrate ResNet-50, entropy, 32 images")
@pytest.mark.parametrize("name", ["plain", "pydeploy", "onnxruntime"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_calibrate(benchmark: Any, scene: tuple[Path, int, int], name: str) -> None:
    result = benchmark.pedantic(child, args=(name, *scene), rounds=1)
    benchmark.extra_info.update(result)
    assert result["seconds"] > 0


def pictures(count: int) -> list[np.ndarray[Any, Any]]:
    """Decoded photographs of the usual size."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (375, 500, 3), np.uint8) for _ in range(count)]


def pack_pydeploy(images: list[Any]) -> list[Any]:
    return [batch.copy() for batch in IMAGENET.batches(images, 16)]


def pack_numpy(images: list[Any]) -> list[Any]:
    """One image after the other: Pillow resizes, NumPy does the rest."""
    shift = np.array([255.0 * m for m in IMAGENET.mean], np.float32)
    scale = np.array([255.0 * s for s in IMAGENET.std], np.float32)
    batches, batch = [], []
    for image in images:
        height, width = image.shape[:2]
        short = min(height, width)
        small = Image.fromarray(image).resize((256 * width // short, 256 * height // short), Image.Resampling.BILINEAR)
        top, left = round((small.height - 224) / 2), round((small.width - 224) / 2)
        pixels = np.asarray(small)[top : top + 224, left : left + 224].astype(np.float32)
        batch.append(((pixels - shift) / scale).transpose(2, 0, 1))
        if len(batch) == 16:
            batches.append(np.stack(batch))
            batch = []
    return [*batches, np.stack(batch)] if batch else batches


class Pictures:
    """A torch data set of decoded images, through torchvision's transforms."""

    def __init__(self, images: list[Any]) -> None:
        from torchvision import transforms

        self.images = images
        self.steps = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
                                         transforms.Normalize(IMAGENET.mean, IMAGENET.std)])  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.steps(Image.fromarray(self.images[index]))


def pack_torch(images: list[Any]) -> list[Any]:
    from torch.utils.data import DataLoader

    return [batch.numpy() for batch in DataLoader(Pictures(images), 16, num_workers=2)]  # type: ignore[arg-type]


@pytest.mark.benchmark(group="decoded images to packed batches")
@pytest.mark.parametrize("pack", [pack_pydeploy, pack_numpy, pack_torch], ids=["pydeploy", "numpy", "torch"])
def test_batching(benchmark: Any, pack: Callable[[list[Any]], list[Any]]) -> None:
    images = pictures(256 if benchmark.enabled else 20)
    found = np.concatenate(benchmark.pedantic(pack, args=(images,), rounds=3 if benchmark.enabled else 1))
    expected = IMAGENET(np.stack(images[:20]))
    if pack is pack_torch:  # divides by 255 before it subtracts the mean
        np.testing.assert_allclose(found[:20], expected, atol=2e-6)
    else:
        np.testing.assert_array_equal(found[:20], expected)


@pytest.mark.benchmark(group="histogram")
def test_histogram_core(benchmark: Any) -> None:
    histogram = Histogram()
    histogram.update(BATCH)
    benchmark(histogram.update, BATCH, 1)
    assert histogram.count % BATCH.size == 0


@pytest.mark.benchmark(group="histogram")
def test_histogram_numpy(benchmark: Any) -> None:
    counts, _ = benchmark(np.histogram, np.abs(BATCH), 4096, (0.0, 8.0))
    core = Histogram()
    core.update(BATCH)
    assert core.positive.sum() + core.negative.sum() == counts.sum() == BATCH.size


def signed_counts() -> tuple[Any, Any]:
    """2048 bins over (-8, 8), symmetric, as ONNX Runtime's calibrator wants them."""
    values = np.random.default_rng(0).normal(size=500_000)
    return np.histogram(np.concatenate([values, -values]), 2048, (-8.0, 8.0))


def threshold_core(counts: Any, edges: Any) -> float:
    return entropy_threshold(counts[1024:].astype(np.uint64), float(edges[1] - edges[0]), 128)


def threshold_onnxruntime(counts: Any, edges: Any) -> float:
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(
        "entropy", symmetric=True, num_bins=2048, num_quantized_bins=128, percentile=99.999, scenario="same"
    )
    return float(collector.get_entropy_threshold((counts, edges, edges[0], edges[-1], edges[-1]), 128)[1])


@pytest.mark.benchmark(group="entropy threshold: 2048 bins")
def test_entropy_core(benchmark: Any) -> None:
    # ONNX Runtime's 2048 signed bins are 1024 magnitudes; here all 2048 are magnitudes, which is more work.
    histogram = Histogram(2048)
    histogram.update(RNG.normal(size=500_000).astype(np.float32))
    found = benchmark(entropy_threshold, histogram.positive + histogram.negative, histogram.bin_width, 128)
    assert 2.5 < found < 6


@pytest.mark.benchmark(group="entropy threshold: 2048 bins")
def test_entropy_onnxruntime(benchmark: Any) -> None:
    counts, edges = signed_counts()
    if not benchmark.enabled:
        counts, edges = counts[768:-768], edges[768:-768]  # quick, and beyond +-2 there is little
    found = benchmark.pedantic(threshold_onnxruntime, args=(counts, edges), rounds=1)
    assert 0.5 < found < 8


@pytest.mark.benchmark(group="observers")
@pytest.mark.parametrize("name", OBSERVERS)
def test_observers(benchmark: Any, name: str) -> None:
    seen = Seen()
    seen.histogram.update(BATCH)
    seen.extremes.append((float(BATCH.min()), float(BATCH.max())))
    lo, hi = benchmark(observe, seen, name)
    assert lo == 0
    assert 3 < hi <= BATCH.max()


def report(folder: Path, names: list[str]) -> None:
    """The comparison as lines of text."""
    model = folder / "resnet50.onnx"
    if not model.exists():
        export_network(folder, "resnet50", 224)
    for count, name in ((count, name) for count in (32, 512) for name in names):
        if count > 32 and name not in ("plain", "pydeploy"):
            continue  # tens of GB
        sys.stdout.write(f"{count} images, {name}: {child(name, model, count, 224)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "report":
        report(Path(sys.argv[2]), sys.argv[3:] or list(RUNS))
    else:
        outcome = RUNS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
        sys.stdout.write("\n" + json.dumps({**outcome, "peak_mb": peak_mb()}) + "\n")
