"""SegDecNet as published, its norm against NumPy, its gradient switch, and cuts of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oracle import random_plan, silenced_output
from pydeploy.errors import ConfigError
from pydeploy.graph import Graph
from pydeploy.models import build
from pydeploy.models.segdecnet import FeatureNorm
from pydeploy.prune.criteria.activations import Activations
from pydeploy.prune.criteria.members import members
from pydeploy.prune.criteria.passes import Batches
from pydeploy.prune.criteria.score import score
from pydeploy.prune.sparsity.penalties import Sparsity
from pydeploy.prune.sparsity.settings import SparsitySettings
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply

SHAPE = (2, 1, 128, 64)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    model = build("segdecnet", in_channels=1, width=2).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def graph(net: nn.Module, x: Tensor) -> Graph:
    return trace(net, x)


def test_size_and_work_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = build("segdecnet")
    assert sum(parameter.numel() for parameter in model.parameters()) == 15_638_813
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(
                lambda m, i, o, name=name: shapes.__setitem__(name, (m.weight.numel(), *o.shape[2:]))
            )
    decision, mask = model.eval()(torch.zeros(1, 3, 640, 232, device="meta"))
    assert (decision.shape, mask.shape) == ((1, 1), (1, 1, 80, 29))
    assert round(sum(math.prod(shape) for shape in shapes.values()) / 1e9, 2) == 47.99
    assert {"volume.0.0", "volume.2.0", "volume.9.0", "volume.11.0", "seg_mask.0", "extractor.5.0", "fc"} <= {*shapes}
    assert dict(model.named_parameters())["volume.11.0.weight"].shape == (1024, 64, 15, 15)


def test_the_norm_divides_by_the_root_of_the_deviation() -> None:
    norm = FeatureNorm(3).double()
    values = np.random.default_rng(0).normal(5, 3, (2, 3, 4, 6))
    with torch.no_grad():
        norm.scale.copy_(torch.tensor([1.0, 2.0, -0.5]).view(1, 3, 1, 1))
        norm.bias.copy_(torch.tensor([0.0, 1.0, 3.0]).view(1, 3, 1, 1))
        found = norm(torch.from_numpy(values)).numpy()
    for sample in range(2):
        for channel, (scale, bias) in enumerate(((1, 0), (2, 1), (-0.5, 3))):
            plane = values[sample, channel]
            root = math.sqrt(math.sqrt(((plane - plane.mean()) ** 2).sum() / 23) + 1e-3)
            np.testing.assert_allclose(found[sample, channel], scale * (plane - plane.mean()) / root + bias, rtol=1e-12)
    half = norm.float()(torch.from_numpy(values).bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.double(), torch.from_numpy(found), atol=0.05)


def test_the_decision_trains_the_trunk_only_where_asked(net: nn.Module, x: Tensor) -> None:
    def trained(**options: bool) -> set[str]:
        model = build("segdecnet", in_channels=1, width=2, **options).double().train()
        model(x)[0].sum().backward()
        return {
            name.partition(".")[0]
            for name, p in model.named_parameters()
            if p.grad is not None and p.grad.abs().sum() > 0
        }

    assert trained() == {"extractor", "fc"}
    assert trained(gradient_adjustment=False) == {"volume", "seg_mask", "extractor", "fc"}
    model = build("segdecnet", in_channels=1, width=2).double().train()
    model(x)[1].square().sum().backward()
    assert model.volume[0][0].weight.grad.abs().sum() > 0
    assert model.fc.weight.grad is None
    plain = model(x)
    for training, evaluated in zip(plain, model.eval()(x), strict=True):
        torch.testing.assert_close(training, evaluated, rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_cut_equals_silenced(net: nn.Module, graph: Graph, x: Tensor, seed: int) -> None:
    plan = random_plan(graph, np.random.default_rng(seed))
    for found, expected in zip(apply(net, graph, plan)(x), silenced_output(net, graph, plan, x), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_mask_in_the_concat_is_never_cut(net: nn.Module, graph: Graph) -> None:
    assert graph.by_name["seg_mask.0"].frozen
    assert len(graph.prunable) == 12
    trunk = {piece.param: piece for piece in graph.by_name["volume.11.0"].slices}
    assert (trunk["extractor.1.0.weight"].dim, trunk["extractor.1.0.weight"].offset) == (1, 0)
    reads_mask = np.array([64])  # behind the trunk's channels
    for group in graph.prunable:
        for piece in group.slices:
            if piece.param == "extractor.1.0.weight" and piece.dim == 1:
                assert not np.isin(reads_mask, piece.entries(np.arange(group.width))).any()


class Written(nn.Module):
    """A convolution and a norm of each of its channels, written out."""

    def __init__(self, norm: Callable[[Tensor, Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv, self.reader, self.norm = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1), norm
        self.gain, self.shift = nn.Parameter(torch.rand(shape) + 0.5), nn.Parameter(torch.rand(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.norm(self.conv(x), self.gain, self.shift).relu())


def _variance(x: Tensor) -> Tensor:
    return x.var((2, 3), keepdim=True)


WRITTEN: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "over the root": (lambda x, g, b: (x - x.mean((2, 3), keepdim=True)) / (_variance(x) + 1e-5).sqrt() * g + b, (1, 6, 1, 1)),
    "times the inverse root": (lambda x, g, b: g * ((_variance(x) + 1e-5).rsqrt() * (x - x.mean((2, 3), keepdim=True))) + b, (6, 1, 1)),
    "a vector": (lambda x, g, b: b[:, None, None] + g[:, None, None] * (x / (x.abs().mean((2, 3), keepdim=True) + 1e-5)), (6,)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_scales_of_a_norm_that_is_written_out_count_as_scales(name: str) -> None:
    torch.manual_seed(0)
    model = Written(*WRITTEN[name]).eval()
    data = [(torch.randn(2, 3, 8, 8), torch.zeros(()))]
    graph = trace(model, data[0][0])
    gain = model.gain.detach().ravel().numpy()
    np.testing.assert_allclose(score(model, graph, "bn_scale")["conv"], gain)
    gated = []
    for channel in range(6):
        gate = torch.ones(6, requires_grad=True)
        y = model.norm(model.conv(data[0][0]), model.gain, model.shift).relu() * gate.view(1, 6, 1, 1)
        model.reader(y).square().sum().backward()
        gated.append(float(gate.grad[channel] ** 2))
    found = score(model, graph, "taylor_bn", data=data, loss=lambda output, _: output.square().sum())["conv"]
    np.testing.assert_allclose(found, gated, rtol=1e-4)
    group = members(model, graph)
    seen = next(iter(Activations(model, group, Batches(data))))
    expected = model.norm(model.conv(data[0][0]), model.gain, model.shift)
    torch.testing.assert_close(seen.maps["conv"][0], expected)


def test_factors_that_follow_no_norm_are_no_scales() -> None:
    model = Written(lambda x, g, b: x * x.mean((2, 3), keepdim=True).sigmoid() * g + b, (1, 6, 1, 1)).eval()
    group = members(model, trace(model, torch.zeros(1, 3, 8, 8)))["conv"]
    assert not group.scales
    assert not group.shifts


def test_slimming_draws_the_scales_to_zero(x: Tensor) -> None:
    model: Any = build("segdecnet", in_channels=1, width=2).double()
    term = Sparsity(model, trace(model, x), SparsitySettings(kind="ista", rate=1.0))
    before = model.volume[11][1].scale.detach().clone()
    term.after_step(0.0, 0.25)
    torch.testing.assert_close(model.volume[11][1].scale.detach(), before - 0.25)
    assert term.small_scales() == 0
    term.after_step(0.0, 2.0)
    assert term.small_scales() == 1
    assert not model.volume[0][1].scale.any()


def test_settings_are_checked() -> None:
    for settings, text in (({"width": True}, "positive integer"), ({"gradient_adjustment": 1}, "true or false"),
                           ({"classes": 2}, "no setting 'classes'")):  # fmt: skip
        with pytest.raises(ConfigError, match=text):
            build("segdecnet", **settings)
