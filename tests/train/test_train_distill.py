from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pydeploy.data.image_sets import synthetic
from pydeploy.errors import ConfigError
from pydeploy.tasks.contract import Batch
from pydeploy.tasks.evaluate import batches as batches_of
from pydeploy.tasks.losses import soft_divergence
from pydeploy.train.distill.logits import Teacher
from pydeploy.train.distill.settings import DistillSettings
from pydeploy.train.loop import FitResult, fit
from pydeploy.train.settings import FitSettings
from train_helpers import TinyTask

TASK = TinyTask(synthetic(train_size=64, test_size=32, size=8))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only lose by waiting for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), temperature=st.floats(0.5, 20), n=st.integers(1, 5), classes=st.integers(2, 6))
def test_soft_divergence_is_hintons_formula(seed: int, temperature: float, n: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(0, 3, (2, n, classes)).astype(np.float32)
    p, q = softmax(teacher.astype(np.float64) / temperature), softmax(student.astype(np.float64) / temperature)
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum() / n
    found = soft_divergence(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    assert found.item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_soft_divergence_averages_over_pixels_too() -> None:
    student, teacher = torch.randn(2, 2, 5, 3, 4)
    flat = [t.permute(0, 2, 3, 1).reshape(-1, 5) for t in (student, teacher)]
    torch.testing.assert_close(soft_divergence(student, teacher, 2.0), soft_divergence(flat[0], flat[1], 2.0))


def test_soft_divergence_works_in_float32_and_spares_the_teacher() -> None:
    student = torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True)
    teacher = torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True)
    loss = soft_divergence(student, teacher, 4.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_the_teacher_stays_as_it_is(tmp_path: Path) -> None:
    model = TASK.build_model().train()
    teacher = Teacher(model)
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    fit(TASK.build_model(), TASK, FitSettings(epochs=1, batch_size=16), out=tmp_path,
        teacher=teacher, distill=DistillSettings())  # fmt: skip
    assert all(torch.equal(before[name], value.cpu()) for name, value in teacher.model.state_dict().items())
    assert not teacher.model.training
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_students_of_the_same_batches_share_the_teachers_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shared, student = Teacher(TASK.build_model()), TASK.build_model()
    settings_ = FitSettings(epochs=2, batch_size=16, lr=0.05, amp="off")

    def taught(name: str, seed: int = 0) -> FitResult:
        return fit(student, TASK, settings_, out=tmp_path / name, seed=seed, teacher=shared, distill=DistillSettings())

    first = taught("a")
    assert shared.hits == 0
    second = taught("b")
    assert shared.hits == 8
    assert first.history[1].loss == second.history[1].loss
    taught("c", seed=1)  # other batches
    assert shared.hits == 8


def test_the_teachers_memory_is_bounded() -> None:
    def run(model: nn.Module, batch: Batch) -> Tensor:
        out: Tensor = model(*batch.inputs)
        return out

    batches = list(batches_of(TASK, "test", 8))
    teacher = Teacher(TASK.build_model(), room_bytes=2 * 8 * 4 * 4)  # two batches of 8 samples, 4 classes, float32
    for batch in batches + batches:
        teacher(batch, run)
    assert teacher.hits == 2


def test_alpha_one_follows_the_teacher_alone(tmp_path: Path) -> None:
    """With alpha = 1 labels have no influence: shuffled labels give the same student."""
    torch.manual_seed(0)
    student, teacher = TASK.build_model(), TASK.build_model()
    images = dataclasses.replace(TASK.images, train_labels=np.ascontiguousarray(TASK.images.train_labels[::-1]))
    shuffled = dataclasses.replace(TASK, images=images)
    made = [
        fit(student, task, FitSettings(epochs=1, batch_size=16, amp="off"), out=tmp_path / f"{name}{alpha}",
            teacher=Teacher(teacher), distill=DistillSettings(alpha=alpha)).model.state_dict()["6.weight"]
        for alpha in (1.0, 0.5) for name, task in (("plain", TASK), ("shuffled", shuffled))
    ]  # fmt: skip
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[2], made[3])


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"loss": "logit"}, r"unknown distillation loss 'logit' \(did you mean 'logits'\?\)"),
        ({"alpha": 1.5}, "'alpha': should be less than or equal to 1, got 1.5"),
        ({"temperature": 0}, "'temperature': should be greater than 0, got 0"),
    ],
    ids=["loss", "alpha", "temperature"],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        DistillSettings(**wrong)
