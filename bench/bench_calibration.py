"""Cost of calibration: counting a batch and choosing a threshold, against NumPy doing the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quant_nets as nets
from pydeploy._core import Histogram, entropy_threshold
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.observe import OBSERVERS, Seen, observe

RNG = np.random.default_rng(0)
BATCH = np.maximum(RNG.normal(size=(16, 64, 28, 28)), 0).astype(np.float32)
COUNTS = np.bincount(np.minimum(np.abs(RNG.normal(size=500_000)) * 400, 2047).astype(np.int64), minlength=2048)


@pytest.mark.benchmark(group="histogram")
def test_histogram_core(benchmark: Any) -> None:
    histogram = Histogram()
    histogram.update(BATCH)
    benchmark(histogram.update, BATCH, 1)
    assert histogram.count % BATCH.size == 0


@pytest.mark.benchmark(group="histogram")
def test_histogram_numpy(benchmark: Any) -> None:
    counts, _ = benchmark(np.histogram, np.abs(BATCH), 4096, (0.0, 8.0))
    assert counts.sum() == BATCH.size
    core = Histogram()
    core.update(BATCH)
    assert core.positive.sum() + core.negative.sum() == counts.sum()


def entropy_numpy(counts: np.ndarray[Any, Any], levels: int) -> int:
    """The candidate with the smallest divergence, one NumPy pass per candidate."""
    counts = counts.astype(np.float64)
    counts[0] = counts[1]
    best, choice = np.inf, len(counts)
    for size in range(levels, len(counts) + 1):
        p = counts[:size].copy()
        p[-1] += counts[size:].sum()
        group = np.arange(size) * levels // size
        filled = counts[:size] > 0
        members = np.maximum(np.bincount(group, filled, levels), 1)
        q = np.where(filled, (np.bincount(group, counts[:size], levels) / members)[group], 0.0)
        used = p > 0
        if not (q[used] == 0).any():
            p, q = p / p.sum(), q / q.sum()
            divergence = float(np.sum(p[used] * np.log(p[used] / q[used])))
            if divergence <= best + 1e-10:
                best, choice = min(best, divergence), size
    return choice


@pytest.mark.benchmark(group="entropy threshold")
def test_entropy_core(benchmark: Any) -> None:
    found = benchmark(entropy_threshold, COUNTS.astype(np.uint64), 1.0, 128)
    assert found == entropy_numpy(COUNTS, 128)


@pytest.mark.benchmark(group="entropy threshold")
def test_entropy_numpy(benchmark: Any) -> None:
    assert benchmark(entropy_numpy, COUNTS, 128) > 128


@pytest.mark.benchmark(group="observers")
@pytest.mark.parametrize("name", OBSERVERS)
def test_observers(benchmark: Any, name: str) -> None:
    seen = Seen()
    seen.histogram.update(BATCH)
    seen.extremes.append((float(BATCH.min()), float(BATCH.max())))
    lo, hi = benchmark(observe, seen, name)
    assert lo == 0
    assert 3 < hi <= BATCH.max()


@pytest.mark.benchmark(group="calibrate")
def test_calibrate_residual_block(benchmark: Any, tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx", batch=8, width=32)
    batches = nets.random_feeds(path, count=8, batch=8)
    ranges = benchmark(calibrate, path, batches)
    assert ranges.count == 64
    assert set(ranges.tensors) == {"x", "r0", "r1", "c2", "r2", "m_pooled"}
