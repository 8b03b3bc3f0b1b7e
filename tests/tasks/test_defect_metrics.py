"""Curves against scikit-learn and against counting; what is undefined says so."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from pydeploy.tasks.defect_metrics import Ranking, sigmoid

CASES = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40)


@settings(deadline=None, max_examples=30)
@given(cases=CASES)
def test_curves_are_those_of_scikit_learn_and_of_counting(cases: list[tuple[int, bool]]) -> None:
    scores, truth = np.array([s / 6 for s, _ in cases]), np.array([t for _, t in cases])
    found = Ranking.of(scores, truth)
    for threshold in (*found.thresholds, -1.0, 0.55, 2.0):
        at, decided = found.at(threshold), scores >= threshold
        assert (at.tp, at.fp) == ((decided & truth).sum(), (decided & ~truth).sum())
        assert (at.fn, at.tn) == ((~decided & truth).sum(), (~decided & ~truth).sum())
    if truth.all() or not truth.any():
        assert all(math.isnan(value) for value in (found.ap_trapezoid, found.ap_step, found.auroc))
        assert found.best is None
        return
    precision, recall, _ = metrics.precision_recall_curve(truth, scores)
    assert found.ap_trapezoid == pytest.approx(metrics.auc(recall, precision))
    assert found.ap_step == pytest.approx(metrics.average_precision_score(truth, scores))
    assert found.auroc == pytest.approx(metrics.roc_auc_score(truth, scores))
    best = found.best
    assert best is not None
    decided = scores >= best.threshold
    assert best.f1 == pytest.approx(max(metrics.f1_score(truth, scores >= t) for t in scores))
    assert best.f1 == pytest.approx(metrics.f1_score(truth, decided))
    assert best.accuracy == pytest.approx(metrics.accuracy_score(truth, decided))
    assert best.iou == pytest.approx(metrics.jaccard_score(truth, decided))


def test_the_two_areas_differ_as_they_should() -> None:
    found = Ranking.of(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    assert found.ap_step == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert found.ap_trapezoid == pytest.approx(1 / 2 + 1 / 2 * (1 / 2 + 2 / 3) / 2)


def test_sigmoid_does_not_overflow() -> None:
    found = sigmoid(np.array([-1e4, 0, 2, 1e4], np.float32))
    np.testing.assert_allclose(found, [0, 0.5, 1 / (1 + math.exp(-2)), 1])


def test_nothing_at_all_is_undefined() -> None:
    assert math.isnan(Ranking.of(np.zeros(0), np.zeros(0, np.bool_)).ap_step)
