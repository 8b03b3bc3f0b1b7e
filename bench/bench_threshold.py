"""Histograms of activations and the thresholds read from them."""

from __future__ import annotations

import numpy as np
import pytest

from pydeploy import _core

BINS = 2048


@pytest.fixture(scope="module")
def values():
    """One batch of a wide layer behind a ReLU: half of the values are zero."""
    return np.maximum(np.random.default_rng(0).standard_normal((8, 64, 56, 56)), 0).astype(np.float32)


@pytest.fixture(scope="module")
def histogram(values):
    result = _core.Histogram(BINS)
    result.update(values)
    return result


def core_counts(values, width):
    histogram = _core.Histogram(BINS)
    histogram.update(values)
    return histogram.positive


def numpy_counts(values, width):
    return np.histogram(np.abs(values), BINS, (0.0, BINS * width))[0]


@pytest.mark.benchmark(group="Histogram.update: 1.6 million values")
@pytest.mark.parametrize("count", [core_counts, numpy_counts], ids=["pydeploy", "numpy"])
def test_histogram(benchmark, values, histogram, count):
    counts = benchmark(count, values, histogram.bin_width)
    np.testing.assert_array_equal(counts, histogram.positive)


def numpy_entropy(counts, width, levels=128):
    counts = counts[: np.flatnonzero(counts)[-1] + 1].astype(float)
    counts[0] = counts[1]
    losses = []
    for bins in range(levels, len(counts) + 1):
        reference = counts[:bins].copy()
        reference[-1] += counts[bins:].sum()
        group = np.arange(bins) * levels // bins
        filled = counts[:bins] > 0
        mass = np.bincount(group, counts[:bins], levels)
        number = np.bincount(group, filled, levels)
        candidate = np.where(filled, mass[group] / np.maximum(number[group], 1), 0.0)
        used = reference > 0
        p, q = reference[used] / reference.sum(), candidate[used] / candidate.sum()
        losses.append(np.inf if (q == 0).any() else np.sum(p * np.log(p / q)))
    losses = np.array(losses)
    return (levels + np.flatnonzero(losses <= losses.min() + 1e-10)[-1]) * width


def numpy_mse(counts, width, levels=127):
    counts = counts[: np.flatnonzero(counts)[-1] + 1]
    centres = np.arange(len(counts)) + 0.5
    losses = []
    for threshold in centres[levels + 1 :]:
        step = threshold / levels
        losses.append(np.sum(counts * (np.minimum(np.rint(centres / step), levels) * step - centres) ** 2))
    return centres[levels + 1 + int(np.argmin(losses))] * width


@pytest.mark.benchmark(group="entropy_threshold: 2048 bins")
@pytest.mark.parametrize("threshold", [_core.entropy_threshold, numpy_entropy], ids=["pydeploy", "numpy"])
def test_entropy(benchmark, histogram, threshold):
    found = benchmark(threshold, histogram.positive, histogram.bin_width)
    assert found == numpy_entropy(histogram.positive, histogram.bin_width)


@pytest.mark.benchmark(group="mse_threshold: 2048 bins")
@pytest.mark.parametrize("threshold", [_core.mse_threshold, numpy_mse], ids=["pydeploy", "numpy"])
def test_mse(benchmark, histogram, threshold):
    found = benchmark(threshold, histogram.positive, histogram.bin_width)
    assert found == pytest.approx(numpy_mse(histogram.positive, histogram.bin_width), abs=histogram.bin_width)
