"""Laws of the cut beyond *cut == silenced*: composition, copies, float32 and ONNX, memory."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from oracle import random_plan, silenced
from pydeploy.errors import Mismatch
from pydeploy.export import export
from pydeploy.plan import Plan
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply
from pydeploy.prune.surgery.copying import copied
from pydeploy.prune.surgery.kept_entries import compose
from zoo import SHAPE, ZOO, build


def assert_same_model(one: nn.Module, two: nn.Module) -> None:
    left, right = one.state_dict(), two.state_dict()
    assert list(left) == list(right)
    assert [k for k in left if not torch.equal(left[k], right[k])] == []
    for (name, a), (_, b) in zip(one.named_modules(), two.named_modules(), strict=True):
        plain = {k: v for k, v in vars(a).items() if isinstance(v, (int, str, tuple))}
        assert {k: v for k, v in vars(b).items() if isinstance(v, (int, str, tuple))} == plain, name


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_two_plans_in_turn_equal_their_composition(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = build(name)
    graph = trace(model, torch.zeros(SHAPE))
    first = random_plan(graph, rng)
    smaller = apply(model, graph, first)
    again = trace(smaller, torch.zeros(SHAPE))
    second = random_plan(again, rng)
    try:
        both = compose(graph, first, again, second)
    except Mismatch as error:
        # A grouped convolution gains freedom by a cut: with one channel a group it is depthwise, with one group plain.
        assert "belong together in the dense model" in str(error)  # noqa: PT017
        assert name in ("grouped", "depthwise_se")
        assert 1 in first.widths.values()
        return
    assert_same_model(apply(smaller, again, second), apply(model, graph, both))


def test_composition_refuses_the_graph_of_another_cut() -> None:
    model = build("residual")
    graph = trace(model, torch.zeros(SHAPE))
    first = Plan({"a.0": (0, 1)}, graph.fingerprint)
    other = trace(apply(model, graph, Plan({"a.0": (0, 1, 2)}, graph.fingerprint)), torch.zeros(SHAPE))
    with pytest.raises(
        Mismatch, match=r"'a.0.weight' with shape \[3, 8, 3, 3\], the first plan makes it \[2, 8, 3, 3\]"
    ):
        compose(graph, first, other, Plan({}, other.fingerprint))


class Odd(nn.Module):
    """What a fast copy could get wrong: shared modules and values, hooks, own containers, unregistered tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.again = self.a
        self.attention = nn.MultiheadAttention(4, 2)
        self.parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.layers = [self.a, {"inner": self.attention}]
        self.numbers = [1, [2, 3]]
        self.same_numbers = self.numbers
        self.loose = torch.arange(3.0)
        self.register_buffer("skipped", torch.ones(2), persistent=False)
        self.register_parameter("absent", None)
        self.a.register_forward_hook(self.note)
        self.calls = 0

    def note(self, _module: nn.Module, _args: object, _output: Tensor) -> None:
        self.calls += 1

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.a(x)[:, :3])


def test_a_copy_is_what_deepcopy_makes() -> None:
    model = Odd()
    model.a.weight.requires_grad_(requires_grad=False)
    twin = copied(model, {})
    assert_same_model(twin, copy.deepcopy(model))
    assert twin.again is twin.a is twin.layers[0]
    assert twin.layers[1]["inner"] is twin.attention
    assert twin.same_numbers is twin.numbers is not model.numbers
    assert twin.skipped.data_ptr() != model.skipped.data_ptr()
    assert twin.loose.data_ptr() != model.loose.data_ptr()
    assert twin._non_persistent_buffers_set == {"skipped"}
    assert twin.absent is None
    assert not twin.a.weight.requires_grad
    assert twin.parametrized(torch.ones(1, 4)).equal(model.parametrized(torch.ones(1, 4)))
    twin(torch.ones(1, 3, 2, 2))
    assert (twin.calls, model.calls) == (2, 0), "the hook is bound to the copy"
    pointers = {t.data_ptr() for t in model.state_dict().values()}
    assert not pointers & {t.data_ptr() for t in twin.state_dict().values()}
    tables = {
        id(value)
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, (dict, set, list))
    }
    assert not tables & {id(value) for module in twin.modules() for value in vars(module).values()}


def test_a_class_that_copies_itself_is_asked() -> None:
    class Own(nn.Linear):
        def __deepcopy__(self, memo: dict[int, object]) -> Own:
            return Own(self.in_features, self.out_features + 1)

    twin = copied(nn.Sequential(Own(2, 3)), {})
    assert twin[0].out_features == 4


def worst(one: Tensor, two: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((one - two).abs().max() / two.abs().max().clamp_min(1e-30))


VISION = {"resnet18": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "squeezenet1_1": 64, "efficientnet_b0": 64,
          "regnet_y_400mf": 64, "mnasnet0_5": 64}  # fmt: skip

EXPORTED = ("resnet18", "mobilenet_v3_small")
"""Exporting takes seconds."""


@pytest.mark.parametrize("name", VISION)
def test_laws_hold_on_torchvision(name: str, tmp_path: Path) -> None:
    """Half of the channels of a known network: silenced in both precisions, widths as planned, ONNX, backward, untouched."""
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model(name, weights=None)
    model(torch.randn(4, 3, VISION[name], VISION[name]))  # batch statistics that are not those of a fresh network
    model.eval()
    example = torch.randn(1, 3, VISION[name], VISION[name])
    graph = trace(model, example)
    rng = np.random.default_rng(0)
    kept = {g.name: tuple(np.sort(rng.permutation(g.width)[: max(1, g.width // 2)]).tolist()) for g in graph.prunable}
    plan = Plan(kept, graph.fingerprint)
    assert plan.widths
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = apply(model, graph, plan)
    zeroed = silenced(model, graph, plan)
    with torch.no_grad():
        assert worst(small(example), zeroed(example)) < 1e-4
        assert worst(small.double()(example.double()), zeroed.double()(example.double())) < 1e-6
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    small = small.float()
    again = trace(small, example)
    assert again.macs() == graph.macs(plan.widths)
    assert {g.name: g.width for g in again.prunable} == {g.name: plan.widths[g.name] for g in graph.prunable}
    if name in EXPORTED:
        export(small, example, tmp_path / "small.onnx", tolerance=1e-4)
    small(example).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("name", ZOO)
def test_float32_and_the_exported_file_agree(name: str, tmp_path: Path) -> None:
    """`export` itself runs the file on ONNX Runtime and raises where it differs from the cut model."""
    model = build(name)
    graph = trace(model, torch.zeros(SHAPE))
    plan = random_plan(graph, np.random.default_rng(11))
    small = apply(model, graph, plan)
    x = torch.randn(2, *SHAPE[1:])
    with torch.no_grad():
        assert worst(small(x), silenced(model, graph, plan)(x)) < 1e-4
    export(small, torch.zeros(SHAPE), tmp_path / "small.onnx", tolerance=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_a_cut_in_another_precision_is_the_cut_of_float32(name: str, dtype: torch.dtype) -> None:
    model = build(name)
    graph = trace(model, torch.zeros(SHAPE))
    for seed in range(3):
        plan = random_plan(graph, np.random.default_rng(seed))
        assert_same_model(apply(copy.deepcopy(model).to(dtype), graph, plan), apply(model, graph, plan).to(dtype))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 100), st.sampled_from([torch.float16, torch.bfloat16, torch.float64]))
def test_wide_layers_in_any_precision_hold_the_entries_of_the_plan(seed: int, width: int, dtype: torch.dtype) -> None:
    """What a plan names is what is left, of rows of every width, with a flattened map of two pixels in front of the head."""
    rng = np.random.default_rng(seed)
    model = nn.Sequential(nn.Conv2d(3, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
                          nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), nn.Linear(2 * width, 5))  # fmt: skip
    graph = trace(model, torch.zeros(1, 3, 4, 4))
    model = model.to(dtype)
    first, second = (np.sort(rng.permutation(width)[: rng.integers(1, width + 1)]) for _ in range(2))
    plan = Plan({"0": tuple(first.tolist()), "2": tuple(second.tolist())}, graph.fingerprint)
    small = apply(model, graph, plan)
    pixels = (2 * second[:, None] + [0, 1]).ravel()
    assert small[0].weight.equal(model[0].weight[first])
    assert small[2].weight.equal(model[2].weight[second][:, first])
    assert small[2].bias.equal(model[2].bias[second])
    assert small[6].weight.equal(model[6].weight[:, pixels])
