"""Boxes as numbers: overlaps and suppression as torchvision has them, priors as published, offsets there and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou
from torchvision.ops import nms as torch_nms

from pydeploy.data.boxes.detections import Cleaning, detections
from pydeploy.data.boxes.geometry import centres, corners, iou, nms, nms_by_class
from pydeploy.data.boxes.priors import NAMED, Priors, decode, encode, named, small
from pydeploy.errors import ConfigError, Mismatch


def boxes_of(rng: np.random.Generator, count: int, *, flat: bool = False) -> np.ndarray:
    first = rng.random((count, 2)) * 0.7
    sides = rng.random((count, 2)) * 0.3 + (0 if flat else 0.01)
    if flat:
        sides[::3] = 0
    return np.concatenate([first, first + sides], 1).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(0, 20), st.booleans())
def test_overlaps_are_torchvisions(seed: int, many: int, few: int, flat: bool) -> None:
    rng = np.random.default_rng(seed)
    first, second = boxes_of(rng, many, flat=flat), boxes_of(rng, few)
    wanted = box_iou(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    np.testing.assert_array_equal(iou(first, second), np.nan_to_num(wanted))


@given(st.integers(0, 2**32 - 1), st.integers(0, 700), st.floats(0.1, 0.9), st.integers(1, 4))
def test_suppression_is_torchvisions(seed: int, count: int, threshold: float, classes: int) -> None:
    rng = np.random.default_rng(seed)
    boxes, scores = boxes_of(rng, count), (rng.integers(0, 40, count) / 40).astype(np.float32)
    labels = rng.integers(0, classes, count)
    mine = nms(boxes, scores, threshold)
    np.testing.assert_array_equal(mine, torch_nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).numpy())
    by_class = nms_by_class(boxes, scores, labels, threshold)
    # Not its batched_nms, which moves each class's boxes far apart and rounds them on the way.
    wanted = [own[torch_nms(torch.from_numpy(boxes[own]), torch.from_numpy(scores[own]), threshold).numpy()]
              for own in (np.flatnonzero(labels == one) for one in range(classes))]  # fmt: skip
    assert sorted(by_class) == sorted(np.concatenate(wanted))
    assert np.all(np.diff(scores[by_class]) <= 0)


@given(st.integers(0, 2**32 - 1))
def test_offsets_there_and_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    priors = small(96).boxes
    boxes = boxes_of(rng, len(priors))
    np.testing.assert_allclose(decode(encode(boxes, priors), priors), boxes, atol=2e-6)
    np.testing.assert_allclose(corners(centres(boxes)), boxes, atol=1e-6)
    assert not encode(corners(priors), priors).round(4).any()


def test_priors_in_the_published_order() -> None:
    found = NAMED["ssd300"].boxes
    assert found.shape == (8732, 4)
    step, small_, large, root = 8 / 300, 30 / 300, math.sqrt(30 * 60) / 300, math.sqrt(2)
    first = [(small_, small_), (large, large), (small_ * root, small_ / root), (small_ / root, small_ * root)]
    for cell, (x, y) in {0: (0.5, 0.5), 1: (1.5, 0.5), 38: (0.5, 1.5)}.items():  # along a row, then down
        wanted = [(x * step, y * step, *size) for size in first]
        np.testing.assert_allclose(found[4 * cell : 4 * cell + 4], wanted, rtol=1e-6)
    np.testing.assert_allclose(found[-4:, :2], 0.5)
    assert found.max() <= 1
    np.testing.assert_allclose(found[-3:, 2:][1], [1, 264 / 300 / root], rtol=1e-6)  # wider than the picture: as wide


def test_priors_are_those_of_the_first_maps() -> None:
    ssd = NAMED["ssd300"]
    assert ssd.of(8732) is ssd
    assert ssd.of(5776 + 2166) == ssd.first(2)
    with pytest.raises(Mismatch, match="5776, 7942, 8542, 8692, 8728, 8732"):
        ssd.of(8733)
    assert Priors.parse(ssd.to_json()) == ssd


@pytest.mark.parametrize(
    ("priors", "told"),
    [
        ("ssd3oo", "did you mean 'ssd3"),
        ("ssd320", "set size: 320"),
        ({"image": 300}, "lack maps"),
        ({**NAMED["ssd300"].to_json(), "x": 1}, "unknown key 'x'"),
        ({**NAMED["ssd300"].to_json(), "maps": [3]}, "of the 1 maps"),
        ({**NAMED["ssd300"].to_json(), "maps": 3}, "lists of numbers"),
        ({**NAMED["ssd300"].to_json(), "strides": [0] * 6}, "positive"),
        ({**NAMED["ssd300"].to_json(), "max_sizes": [1] * 6}, "must not be below"),
    ],
)
def test_priors_that_are_none(priors: object, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        named(priors, 300)  # type: ignore[arg-type]


def test_detections_by_hand() -> None:
    priors = np.array(
        [[0.25, 0.25, 0.2, 0.2], [0.26, 0.25, 0.2, 0.2], [0.75, 0.75, 0.4, 0.4], [0.5, 0.5, 0.1, 0.1]], np.float32
    )
    scores = np.array([[0, 4, 0], [0, 3, 2], [0, 0, 5], [9, 0, 0]], np.float32)
    offsets = np.zeros((4, 4), np.float32)
    offsets[2] = [0, 0, math.log(2) / 0.2, 0]  # twice as wide, over the edge
    found = detections(scores, offsets, priors, Cleaning(score=0.2))
    assert found.labels.tolist() == [1, 0, 1]
    np.testing.assert_allclose(
        found.boxes, [[0.35, 0.55, 1, 0.95], [0.15, 0.15, 0.35, 0.35], [0.16, 0.15, 0.36, 0.35]], atol=1e-6
    )
    np.testing.assert_allclose(found.scores[0], math.exp(5) / (math.exp(5) + 2), rtol=1e-6)
    assert len(detections(scores, offsets, priors, Cleaning(score=0.2, most=1))) == 1
    assert len(detections(scores[3:], offsets[3:], priors[3:], Cleaning())) == 0


def test_only_the_best_candidates_of_a_class_are_looked_at() -> None:
    rng = np.random.default_rng(0)
    priors = small(64).boxes
    scores, offsets = rng.normal(0, 1, (len(priors), 3)).astype(np.float32), np.zeros((len(priors), 4), np.float32)
    whole = detections(scores, offsets, priors, Cleaning(iou=1.0, most=10_000, candidates=len(priors)))
    some = detections(scores, offsets, priors, Cleaning(iou=1.0, most=10_000, candidates=50))
    for label in (0, 1):
        best = np.sort(whole.scores[whole.labels == label])[-50:]
        np.testing.assert_array_equal(np.sort(some.scores[some.labels == label]), best)
