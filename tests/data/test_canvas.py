"""Drawn scenes: deterministic, masks and boxes agree with each other, coverage is counted, digits stand in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pydeploy.data import canvas, image_sets
from pydeploy.data.canvas import Canvas, Scene
from pydeploy.errors import ConfigError, DataError


def scenes(**settings: int) -> list[Scene]:
    drawn = Canvas((64, 80), train_size=60, **settings)
    return [drawn.scene("train", index) for index in range(60)]


def test_a_scene_is_a_function_of_seed_split_and_index() -> None:
    first, again = Canvas((48, 40)).scene("train", 7), Canvas((48, 40)).scene("train", 7)
    for name in ("picture", "mask", "boxes", "labels", "difficult"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    others = (
        Canvas((48, 40)).scene("train", 8),
        Canvas((48, 40)).scene("test", 7),
        Canvas((48, 40), seed=1).scene("train", 7),
    )
    assert not any(np.array_equal(first.picture, other.picture) for other in others)
    assert len({Canvas(seed=seed, test_size=size).digest() for seed in (0, 1) for size in (5, 6)}) == 4


def test_shapes_and_ranges() -> None:
    for scene in scenes():
        n = len(scene.labels)
        assert scene.picture.shape == (64, 80, 3)
        assert scene.picture.dtype == scene.mask.dtype == np.uint8
        assert scene.boxes.shape == (n, 4)
        assert scene.difficult.shape == (n,)
        low, high = scene.boxes[:, :2], scene.boxes[:, 2:]
        assert (low >= 0).all()
        assert (low < high).all()
        assert (high <= (80, 64)).all()
        assert set(np.unique(scene.mask)) == {0, *(scene.labels + 1)}


def test_the_box_of_a_lone_garment_is_that_of_its_mask() -> None:
    for scene in scenes(most=1):
        (x1, y1, x2, y2), inside = scene.boxes[0].astype(int), np.zeros((64, 80), bool)
        inside[y1:y2, x1:x2] = True
        assert not scene.mask[~inside].any()
        assert all(scene.mask[row, x1:x2].any() for row in (y1, y2 - 1))
        assert all(scene.mask[y1:y2, column].any() for column in (x1, x2 - 1))


def test_what_is_mostly_covered_is_difficult() -> None:
    crowded, sparse = scenes(most=12, seed=3), scenes(most=1)
    assert not any(scene.difficult.any() for scene in sparse)  # at most a quarter of each side is outside
    assert np.mean(np.concatenate([scene.difficult for scene in crowded])) > 0.1
    for scene in crowded:  # the front one is whole: what lies before the others is drawn last
        assert scene.difficult.all() or not scene.difficult[-1]


def test_splits_draw_from_the_splits_of_the_garments(monkeypatch: pytest.MonkeyPatch) -> None:
    one = np.full((1, 1, 28, 28), 255, np.uint8)
    labels = np.zeros(1, np.int64)
    made = image_sets.ImageSet("made", 2, one, labels, one, labels + 1, (0.5,), (0.5,), ("first", "second"))
    monkeypatch.setattr(canvas, "garments", lambda: made)
    drawn = Canvas((32, 32))
    assert set(drawn.scene("train", 0).labels) == {0}
    assert set(drawn.scene("test", 0).labels) == {1}
    assert drawn.class_names == ("background", "first", "second")


def test_digits_stand_in_for_missing_garments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setenv("PYDEPLOY_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(image_sets, "DEBIAN_FOLDER", tmp_path)
    assert canvas.garments.__wrapped__().name == "digits"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"size": (15, 40)}, "'size'"),
        ({"train_size": 0}, "'train_size'"),
        ({"most": 0}, "'most'"),
        ({"most": 101}, "'most'"),
        ({"seed": -1}, "'seed'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Canvas(**settings)  # type: ignore[arg-type]


def test_scenes_outside_the_split_are_refused() -> None:
    with pytest.raises(DataError, match="500 scenes to test"):
        Canvas().scene("test", 500)
    with pytest.raises(ConfigError, match="unknown split 'tets'"):
        Canvas().scene("tets", 0)
