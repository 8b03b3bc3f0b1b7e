"""Batch norms measured again: against the plain mean and variance of what each of them reads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from typer.testing import CliRunner

import pydeploy as pd
import zoo
from pydeploy.cli.app import app
from pydeploy.errors import DataError
from pydeploy.prune.surgery.recalibrate import recalibrate
from pydeploy.run.config import parse
from pydeploy.run.job import fresh_model, open_job
from pydeploy.run.stages.scoring import first_batches
from pydeploy.tasks.evaluate import evaluate, example, predict_with
from pydeploy.tasks.guest import Guest
from pydeploy.tasks.guest import first_batches as guests_batches
from quiet import Quiet
from test_config_checks import WHOLE


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=generator) + i for i in range(count)]


def net(name: str = "residual") -> Any:
    return zoo.build(name).double()


def test_statistics_are_those_of_what_is_read() -> None:
    """The first norm reads what no other one changes; NumPy's statistics of every batch, averaged."""
    model = net()
    found: Any = recalibrate(model, batches())
    reads = [model.stem[0](x).detach().numpy() for x in batches()]
    np.testing.assert_allclose(found.stem[1].running_mean, np.mean([r.mean((0, 2, 3)) for r in reads], axis=0))
    np.testing.assert_allclose(found.stem[1].running_var, np.mean([r.var((0, 2, 3), ddof=1) for r in reads], axis=0))


@pytest.mark.parametrize("name", zoo.ZOO)
def test_one_batch_is_normalized_as_in_training(name: str) -> None:
    """Every norm in turn: eval mode on the batch that was measured is what training mode computes, up to n / (n - 1)."""
    model = zoo.build(name)
    x = torch.randn(64, *zoo.SHAPE[1:])
    inside = recalibrate(model, [x])
    twin = copy.deepcopy(model)
    for module in twin.modules():
        module.training = isinstance(module, nn.BatchNorm2d)
    with torch.no_grad():
        one, two = inside(x), twin(x)
    for a, b in zip(torch.utils._pytree.tree_leaves(one), torch.utils._pytree.tree_leaves(two), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_the_model_is_left_as_it_was_and_nothing_else_changes() -> None:
    model = net().train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = recalibrate(model, [(x,) for x in batches()])
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert all(module.training for module in found.modules())
    assert [m.momentum for m in found.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1] * 6
    changed = {key for key, value in found.state_dict().items() if not torch.equal(value, state[key])}
    assert changed == {key for key in state if key.endswith(("running_mean", "running_var"))}


def test_a_norm_that_no_batch_reaches_keeps_its_statistics() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.plain, self.bare = nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3, affine=False)
            self.drop = nn.Dropout(0.9)

        def forward(self, x: Tensor) -> Tensor:
            return self.bare(self.plain(self.drop(self.used(x))))

    model = Two().double()
    model.unused.running_mean.fill_(7)
    found: Any = recalibrate(model, batches())
    assert found.unused.running_mean.tolist() == [7, 7, 7]
    torch.testing.assert_close(found.used.running_mean, torch.stack(batches()).mean((0, 1, 3, 4)))
    again: Any = recalibrate(model, batches())
    assert torch.equal(found.bare.running_var, again.bare.running_var)  # dropout is off


def test_a_cut_network_comes_nearer_to_the_dense_one() -> None:
    torch.manual_seed(0)
    model = net()
    x = torch.cat(batches())
    graph = pd.trace(model, x[:1])
    small = pd.apply(model, graph, pd.select(graph, pd.score(model, graph, "l1"), ratio=0.3).plan)
    dense = recalibrate(model, [x])(x).detach()
    raw, better = small(x).detach(), recalibrate(small, [x])(x).detach()
    assert (better - dense).square().mean() < (raw - dense).square().mean()


def test_the_verb(tmp_path: Path) -> None:
    job = open_job(parse(WHOLE, "test"), Quiet())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(WHOLE))
    model = fresh_model(job)
    graph = pd.trace(model, example(job.task))
    plan = pd.select(graph, pd.score(model, graph, "l1"), ratio=0.5).plan
    small = pd.apply(model, graph, plan)
    pd.save(tmp_path / "small.safetensors", small, plan)
    done = CliRunner().invoke(app, ["recalibrate", str(tmp_path / "config.yaml"), "--model", str(tmp_path / "small.safetensors"),
                                    "--batches", "2", "--out", str(tmp_path / "new.safetensors")])  # fmt: skip
    assert done.exit_code == 0, done.output
    batches = [batch.inputs for batch in first_batches(job.task, job.config.prune, job.seed)]
    want, got = (
        recalibrate(small, batches).state_dict(),
        pd.load(tmp_path / "new.safetensors", fresh_model(job)).state_dict(),
    )
    assert all(torch.equal(want[key], got[key]) for key in want)


def test_wrong_batches() -> None:
    with pytest.raises(DataError, match="got none"):
        recalibrate(net(), [])
    with pytest.raises(DataError, match=r"fails on batch 1 with inputs \[\[2, 5, 8, 8\]\]"):
        recalibrate(net(), [batches()[0], torch.zeros(2, 5, 8, 8, dtype=torch.float64)])
    with pytest.raises(DataError, match=r"'stem.1' sees NaN"):
        recalibrate(net(), [torch.full((2, 3, 8, 8), torch.nan, dtype=torch.float64)])
    with pytest.raises(DataError, match="more than 1 value per channel"):
        recalibrate(nn.BatchNorm2d(3), [torch.zeros(1, 3, 1, 1)])


def test_prune_judges_a_cut_after_measuring_it_again(tmp_path: Path) -> None:
    """The saved network is the one that was judged; the number is the task's own on PyTorch."""
    job = open_job(parse(WHOLE, "test"), Quiet())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(WHOLE))
    given = WHOLE["model"].get("options", {})
    inputs = "x".join(map(str, example(job.task)[0].shape))
    options = {**job.task.model_options(), **given}
    words = ["prune", f"pydeploy:{WHOLE['model']['name'].removeprefix('pydeploy:')}", "--input", inputs, "--ratio", "0.5",
             "--out", str(tmp_path / "small.safetensors")]  # fmt: skip
    for key, value in options.items():
        words += ["-o", f"{key}={value}"]
    wrong = CliRunner().invoke(app, [*words, "--eval"])
    assert "--eval needs --config" in str(wrong.exception)
    torch.manual_seed(0)
    done = CliRunner().invoke(app, [*words, "--eval", "--config", str(tmp_path / "config.yaml")])
    assert done.exit_code == 0, done.output
    small = pd.load(tmp_path / "small.safetensors", fresh_model(job))
    value = evaluate(job.task, predict_with(small, job.task), batch_size=16)[job.task.metric.name]
    said = f"{job.task.metric.name} {job.task.metric.text(value)}, dense "
    assert said in done.output
    assert f"batch norms measured again on {job.config.prune.batches} batches, not fine-tuned" in done.output
    batches = [batch.inputs for batch in first_batches(job.task, job.config.prune, job.seed)]
    again = recalibrate(small, batches).state_dict()
    assert all(torch.allclose(again[key], tensor) for key, tensor in small.state_dict().items() if "running" in key)


@pytest.mark.parametrize("samples", [1, 4])
def test_deploy_without_training_measures_again(samples: int) -> None:
    model = zoo.build("residual")
    example = torch.randn(1, 3, 8, 8)
    data = [(torch.randn(samples, 3, 8, 8) + 1, None) for _ in range(3)]
    guest = Guest(model, (example,), batches=guests_batches(data, (example,)))
    small = guest.tuned(model)
    inputs = [x for x, _ in data]
    wanted = recalibrate(model, inputs if samples > 1 else [torch.cat(inputs)]).state_dict()
    assert all(torch.equal(wanted[key], tensor) for key, tensor in small.state_dict().items())
    assert "its batch norms were measured again on 3 batches" in guest.remarks[-1]
    assert "still have the dense network's statistics" in Guest(model, (example,)).remarks[-1]
    bare = nn.Conv2d(3, 4, 3)
    assert Guest(bare, (example,)).remarks[-1].endswith("not trained again")
