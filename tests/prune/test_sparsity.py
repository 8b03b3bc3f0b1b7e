"""Terms that make channels small: against their formulas entry by entry, and what a training with them ends in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pydeploy as pd
import zoo
from pydeploy.data.image_sets import synthetic
from pydeploy.errors import ConfigError, Mismatch
from pydeploy.prune.sparsity.channel_costs import channel_costs
from pydeploy.prune.sparsity.penalties import Sparsity, rescale
from pydeploy.prune.sparsity.settings import SparsitySettings
from pydeploy.tasks.classification import Classification
from pydeploy.tasks.evaluate import evaluate, example, predict_with
from pydeploy.train.loop import fit
from pydeploy.train.settings import FitSettings

X = torch.zeros(zoo.SHAPE, dtype=torch.float64)


def term_on(model: nn.Module, **given: Any) -> Sparsity:
    return Sparsity(model, pd.trace(model, X), SparsitySettings(**given))


def net(name: str = "residual") -> Any:
    model = zoo.build(name).double()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def gradients(model: nn.Module) -> dict[str, Any]:
    return {name: p.grad.clone().numpy() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layers", ["shortcut", "normal"])
def test_slimming_adds_the_sign_of_the_scales(layers: str) -> None:
    model = net()
    with torch.no_grad():
        model.b[1].weight[3] = 0
        model.b[1].weight[4] *= -1
    before = gradients(model)
    term_on(model, rate=0.01, layers=layers, schedule="linear").after_backward(0.25)
    norms = ["stem.1", "a.1", "a.4", "b.1", "b.4", "down.1"] if layers == "shortcut" else ["a.1", "b.1"]
    for name, gradient in gradients(model).items():
        want = before[name]
        if name.removesuffix(".weight") in norms:
            want = want + 0.01 * 0.75 * np.sign(model.get_parameter(name).detach().numpy())
        np.testing.assert_allclose(gradient, want, err_msg=name)


def test_the_proximal_step() -> None:
    model = net()
    before = {name: p.detach().clone().numpy() for name, p in model.named_parameters()}
    term = term_on(model, kind="ista", rate=2.0)
    term.after_backward(0.0)
    term.after_step(0.0, lr=0.4)
    for name, p in model.named_parameters():
        norm = name.endswith(".weight") and isinstance(
            model.get_submodule(name.removesuffix(".weight")), nn.BatchNorm2d
        )
        want = np.sign(before[name]) * np.maximum(np.abs(before[name]) - 0.8, 0) if norm else before[name]
        np.testing.assert_allclose(p.detach().numpy(), want, err_msg=name)
    sizes = np.concatenate([m.weight.detach().abs().numpy() for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    assert term.small_scales() == pytest.approx((sizes < 1e-3).mean())
    assert 0 < term.small_scales() < 1
    assert {id(p) for p in term.without_momentum} == {
        id(m.weight) for m in model.modules() if isinstance(m, nn.BatchNorm2d)
    }


def test_costs_of_a_channel_by_hand() -> None:
    """Group b.0: made by a 3x3 layer of 8 inputs at 4 x 4, read by a 3x3 layer of 12 outputs at 4 x 4; the input has 64 positions."""
    graph = pd.trace(net(), X)
    assert channel_costs(graph, "memory")["b.0"] == pytest.approx((9 * 8 + 16 + 9 * 12) / 64)
    assert channel_costs(graph, "speed")["b.0"] == pytest.approx((9 * 8 * 16 + 9 * 12 * 16) / 64**2)
    assert set(channel_costs(graph, "none").values()) == {1.0}
    model = net()
    before = model.b[1].weight.detach().clone()
    term_on(model, kind="ista", rate=0.1, cost="memory").after_step(0.0, lr=1.0)
    want = before.sign() * (before.abs() - 0.1 * (9 * 8 + 16 + 9 * 12) / 64).clamp_min(0)
    torch.testing.assert_close(model.b[1].weight.detach(), want)


def test_costs_are_what_removing_a_channel_saves() -> None:
    for name in ("plain", "residual"):
        graph = pd.trace(net(name), X)
        for group, cost in channel_costs(graph, "speed").items():
            saved = graph.macs() - graph.macs({group: graph.by_name[group].width - 1})
            assert cost * 64**2 == pytest.approx(saved), (name, group)


class OnlyOne:
    """A table by which channels of b.0 save two microseconds each, all others nothing."""

    overhead_us = 1.0

    def __init__(self, graph: Any) -> None:
        self.dense = graph.widths
        self.widths = {name: (width // 2, width) for name, width in graph.widths.items()}

    def latency_us(self, key: Any) -> float:
        raise AssertionError(key)

    def predict_us(self, widths: Any) -> float:
        return 100.0 - 2.0 * (self.dense["b.0"] - widths.get("b.0", self.dense["b.0"]))


def test_costs_from_a_latency_table() -> None:
    """Only the group that saves time is drawn to zero, and the mean over all channels is 1."""
    model = net()
    graph = pd.trace(model, X)
    costs = channel_costs(graph, "latency", OnlyOne(graph))
    count = sum(group.width for group in graph.prunable)
    assert costs == {g.name: pytest.approx(count / 10 if g.name == "b.0" else 0.0) for g in graph.prunable}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    given = SparsitySettings(kind="ista", rate=0.01, cost="latency", table=Path("table.sqlite"))
    Sparsity(model, graph, given, OnlyOne(graph)).after_step(0.0, lr=1.0)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"b.1.weight"}
    wanted = before["b.1.weight"].sign() * (before["b.1.weight"].abs() - 0.01 * count / 10).clamp_min(0)
    torch.testing.assert_close(model.b[1].weight.detach(), wanted)
    with pytest.raises(ConfigError, match=r"needs sparsity\.table"):
        channel_costs(graph, "latency")


def test_group_norm_decays_all_weights_of_a_channel() -> None:
    model = net()
    before = gradients(model)
    term_on(model, kind="group_norm", rate=0.01).after_backward(0.0)
    after = gradients(model)
    makes, reads, scales = model.b[0].weight, model.b[3].weight, model.b[1].weight
    size = np.sqrt(np.mean([makes.detach().square().sum((1, 2, 3)).numpy(), reads.detach().square().sum((0, 2, 3)).numpy(),
                            scales.detach().square().numpy()], axis=0))  # fmt: skip
    strength = 0.01 * 16 ** ((size.max() - size) / (size.max() - size.min()))
    np.testing.assert_allclose(
        after["b.1.weight"] - before["b.1.weight"], strength * scales.detach().numpy(), rtol=1e-9
    )
    added = after["b.0.weight"] - before["b.0.weight"]  # its inputs belong to another group
    own = strength[:, None, None, None] * makes.detach().numpy()
    other = added - own
    ratio = other / makes.detach().numpy()
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1, :, :1, :1], ratio.shape), rtol=1e-6)
    assert all(np.array_equal(after[name], before[name]) for name in after if name.endswith("bias"))


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_rescaling_keeps_what_relu_networks_compute(name: str) -> None:
    model = net(name)
    x = torch.randn(zoo.SHAPE, dtype=torch.float64)
    before, state = model(x).detach(), {key: value.clone() for key, value in model.state_dict().items()}
    groups = term_on(model, kind="ista").groups
    rescale(groups, 0.01)
    torch.testing.assert_close(model(x).detach(), before)
    rescale(groups, 100)
    assert all(torch.allclose(value, model.state_dict()[key]) for key, value in state.items())


@dataclass(frozen=True)
class Unpadded(Classification):
    """Convolutions without padding, so that a constant channel is constant everywhere."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                             nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                             nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))  # fmt: skip


TASK = Unpadded(synthetic(train_size=96, test_size=64, size=8, noise=20.0))
QUICK = FitSettings(epochs=4, batch_size=16, lr=0.05, warmup_epochs=0.5, amp="off")


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return TASK.build_model()


class KilledError(Exception):
    pass


def kill_at(step: int) -> Any:
    def progress(done: int, *_: object) -> None:
        if done == step:
            raise KilledError

    return progress


@pytest.mark.parametrize("kind", ["slimming", "ista", "group_norm"])
def test_a_killed_training_ends_as_if_undisturbed(kind: str, tmp_path: Path) -> None:
    given = SparsitySettings(kind=kind, rate=0.3, rescale=0.5 if kind == "ista" else 1)  # type: ignore[arg-type]
    whole = fit(fresh(), TASK, QUICK, out=tmp_path / "whole", sparsity=given)
    with pytest.raises(KilledError):
        fit(fresh(), TASK, QUICK, out=tmp_path / "killed", sparsity=given, progress=kill_at(15))
    resumed = fit(fresh(), TASK, QUICK, out=tmp_path / "killed", sparsity=given, resume=True)
    assert resumed.resumed_epochs == 2
    state = resumed.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.model.state_dict().items())
    assert [record.small_scales for record in resumed.history] == [record.small_scales for record in whole.history]
    other = given.model_copy(update={"rate": 0.2})
    with pytest.raises(Mismatch, match="sparsity"):
        fit(fresh(), TASK, QUICK, out=tmp_path / "killed", sparsity=other, resume=True)


@pytest.mark.parametrize("rescaled", [1.0, 0.5])
def test_exact_zeros_are_cut_without_loss(rescaled: float, tmp_path: Path) -> None:
    """After proximal training, constants absorbed: the small network computes what the large one does, untuned."""
    start: Any = fresh()
    with torch.no_grad():  # scales of different sizes, as a trained network has
        start[1].weight.copy_(torch.linspace(0.1, 1.5, 16))
        start[4].weight.copy_(torch.linspace(0.1, 1.5, 16).flip(0))
    found = fit(
        start, TASK, QUICK, out=tmp_path, sparsity=SparsitySettings(kind="ista", rate=0.6 * rescaled, rescale=rescaled)
    )
    model, x = found.model, example(TASK)
    shares = [record.small_scales for record in found.history]
    assert 0.1 < shares[-1] < 1
    graph = pd.trace(model, x)
    selection = pd.select(graph, pd.score(model, graph, "bn_ista"), threshold=0)
    assert selection.removed == pytest.approx(shares[-1], abs=0.07)
    small = pd.apply(model, graph, selection.plan, means=pd.channel_means(model, graph, [x]))
    samples = torch.cat([batch.inputs[0] for batch in TASK.train_batches(0, 32, 0)])
    torch.testing.assert_close(small(samples), model(samples), rtol=1e-4, atol=1e-4)
    accuracy = [evaluate(TASK, predict_with(m, TASK), batch_size=16)["accuracy"] for m in (model, small)]
    assert accuracy[0] == accuracy[1]
    silenced = pd.apply(model, graph, selection.plan)
    assert not torch.allclose(silenced(samples), model(samples), rtol=1e-3)  # the constants matter


def test_more_becomes_small_with_the_term(tmp_path: Path) -> None:
    plain = fit(fresh(), TASK, QUICK, out=tmp_path / "plain")
    slim = fit(fresh(), TASK, QUICK, out=tmp_path / "slim", sparsity=SparsitySettings(rate=0.05))
    assert plain.history[-1].small_scales is None
    sizes = [
        sum(float(m.weight.detach().abs().sum()) for m in r.model.modules() if isinstance(m, nn.BatchNorm2d))
        for r in (plain, slim)
    ]
    assert sizes[1] < sizes[0] - 1


def test_what_cannot_be() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3)).double()
    for kind in ("slimming", "ista"):
        with pytest.raises(ConfigError, match=r"the model has none.*group_norm, or a model with batch norms"):
            term_on(model, kind=kind)
    term_on(model, kind="group_norm").after_backward(0.0)
    with pytest.raises(ConfigError, match="did you mean 'slimming'"):
        SparsitySettings(kind="sliming")  # type: ignore[arg-type]
    for rate in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="rate"):
            SparsitySettings(rate=rate)


def test_rescaling_where_it_changes_the_network(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Hardswish(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    with pytest.raises(ConfigError, match=r"sparsity.rescale changes what this network computes"):
        fit(model, TASK, QUICK, out=tmp_path, sparsity=SparsitySettings(kind="ista", rescale=0.1))
