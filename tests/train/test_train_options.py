"""What people expect of a training: averaged weights, gathered gradients, schedules, the best epoch, an early end, curves."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from pydeploy.errors import ConfigError
from pydeploy.tasks.augment import Augment
from pydeploy.tasks.evaluate import evaluate, predict_with
from pydeploy.tasks.metric import Metric
from pydeploy.train import selection
from pydeploy.train.averaging import WeightAverage
from pydeploy.train.loop import fit
from pydeploy.train.settings import FitSettings, lr_at
from test_train_loop import QUICK, TASK, KilledError, fresh, kill_at, same

EVERYTHING = QUICK.model_copy(
    update={"ema": 0.9, "accumulate": 4, "keep": "best", "clip_norm": 1.0, "schedule": "step"}
)


def test_the_average_is_the_recursion_by_hand() -> None:
    model = nn.BatchNorm1d(3)
    average, mean = WeightAverage(model, 0.5), model.weight.detach().clone()
    for step in range(8):
        with torch.no_grad():
            model.weight.add_(step)
            model.num_batches_tracked.add_(1)
        average.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.mean.weight, mean)
    assert int(average.mean.num_batches_tracked) == 8


def test_gathered_gradients_are_those_of_a_larger_batch(tmp_path: Path) -> None:
    """Without batch norm, two batches of 16 gathered are one of 32; the rest of an epoch is a step as well."""
    task = dataclasses.replace(TASK, augmentation=Augment(pad=0, flip="none"))
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    model(next(task.train_batches(0, 2, 0)).inputs[0])
    plain = {"epochs": 2, "lr": 0.05, "warmup_epochs": 0, "schedule": "constant", "amp": "off"}
    two = fit(model, task, FitSettings(batch_size=16, accumulate=2, **plain), out=tmp_path / "two").model
    one = fit(model, task, FitSettings(batch_size=32, **plain), out=tmp_path / "one").model
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)
    all_ = fit(
        model, task, FitSettings(batch_size=16, accumulate=100, **{**plain, "epochs": 1}), out=tmp_path / "all"
    ).model
    whole = fit(model, task, FitSettings(batch_size=96, **{**plain, "epochs": 1}), out=tmp_path / "whole").model
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(all_.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_schedules() -> None:
    plain = FitSettings(epochs=10, lr=1.0, warmup_epochs=0, schedule="step", milestones=[0.5, 0.8], gamma=0.1)
    assert [lr_at(plain, step, 1) for step in range(10)] == pytest.approx([1] * 5 + [0.1] * 3 + [0.01] * 2)
    poly = plain.model_copy(update={"schedule": "poly"})
    assert [lr_at(poly, step, 1) for step in range(10)] == pytest.approx([(1 - step / 10) ** 0.9 for step in range(10)])


def test_the_best_epoch_is_returned(tmp_path: Path) -> None:
    settings = FitSettings(
        epochs=5, batch_size=16, lr=1.5, warmup_epochs=0, schedule="constant", amp="off", keep="best"
    )
    result = fit(fresh(), TASK, settings, out=tmp_path)
    reached = [record.metric for record in result.history]
    assert len(set(reached)) > 1
    assert evaluate(TASK, predict_with(result.model, TASK), batch_size=16)["accuracy"] == max(
        m for m in reached if m is not None
    )


def test_training_ends_where_nothing_gets_better(tmp_path: Path) -> None:
    still = FitSettings(epochs=9, batch_size=16, lr=1e-9, warmup_epochs=0, amp="off", patience=2, momentum=0.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    first = fit(model, TASK, still, out=tmp_path)
    assert len(first.history) == 3
    assert len(fit(model, TASK, still, out=tmp_path, resume=True).history) == 3
    higher, lower = Metric("a"), Metric("b", "", "lower")
    assert selection.best_epoch([0.1, 0.5, 0.5, 0.2], higher) == 1
    assert selection.best_epoch([0.1, 0.5, None], lower) == 0
    assert selection.hopeless([0.1, 0.5, 0.5, 0.2], higher, 2)
    assert not selection.hopeless([0.1, 0.5, 0.5, 0.2], higher, 3)
    assert not selection.hopeless([], higher, 1)


@pytest.mark.parametrize("killed_at", [3, 8])
def test_a_killed_run_with_everything_ends_as_if_undisturbed(tmp_path: Path, killed_at: int) -> None:
    whole = fit(fresh(), TASK, EVERYTHING, out=tmp_path / "whole")
    with pytest.raises(KilledError):
        fit(fresh(), TASK, EVERYTHING, out=tmp_path / "killed", progress=kill_at(killed_at))
    resumed = fit(fresh(), TASK, EVERYTHING, out=tmp_path / "killed", resume=True)
    assert same(whole.model, resumed.model)
    assert [(r.loss, r.metric) for r in whole.history] == [(r.loss, r.metric) for r in resumed.history]


def test_averaged_weights_are_returned(tmp_path: Path) -> None:
    plain = fit(fresh(), TASK, QUICK, out=tmp_path / "plain").model
    mean = fit(fresh(), TASK, QUICK.model_copy(update={"ema": 0.9}), out=tmp_path / "mean").model
    assert not same(plain, mean)
    assert not mean.training


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown tracker 'tensorbord' \(did you mean 'tensorboard'"):
        fit(fresh(), TASK, QUICK, out=tmp_path, track="tensorbord")


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs the package tensorboard")
def test_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = fit(fresh(), TASK, QUICK, out=tmp_path, track="tensorboard")
    found = EventAccumulator(str(next(tmp_path.rglob("events.out*")).parent)).Reload()
    assert [event.value for event in found.Scalars("epoch/loss")] == pytest.approx([r.loss for r in result.history])
