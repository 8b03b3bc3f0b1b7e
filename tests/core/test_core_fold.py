from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydeploy import _core

DTYPES = [np.float32, np.float64]


@given(st.integers(0, 2**31), st.sampled_from(DTYPES), st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_input_shift_equals_numpy(seed, dtype, groups, threads):
    rng = np.random.default_rng(seed)
    outputs, inputs = groups * int(rng.integers(1, 30)), int(rng.integers(1, 6))
    weight = rng.standard_normal((outputs, inputs, *rng.integers(1, 4, int(rng.integers(0, 4))))).astype(dtype)
    means = np.where(rng.random(groups * inputs) < 0.4, 0, rng.standard_normal(groups * inputs))
    sums = weight.astype(np.float64).reshape(groups, -1, inputs, int(weight[0, 0].size)).sum(3)
    expected = np.einsum("goi,gi->go", sums, means.reshape(groups, inputs)).ravel()
    np.testing.assert_allclose(_core.input_shift(weight, means, groups, threads), expected, rtol=1e-12, atol=1e-12)


def test_a_silent_input_is_skipped_even_where_its_weight_is_not_finite():
    weight = np.array([[np.nan, 2.0]])
    np.testing.assert_array_equal(_core.input_shift(weight, np.array([0.0, 3.0])), [6.0])


@pytest.mark.parametrize(
    ("shape", "means", "groups", "message"),
    [
        ((4, 2, 3), 3, 1, "3 means contradict 2 inputs in each of 1 groups"),
        ((4, 2), 6, 3, "do not divide into 3 groups"),
        ((4, 0), 0, 0, "do not divide into 0 groups"),
        ((4, 0), 0, 1, "length 0 contradicts 4 outputs and 0 inputs"),
        ((4,), 4, 1, "needs the axes"),
    ],
)
def test_input_shift_refuses_lengths_that_do_not_fit(shape, means, groups, message):
    with pytest.raises(ValueError, match=message):
        _core.input_shift(np.zeros(shape), np.ones(means), groups)


@given(st.integers(0, 2**31), st.sampled_from(DTYPES), st.booleans(), st.booleans(), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_folding_equals_numpy(seed, dtype, with_bias, affine, outer):
    rng = np.random.default_rng(seed)
    channels = int(rng.integers(1, 8))
    shape = ((outer,) if outer > 1 else ()) + (channels, int(rng.integers(1, 5)), 3)
    weight = rng.standard_normal(shape).astype(dtype)
    bias, gamma, beta, mean = (rng.standard_normal(channels).astype(dtype) for _ in range(4))
    variance = rng.uniform(0.1, 2, channels).astype(dtype)
    got, got_bias = _core.fold_batch_norm(
        weight, bias if with_bias else None, gamma if affine else None, beta if affine else None, mean, variance, 1e-3, outer
    )  # fmt: skip
    scale = (gamma.astype(np.float64) if affine else 1) / np.sqrt(variance.astype(np.float64) + 1e-3)
    along = scale[:, None, None]
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(got, weight * along, rtol=tolerance)
    expected = ((bias if with_bias else 0) - mean.astype(np.float64)) * scale + (beta if affine else 0)
    np.testing.assert_allclose(got_bias, expected, rtol=tolerance, atol=tolerance)
    assert got.dtype == got_bias.dtype == dtype


@pytest.mark.parametrize(
    ("weight", "mean", "variance", "message"),
    [
        ((5, 3), 4, 4, "length 15 is no multiple of 4 channels"),
        ((4, 3), 4, 3, "contradicts the batch norm's 4 channels"),
        ((0, 3), 0, 0, "no multiple of 0 channels"),
    ],
)
def test_folding_refuses_lengths_that_do_not_fit(weight, mean, variance, message):
    with pytest.raises(ValueError, match=message):
        _core.fold_batch_norm(np.zeros(weight), None, None, None, np.zeros(mean), np.ones(variance), 1e-5)


@pytest.mark.parametrize("variance", [-1.0, 0.0, np.nan])
def test_folding_refuses_a_variance_that_is_not_positive(variance):
    with pytest.raises(ValueError, match="channel 0 has a variance"):
        _core.fold_batch_norm(np.ones((1, 1)), None, None, None, np.zeros(1), np.array([variance]), 0.0)


@given(st.integers(0, 2**31), st.sampled_from(DTYPES), st.integers(0, 2), st.integers(1, 6), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_keep_largest_equals_a_stable_sort(seed, dtype, axis, m, threads):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, m + 1))
    values = rng.integers(-3, 4, rng.integers(1, 12, 3)).astype(dtype)  # many ties
    mask = _core.keep_largest(values, n, m, axis, threads)
    rows, marks = (np.moveaxis(a, axis, -1).reshape(-1, values.shape[axis]) for a in (values, mask))
    for row, mark in zip(rows, marks, strict=True):
        for begin in range(0, len(row), m):
            run = np.abs(row[begin : begin + m])
            expected = np.zeros(len(run), np.uint8)
            expected[np.argsort(-run, kind="stable")[:n]] = 1
            np.testing.assert_array_equal(mark[begin : begin + m], expected)


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (1, 65), (1, 0)])
def test_keep_largest_refuses_impossible_counts(n, m):
    with pytest.raises(ValueError, match="expected 1 <= n <= m <= 64"):
        _core.keep_largest(np.zeros((2, 4)), n, m, 1)


def test_keep_largest_refuses_an_axis_that_is_not_there():
    with pytest.raises(ValueError, match=r"axis 2 is outside 0\.\.2"):
        _core.keep_largest(np.zeros((2, 4)), 1, 2, 2)
