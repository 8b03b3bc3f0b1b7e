from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from pydeploy.data.image_sets import synthetic
from pydeploy.errors import ConfigError, DataError, Mismatch
from pydeploy.models import build
from pydeploy.tasks.augment import Augment
from pydeploy.tasks.contract import Batch
from pydeploy.tasks.evaluate import evaluate, predict_with
from pydeploy.train.distill.logits import Teacher
from pydeploy.train.distill.settings import DistillSettings
from pydeploy.train.loop import FitResult, fit
from pydeploy.train.optimizer import _vectors
from pydeploy.train.precision import bf16_wanted
from pydeploy.train.settings import FitSettings, lr_at
from train_helpers import TinyTask

TASK = TinyTask(synthetic(train_size=96, test_size=64, size=8, noise=20.0))
QUICK = FitSettings(epochs=3, batch_size=16, lr=0.05, warmup_epochs=0.5, amp="off")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only lose by waiting for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fresh(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return TASK.build_model()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class KilledError(Exception):
    """Stands for the end of a process in the middle of an epoch."""


def kill_at(step: int) -> Any:
    def progress(done: int, *_: object) -> None:
        if done == step:
            raise KilledError

    return progress


def test_training_learns_and_leaves_its_input_alone(tmp_path: Path) -> None:
    model = fresh()
    before = weights(model)
    seen: list[tuple[int, int, dict[str, float]]] = []
    settings = QUICK.model_copy(update={"epochs": 6})
    result = fit(model, TASK, settings, out=tmp_path, progress=lambda *row: seen.append(row))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not result.model.training
    assert [row[:2] for row in seen] == [(n + 1, 36) for n in range(36)]
    assert [r.epoch for r in result.history] == list(range(6))
    assert result.history[0].loss == pytest.approx(sum(row[2]["loss"] for row in seen[:6]) / 6)
    assert result.history[-1].loss < result.history[0].loss
    accuracy = evaluate(TASK, predict_with(result.model, TASK), batch_size=16)["accuracy"]
    assert accuracy > 0.6  # chance is 0.25
    assert result.seconds == sum(r.seconds for r in result.history)


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("killed_at", [1, 8, 17], ids=["first epoch", "second epoch", "last epoch"])
def test_a_killed_run_ends_as_if_undisturbed(tmp_path: Path, amp: str, killed_at: int) -> None:
    settings = QUICK.model_copy(update={"amp": amp})
    whole = fit(fresh(), TASK, settings, out=tmp_path / "whole")
    with pytest.raises(KilledError):
        fit(fresh(), TASK, settings, out=tmp_path / "killed", progress=kill_at(killed_at))
    torch.rand(5)  # the resumed process has another generator state
    resumed = fit(fresh(), TASK, settings, out=tmp_path / "killed", resume=True)
    assert resumed.resumed_epochs == (killed_at - 1) // 6
    assert same(whole.model, resumed.model)
    assert [r.loss for r in whole.history] == [r.loss for r in resumed.history]
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["checkpoint.safetensors"]


def test_a_killed_distillation_ends_as_if_undisturbed(tmp_path: Path) -> None:
    def taught(out: Path, **more: Any) -> FitResult:
        return fit(fresh(), TASK, QUICK, out=out, teacher=Teacher(fresh(9)), distill=DistillSettings(), **more)

    whole = taught(tmp_path / "whole")
    with pytest.raises(KilledError):
        taught(tmp_path / "killed", progress=kill_at(9))
    resumed = taught(tmp_path / "killed", resume=True)
    assert same(whole.model, resumed.model)


def test_dropout_is_repeated_exactly_after_a_resume(tmp_path: Path) -> None:
    model = nn.Sequential(fresh(), nn.Dropout(0.5))
    whole = fit(model, TASK, QUICK, out=tmp_path / "whole")
    with pytest.raises(KilledError):
        fit(model, TASK, QUICK, out=tmp_path / "killed", progress=kill_at(13))
    assert same(whole.model, fit(model, TASK, QUICK, out=tmp_path / "killed", resume=True).model)


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = fit(fresh(), TASK, QUICK, out=tmp_path)
    again = fit(fresh(), TASK, QUICK, out=tmp_path, resume=True, progress=kill_at(1))
    assert again.resumed_epochs == 3
    assert same(first.model, again.model)
    assert again.history == first.history


@pytest.mark.parametrize(
    ("change", "text"),
    [({"lr": 0.06}, "settings"), ({"seed": 1}, "settings"), ({}, "start")],
    ids=["lr", "seed", "start"],
)
def test_a_foreign_checkpoint_is_refused(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    fit(fresh(), TASK, QUICK, out=tmp_path)
    start = fresh() if change else fresh(5)
    seed = change.pop("seed", 0)
    with pytest.raises(Mismatch, match=rf"is from another run \({text}: .*delete it or start without resuming"):
        fit(start, TASK, QUICK.model_copy(update=change), out=tmp_path, seed=seed, resume=True)


def test_a_broken_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    fit(fresh(), TASK, QUICK, out=tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="is not a training checkpoint"):
        fit(fresh(), TASK, QUICK, out=tmp_path, resume=True)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="is not a training checkpoint"):
        fit(fresh(), TASK, QUICK, out=tmp_path, resume=True)


def test_checkpoints_hold_json_and_tensors_alone(tmp_path: Path) -> None:
    fit(fresh(), TASK, QUICK, out=tmp_path)
    with safe_open(tmp_path / "checkpoint.safetensors", framework="pt") as stream:
        header = json.loads(stream.metadata()["pydeploy.fit"])
        names = set(stream.keys())
    assert header["identity"]["settings"]["lr"] == 0.05
    parameters = {name for name, _ in fresh().named_parameters()}
    assert names == {f"model.{n}" for n in fresh().state_dict()} | {f"momentum.{n}" for n in parameters}


TWO_PROCESSES = """
import json, os, sys
from pathlib import Path
import torch
from pydeploy.train import checkpoint
from pydeploy.data.image_sets import synthetic
from pydeploy.train.loop import fit
from pydeploy.train.settings import FitSettings
from train_helpers import TinyTask

task = TinyTask(synthetic(train_size=96, test_size=64, size=8, noise=20.0))
torch.manual_seed(0)
settings = FitSettings(epochs=2, batch_size=8, lr=0.05, amp="off")
result = fit(task.build_model(), task, settings, out=Path(sys.argv[1]), resume=True)
facts = {"weights": checkpoint.weights_digest(result.model), "loss": result.history[-1].loss}
facts["resumed"] = result.resumed_epochs
Path(sys.argv[1], os.environ["RANK"] + ".json").write_text(json.dumps(facts))
"""


@pytest.mark.slow
def test_processes_under_torchrun_share_one_model_and_split_the_batches(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TWO_PROCESSES)
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for resumed in (0, 2):
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }  # no GPU for each
        subprocess.run([*command, str(tmp_path / "train.py"), str(tmp_path)], env=environment, check=True, timeout=300)
        ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
        assert ranks[0]["weights"] == ranks[1]["weights"]
        assert [rank["resumed"] for rank in ranks] == [resumed, resumed]
        if not resumed:
            assert ranks[0]["loss"] != ranks[1]["loss"]  # each saw its own half


# ---- NaN and wrong settings


@dataclasses.dataclass(frozen=True)
class Broken(TinyTask):
    """Yields NaN in one batch."""

    def train_batches(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        for step, batch in enumerate(super().train_batches(epoch, batch_size, seed)):
            poison = math.nan if (epoch, step) == (1, 2) else 1.0
            yield Batch((batch.inputs[0] * poison,), batch.target)


def test_nan_in_a_batch_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"input 0 of the batch at epoch 1, step 2 holds NaN"):
        fit(fresh(), Broken(TASK.images), QUICK, out=tmp_path)


def test_nan_in_weights_is_refused_before_training(tmp_path: Path) -> None:
    model = fresh()
    with torch.no_grad():
        model.get_parameter("3.weight")[0, 0, 0, 0] = math.nan
    with pytest.raises(DataError, match=r"weights '3.weight' hold NaN or infinity before training"):
        fit(model, TASK, QUICK, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_diverged_run_says_where_and_what_to_do(tmp_path: Path) -> None:
    wild = QUICK.model_copy(update={"lr": 1e30, "warmup_epochs": 0})
    with pytest.raises(DataError, match=r"the loss became (nan|inf) in epoch 0, step \d+ \(lr .*lower lr"):
        fit(fresh(), TASK, wild, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size 100 .* exceeds the 96 training samples"):
        fit(fresh(), TASK, QUICK.model_copy(update={"batch_size": 100}), out=tmp_path)
    for one_only in ({"teacher": Teacher(fresh())}, {"distill": DistillSettings()}):
        with pytest.raises(ConfigError, match="distillation needs both"):
            fit(fresh(), TASK, QUICK, out=tmp_path, **one_only)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"epochs": 0}, "'epochs': should be greater than or equal to 1, got 0"),
        ({"lr": math.nan}, "'lr': should be .*, got nan"),
        ({"momentum": 1.0}, "'momentum': should be less than 1, got 1.0"),
        ({"warmup_epochs": 6}, r"'warmup_epochs' \(6\) must not exceed 'epochs' \(5\)"),
        ({"schedule": "cosin"}, r"did you mean 'cosine'\?"),
        ({"amp": "fp16"}, r"'auto', 'bf16' or 'off', got 'fp16' \(did you mean 'bf16'\?\)"),
        ({"weight_decay": -1}, "'weight_decay': should be greater than or equal to 0, got -1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        FitSettings(**change)


# ---- schedule, optimizer, precision


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nearly_zero() -> None:
    settings = FitSettings(epochs=4, lr=0.8, warmup_epochs=1.0, schedule="linear")
    rates = [lr_at(settings, step, 10) for step in range(40)]
    assert rates[:10] == pytest.approx([0.08 * n for n in range(1, 11)])
    assert rates[10:] == pytest.approx([0.8 * (30 - n) / 30 for n in range(30)])
    cosine = [lr_at(settings.model_copy(update={"schedule": "cosine"}), step, 10) for step in (10, 25, 39)]
    assert cosine == pytest.approx([0.8, 0.4, 0.4 * (1 + math.cos(math.pi * 29 / 30))])
    assert {lr_at(FitSettings(warmup_epochs=0, schedule="constant"), s, 10) for s in range(50)} == {0.2}


def test_norms_do_not_decay_whatever_their_shape() -> None:
    model = build("segdecnet", in_channels=1, width=2)
    names = {name for name, parameter in model.named_parameters() if parameter in _vectors(model)}
    assert names == {name for name, _ in model.named_parameters() if not name.endswith("weight")}
    assert "seg_mask.0.weight" not in names  # one output, so one number a channel, and yet a layer's weight
    assert {"volume.0.1.scale", "volume.0.1.bias", "fc.bias"} <= names


def test_one_step_is_nesterov_with_decay_on_weights_alone(tmp_path: Path) -> None:
    """The first step by hand: with momentum m the update is lr * (1 + m) * (gradient + decay * weight)."""
    task = dataclasses.replace(TASK, augmentation=Augment(pad=0, flip="none"))
    settings = FitSettings(
        epochs=1, batch_size=96, lr=0.1, weight_decay=0.3, warmup_epochs=0, schedule="constant", amp="off"
    )
    model = fresh()
    trained = fit(model, task, settings, out=tmp_path).model
    by_hand = copy.deepcopy(model).train()
    batch = next(task.train_batches(0, 96, 0))
    nn.functional.cross_entropy(by_hand(*batch.inputs), batch.target).backward()
    for name, parameter in by_hand.named_parameters():
        assert parameter.grad is not None
        decay = 0.3 if parameter.ndim > 1 else 0.0
        expected = parameter - 0.1 * 1.9 * (parameter.grad + decay * parameter)
        torch.testing.assert_close(trained.get_parameter(name), expected, rtol=1e-3, atol=1e-4, msg=name)


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    model = fresh()
    frozen, free = "0.weight", "6.weight"
    model.get_parameter(frozen).requires_grad = False
    trained = fit(model, TASK, QUICK, out=tmp_path).model
    assert torch.equal(trained.get_parameter(frozen), model.get_parameter(frozen))
    assert not torch.equal(trained.get_parameter(free), model.get_parameter(free))


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    settings = FitSettings(epochs=1, batch_size=96, lr=0.1, momentum=0.0, weight_decay=0, warmup_epochs=0, amp="off",
                           schedule="constant", clip_norm=0.01)  # fmt: skip
    model = fresh()
    trained = fit(model, TASK, settings, out=tmp_path).model
    pairs = zip(trained.parameters(), model.parameters(), strict=True)
    moved = sum((a - b).detach().square().sum().item() for a, b in pairs)
    assert moved**0.5 == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [({"avx512_bf16", "fma"}, True), ({"amx_bf16"}, True), ({"avx2"}, False), (set(), False)],
    ids=["avx512", "amx", "avx2", "unknown"],
)
def test_bf16_is_chosen_where_the_cpu_is_fast_at_it(flags: set[str], wanted: bool) -> None:
    cpu = torch.device("cpu")
    assert bf16_wanted("auto", cpu, flags) is wanted
    assert bf16_wanted("bf16", cpu, flags) is True
    assert bf16_wanted("off", cpu, flags) is False
