"""Widths as Markov chains: against sums over every choice of widths, the cut network, and differences of the loss."""

from __future__ import annotations

import itertools
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
from pydeploy.errors import ConfigError, DataError
from pydeploy.graph import Graph, OpKey, Widths
from pydeploy.plan import plan_from_widths
from pydeploy.prune.criteria.members import members
from pydeploy.prune.sparsity.dmcp.chains import Chains, tenths
from pydeploy.prune.sparsity.dmcp.expected import budget_loss, expected_cost
from pydeploy.prune.sparsity.dmcp.gates import Gates, statistics_kept
from pydeploy.prune.sparsity.settings import SparsitySettings
from pydeploy.tasks.classification import Classification
from pydeploy.tasks.evaluate import example
from pydeploy.train.loop import fit
from pydeploy.train.settings import FitSettings
from pydeploy.train.slimmable import Slimmable
from test_sparsity import KilledError, kill_at

X = torch.zeros(zoo.SHAPE, dtype=torch.float64)


@dataclass(frozen=True)
class Stairs:
    """A table whose layers take time in steps of four channels."""

    graph: Graph
    overhead_us: float = 5.0

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        return {g.name: tuple(sorted({4, g.width})) for g in self.graph.prunable if g.width > 4}

    def latency_us(self, key: OpKey) -> float:
        return 1.0 + -(-key.cin // 4) * -(-key.cout // 4) * key.h

    def predict_us(self, widths: Widths) -> float:
        return sum(self.latency_us(key) for key in self.graph.keys(widths)) + self.overhead_us


def chains_of(model: nn.Module, graph: Graph, widths: Any = None) -> Chains:
    groups = members(model, graph)
    few = len(groups) > 4
    states = widths or {
        name: (*(() if few else (group.width // 4,)), group.width // 2, group.width) for name, group in groups.items()
    }
    chains = Chains({name: groups[name] for name in states}, states)
    for alpha in chains.alphas:
        nn.init.normal_(alpha)
    return chains


@pytest.mark.parametrize("latency", [False, True])
@pytest.mark.parametrize("name", ["residual", "depthwise_se", "grouped"])
def test_the_expected_cost_is_the_mean_over_all_choices(name: str, *, latency: bool) -> None:
    torch.manual_seed(0)
    model = zoo.build(name).double()
    graph = pd.trace(model, X)
    timings = Stairs(graph) if latency else None
    chains = chains_of(model, graph, timings.widths if timings else None)
    probabilities = {name: p.detach().double().numpy() for name, p in chains.probabilities().items()}
    assert all(p.sum() == pytest.approx(1) for p in probabilities.values())
    total = 0.0
    for picks in itertools.product(*(range(len(states)) for states in chains.widths.values())):
        widths = {name: chains.widths[name][k] for name, k in zip(chains.widths, picks, strict=True)}
        share = np.prod([probabilities[name][k] for name, k in zip(chains.widths, picks, strict=True)])
        total += share * (
            timings.predict_us(widths) / timings.predict_us({}) if timings else graph.macs(widths) / graph.macs()
        )
    assert float(expected_cost(graph, chains, timings).detach()) == pytest.approx(total, rel=1e-4)


def test_marginals_are_products_of_probabilities() -> None:
    model = zoo.build("residual").double()
    graph = pd.trace(model, X)
    chains = chains_of(model, graph)
    for name, alpha in zip(chains.widths, chains.alphas, strict=True):
        steps = 1 / (1 + np.exp(-alpha.detach().numpy()))
        by_rank = np.concatenate([np.full(high - low, np.prod(steps[:k])) for k, (low, high) in
                                  enumerate(itertools.pairwise((0, *chains.widths[name])))])  # fmt: skip
        found = chains.marginals()[name].detach().numpy()
        np.testing.assert_allclose(found[chains.order[name].numpy()], by_rank, rtol=1e-5)
        assert chains.expected()[name] == max(1, round(by_rank.sum()))
        sizes = members(model, graph)[name].filters[0].sums(1) if name == "b.0" else None
        assert sizes is None or list(chains.order[name].numpy()) == list(np.argsort(-sizes, kind="stable"))
    drawn = [chains.drawn(np.random.default_rng(seed), by_alpha=True) for seed in range(400)]
    means = {name: np.mean([d[name] for d in drawn]) for name in chains.widths}
    for name, values in chains.marginals().items():
        assert means[name] == pytest.approx(float(values.detach().sum()), rel=0.15)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_hard_gates_are_the_cut_network(name: str, *, training: bool) -> None:
    """In training mode too, where batch norms normalize by the batch."""
    torch.manual_seed(0)
    model = zoo.build(name).double()
    graph = pd.trace(model, X)
    if any(group.inexact for group in graph.prunable):
        pytest.skip("a normalization over channels, which a silenced channel still takes part in")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    gates = Gates(model, graph)
    rng = np.random.default_rng(0)
    scores = {g.name: rng.random(g.width).astype(np.float32) for g in graph.prunable}
    widths = {
        g.name: max(g.min_width, g.width // 2 // g.align * g.align) for g in graph.prunable if g.name in gates.groups
    }
    plan = plan_from_widths(graph, scores, widths, method="test")
    small = pd.apply(model, graph, plan).train(training)
    factors = {name: torch.zeros(graph.by_name[name].width, dtype=torch.float64).index_fill(0, torch.from_numpy(kept), 1)
               for name, kept in plan.channels.items() if name in widths}  # fmt: skip
    x = torch.randn(4, *zoo.SHAPE[1:], dtype=torch.float64)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.train(training)
    with statistics_kept(model):
        found = gates.run(model, factors)(x)
    for ours, wanted in zip(*(torch.utils._pytree.tree_leaves(value) for value in (found, small(x))), strict=True):
        torch.testing.assert_close(ours, wanted)
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in state.items() if not key.endswith("tracked"))


def test_the_distance_to_the_target() -> None:
    for value, slope in ((0.3, -1 / 0.2), (0.49, 0.0), (0.5, 1 / 0.025), (0.9, 1 / 0.425)):
        cost = torch.tensor(value, requires_grad=True)
        budget_loss(cost, 0.5).backward()  # type: ignore[no-untyped-call]
        assert cost.grad is not None
        assert float(cost.grad) == pytest.approx(slope, rel=1e-4)


def net(task: Classification) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                         nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, task.images.classes))  # fmt: skip


TASK = Classification(synthetic(train_size=96, test_size=64, size=8, noise=20.0))
QUICK = FitSettings(epochs=8, batch_size=16, lr=0.05, warmup_epochs=0.5, amp="off")


def test_alphas_get_the_slope_of_the_loss() -> None:
    model: Any = net(TASK).train()
    settings = SparsitySettings(kind="dmcp", target=0.3)
    slim = Slimmable(model, pd.trace(model, example(TASK)), TASK, settings, None)
    batch = next(TASK.train_batches(0, 32, 0))

    def forward(network: Any, given: Any) -> Any:
        return {"logits": network(*given.inputs)}

    slim.learn_alphas(model, forward, batch, lambda gradient: gradient)
    assert all(parameter.grad is None for parameter in model.parameters())
    alpha = slim.chains.alphas[0]
    assert alpha.grad is not None
    wanted, step = alpha.grad[2].item(), 0.01
    values = []
    for side in (-1, 1):
        with torch.no_grad():
            alpha[2] += side * step
            network = slim.gates.run(model, slim.chains.marginals())
            values.append(
                float(TASK.loss(forward(network, batch), batch) + settings.rate * budget_loss(slim.cost(), 0.3))
            )
            alpha[2] -= side * step
    assert (values[1] - values[0]) / (2 * step) == pytest.approx(wanted, rel=0.02, abs=1e-4)


def test_a_killed_training_ends_as_if_undisturbed_and_its_scores_are_cut(tmp_path: Path) -> None:
    given = SparsitySettings(kind="dmcp", target=0.3)
    whole = fit(net(TASK), TASK, QUICK, out=tmp_path / "whole", sparsity=given)
    with pytest.raises(KilledError):
        fit(net(TASK), TASK, QUICK, out=tmp_path / "killed", sparsity=given, progress=kill_at(35))
    resumed = fit(net(TASK), TASK, QUICK, out=tmp_path / "killed", sparsity=given, resume=True)
    assert resumed.resumed_epochs == 5
    assert resumed.history == tuple(resumed.history)
    costs = [record.expected_cost for record in whole.history]
    assert costs == [record.expected_cost for record in resumed.history]
    assert len(set(costs[:4])) == 1  # the first half is for weights alone
    assert abs(costs[-1] - 0.3) < abs(costs[0] - 0.3)
    state = resumed.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.model.state_dict().items())
    assert whole.scores is not None
    assert whole.widths is not None
    np.savez(tmp_path / "scores.npz", **whole.scores)
    graph = pd.trace(whole.model, example(TASK))
    scores = pd.score(whole.model, graph, "dmcp", options={"file": str(tmp_path / "scores.npz")})
    assert all(np.allclose(scores[name], whole.scores[name]) for name in scores)
    small = pd.apply(whole.model, graph, plan_from_widths(graph, scores, whole.widths, method="dmcp"))
    assert small(*example(TASK)).shape == (1, 4)


def test_the_expected_cost_comes_to_its_target(tmp_path: Path) -> None:
    """Also where that is microseconds of a table: one fast layer gives nothing, so the other one pays."""
    found = fit(net(TASK), TASK, QUICK.model_copy(update={"epochs": 20}), out=tmp_path, table=Stairs,
                sparsity=SparsitySettings(kind="dmcp", target=0.6, cost="latency", table=Path("table")))  # fmt: skip
    assert found.history[-1].expected_cost == pytest.approx(0.585, abs=0.06)


def test_dmcp_lite_learns_widths_for_the_weights_as_they_are() -> None:
    """A group of which one channel matters becomes narrower than one of which all do."""
    model: Any = net(TASK).eval()
    with torch.no_grad():
        model[0].weight[4:] *= 0.01
        model[1].weight[4:] *= 0.01
    graph = pd.trace(model, example(TASK))
    batches = [(batch.inputs, batch.target) for batch in TASK.train_batches(0, 32, 0)]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    given: dict[str, Any] = {"data": batches, "loss": nn.functional.cross_entropy,
                             "options": {"target": 0.4, "steps": 60, "rate": 0.3}}  # fmt: skip
    scores, again = (pd.score(model, graph, "dmcp_lite", **given) for _ in range(2))
    assert all(np.array_equal(scores[name], again[name]) for name in scores)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    groups = members(model, graph)
    for name, values in scores.items():
        assert (values <= 1).all()
        assert list(np.argsort(-values, kind="stable")) == list(
            np.argsort(-groups[name].filters[0].sums(1), kind="stable")
        )
    cost = sum(float(v.sum()) / len(v) for v in scores.values()) / 2
    assert 0.3 < cost < 0.95


def test_what_cannot_be(tmp_path: Path) -> None:
    model = net(TASK)
    graph = pd.trace(model, example(TASK))
    with pytest.raises(ConfigError, match="is learned while the dense model trains"):
        pd.score(model, graph, "dmcp")
    with pytest.raises(DataError, match="is not a file of channel scores"):
        pd.score(model, graph, "dmcp", options={"file": str(tmp_path / "none.npz")})
    np.savez(tmp_path / "other.npz", **{"0": np.ones(3, np.float32)})
    with pytest.raises(DataError, match="has no scores of the 16 channels of '0'"):
        pd.score(model, graph, "dmcp", options={"file": str(tmp_path / "other.npz")})
    with pytest.raises(ConfigError, match="needs labelled batches"):
        pd.score(model, graph, "dmcp_lite")
    with pytest.raises(ConfigError, match="go together"):
        SparsitySettings(kind="dmcp", cost="latency")
    with pytest.raises(ConfigError, match="go together"):
        SparsitySettings(kind="ista", table=Path("x"))
    with pytest.raises(ConfigError, match="takes no rescale"):
        SparsitySettings(kind="dmcp", rescale=0.1)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(ConfigError, match="the model has none"):
        fit(linear, TASK, QUICK, out=tmp_path, sparsity=SparsitySettings(kind="dmcp"))


def test_widths_of_tenths() -> None:
    model = zoo.build("residual").double()
    graph = pd.trace(model, X)
    for name, widths in tenths(members(model, graph), graph.by_name).items():
        assert widths[-1] == graph.by_name[name].width
        assert widths == tuple(sorted(set(widths)))
