"""Differences between two engines' outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnx_nets import residual
from pydeploy.backends.base import Feeds, LayerTime, TensorSpec, open_backend
from pydeploy.errors import DataError, Mismatch
from pydeploy.profiling.compare_outputs import compare
from pydeploy.profiling.profile import random_feeds


class Fixed:
    """A session that returns prepared outputs one after another."""

    def __init__(self, *outputs: np.ndarray) -> None:
        self.inputs = [TensorSpec("x", "float32", (1,))]
        self.outputs = [TensorSpec("y", outputs[0].dtype.name, outputs[0].shape)]
        self.left = list(outputs)

    def run(self, feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
        return {"y": self.left.pop(0)}

    def time(self, feeds: Feeds, n: int) -> np.ndarray[Any, Any]:
        return np.zeros(n)

    def layers(self, feeds: Feeds, n: int) -> list[LayerTime]:
        return []


X = {"x": np.zeros(1, np.float32)}
values = arrays(np.float32, (2, 3), elements=st.floats(-100, 100, width=16))


@given(st.lists(st.tuples(values, values), min_size=1, max_size=3))
def test_figures_equal_numpy_on_the_joined_outputs(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    found = compare(Fixed(*(a for a, _ in pairs)), Fixed(*(b for _, b in pairs)), [X] * len(pairs))
    a = np.concatenate([a.ravel() for a, _ in pairs]).astype(np.float64)
    b = np.concatenate([b.ravel() for _, b in pairs]).astype(np.float64)
    (one,) = found.outputs
    assert found.feeds == len(pairs)
    assert one.max_abs == np.abs(a - b).max()
    if a.any() and b.any():
        assert one.relative_l2 == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
        assert one.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-9)


def test_zero_outputs() -> None:
    zero, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    figures = {
        name: (one.relative_l2, one.cosine)
        for name, first, second in (("both", zero, zero), ("first", zero, ones), ("second", ones, zero))
        for one in compare(Fixed(first), Fixed(second), [X]).outputs
    }
    assert figures == {"both": (0.0, 1.0), "first": (float("inf"), 0.0), "second": (1.0, 0.0)}


def test_nan_is_not_hidden() -> None:
    bad = np.array([1.0, np.nan], np.float32)
    for first, second in (
        ([bad, bad * 0 + 1], [np.ones(2, np.float32)] * 2),
        ([np.ones(2, np.float32)] * 2, [bad, bad]),
    ):
        (one,) = compare(Fixed(*first), Fixed(*second), [X, X]).outputs
        assert np.isnan([one.max_abs, one.relative_l2, one.cosine]).all()


def test_unlike_engines_are_refused() -> None:
    with pytest.raises(Mismatch, match="outputs differ"):
        compare(Fixed(np.zeros(2, np.float32)), Fixed(np.zeros(3, np.float32)), [X])


def test_nothing_to_compare() -> None:
    with pytest.raises(DataError, match="no feeds"):
        compare(Fixed(np.zeros(2)), Fixed(np.zeros(2)), [])


def test_int8_engine_against_itself_and_the_float_one(tmp_path: Path) -> None:
    sessions = {}
    plain, quantized = open_backend("onnxruntime", threads=1), open_backend("onnxruntime", precision="int8", threads=1)
    first = plain.build(residual(tmp_path / "net.onnx"), tmp_path / "fp32.engine")
    second = quantized.build(residual(tmp_path / "q.onnx", qdq=True), tmp_path / "int8.engine")
    with plain.open(first) as sessions["fp32"], quantized.open(second) as sessions["int8"]:
        feeds = [random_feeds(sessions["fp32"].inputs, seed) for seed in range(3)]
        (same,) = compare(sessions["fp32"], sessions["fp32"], feeds).outputs
        found = compare(sessions["fp32"], sessions["int8"], feeds)
    assert (same.max_abs, same.relative_l2) == (0.0, 0.0)
    assert same.cosine == pytest.approx(1.0)
    assert 0.0 < found.outputs[0].relative_l2 < 0.2
    assert found.outputs[0].cosine > 0.98
    row = json.loads(json.dumps(found.to_json()))
    assert row["feeds"] == 3
    assert row["outputs"][0]["output"] == "logits"
