"""Constant channels absorbed into biases and batch norms, and batch norms folded into layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pydeploy.errors import DataError, TraceError
from pydeploy.plan import Plan
from pydeploy.prune.forward import norms_after
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.absorb import channel_means
from pydeploy.prune.surgery.apply import apply
from pydeploy.prune.surgery.fold import fold
from zoo import SHAPE, ZOO, build


def scrambled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, eval, with random batch-norm statistics."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model.double().eval()


def block(cin: int, cout: int, k: int = 1, **kw: int | bool) -> list[nn.Module]:
    return [nn.Conv2d(cin, cout, k, **kw), nn.BatchNorm2d(cout)]


class Shortcut(nn.Module):
    """Residual add of two constants, then a depthwise and a pointwise convolution without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Sequential(*block(3, 6)), nn.Sequential(*block(3, 6))
        self.depthwise = nn.Sequential(*block(6, 6, 3, groups=6, bias=False), nn.Hardswish())
        self.out = nn.Sequential(*block(6, 5, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.depthwise(torch.relu(self.a(x) + self.b(x))))


PLAIN = nn.Sequential
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    # model, and the sink of every layer that reads prunable channels
    "bias": (lambda: PLAIN(*block(3, 6), nn.ReLU(), nn.Conv2d(6, 4, 3)), {"3": "3.bias"}),
    "batch norm": (lambda: PLAIN(*block(3, 6), nn.SiLU(), *block(6, 4, 3, bias=False)), {"3": "4.running_mean"}),
    "pooled": (lambda: PLAIN(*block(3, 6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 2)), {"4": "4.bias"}),
    "grouped": (lambda: PLAIN(*block(3, 6), nn.Sigmoid(), nn.Conv2d(6, 4, 3, groups=2)), {"3": "3.bias"}),
    "linear": (lambda: PLAIN(*block(3, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 4)), {"4": "4.bias"}),
    "shortcut": (Shortcut, {"out.0": "out.1.running_mean"}),
}


def silence_gammas(model: nn.Module, graph: object, removed: dict[str, list[int]]) -> None:
    """Make the channels to remove constants: gamma = 0 in every batch norm of their group, beta stays."""
    for name, channels in removed.items():
        for piece in graph.by_name[name].slices:
            owner = model.get_submodule(piece.param.rpartition(".")[0])
            if isinstance(owner, nn.BatchNorm2d) and piece.param.endswith("weight"):
                owner.weight.data[piece.entries(np.array(channels))] = 0


@pytest.mark.parametrize("name", CASES)
def test_removing_constant_channels_changes_nothing(name: str) -> None:
    make, sinks = CASES[name]
    model = scrambled(make())
    x = torch.randn(3, *SHAPE[1:], dtype=torch.float64)
    graph = trace(model, x[:1])
    (group,) = graph.prunable
    removed = [0, 2] if group.width > 3 else [1]
    silence_gammas(model, graph, {group.name: removed})
    plan = Plan({group.name: tuple(sorted(set(range(group.width)) - set(removed)))}, graph.fingerprint)
    means = channel_means(model, graph, [torch.randn(1, *SHAPE[1:], dtype=torch.float64)])
    assert {layer: inputs.sink for layer, inputs in means.items()} == sinks
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = apply(model, graph, plan, means=means)
    torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not torch.allclose(apply(model, graph, plan)(x), model(x)), "without absorption the constants are lost"


def test_with_padding_the_interior_is_exact() -> None:
    model = scrambled(nn.Sequential(*block(3, 6), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)))
    graph = trace(model, torch.zeros(SHAPE, dtype=torch.float64))
    silence_gammas(model, graph, {"0": [1, 4]})
    x = torch.randn(2, *SHAPE[1:], dtype=torch.float64)
    small = apply(model, graph, Plan({"0": (0, 2, 3, 5)}, graph.fingerprint), means=channel_means(model, graph, [x]))
    error = (small(x) - model(x)).abs()
    assert error[..., 1:-1, 1:-1].max() < 1e-9
    assert error.max() > 1e-4


def test_channels_that_vary_are_held_at_their_mean() -> None:
    """Oracle: the dense model with the removed channels overwritten by their mean over the same batch."""
    model = scrambled(nn.Sequential(*block(3, 6), nn.ReLU(), nn.Conv2d(6, 4, 3)))
    graph = trace(model, torch.zeros(SHAPE, dtype=torch.float64))
    batches = [torch.randn(n, *SHAPE[1:], dtype=torch.float64) for n in (2, 5)]
    small = apply(model, graph, Plan({"0": (1, 2, 5)}, graph.fingerprint), means=channel_means(model, graph, batches))
    x = torch.cat(batches)
    hidden = model[:3](x)
    for channel in (0, 3, 4):
        hidden[:, channel] = hidden[:, channel].mean()
    torch.testing.assert_close(small(x), model[3](hidden), rtol=1e-9, atol=1e-9)
    error = (small(x) - model(x)).square().mean()
    assert error < (apply(model, graph, Plan({"0": (1, 2, 5)}, graph.fingerprint))(x) - model(x)).square().mean()


def test_a_layer_without_bias_and_batch_norm_is_named_without_a_sink() -> None:
    model = scrambled(nn.Sequential(*block(3, 6), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False)))
    graph = trace(model, torch.zeros(SHAPE, dtype=torch.float64))
    plan = Plan({"0": (1, 2)}, graph.fingerprint)
    means = channel_means(model, graph, [torch.randn(SHAPE, dtype=torch.float64)])
    assert means["3"].sink == ""
    x = torch.randn(SHAPE, dtype=torch.float64)
    assert torch.equal(apply(model, graph, plan, means=means)(x), apply(model, graph, plan)(x))


def test_means_need_finite_batches() -> None:
    model = build("residual")
    graph = trace(model, torch.zeros(SHAPE))
    with pytest.raises(DataError, match="at least one batch"):
        channel_means(model, graph, [])
    with pytest.raises(DataError, match="NaN or infinite"):
        channel_means(model, graph, [torch.full(SHAPE, torch.nan)])
    with pytest.raises(TraceError, match=r"shape \[\[1, 5, 8, 8\]\]"):
        channel_means(model, graph, [torch.zeros(1, 5, 8, 8)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ZOO)
def test_folding_keeps_what_the_model_computes(name: str) -> None:
    model = build(name).double()
    x = torch.randn(2, *SHAPE[1:], dtype=torch.float64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pairs = norms_after(model, x)
    folded = fold(model, x)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == len(norms) - len(pairs)
    assert sum(isinstance(m, nn.Identity) for m in folded.modules()) == len(pairs)
    assert norms_after(folded, x) == {}
    folded.train()(x).square().mean().backward()


def test_only_a_batch_norm_that_alone_reads_the_layer_is_folded() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once, self.twice, self.read = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.last = nn.ConvTranspose2d(4, 4, 2, groups=2, bias=False)
            self.bn1, self.bn2, self.bn3, self.bn4 = (nn.BatchNorm2d(4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn1(self.once(x))
            x = self.bn2(self.twice(self.twice(x)))
            y = self.read(x)
            return self.bn4(self.last(torch.relu(self.bn3(y) + y)))

    model = scrambled(Net())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert norms_after(model, x) == {"once": "bn1", "last": "bn4"}
    folded = fold(model, x)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)
    assert isinstance(folded.bn1, nn.Identity)
    assert isinstance(folded.bn4, nn.BatchNorm2d), "after a grouped transposed convolution"


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), (4, 3)),
        (lambda: nn.Sequential(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5, affine=False)), (2, 3, 9)),
        (lambda: nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.BatchNorm2d(5)), (2, 3, 4, 4)),
        (lambda: nn.Sequential(nn.Conv3d(2, 4, 1, groups=2), nn.BatchNorm3d(4)), (2, 2, 3, 3, 3)),
    ],
)
def test_folding_of_other_layers(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = make().double().eval()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2.0)
    x = torch.randn(shape, dtype=torch.float64)
    folded = fold(model, x)
    assert isinstance(folded[1], nn.Identity)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)


def test_folding_refuses_a_variance_that_is_not_positive() -> None:
    model = build("plain")
    model.body[1].running_var[3] = -1.0
    with pytest.raises(DataError, match=r"'body.1' cannot be folded into 'body.0': channel 3"):
        fold(model, torch.zeros(SHAPE))
