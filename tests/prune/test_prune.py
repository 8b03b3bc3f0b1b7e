"""Structure and surgery: cut == silenced, the input model untouched, re-trace gives the planned widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracle import random_plan, silenced
from pydeploy.errors import ConfigError, DataError, Mismatch, TraceError
from pydeploy.graph import Graph
from pydeploy.plan import Plan
from pydeploy.prune.criteria import CRITERIA
from pydeploy.prune.criteria.score import score
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply
from pydeploy.prune.surgery.save import load, load_plan, save
from zoo import SHAPE, ZOO, build


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_cut_equals_silenced(name: str, seed: int) -> None:
    model = build(name).double()
    graph = trace(model, torch.zeros(SHAPE, dtype=torch.float64))
    plan = random_plan(graph, np.random.default_rng(seed))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = apply(model, graph, plan)
    x = torch.randn(2, *SHAPE[1:], dtype=torch.float64)
    torch.testing.assert_close(small(x), silenced(model, graph, plan)(x), rtol=1e-6, atol=1e-9)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    shapes = {key: tuple(value.shape) for key, value in small.state_dict().items()}
    again = trace(small, torch.zeros(SHAPE, dtype=torch.float64))
    assert again.params == shapes
    assert again.macs() == graph.macs(plan.widths)
    for piece, width in [(s, plan.widths.get(g.name, g.width)) for g in graph.groups for s in g.slices]:
        assert shapes[piece.param][piece.dim] >= width * piece.repeat


@pytest.mark.parametrize("name", ZOO)
def test_cut_model_trains(name: str) -> None:
    model = build(name)
    graph = trace(model, torch.zeros(SHAPE))
    small = apply(model, graph, random_plan(graph, np.random.default_rng(3))).train()
    small(torch.randn(4, *SHAPE[1:])).square().mean().backward()
    used = [p for p in small.parameters() if p.grad is not None]
    assert used
    assert all(p.grad.shape == p.shape for p in used)


@pytest.mark.parametrize("name", ZOO)
def test_every_conv_width_is_explained(name: str) -> None:
    """Each layer's extents reproduce its weight's shape: no channel is lost or counted twice."""
    graph = trace(build(name), torch.zeros(SHAPE))
    for op in graph.ops:
        shape = graph.params[op.weight]
        assert op.cout.at(graph.widths) == shape[0]
        assert op.cin.at(graph.widths) == shape[1] * op.groups
    seen: set[tuple[str, int, int]] = set()
    for group in graph.groups:
        for piece in group.slices:
            entries = {(piece.param, piece.dim, int(e)) for e in piece.entries(np.arange(group.width))}
            assert len(entries) == group.width * piece.repeat
            assert not entries & seen
            seen |= entries


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("plain", {"body.0": 8, "body.4": 12, "head.1": 10}),
        ("residual", {"stem.0": 8, "a.0": 6, "b.0": 10, "b.3": 12}),
        ("pre_activation", {"stem": 8, "conv1": 6}),
        ("depthwise_se", {"stem.0": 8, "expand.0": 12, "squeeze": 4}),
        ("dense", {"a": 5, "b": 6, "c": 7}),
        ("grouped", {"a": 4, "b": 6}),
        ("scaled", {"a": 8}),
        ("frozen", {}),
    ],
)
def test_groups_found(name: str, widths: dict[str, int]) -> None:
    graph = trace(build(name), torch.zeros(SHAPE))
    assert {group.name: group.width for group in graph.prunable} == widths


def test_frozen_groups_say_why() -> None:
    graph = trace(build("frozen"), torch.zeros(SHAPE))
    assert "_softmax" in graph.frozen["a"]
    assert "reduces over channels" in graph.frozen["b"]
    assert graph.frozen["c"]
    plan = Plan({"a": (0,)}, graph.fingerprint)
    with pytest.raises(Mismatch, match="frozen: _softmax"):
        apply(build("frozen"), graph, plan)


def test_trace_leaves_the_model_as_it_was() -> None:
    model = build("residual").train()
    model.stem.eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    trace(model, torch.zeros(SHAPE))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_trace_counts_macs_and_tails() -> None:
    graph = trace(build("plain"), torch.zeros(SHAPE))
    assert graph.macs() == 8 * 3 * 9 * 64 + 12 * 8 * 9 * 16 + 192 * 10 + 10 * 4
    assert [op.tail for op in graph.ops] == ["relu+max_pool2d_with_indices", "hardtanh", "relu", ""]
    assert graph.learnable == sum(p.numel() for p in build("plain").parameters())


def test_graph_and_plan_round_trip(tmp_path) -> None:
    graph = trace(build("depthwise_se"), torch.zeros(SHAPE))
    graph.save(tmp_path / "graph.json")
    assert Graph.load(tmp_path / "graph.json") == graph
    assert Graph.load(tmp_path / "graph.json").fingerprint == graph.fingerprint
    plan = random_plan(graph, np.random.default_rng(0))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").kept == plan.kept


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ({"stem": (0,)}, "lacks.*did you mean 'stem.0'"),
        ({"stem.0": ()}, "empties group"),
        ({"stem.0": (3, 1)}, "must ascend"),
        ({"stem.0": (1, 1)}, "must ascend"),
        ({"stem.0": (0, 8)}, "within 0..7"),
        ({"stem.0": (-1, 2)}, "within 0..7"),
        ({"stem.0": (0, 2**64)}, "more than 64 bits"),
        ({"fc": (0,)}, "frozen: model output"),
    ],
)
def test_bad_plans_are_refused(kept: dict[str, tuple[int, ...]], text: str) -> None:
    model = build("residual")
    graph = trace(model, torch.zeros(SHAPE))
    with pytest.raises(Mismatch, match=text):
        apply(model, graph, Plan(kept, graph.fingerprint))


def test_a_plan_or_graph_of_another_model_is_refused() -> None:
    graph = trace(build("residual"), torch.zeros(SHAPE))
    with pytest.raises(Mismatch, match="the plan is for graph"):
        apply(build("residual"), graph, Plan({}, "0" * 16))
    with pytest.raises(Mismatch, match=r"the graph has 'stem.0.weight'"):
        apply(build("plain"), graph, Plan({}, graph.fingerprint))


def test_a_failing_forward_is_reported() -> None:
    with pytest.raises(TraceError, match=r"fails on inputs of shape \[\[1, 4, 8, 8\]\]"):
        trace(build("plain"), torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cut_keeps_dtype_flags_ties_and_memory_format(dtype: torch.dtype) -> None:
    model = build("scaled").to(dtype).to(memory_format=torch.channels_last)
    model.gain.requires_grad_(requires_grad=False)
    graph = trace(model, torch.zeros(SHAPE, dtype=dtype))
    small = apply(model, graph, Plan({"a": (1, 2, 5)}, graph.fingerprint))
    assert small.gain.shape == (3, 1, 1)
    assert not small.gain.requires_grad
    assert small.a.weight.dtype == dtype
    assert small.tied.weight is small.shared.weight
    assert small.shared.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(small.shared.weight, model.shared.weight[[1, 2, 5]][:, [1, 2, 5]])
    assert (small.a.out_channels, small.shared.in_channels, small.c.in_channels) == (3, 3, 3)


def test_result_shares_no_memory() -> None:
    model = build("residual")
    graph = trace(model, torch.zeros(SHAPE))
    small = apply(model, graph, Plan({"a.0": (0, 1)}, graph.fingerprint))
    pointers = {t.data_ptr() for t in model.state_dict().values()}
    assert not pointers & {t.data_ptr() for t in small.state_dict().values()}


@pytest.mark.parametrize("name", [n for n in ZOO if n != "frozen"])
def test_saved_model_loads_bit_identical_and_trains(name: str, tmp_path) -> None:
    model = build(name)
    graph = trace(model, torch.zeros(SHAPE))
    plan = random_plan(graph, np.random.default_rng(7))
    small = apply(model, graph, plan)
    save(tmp_path / "small.safetensors", small, plan)
    loaded = load(tmp_path / "small.safetensors", build(name, seed=5))
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in small.state_dict().items())
    x = torch.randn(2, *SHAPE[1:])
    assert torch.equal(loaded(x), small(x))
    loaded.train()(x).sum().backward()
    assert load_plan(tmp_path / "small.safetensors").kept == plan.kept


def test_load_refuses_what_does_not_fit(tmp_path) -> None:
    path = tmp_path / "m.safetensors"
    save(path, build("residual"))
    with pytest.raises(Mismatch, match=r"'body.0.weight'|'stem.0.weight'"):
        load(path, build("plain"))
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "none.safetensors", build("plain"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="truncated"):
        load(path, build("residual"))
    broken = build("residual")
    broken.fc.weight.data[0, 0] = float("nan")
    save(path, broken)
    with pytest.raises(DataError, match=r"'fc.weight'.*NaN"):
        load(path, build("residual"))


def _batches(count: int = 3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield (torch.randn(4, *SHAPE[1:], generator=generator),), torch.randint(0, 3, (4,), generator=generator)


def _loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs.flatten(2).mean(2) if outputs.dim() == 4 else outputs, target)


APART = ("dmcp", "defect_aware")
"""Tested in files of their own: one is made by a training, the other asks for masks of defects."""


@pytest.mark.parametrize("criterion", sorted(set(CRITERIA.known) - set(APART)))
def test_criteria_give_one_finite_score_per_channel(criterion: str) -> None:
    model = build("residual").train()
    graph = trace(model, torch.zeros(SHAPE))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    first = score(model, graph, criterion, data=_batches(), loss=_loss, seed=4)
    again = score(model, graph, criterion, data=_batches(), loss=_loss, seed=4)
    for group in graph.prunable:
        assert first[group.name].shape == (group.width,)
        assert first[group.name].dtype == np.float32
        assert (first[group.name] >= 0).all()
        np.testing.assert_array_equal(first[group.name], again[group.name])
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_l1_and_bn_scale_against_numpy() -> None:
    model = build("plain")
    graph = trace(model, torch.zeros(SHAPE))
    l1 = score(model, graph, "l1")["body.0"]
    expected = np.abs(model.body[0].weight.detach().numpy()).sum((1, 2, 3))
    np.testing.assert_allclose(l1, expected / expected.mean(), rtol=1e-6)
    with pytest.raises(DataError, match=r"'head.1' has none"):
        score(model, graph, "bn_scale")
    residual = build("residual")
    scales = score(residual, trace(residual, torch.zeros(SHAPE)), "bn_scale")["b.3"]
    both = [residual.b[4].weight, residual.down[1].weight]
    np.testing.assert_allclose(scales, np.mean([np.abs(w.detach().numpy()) for w in both], axis=0), rtol=1e-6)


def test_taylor_equals_the_gate_derivative() -> None:
    """Oracle: a real gate multiplied into the stream that the group is, differentiated by autograd."""
    model = build("residual")
    graph = trace(model, torch.zeros(SHAPE))
    got = score(model, graph, "taylor", data=_batches(2), loss=_loss)["b.3"]
    total = np.zeros(12)
    for (x,), target in _batches(2):
        gate = torch.ones(12, requires_grad=True)
        y = torch.relu(model.stem(x))
        y = torch.relu(y + model.a(y))
        z = (model.b(y) + model.down(y)) * gate.view(1, -1, 1, 1)
        out = model.fc(torch.relu(z).mean((2, 3)))
        total += torch.autograd.grad(_loss(out, target), gate)[0].double().numpy() ** 2
    np.testing.assert_allclose(got, total / 2, rtol=1e-4)


def test_scoring_errors() -> None:
    model = build("residual")
    graph = trace(model, torch.zeros(SHAPE))
    with pytest.raises(ConfigError, match="did you mean 'taylor'"):
        score(model, graph, "tailor")
    with pytest.raises(ConfigError, match="labelled batches"):
        score(model, graph, "taylor")
    with pytest.raises(DataError, match="no batches"):
        score(model, graph, "taylor", data=[], loss=_loss)
    small = [((torch.zeros(1, 5, 8, 8),), None)]
    with pytest.raises(DataError, match=r"fails on batch 0 with inputs \[\[1, 5, 8, 8\]\]: RuntimeError"):
        score(model, graph, "taylor", data=small, loss=_loss)
    for bad in (
        lambda out, _: out,
        lambda _, __: torch.tensor(1.0),
        lambda _, __: 1.0,
        lambda out, _: out.detach().sum(),
    ):
        with pytest.raises(DataError, match="the loss must be one number"):
            score(model, graph, "taylor", data=_batches(1), loss=bad)
    with pytest.raises(Mismatch, match=r"the graph has 'stem.0.weight'.*the model has nothing"):
        score(build("plain"), graph, "l1")
    model.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(DataError, match="NaN"):
        score(model, graph, "taylor", data=_batches(), loss=_loss)
    model.a[0].weight.data[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"NaN or infinity for group 'a.0'"):
        score(model, graph, "l1")
