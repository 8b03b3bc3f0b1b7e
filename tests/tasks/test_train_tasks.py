from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pydeploy.data.image_sets import synthetic
from pydeploy.errors import ConfigError, DataError
from pydeploy.models import build
from pydeploy.tasks.augment import Augment, augment, augment_by
from pydeploy.tasks.classification import Classification
from pydeploy.tasks.contract import Task
from pydeploy.tasks.evaluate import batches, evaluate, example, predict_with
from pydeploy.tasks.named import build_task

SMALL: dict[str, Any] = {
    "data": "synthetic",
    "data_settings": {"train_size": 70, "test_size": 23, "size": 8, "channels": 2, "classes": 3},
}


@pytest.fixture(scope="module")
def task() -> Task:
    return build_task("classification", **SMALL)


def network(task: Task) -> torch.nn.Module:
    return build("resnet20", width=4, **task.model_options())


def test_names_and_shapes_agree(task: Task) -> None:
    model = network(task).eval()
    inputs = example(task)
    assert len(inputs) == len(task.input_names)
    assert inputs[0].shape == (1, 2, 8, 8)
    assert inputs[0].dtype == torch.float32
    assert model(*inputs).shape == (1, 3)


def test_an_epoch_depends_on_epoch_and_seed_alone(task: Task) -> None:
    def epoch(number: int, seed: int) -> list[torch.Tensor]:
        return [x for batch in task.train_batches(number, 16, seed) for x in (*batch.inputs, batch.target)]

    first = epoch(3, 7)
    for _ in task.train_batches(0, 16, 7):  # what was drawn before has no influence
        pass
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(3, 7), strict=True))
    assert not torch.equal(first[1], epoch(4, 7)[1])
    assert not torch.equal(first[1], epoch(3, 8)[1])


def test_an_epoch_holds_every_image_once_in_full_batches(task: Task) -> None:
    batches = list(task.train_batches(0, 16, 0))
    assert [len(batch.target) for batch in batches] == [16] * (task.size("train") // 16)
    plain = Classification(synthetic(train_size=32, size=8), Augment(pad=0, flip="none"))
    seen = torch.cat([batch.inputs[0] for batch in plain.train_batches(5, 8, 1)]).flatten(1)
    everything = torch.from_numpy(plain.images.normalize(plain.images.train_images)).flatten(1)
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, everything.tolist()))


@pytest.mark.parametrize("split", ["train", "test"])
def test_eval_batches_are_plain_and_in_order(split: str) -> None:
    images = synthetic(train_size=21, test_size=10, size=8, channels=3)
    task = Classification(images)
    found = list(batches(task, split, 8))
    x = torch.cat([batch.inputs[0] for batch in found]).numpy()
    source = images.train_images if split == "train" else images.test_images
    np.testing.assert_allclose(x, (source / 255.0 - 0.5) / 0.25, rtol=0, atol=1e-5)
    labels = images.train_labels if split == "train" else images.test_labels
    assert torch.cat([batch.target for batch in found]).tolist() == labels.tolist()


@settings(deadline=None, max_examples=25)
@given(batch_size=st.integers(1, 30), limit=st.one_of(st.none(), st.integers(1, 40)))
def test_evaluation_ignores_the_padding(batch_size: int, limit: int | None) -> None:
    images = synthetic(train_size=1, test_size=23, size=8, classes=3)
    task = Classification(images)
    weights = np.random.default_rng(0).normal(size=(64, 3))
    sizes = []

    def predict(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        sizes.append(len(feeds["image"]))
        return {"logits": feeds["image"].reshape(-1, 64) @ weights}

    found = evaluate(task, predict, batch_size=batch_size, limit=limit)
    total = min(limit or 23, 23)
    logits = ((images.test_images[:total] / 255.0 - 0.5) / 0.25).reshape(total, 64) @ weights
    labels = images.test_labels[:total]
    share = np.exp(logits - logits.max(1, keepdims=True))
    share = share / share.sum(1, keepdims=True)
    assert set(sizes) == {batch_size}
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert found["loss"] == pytest.approx(-np.log(share[np.arange(total), labels]).mean(), rel=1e-4)


def test_predict_with_runs_in_evaluation_mode_and_restores_the_mode(task: Task) -> None:
    model = network(task).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = evaluate(task, predict_with(model, task), batch_size=10)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    model.eval()
    with torch.no_grad():
        correct = sum(int((model(*b.inputs).argmax(1) == b.target).sum()) for b in batches(task, "test", 10))
    assert found["accuracy"] == pytest.approx(correct / 23)


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ({"scores": np.zeros((4, 3))}, r"must return 'logits' for 4 samples, got {'scores': \(4, 3\)}"),
        (
            {"logits": np.zeros((4, 5))},
            r"must return 'logits' of shape \(samples, 3\), got .*'synthetic' has 3 classes",
        ),
        ({"logits": np.full((4, 3), np.nan)}, "holds NaN or infinity"),
    ],
    ids=["name", "shape", "nan"],
)
def test_broken_outputs_are_refused(task: Task, output: dict[str, NDArray[Any]], text: str) -> None:
    with pytest.raises(DataError, match=text):
        evaluate(task, lambda _: output, batch_size=4)


def test_label_smoothing_follows_its_definition() -> None:
    task = Classification(synthetic(size=8, classes=3), label_smoothing=0.2)
    batch = next(batches(task, "test", 5))
    logits = torch.randn(5, 3, dtype=torch.float64)
    wanted = torch.full((5, 3), 0.2 / 3, dtype=torch.float64)
    wanted[torch.arange(5), batch.target] += 0.8
    expected = -(wanted * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(task.loss({"logits": logits}, batch), expected)


@pytest.mark.parametrize(
    ("name", "more", "text"),
    [
        ("clasification", {}, r"unknown task 'clasification' \(did you mean 'classification'\?\)"),
        ("classification", {"dat": "digits"}, r"no setting 'dat' \(did you mean 'data'\?\)"),
        ("classification", {"data": "synthetics"}, r"unknown data set 'synthetics' \(did you mean 'synthetic'\?\)"),
        ("classification", {"data_settings": {"sise": 8}}, "data set 'synthetic': .*'sise'"),
        ("classification", {"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
    ],
    ids=["task", "setting", "data", "data setting", "smoothing"],
)
def test_wrong_settings_are_refused(name: str, more: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build_task(name, **{**SMALL, **more})


def test_unknown_split_is_refused(task: Task) -> None:
    with pytest.raises(ConfigError, match="unknown split 'tests'"):
        next(batches(task, "tests", 4))


# ---- augmentation


def _reference(image: NDArray[np.uint8], dy: int, dx: int, *, mirrored: bool) -> NDArray[np.uint8]:
    """Shift the view by (dy, dx) over the zero-padded image, pixel by pixel; the mirror reads columns backwards."""
    _, height, width = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            row, column = y + dy, (width - 1 - x if mirrored else x) + dx
            if 0 <= row < height and 0 <= column < width:
                out[:, y, x] = image[:, row, column]
    return out


@pytest.mark.parametrize("flip", ["none", "random"])
def test_augmented_images_are_shifts_of_the_source(flip: str) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(1, 256, (6, 2, 5, 7), dtype=np.uint8)
    chosen = np.array([4, 0, 4, 2])
    made = augment(torch.from_numpy(images), chosen, Augment(pad=2, flip=flip), epoch=0, seed=0, rng=rng).numpy()
    for index, result in zip(chosen, made, strict=True):
        shifts = [(dy, dx, m) for dy in range(-2, 3) for dx in range(-2, 3) for m in (False, True)]
        fits = [s for s in shifts if np.array_equal(_reference(images[index], s[0], s[1], mirrored=s[2]), result)]
        assert len(fits) == 1
        assert flip == "random" or not fits[0][2]


def test_alternate_flips_show_each_image_both_ways_in_two_epochs() -> None:
    images = torch.arange(4 * 3 * 4, dtype=torch.uint8).view(4, 1, 3, 4)
    chosen = np.arange(4)
    settings_ = Augment(pad=0, flip="alternate")
    one, two, three = (
        augment(images, chosen, settings_, epoch=e, seed=5, rng=np.random.default_rng(e)) for e in (0, 1, 2)
    )
    assert torch.equal(one, two.flip(3))
    assert torch.equal(one, three)
    many = torch.arange(2).view(1, 1, 1, 2).repeat(1000, 1, 1, 1).to(torch.uint8)
    share = augment(many, np.arange(1000), settings_, epoch=0, seed=0, rng=np.random.default_rng(0))[:, 0, 0, 0]
    assert 0.4 < share.float().mean() < 0.6


def test_cutout_clears_one_square() -> None:
    images = torch.full((50, 1, 9, 9), 200, dtype=torch.uint8)
    made = augment(
        images, np.arange(50), Augment(pad=0, flip="none", cutout=3), epoch=0, seed=0, rng=np.random.default_rng(0)
    )
    cleared = (made == 0).flatten(1).sum(1)
    assert set(cleared.tolist()) <= {1, 2, 3, 4, 6, 9}
    assert 9 in cleared.tolist()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"flip": "alternat"}, r"did you mean 'alternate'\?"),
        ({"pad": -1}, "augmentation.pad must be 0 or more pixels, got -1"),
        ({"cutout": -2}, "augmentation.cutout must be 0 or more"),
        ({"crop": 2}, "unknown key 'augmentation.crop'"),
        ({"pad": "2"}, "augmentation.pad must be a whole number of pixels, got '2'"),
    ],
    ids=["flip", "pad", "cutout", "unknown", "text"],
)
def test_wrong_augmentation_is_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        augment_by(wrong)


def test_augmentation_by_settings() -> None:
    assert augment_by({}) == Augment()
    assert augment_by({"pad": 0, "flip": "none"}) == Augment(pad=0, flip="none")
