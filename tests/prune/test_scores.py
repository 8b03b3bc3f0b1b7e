"""Criteria: what makes and what reads a channel is found by the operators, whatever form the weights have.

Oracles: every sampled entry of every parameter is changed to see which layer's outputs move; NumPy norms of slices written
by hand; gates multiplied in by hand; and Euler's rule, by which what goes into ReLU networks' channels comes out.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

import zoo
from oracle import randomize
from patterns import PATTERNS, Net, conv
from pydeploy.errors import DataError
from pydeploy.graph import Graph
from pydeploy.prune.criteria.members import members
from pydeploy.prune.criteria.score import score
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.masks import kernel_mask, masked

SHAPE = (2, 3, 8, 8)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _with_buffer(forward: Callable[..., Any], shape: tuple[int, ...], **layers: object) -> nn.Module:
    net = Net(forward, **layers)
    net.register_buffer("w", torch.randn(shape))
    return net


def _fused(m: Any, x: Tensor) -> Tensor:
    t = tokens(m.a(x))
    q, k, v = F.linear(t, m.w, m.b).view(2, 64, 3, -1, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return m.f(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _trained(module: nn.Module) -> nn.Module:
    """Weight norm whose lengths are no longer those of the directions."""
    module.parametrizations.weight.original0.data.mul_(torch.rand_like(module.parametrizations.weight.original0) + 0.5)
    return module


class Softplus(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return F.softplus(weight)


def _positive() -> nn.Module:
    layer = conv(3, 6)
    nn.utils.parametrize.register_parametrization(layer, "weight", Softplus())
    return layer


def _masked() -> nn.Module:
    net = Net(lambda m, x: m.c(F.relu(m.a(x))), a=conv(3, 6), c=conv(6, 3))
    return masked(net, {"a.weight": kernel_mask(net.a.weight, 0.4)})


MAKERS: dict[str, tuple[Callable[[], nn.Module], str, Callable[[Any], list[Tensor]]]] = {
    "transposed": (
        lambda: Net(lambda m, x: m.c(F.relu(m.u(m.a(x)))), a=conv(3, 8), u=nn.ConvTranspose2d(8, 6, 2, 2), c=conv(6, 3)),
        "u",
        lambda m: [m.u.weight.movedim(1, 0)],
    ),
    "transposed with a norm": (
        lambda: Net(
            lambda m, x: m.c(F.relu(m.n(m.u(F.relu(m.a(x)))))),
            a=conv(3, 8), u=nn.ConvTranspose2d(8, 6, 2, 2, bias=False), n=nn.BatchNorm2d(6), c=conv(6, 3),
        ),
        "u",
        lambda m: [m.u.weight.movedim(1, 0)],
    ),
    "transposed in groups": (
        lambda: Net(lambda m, x: m.c(m.u(m.a(x))), a=conv(3, 6), u=nn.ConvTranspose2d(6, 8, 2, 2, groups=2), c=conv(8, 3)),
        "u",
        lambda m: [m.u.weight.movedim(1, 0)],
    ),
    "transposed depthwise, twice": (
        lambda: Net(lambda m, x: m.c(m.u(x)), u=nn.ConvTranspose2d(3, 6, 2, 2, groups=3), c=conv(6, 3)),
        "",
        lambda m: [],
    ),
    "transposed depthwise": (
        lambda: Net(lambda m, x: m.c(m.u(m.a(x))), a=conv(3, 6), u=nn.ConvTranspose2d(6, 12, 2, 2, groups=6), c=conv(12, 3)),
        "a",
        lambda m: [m.a.weight, m.u.weight],
    ),
    "transposed in 1-D": (
        lambda: Net(
            lambda m, x: m.c(m.u(m.a(x.flatten(2)))),
            a=nn.Conv1d(3, 6, 3), u=nn.ConvTranspose1d(6, 5, 3), c=nn.Conv1d(5, 3, 3),
        ),
        "u",
        lambda m: [m.u.weight.movedim(1, 0)],
    ),
    "transposed in 3-D": (
        lambda: Net(
            lambda m, x: m.c(m.u(m.a(x.unsqueeze(2)))),
            a=nn.Conv3d(3, 4, 1), u=nn.ConvTranspose3d(4, 5, 2), c=nn.Conv3d(5, 3, 1),
        ),
        "u",
        lambda m: [m.u.weight.movedim(1, 0)],
    ),
    "fused projections": (
        lambda: Net(
            _fused, a=conv(3, 6), w=nn.Parameter(torch.randn(36, 6)), b=nn.Parameter(torch.randn(36)), f=nn.Linear(12, 4)
        ),
        "w",
        lambda m: [part.reshape(3, 4, -1) for part in m.w.chunk(3)],
    ),
    "multi-head attention": (
        lambda: Net(
            lambda m, x: m.f(m.t(t := tokens(m.a(x)), t, t, need_weights=False)[0]),
            a=conv(3, 8), t=nn.MultiheadAttention(8, 2, batch_first=True), f=nn.Linear(8, 3),
        ),
        "t.in_proj_weight",
        lambda m: [part.reshape(2, 4, -1) for part in m.t.in_proj_weight.chunk(3)],
    ),
    "product with a parameter": (
        lambda: Net(
            lambda m, x: m.f(F.relu(tokens(m.a(x)) @ m.w + m.b)),
            a=conv(3, 6), w=nn.Parameter(torch.randn(6, 5)), b=nn.Parameter(torch.randn(5)), f=nn.Linear(5, 3),
        ),
        "w",
        lambda m: [m.w.t()],
    ),
    "einsum with a parameter": (
        lambda: Net(
            lambda m, x: m.c(torch.einsum("bihw,oi->bohw", m.a(x), m.w)),
            a=conv(3, 6), w=nn.Parameter(torch.randn(5, 6)), c=conv(5, 3),
        ),
        "w",
        lambda m: [m.w],
    ),
    "bare weight": (
        lambda: Net(
            lambda m, x: m.c(F.conv2d(F.relu(m.a(x)), m.w, padding=1)),
            a=conv(3, 6), w=nn.Parameter(torch.randn(5, 6, 3, 3)), c=conv(5, 3),
        ),
        "w",
        lambda m: [m.w],
    ),
    "weight in a list": (
        lambda: Net(
            lambda m, x: m.c(F.conv2d(x, m.ws[0])), ws=nn.ParameterList([torch.randn(5, 3, 1, 1)]), c=conv(5, 3)
        ),
        "ws.0",
        lambda m: [m.ws[0]],
    ),
    "buffer as a weight": (
        lambda: _with_buffer(lambda m, x: m.c(F.conv2d(m.a(x), m.w)), (5, 6, 1, 1), a=conv(3, 6), c=conv(5, 3)),
        "w",
        lambda m: [m.w],
    ),
    "weight norm": (
        lambda: Net(
            lambda m, x: m.c(F.relu(m.a(x))), a=_trained(parametrizations.weight_norm(conv(3, 8))), c=conv(8, 3)
        ),
        "a.parametrizations.weight.original1",
        lambda m: [m.a.weight],
    ),
    "parametrized": (
        lambda: Net(lambda m, x: m.c(F.relu(m.a(x))), a=_positive(), c=conv(6, 3)),
        "a.parametrizations.weight.original",
        lambda m: [m.a.weight],
    ),
    "masked": (_masked, "a.parametrizations.weight.original", lambda m: [m.a.weight]),
    "two producers": (
        lambda: Net(lambda m, x: m.c(m.a(x) + m.b(x)), a=conv(3, 6), b=conv(3, 6, 1), c=conv(6, 3)),
        "a",
        lambda m: [m.a.weight, m.b.weight],
    ),
    "an autoencoder with one weight": (
        lambda: Net(lambda m, x: F.conv_transpose2d(F.relu(F.conv2d(x, m.w)), m.w), w=nn.Parameter(torch.randn(6, 3, 2, 2))),
        "w",
        lambda m: [m.w],
    ),
    "one channel more than once": (
        lambda: Net(lambda m, x: m.c(torch.cat([y := F.relu(m.a(x)), y, x], 1)), a=conv(3, 6), c=conv(15, 3)),
        "a",
        lambda m: [m.a.weight],
    ),
    "after a flatten": (
        lambda: Net(lambda m, x: m.f(F.relu(m.a(x)).flatten(1)), a=conv(3, 6), f=nn.Linear(384, 3)),
        "a",
        lambda m: [m.a.weight],
    ),
}  # fmt: skip
"""Network, one of its groups, and the tensors that make it, channels first, for a norm each."""

NETS: dict[str, Callable[[], nn.Module]] = {
    **{name: (lambda name=name: zoo.build(name)) for name in zoo.ZOO},
    **{name: make for name, (make, _) in PATTERNS.items()},
    **{name: make for name, (make, _, _) in MAKERS.items()},
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomize(NETS[name]()).double().eval()


@pytest.mark.parametrize("name", [name for name, (_, group, _) in MAKERS.items() if group])
@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_norms_against_numpy(name: str, criterion: str, power: int) -> None:
    model = made(name)
    _, group, tensors = MAKERS[name]
    norms = [np.abs(t.detach().numpy().reshape(t.shape[0], -1)) ** power for t in tensors(model)]
    norms = [n.sum(1) ** (1 / power) for n in norms]
    got = score(model, trace(model, torch.zeros(SHAPE, dtype=torch.float64)), criterion)[group]
    np.testing.assert_allclose(got, np.mean([n / n.mean() for n in norms], axis=0), rtol=1e-6)


def _square(output: Any, _target: Any) -> Tensor:
    leaves = [output] if isinstance(output, Tensor) else torch.utils._pytree.tree_leaves(output)
    return sum(leaf.square().sum() for leaf in leaves if isinstance(leaf, Tensor))  # type: ignore[return-value]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("criterion", ["random", "l1", "l2", "taylor"])
def test_scores_tell_channels_apart(name: str, criterion: str) -> None:
    model = made(name)
    graph = trace(model, torch.zeros(SHAPE, dtype=torch.float64))
    before = {key: t.clone() for key, t in model.state_dict().items()}
    flags = [(t.requires_grad, t.grad) for t in model.state_dict(keep_vars=True).values()]
    data = [(torch.randn(SHAPE, dtype=torch.float64), None)]
    with torch.no_grad():
        found = score(model, graph, criterion, data=data, loss=_square)
    assert set(found) == {group.name for group in graph.prunable}
    for group, values in found.items():
        assert values.shape == (graph.by_name[group].width,)
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        dead = (values == 0).sum() if criterion == "taylor" else 0  # behind a ReLU that never opens
        assert len(set(values.tolist())) - bool(dead) == len(values) - dead, f"{group}: {values}"
        assert dead < len(values), group
    after = model.state_dict(keep_vars=True)
    assert all(torch.equal(before[key], t) for key, t in after.items())
    assert [(t.requires_grad, t.grad) for t in after.values()] == flags


# Brute force: which layer reads an entry, on which channel it ends and from which it comes.

LAYERS = {"convolution", "addmm", "mm", "bmm", "baddbmm", "deform_conv2d", "embedding"}


class Layers(TorchDispatchMode):
    """All calls of operators with weights: function, arguments and result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, list[Any], Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name.split("::")[-1] in LAYERS:
            self.calls.append((func, [a.clone() if isinstance(a, Tensor) else a for a in args], out.clone()))
        return out


def calls(model: nn.Module, x: Tensor) -> list[tuple[Any, list[Any], Tensor]]:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), Layers() as mode, nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            model(x)
        return mode.calls
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def axis_of(func: Any, out: Tensor) -> int:
    return 1 if "conv" in func._schema.name else out.dim() - 1


def moved(
    model: nn.Module, x: Tensor, base: list[Any], data: list[list[int]]
) -> Iterator[tuple[int, list[int], list[int]]]:
    """(call, its output channels that the change in `model` has changed, the input channels without which it changes none)."""
    for index, (old, new) in enumerate(zip(base, calls(model, x), strict=True)):
        func, args, out = new
        if any(not torch.equal(args[i], old[1][i]) for i in data[index]) or torch.equal(out, old[2]):
            continue
        axis, sources = axis_of(func, out), []
        changed = (out != old[2]).movedim(axis, 0).flatten(1).any(1).nonzero().ravel().tolist()
        for source in range(args[data[index][0]].shape[axis]) if len(data[index]) == 1 else ():
            cut = args[data[index][0]].clone()
            cut.select(axis, source).zero_()
            one, two = [[*a[: data[index][0]], cut, *a[data[index][0] + 1 :]] for a in (old[1], args)]
            if torch.equal(func(*one), func(*two)):
                sources.append(source)
        still = [torch.zeros_like(a) if i in data[index] else a for i, a in enumerate(args)]
        was = [still[i] if i in data[index] else a for i, a in enumerate(old[1])]
        if torch.equal(func(*still), func(*was)):  # else a bias
            yield index, changed, sources


def entries(graph: Graph, role: str) -> dict[tuple[str, int], dict[int, tuple[str, int]]]:
    """``{(parameter, dim): {entry: (group, channel)}}`` of what the graph gives that role."""
    found: dict[tuple[str, int], dict[int, tuple[str, int]]] = {}
    for group in graph.prunable:
        for piece in group.slices:
            if role in piece.roles:
                table = found.setdefault((piece.param, piece.dim), {})
                for channel in range(group.width):
                    table |= dict.fromkeys(piece.entries(np.array([channel])).tolist(), (group.name, channel))
    return found


@pytest.mark.parametrize("name", NETS)
def test_producers_and_consumers_by_brute_force(name: str) -> None:
    """An entry that changes output o of a layer, from its input i, is a filter's of what o is and an input's of what i is."""
    model = made(name)
    x = torch.randn(SHAPE, dtype=torch.float64)
    graph = trace(model, x)
    base, other = calls(model, x), calls(model, x + 1)
    data = [[i for i, (a, b) in enumerate(zip(one[1], two[1], strict=True)) if isinstance(a, Tensor) and not torch.equal(a, b)]
            for one, two in zip(base, other, strict=True)]  # fmt: skip
    filters, inputs = entries(graph, "filter"), entries(graph, "input")
    makes: dict[tuple[int, int], tuple[str, int] | None] = {}
    reads: dict[tuple[int, int], tuple[str, int] | None] = {}
    rng = np.random.default_rng(0)
    for param, tensor in {id(t): (name, t) for name, t in reversed(model.state_dict(keep_vars=True).items())}.values():
        for _ in range(6 if tensor.is_floating_point() and tensor.dim() else 0):
            at = tuple(int(rng.integers(size)) for size in tensor.shape)
            old = tensor.data[at].item()
            tensor.data[at] += 0.5
            found = list(moved(model, x, base, data))
            tensor.data[at] = old
            by = [
                [t[at[dim]] for (p, dim), t in table.items() if p == param and at[dim] in t]
                for table in (filters, inputs)
            ]
            if set(by[0]) & set(by[1]):
                continue  # one entry makes the channel here and reads it there
            for call, channels, sources in found:
                for known, own, place in ((makes, channels, by[0]), (reads, sources, by[1])):
                    if len(own) == 1:
                        assert known.setdefault((call, own[0]), next(iter(place), None)) == next(iter(place), None)
    told = {place[0] for table in (makes, reads) for place in table.values() if place is not None}
    assert told == {group.name for group in graph.prunable} or name == "an autoencoder with one weight"


# Gates.


def _gated(model: Any, gates: dict[str, Tensor], forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    return forward(model, {name: gate.view(1, -1, 1, 1) for name, gate in gates.items()}, x)


GATES: dict[str, Callable[[Any, Any, Tensor], Tensor]] = {
    "transposed": lambda m, z, x: m.c(F.relu(m.u(m.a(x) * z["a"])) * z["u"]),
    "transposed with a norm": lambda m, z, x: m.c(F.relu(m.n(m.u(F.relu(m.a(x)) * z["a"])) * z["u"])),
    "transposed in groups": lambda m, z, x: m.c(m.u(m.a(x) * z["a"].repeat(1, 2, 1, 1)) * z["u"].repeat(1, 2, 1, 1)),
    "transposed depthwise": lambda m, z, x: m.c(m.u(m.a(x)) * z["a"].repeat_interleave(2, 1)),
    "product with a parameter": lambda m, z, x: m.f(
        F.relu(tokens(m.a(x) * z["a"]) @ m.w + m.b) * z["w"].view(1, 1, -1)
    ),
    "bare weight": lambda m, z, x: m.c(F.conv2d(F.relu(m.a(x)) * z["a"], m.w, padding=1) * z["w"]),
    "buffer as a weight": lambda m, z, x: m.c(F.conv2d(m.a(x) * z["a"], m.w) * z["w"]),
    "weight norm": lambda m, z, x: m.c(F.relu(m.a(x)) * z["a.parametrizations.weight.original1"]),
    "one channel more than once": lambda m, z, x: m.c(
        torch.cat([y := F.relu(m.a(x)) * z["a"], y, x], 1)
    ),
    "after a flatten": lambda m, z, x: m.f((F.relu(m.a(x)) * z["a"]).flatten(1)),
    "pre_activation": lambda m, z, x: _pre_activation(m, z, x),
    "depthwise_se": lambda m, z, x: _depthwise_se(m, z, x),
    "scaled": lambda m, z, x: m.c(
        z["a"] * m.tied(z["a"] * F.relu(m.shared(z["a"] * F.relu(m.shared(z["a"] * (m.a(x) * m.gain + m.shift))))))
    ),
    "multi-head attention": lambda m, z, x: _multi_head(m, z, x),
}  # fmt: skip
"""The forward with each group's gate before every layer that reads it."""


def _pre_activation(m: Any, z: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    x = x + m.conv2(z["conv1"] * F.relu(m.bn2(m.conv1(z["stem"] * F.relu(m.bn1(x))))))
    return m.head(z["stem"] * x)


def _depthwise_se(m: Any, z: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    y = m.depthwise(m.expand(z["stem.0"] * x))
    scale = torch.sigmoid(m.excite(z["squeeze"] * F.relu(m.squeeze((z["expand.0"] * y).mean((2, 3), keepdim=True)))))
    x = x + m.project(z["expand.0"] * (y * scale))
    return m.fc((m.twice(x) * z["stem.0"].repeat_interleave(2, 1)).mean((2, 3)))


def _multi_head(m: Any, z: Any, x: Tensor) -> Tensor:
    t = tokens(m.a(x) * z["a"])
    q, k, v = F.linear(t, m.t.in_proj_weight, m.t.in_proj_bias).view(2, 64, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    heads = F.scaled_dot_product_attention(q, k, v) * z["t.in_proj_weight"]
    return m.f(m.t.out_proj(heads.transpose(1, 2).flatten(2)) * z["t.out_proj"].view(1, 1, -1))


@pytest.mark.parametrize("name", GATES)
def test_taylor_against_gates(name: str) -> None:
    model = made(name)
    graph = trace(model, torch.zeros(SHAPE, dtype=torch.float64))
    batches = [(torch.randn(SHAPE, dtype=torch.float64), None) for _ in range(2)]
    want = {group.name: np.zeros(group.width) for group in graph.prunable}
    for x, _ in batches:
        gates = {
            group.name: torch.ones(group.width, dtype=torch.float64, requires_grad=True) for group in graph.prunable
        }
        output = _gated(model, gates, GATES[name], x)
        torch.testing.assert_close(output, model(x))
        for group, gradient in zip(
            gates, torch.autograd.grad(_square(output, None), list(gates.values())), strict=True
        ):
            want[group] += gradient.numpy() ** 2 / 2
    got = score(model, graph, "taylor", data=batches, loss=_square)
    for group, values in want.items():
        np.testing.assert_allclose(got[group], values, rtol=1e-5, err_msg=group)


HOMOGENEOUS = (
    "plain",
    "residual",
    "grouped",
    "unequal_concat",
    "stack_unbind",
    "channel_shuffle",
    "transposed_view",
    "pixel_shuffle",
    "conv1d",
    "conv3d",
    "squeezed",
    "transposed",
    "transposed with a norm",
    "transposed in groups",
    "transposed in 1-D",
    "transposed in 3-D",
    "product with a parameter",
    "einsum with a parameter",
    "bare weight",
    "weight in a list",
    "buffer as a weight",
    "two producers",
    "one channel more than once",
    "after a flatten",
)


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_what_goes_into_a_channel_comes_out(name: str) -> None:
    """Between producers and consumers only ReLUs, sums and moves: gates on both sides have one derivative (Euler)."""
    model = made(name)
    x = torch.randn(SHAPE, dtype=torch.float64)
    for key, tensor in model.state_dict(keep_vars=True).items():
        tensor.requires_grad_("running" not in key and "num_batches" not in key)
    graph = trace(model, x)
    _square(model(x), None).backward()
    for group, found in members(model, graph).items():
        own = [*found.scales, *found.shifts] or [*found.filters, *found.biases]
        one, two = (sum(member.products() for member in side) for side in (own, found.inputs))
        np.testing.assert_allclose(one, two, rtol=1e-7, atol=1e-9, err_msg=group)


# Graphs of earlier versions.


def _without_roles(graph: Graph) -> Graph:
    data = graph.to_json()
    for group in data["groups"]:
        for piece in group["slices"]:
            piece.pop("roles", None)
    return Graph.from_json(json.loads(json.dumps(data)))


def test_graphs_of_the_first_version_load_and_fit_their_plans() -> None:
    graph = trace(zoo.build("residual"), torch.zeros(zoo.SHAPE))
    old = _without_roles(graph)
    assert old != graph
    assert old.fingerprint == graph.fingerprint == Graph.from_json(graph.to_json()).fingerprint == FIRST
    with pytest.raises(DataError, match=r"does not tell what makes the channels of 'stem.0'.*trace again"):
        score(zoo.build("residual"), old, "l1")


FIRST = "1aeefb5d34327100"
"""Fingerprint of this graph in version 0.1."""


def test_the_dense_model_is_left_alone() -> None:
    model = zoo.build("residual").train()
    twin = copy.deepcopy(model)
    graph = trace(model, torch.zeros(zoo.SHAPE))
    data = [((torch.randn(zoo.SHAPE),), None)]
    with torch.inference_mode():
        score(model, graph, "taylor", data=data, loss=_square)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert all(module.training for module in model.modules())
