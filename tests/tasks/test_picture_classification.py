"""Training and evaluation of pictures that are read when they are asked for."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from picture_trees import two_splits
from pydeploy.data.decode import decode
from pydeploy.data.preprocessing import IMAGENET, Preprocessing
from pydeploy.errors import ConfigError, DataError
from pydeploy.tasks.contract import Task
from pydeploy.tasks.evaluate import batches, example
from pydeploy.tasks.named import build_task

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return two_splits(tmp_path / "set")


def task_of(top: Path, **settings: Any) -> Task:
    return build_task("classification", data="folder", root=str(top), size=16, **{"workers": 0, **settings})


def epoch(task: Task, number: int = 0, seed: int = 0, size: int = 8) -> list[torch.Tensor]:
    return [tensor for batch in task.train_batches(number, size, seed) for tensor in (*batch.inputs, batch.target)]


def test_evaluation_is_the_preprocessing_of_the_decoded_pictures(top: Path) -> None:
    task = task_of(top)
    way = Preprocessing(IMAGENET.mean, IMAGENET.std, 18, 16)
    paths = [path for name in ("blue", "green", "red") for path in sorted((top / "val" / name).iterdir())]
    expected = np.concatenate([way(decode(path)[None]) for path in paths])
    for size in (1, 4, 100):
        found = list(batches(task, "test", size))
        np.testing.assert_array_equal(np.concatenate([b.inputs[0].numpy() for b in found]), expected)
        assert torch.cat([b.target for b in found]).tolist() == [0] * 5 + [1] * 5 + [2] * 5
    order = np.array([14, 0, 7, 7, 3])
    np.testing.assert_array_equal(task.samples("test", order).inputs[0].numpy(), expected[order])
    other = Preprocessing((0.0,) * 3, (1.0,) * 3, 20, 12)
    np.testing.assert_array_equal(
        task.samples("test", order[:1], other).inputs[0].numpy(), other(decode(paths[14])[None])
    )
    assert example(task)[0].shape == (1, 3, 16, 16)
    assert task.model_options() == {"num_classes": 3, "in_channels": 3}


@pytest.mark.parametrize(
    "settings", [{"workers": 2}, {"cache": "memory"}, {"cache": "memory", "workers": 2}, {"cache": "CACHE"}]
)
def test_processes_and_caches_change_no_batch(top: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    if settings.get("cache") == "CACHE":
        settings = {"cache": str(tmp_path / "cache")}
    plain, other = task_of(top), task_of(top, **settings)
    for number in (0, 1):
        one, two = epoch(plain, number), epoch(other, number)
        assert len(one) == len(two) == 2 * (36 // 8)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert torch.equal(next(batches(plain, "test", 15)).inputs[0], next(batches(other, "test", 15)).inputs[0])


def test_an_epoch_depends_on_epoch_and_seed_alone(top: Path) -> None:
    task = task_of(top, augmentation={"colour": 0.3, "erase": 0.5})
    first = epoch(task, 3, 7)
    torch.manual_seed(5)
    next(iter(task.train_batches(0, 8, 1)))  # left in the middle
    state = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(task, 3, 7), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first[0], epoch(task, 4, 7)[0])
    assert not torch.equal(first[0], epoch(task, 3, 8)[0])


def test_without_augmentation_training_sees_what_evaluation_sees(top: Path) -> None:
    task = task_of(top, augmentation={"scale": None, "flip": 0.0})
    order = np.random.default_rng([0, 0]).permutation(36)
    torch.testing.assert_close(torch.cat(epoch(task)[::2]), task.samples("train", order[:32]).inputs[0], rtol=0, atol=0)


def test_augmented_pictures_stay_in_their_class(top: Path) -> None:
    tensors = epoch(task_of(top), size=36)
    mean = torch.tensor(IMAGENET.mean)[None, :, None, None]
    colour = (tensors[0] * torch.tensor(IMAGENET.std)[None, :, None, None] + mean).mean(dim=(2, 3))
    assert (colour.argmax(dim=1) == torch.tensor([2, 1, 0])[tensors[1]]).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_ends_the_epoch_with_its_name(top: Path, workers: int) -> None:
    bad = top / "train" / "red" / "002.png"
    bad.write_bytes(bad.read_bytes()[:70])
    task = task_of(top, workers=workers)
    with pytest.raises(DataError, match=r"red/002\.png: damaged") as raised:
        epoch(task)
    assert "Traceback" not in str(raised.value)
    with pytest.raises(DataError, match=r"red/002\.png: damaged"):
        task.samples("train", np.arange(36))


def test_samples_of_different_sizes_are_told_what_to_set(tmp_path: Path) -> None:
    np.save(tmp_path / "train_images.npy", np.zeros((8, 9, 7, 3), np.uint8))
    np.save(tmp_path / "train_labels.npy", np.arange(8) % 2)
    np.save(tmp_path / "test_images.npy", np.zeros((4, 11, 7, 3), np.uint8))
    np.save(tmp_path / "test_labels.npy", np.arange(4) % 2)
    task = build_task("classification", data="npy", root=str(tmp_path), workers=0)
    assert task.samples("test", np.arange(4)).inputs[0].shape == (4, 3, 11, 7)
    assert epoch(task, size=8)[0].shape == (8, 3, 9, 7)


def test_few_pictures_are_held_at_a_time(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many samples are asked for at once: decoded pictures are large, samples are small."""
    from pydeploy.data import picture_set

    task, lock = task_of(top), threading.Lock()
    live, most = 0, 0
    real = picture_set.Files.read

    class Counted(np.ndarray):
        def __del__(self) -> None:
            nonlocal live
            with lock:
                live -= 1

    def read(self: picture_set.Files, index: int) -> np.ndarray:
        nonlocal live, most
        found = np.array(real(self, index)).view(Counted)
        with lock:
            live += 1
            most = max(most, live)
        return found

    monkeypatch.setattr(picture_set.Files, "read", read)
    task.samples("train", np.arange(36))
    assert most <= 16  # one a thread, and views of it


@pytest.mark.parametrize(("settings", "message"), [
    ({"augmentation": {"scael": [0.1, 1]}}, "did you mean 'scale'"), ({"augmentation": {"scale": [0.9, 0.1]}}, "ascending"),
    ({"augmentation": {"flip": 2.0}}, "augmentation.flip must lie in 0..1"), ({"workers": -1}, "'workers' must be 0 or more"),
])  # fmt: skip
def test_wrong_settings_are_named(top: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(top, **settings)


def test_grey_pictures_are_one_channel_on_request(top: Path) -> None:
    Image.open(top / "val" / "red" / "000.png").convert("L").save(top / "val" / "red" / "000.png")
    task = task_of(top, channels=1)
    assert task.model_options()["in_channels"] == 1
    assert task.samples("test", np.arange(15)).inputs[0].shape == (15, 1, 16, 16)


def test_pictures_that_have_their_size_already(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label, shade in (("dark", 20), ("light", 230)):
            (tmp_path / split / label).mkdir(parents=True)
            for index in range(4):
                Image.fromarray(np.full((18, 18, 3), shade + index, np.uint8)).save(
                    tmp_path / split / label / f"{index}.png"
                )
    task = task_of(tmp_path)
    shades = (epoch(task, size=8)[0] * torch.tensor(IMAGENET.std)[None, :, None, None]).mean(dim=(1, 2, 3))
    assert ((shades > 0) == (epoch(task, size=8)[1] == 1)).all()
    assert task.samples("test", np.arange(8)).inputs[0].shape == (8, 3, 16, 16)


def test_a_batch_that_is_held_is_never_written_over(top: Path) -> None:
    task = task_of(top)
    held, copies = [], []
    for number in range(3):
        for batch in task.train_batches(number, 4, 0):
            held.append(batch.inputs[0][1:2])  # a part alone keeps the memory
            copies.append(batch.inputs[0][1:2].clone())
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))
