"""Cutting all weights of a ResNet-like network to half of its channels."""

from __future__ import annotations

import numpy as np
import pytest

from pydeploy import _core

SHAPES = [(64, 3, 7, 7)] + [(c, c, 3, 3) for c in (64, 128, 256, 512) for _ in range(4)] + [(512,)] * 20 + [(1000, 512)]


@pytest.fixture(scope="module")
def jobs():
    rng = np.random.default_rng(0)

    def half(n):
        return np.sort(rng.permutation(n)[: n // 2])

    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    return [(a, [half(n) if n > 3 and dim < 2 else None for dim, n in enumerate(a.shape)]) for a in arrays]


def numpy_gather(jobs):
    return [
        array[np.ix_(*(range(n) if i is None else i for i, n in zip(index, array.shape, strict=True)))]
        for array, index in jobs
    ]


def torch_gather(jobs):
    """One `index_select` per cut dimension, as pruning libraries do it."""
    import torch

    results = []
    for array, index in jobs:
        tensor = torch.from_numpy(array)
        for dim, entries in enumerate(index):
            if entries is not None:
                tensor = tensor.index_select(dim, torch.from_numpy(entries))
        results.append(tensor.numpy())
    return results


@pytest.mark.benchmark(group="gather_many: half of a ResNet's channels")
@pytest.mark.parametrize("gather", [_core.gather_many, numpy_gather, torch_gather], ids=["pydeploy", "numpy", "torch"])
def test_gather(benchmark, jobs, gather):
    results = benchmark(gather, jobs)
    for (array, index), result in zip(jobs, results, strict=True):
        expected = array
        for dim, entries in enumerate(index):
            expected = expected if entries is None else np.take(expected, entries, axis=dim)
        np.testing.assert_array_equal(result, expected)
