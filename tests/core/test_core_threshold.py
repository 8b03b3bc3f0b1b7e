"""The compiled thresholds against slow twins that follow the definitions word by word."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydeploy import _core


def trimmed(counts):
    return counts[: np.flatnonzero(counts)[-1] + 1]


def divergence(counts, bins, levels):
    reference = counts[:bins].copy()
    reference[-1] += counts[bins:].sum()
    group = np.arange(bins) * levels // bins
    candidate = np.zeros(bins)
    for number in range(levels):
        filled = (group == number) & (counts[:bins] > 0)
        if filled.any():
            candidate[filled] = counts[:bins][filled].sum() / filled.sum()
    p, q = reference / reference.sum(), candidate / max(candidate.sum(), 1)
    used = p > 0
    return np.inf if (q[used] == 0).any() else float(np.sum(p[used] * np.log(p[used] / q[used])))


def entropy_twin(counts, width, levels):
    counts = trimmed(counts).astype(float)
    if len(counts) > 1:
        counts[0] = counts[1]
    losses = np.array([divergence(counts, bins, levels) for bins in range(levels, len(counts) + 1)])
    if not np.isfinite(losses).any():
        return len(counts) * width
    return (levels + np.flatnonzero(losses <= losses.min() + 1e-10)[-1]) * width


def percentile_twin(counts, width, percentile):
    below = np.concatenate([[0], np.cumsum(counts)])
    return int(np.argmax(below >= percentile / 100 * counts.sum())) * width


def mse_losses(counts, levels):
    centres = np.arange(len(counts)) + 0.5
    thresholds = centres[levels + 1 :]
    losses = []
    for threshold in thresholds:
        step = threshold / levels
        quantized = np.minimum(np.rint(centres / step), levels) * step
        losses.append(float(np.sum(counts * (quantized - centres) ** 2)))
    return thresholds, np.array(losses)


counts_lists = st.lists(
    st.sampled_from([0, 0, 1, 2, 5, 40, 1000, 10**9]) | st.integers(0, 50), min_size=1, max_size=90
).filter(any)
widths = st.sampled_from([1.0, 2.0**-9, 0.1])


@given(counts_lists, widths, st.sampled_from([2, 3, 4, 16, 32]))
@settings(max_examples=150, deadline=None)
def test_entropy_equals_its_definition(counts, width, levels):
    counts = np.array(counts, np.uint64)
    assert _core.entropy_threshold(counts, width, levels) == pytest.approx(entropy_twin(counts, width, levels))


@given(counts_lists, widths, st.floats(0.001, 100) | st.sampled_from([100.0, 50.0, 99.99]))
@settings(max_examples=150, deadline=None)
def test_percentile_equals_its_definition(counts, width, percentile):
    counts = np.array(counts, np.uint64)
    assert _core.percentile_threshold(counts, width, percentile) == percentile_twin(counts, width, percentile)


@given(counts_lists, widths, st.sampled_from([1, 2, 7, 31]))
@settings(max_examples=150, deadline=None)
def test_mse_attains_the_smallest_loss(counts, width, levels):
    counts = np.array(counts, np.uint64)
    found = _core.mse_threshold(counts, width, levels) / width
    thresholds, losses = mse_losses(trimmed(counts), levels)
    if len(losses) == 0:
        assert found == pytest.approx(len(trimmed(counts)))
    else:
        loss = losses[np.argmin(np.abs(thresholds - found))]
        assert np.abs(thresholds - found).min() < 1e-9
        assert loss <= losses.min() * (1 + 1e-9)


def activations(seed=0, bins=2048):
    values = np.abs(np.random.default_rng(seed).standard_normal(100_000)).astype(np.float32)
    values[0] = 20.0
    histogram = _core.Histogram(bins)
    histogram.update(values)
    return histogram


def test_at_full_size_entropy_equals_its_definition():
    histogram = activations()
    found = _core.entropy_threshold(histogram.positive, histogram.bin_width)
    assert found == entropy_twin(histogram.positive, histogram.bin_width, 128)
    assert 3.0 < found < 6.0  # one value at 20 does not stretch the range of a standard normal


def test_an_outlier_moves_the_maximum_only():
    histogram = activations()
    counts, width = histogram.positive, histogram.bin_width
    assert _core.percentile_threshold(counts, width, 100) >= 20.0
    assert _core.percentile_threshold(counts, width, 99.99) == pytest.approx(3.9, abs=0.2)
    assert 5.0 < _core.mse_threshold(counts, width) < 18.0


def test_zeros_of_relu_do_not_count_for_entropy():
    histogram = activations()
    counts = histogram.positive
    spiked = counts.copy()
    spiked[0] = 10**9
    assert _core.entropy_threshold(spiked, 1.0) == _core.entropy_threshold(counts, 1.0)


def test_without_a_finite_divergence_the_maximum_remains():
    counts = np.zeros(300, np.uint64)
    counts[[0, 250]] = 5
    assert _core.entropy_threshold(counts[:200], 0.5) == 0.5  # fewer filled bins than levels
    assert _core.entropy_threshold(counts, 0.5) == 251 * 0.5


def test_a_tensor_of_zeros_gets_one_bin():
    counts = np.zeros(4096, np.uint64)
    counts[0] = 7
    assert _core.entropy_threshold(counts, 0.25) == 0.25
    assert _core.percentile_threshold(counts, 0.25, 99.99) == 0.25
    assert _core.mse_threshold(counts, 0.25) == 0.25


ONE = np.ones(4, np.uint64)
BAD = {
    "entropy of nothing": (_core.entropy_threshold, (np.zeros(4, np.uint64), 1.0), "histogram is empty"),
    "percentile of nothing": (_core.percentile_threshold, (np.zeros(0, np.uint64), 1.0, 50.0), "histogram is empty"),
    "mse of nothing": (_core.mse_threshold, (np.zeros(4, np.uint64), 1.0), "histogram is empty"),
    "zero width": (_core.entropy_threshold, (ONE, 0.0), "bin_width must be positive"),
    "NaN width": (_core.mse_threshold, (ONE, float("nan")), "bin_width must be positive"),
    "one level": (_core.entropy_threshold, (ONE, 1.0, 1), "levels must be at least 2, not 1"),
    "no level": (_core.mse_threshold, (ONE, 1.0, 0), "levels must be at least 1, not 0"),
    "percentile 0": (_core.percentile_threshold, (ONE, 1.0, 0.0), "percentile must be above 0"),
    "percentile 101": (_core.percentile_threshold, (ONE, 1.0, 101.0), "percentile must be above 0"),
}


@pytest.mark.parametrize(("function", "arguments", "message"), BAD.values(), ids=BAD)
def test_wrong_arguments_are_named(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_signed_counts_are_refused():
    with pytest.raises(TypeError):
        _core.entropy_threshold(np.ones(4, np.int64), 1.0)


def test_counts_have_one_dimension():
    with pytest.raises(TypeError, match="one-dimensional"):
        _core.percentile_threshold(np.ones((2, 2), np.uint64), 1.0, 50.0)
