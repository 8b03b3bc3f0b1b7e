"""Measures of segmentation against scikit-learn's and against their definitions pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydeploy.tasks.confusion import Agreement, confusion

CLASSES = 4


@st.composite
def maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    seed, count = draw(st.integers(0, 2**31)), draw(st.integers(0, 60))
    rng = np.random.default_rng(seed)
    used = draw(st.lists(st.sampled_from([0, 1, 2, 3, 255]), min_size=1, max_size=5))
    return rng.choice(used, count).astype(np.uint8), rng.integers(0, CLASSES, count)


@given(maps())
@settings(max_examples=60, deadline=None)
def test_every_measure_is_its_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, predicted = pair
    found = Agreement(confusion(truth, predicted, CLASSES))
    kept = truth != 255
    truth, predicted = truth[kept], predicted[kept]
    ious, recalls = [], []
    for one in range(CLASSES):
        union, own = np.sum((truth == one) | (predicted == one)), np.sum(truth == one)
        hit = np.sum((truth == one) & (predicted == one))
        ious.append(hit / union if union else np.nan)
        recalls.append(hit / own if own else np.nan)
    np.testing.assert_allclose(found.iou, ious)
    np.testing.assert_allclose(found.recall, recalls)
    defined = [value for value in ious if not np.isnan(value)]
    np.testing.assert_allclose(found.mean_iou, np.mean(defined) if defined else np.nan)
    occurring = [value for value in recalls if not np.isnan(value)]
    np.testing.assert_allclose(found.class_accuracy, np.mean(occurring) if occurring else np.nan)
    np.testing.assert_allclose(found.pixel_accuracy, np.mean(truth == predicted) if len(truth) else np.nan)
    shares = [np.mean(truth == one) for one in range(CLASSES)] if len(truth) else [np.nan]
    np.testing.assert_allclose(
        found.weighted_iou, sum(a * b for a, b in zip(shares, ious, strict=False) if a) if len(truth) else np.nan
    )


def test_counts_are_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, CLASSES, (2, 30, 20)), rng.integers(0, CLASSES, (2, 30, 20))
    truth[rng.random(truth.shape) < 0.2] = 255
    kept = truth != 255
    counts = confusion(truth, predicted, CLASSES)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, metrics.confusion_matrix(truth[kept], predicted[kept], labels=range(CLASSES)))
    jaccard = metrics.jaccard_score(truth[kept], predicted[kept], average=None)
    np.testing.assert_allclose(Agreement(counts).iou, jaccard)
    np.testing.assert_allclose(
        Agreement(counts).class_accuracy, metrics.balanced_accuracy_score(truth[kept], predicted[kept])
    )


def test_an_absent_class_does_not_enter_the_mean() -> None:
    """With 0 for the absent class it would be 2/3."""
    assert Agreement(confusion(np.array([0, 1]), np.array([0, 1]), 3)).mean_iou == 1
    assert np.isnan(Agreement(np.zeros((3, 3), np.int64)).mean_iou)


def test_counts_add_over_the_set() -> None:
    """The mean over pictures would be (1 + 1/4) / 2."""
    parts = [confusion(np.array([0]), np.array([0]), 2), confusion(np.array([0, 0, 0, 0]), np.array([0, 1, 1, 1]), 2)]
    assert Agreement(parts[0] + parts[1]).iou[0] == 2 / 5
