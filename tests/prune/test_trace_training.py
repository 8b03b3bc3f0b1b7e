"""What a forward does only in training mode: cut equals silenced there too, in outputs, gradients and statistics."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oracle import random_plan, randomize, silence, tensors_of
from patterns import Net, conv
from pydeploy.graph import Graph
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply
from pydeploy.prune.surgery.kept_entries import kept_entries

SHAPE = (2, 3, 8, 8)


def built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = randomize(make()).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.eval()


def lawful(make: Callable[[], nn.Module], shape: tuple[int, ...] = SHAPE, seeds: int = 2, batch: int = 3) -> Graph:
    """Cut equals silenced in both modes; trained for a step, all kept entries of gradients and buffers are equal."""
    model = built(make)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    graph = trace(model, torch.zeros(1, *shape[1:], dtype=torch.float64))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    for seed in range(seeds):
        plan = random_plan(graph, np.random.default_rng(seed))
        small, dense = apply(model, graph, plan), built(make)
        silence(dense, graph, plan)
        x = torch.randn(batch, *shape[1:], dtype=torch.float64)
        for training in (False, True):
            got, want = tensors_of(small.train(training)(x)), tensors_of(dense.train(training)(x))
            assert len(got) == len(want)
            for one, two in zip(got, want, strict=True):
                torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)
        sum((out**2).sum() for out in got).backward()
        sum((out**2).sum() for out in want).backward()
        _same_kept(small, dense, kept_entries(graph, plan))
    return graph


def _same_kept(small: nn.Module, dense: nn.Module, kept: Any) -> None:
    whole = dense.state_dict(keep_vars=True)
    for name, tensor in small.state_dict(keep_vars=True).items():
        for one, two in ((tensor, whole[name]), (tensor.grad, whole[name].grad)):
            if one is None or two is None:
                assert one is two
                continue
            two = two.detach()
            for dim, entries in enumerate(kept.get(name, ())):
                two = two if entries is None else two.index_select(dim, torch.as_tensor(np.asarray(entries)))
            torch.testing.assert_close(one.detach(), two, rtol=1e-5, atol=1e-7 * (1 + float(two.abs().max())))


def _head(m: Any, x: Tensor) -> object:
    y = F.relu(m.n(m.a(x)))
    out = m.d(F.relu(m.b(y)))
    return (out, m.h(F.relu(m.g(y)).mean((2, 3)))) if m.training else out


def _flat_head(m: Any, x: Tensor) -> object:
    y = F.relu(m.a(x))
    out = m.d(F.relu(m.b(y)))
    return {"out": out, "aux": m.f(F.adaptive_avg_pool2d(y, 2).flatten(1))} if m.training else {"out": out}


def _other_layer(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.a(x))
    return m.d(F.relu(m.b(y) if m.training else m.c(y)))


def _deep(m: Any, x: Tensor) -> object:
    outs = []
    for number, layer in enumerate(m.layers):
        x = F.relu(layer(x))
        if m.training:
            outs.append(m.heads[number](x))
    return [m.d(x), *outs]


def _summed(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.a(x))
    return m.d(y + m.b(y) if m.training else y)


def _fixed(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    z = y.view(y.shape[0], 8, 64).mean(2) if m.training else y.mean((2, 3))
    return m.f(z)


def _first_half(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.e(y[:, :4]) + m.d(y) if m.training else m.d(y)


class Normed(nn.Module):
    """A batch norm of one's own; `how` it writes its running statistics."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight, self.bias = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))
        self.register_buffer("mean", torch.rand(width))
        self.register_buffer("var", torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            with torch.no_grad():
                if self.how == "in place":
                    self.mean.mul_(0.9).add_(0.1 * mean)
                    self.var.lerp_(var, 0.1)
                elif self.how == "copied":
                    self.mean.copy_(0.9 * self.mean + 0.1 * mean)
                    self.var.copy_(0.9 * self.var + 0.1 * var)
                elif self.how == "sliced":
                    self.mean[:] = 0.9 * self.mean + 0.1 * mean
                    self.var[:] = 0.9 * self.var + 0.1 * var
                elif self.how == "data":
                    self.mean.data = 0.9 * self.mean.data + 0.1 * mean
                    self.var.data = 0.9 * self.var.data + 0.1 * var
                else:
                    self.mean = 0.9 * self.mean + 0.1 * mean
                    self.var = 0.9 * self.var + 0.1 * var
        else:
            mean, var = self.mean, self.var
        shape = (1, -1, 1, 1)
        return (x - mean.view(shape)) / (var + 1e-5).sqrt().view(shape) * self.weight.view(shape) + self.bias.view(
            shape
        )


class Inner(nn.Module):
    """Keeps its auxiliary result for a loss."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.b, self.aux, self.kept = conv(width, width), nn.Linear(width, 2), None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b(x))
        if self.training:
            y = y + 0.1 * self.aux(y.mean((2, 3))).sum()
        return y


def _normed(how: str) -> Callable[[], nn.Module]:
    return lambda: Net(lambda m, x: m.d(F.relu(m.n(m.a(x)))), a=conv(3, 8), n=Normed(8, how), d=conv(8, 2))


def _joined(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.a(x))
    z = F.relu(m.b(y))
    return m.d(torch.cat([y, z], 1)) if m.training else m.e(z)


def _penalty(m: Any, x: Tensor) -> Tensor:
    """Keeps a loss on its activations; it is a sum over channels, to which removed ones add nothing."""
    y = F.relu(m.a(x))
    m.penalty = (y.mean((2, 3)) ** 2).sum() if m.training else None
    return m.d(y)


def _noise(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.d(y + 0 * torch.randn_like(y) * torch.rand(y.shape, dtype=y.dtype)) if m.training else m.d(y)


def _average(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    if m.training:
        m.h.mul_(0.9).add_(y.mean((0, 2, 3)).detach(), alpha=0.1)
    return m.d(y * torch.sigmoid(m.h.clone()).view(1, -1, 1, 1))


def _queue(m: Any, x: Tensor) -> object:
    """Keys of earlier batches in a buffer, as contrastive learning has them."""
    y = m.f(F.relu(m.a(x)).mean((2, 3)))
    if not m.training:
        return y
    old = y @ m.keys.clone()
    begin = int(m.begin)
    m.keys[:, begin : begin + y.shape[0]] = y.detach().T
    m.begin[0] = (begin + y.shape[0]) % 32
    return y, old


def _with_buffers(model: nn.Module, **buffers: Tensor) -> nn.Module:
    for name, tensor in buffers.items():
        model.register_buffer(name, tensor)
    return model


class Switching(nn.Module):
    """Several branches in training, one layer in their place after."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.one, self.d = conv(3, 8), conv(8, 6), conv(6, 2)
        self.many = nn.ModuleList([conv(8, 6), conv(8, 6, 1)])

    def forward(self, x: Tensor) -> Tensor:
        branch = self._many if self.training else self._single
        return self.d(F.relu(branch(self.a(x))))

    def _many(self, x: Tensor) -> Tensor:
        return sum(layer(x) for layer in self.many)  # type: ignore[return-value]

    def _single(self, x: Tensor) -> Tensor:
        return self.one(x)


def _checkpointed(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.d(checkpoint(m.b, y, use_reentrant=False) if m.training else m.b(y))


NETS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "head": (
        lambda: Net(
            _head, a=conv(3, 8), n=nn.BatchNorm2d(8), b=conv(8, 6), d=conv(6, 2), g=conv(8, 5), h=nn.Linear(5, 3)
        ),
        {"a", "b", "g"},
    ),
    "flat head": (lambda: Net(_flat_head, a=conv(3, 8), b=conv(8, 6), d=conv(6, 2), f=nn.Linear(32, 3)), {"a", "b"}),
    "other layer": (lambda: Net(_other_layer, a=conv(3, 8), b=conv(8, 6), c=conv(8, 6), d=conv(6, 2)), {"a", "c"}),
    "deep": (
        lambda: Net(
            _deep,
            layers=nn.ModuleList([conv(3, 6), conv(6, 5), conv(5, 7)]),
            heads=nn.ModuleList([conv(6, 2), conv(5, 2), conv(7, 2)]),
            d=conv(7, 2),
        ),
        {"layers.0", "layers.1", "layers.2"},
    ),
    "summed": (lambda: Net(_summed, a=conv(3, 8), b=conv(8, 8), d=conv(8, 2)), {"a"}),
    "fixed": (lambda: Net(_fixed, a=conv(3, 8), f=nn.Linear(8, 2)), set()),
    "first half": (lambda: Net(_first_half, a=conv(3, 8), e=conv(4, 2), d=conv(8, 2)), set()),
    "inside": (lambda: nn.Sequential(conv(3, 8), nn.Dropout(0.5), Inner(8), conv(8, 2)), {"0", "2.b"}),
    "joined": (lambda: Net(_joined, a=conv(3, 8), b=conv(8, 6), d=conv(14, 2), e=conv(6, 2)), {"a", "b"}),
    "penalty": (lambda: Net(_penalty, a=conv(3, 8), d=conv(8, 2)), {"a"}),
    "noise": (lambda: Net(_noise, a=conv(3, 8), d=conv(8, 2)), {"a"}),
    "average": (lambda: _with_buffers(Net(_average, a=conv(3, 8), d=conv(8, 2)), h=torch.rand(8)), {"a"}),
    "queue": (
        lambda: _with_buffers(
            Net(_queue, a=conv(3, 8), f=nn.Linear(8, 6)),
            keys=torch.randn(6, 32),
            begin=torch.zeros(1, dtype=torch.long),
        ),
        {"a"},
    ),
    "switching": (Switching, {"a", "one"}),
    "checkpointed": (
        lambda: Net(
            _checkpointed, a=conv(3, 8), b=nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU()), d=conv(8, 2)
        ),
        {"a", "b.0"},
    ),
    "norm in place": (_normed("in place"), {"a"}),
    "norm copied": (_normed("copied"), {"a"}),
    "norm sliced": (_normed("sliced"), {"a"}),
    "norm with data": (_normed("data"), {"a"}),
    "norm assigned": (_normed("assigned"), {"a"}),
}


@pytest.mark.parametrize("name", NETS)
def test_law_in_training_mode(name: str) -> None:
    make, prunable = NETS[name]
    graph = lawful(make)
    assert {group.name for group in graph.prunable} == prunable, graph.frozen


def test_auxiliary_heads_of_torchvision() -> None:
    from torchvision.models import googlenet

    make = lambda: googlenet(weights=None, init_weights=False, aux_logits=True, num_classes=5)  # noqa: E731
    graph = lawful(make, (1, 3, 64, 64), seeds=1)
    assert {"aux1.conv.conv", "aux1.fc1", "aux2.conv.conv", "aux2.fc1"} <= {group.name for group in graph.prunable}
    assert not any(op.name.startswith("aux") for op in graph.ops), "no engine runs them"


def test_a_path_that_is_drawn_is_named() -> None:
    def dropping(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.a(x))
        if not m.training or random.random() < 0.5:
            for layer in m.e:
                y = F.relu(layer(y)) if not m.training or random.random() < 0.5 else y
        return m.d(y)

    e = nn.ModuleList([conv(8, 8) for _ in range(30)])
    with pytest.warns(UserWarning, match="in training mode the forward takes another path each time"):
        graph = trace(Net(dropping, a=conv(3, 8), e=e, d=conv(8, 2)), torch.zeros(SHAPE))
    assert graph.prunable


def test_training_that_fails_is_named() -> None:
    def losing(m: Any, x: Tensor, target: Tensor | None = None) -> object:
        y = F.relu(m.a(x))
        if not m.training:
            return m.d(y)
        if target is None:
            raise ValueError("a target is needed")
        return F.mse_loss(m.h(y), target)

    make = lambda: Net(losing, a=conv(3, 8), d=conv(8, 2), h=conv(8, 4))  # noqa: E731
    x = torch.zeros(SHAPE)
    with pytest.warns(
        UserWarning, match=r"ValueError: a target is needed\), and no other run read 'h.weight', 'h.bias'"
    ):
        trace(make(), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = trace(make(), (x, torch.zeros(2, 4, 8, 8)))
    assert "h.weight" in {piece.param for group in graph.groups for piece in group.slices}
