"""Tiny networks, one per structural pattern that `trace` must understand, beside those of `zoo`; inputs are (2, 3, 8, 8)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Layers by name and a forward that is given as a function."""

    def __init__(self, forward: Callable[..., object], **layers: object) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.body = forward

    def forward(self, *inputs: Tensor) -> object:
        return self.body(self, *inputs)


def conv(cin: int, cout: int, k: int = 3, **kw: object) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, k, padding=k // 2, **kw)


def _chunks(m, x):
    a, b = F.relu(m.a(x)).chunk(2, 1)
    return m.c(a * torch.sigmoid(b))


def _unequal(m, x):
    return m.c(torch.cat([F.relu(m.a(x)), m.b(x), x], 1))


def _stacked(m, x):
    one, two = torch.stack([m.a(x), m.b(x)], 1).unbind(1)
    return m.c(one + 2 * two)


def _shuffled(m, x):
    x = m.a(x)
    n, c, h, w = x.shape
    return m.c(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


def _attention(m, x):
    t = m.a(x).flatten(2).transpose(1, 2)
    q, k, v = m.qkv(t).view(t.shape[0], t.shape[1], 3, -1, 4).permute(2, 0, 3, 1, 4).unbind(0)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * 0.5 + m.bias[m.index].permute(2, 0, 1)
    return m.out((torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)).transpose(1, 2).flatten(2))


def _hard_coded(m, x):
    return m.c(m.a(x).view(x.shape[0], 8, 64).view(x.shape[0], 8, 8, 8))


def _generator(m, x):
    return m.up(m.fc(x.mean((2, 3))).view(x.shape[0], -1, 4, 4))


def _weight_norm() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(conv(3, 8))


def _constant_written(m, x):
    y = m.a(x)
    whole = torch.zeros_like(y)
    whole[:, :, 1:] = y[:, :, :-1]
    return m.c(whole)


class Keeping(Net):
    """A net that keeps numbers of its own."""

    def __init__(self, forward: Callable[..., object], numbers: dict[str, object], **layers: object) -> None:
        super().__init__(forward, **layers)
        for name, value in numbers.items():
            setattr(self, name, value)


class Block(Keeping):
    """A block inside a net, so that two of one class can have unequal numbers."""


def _hierarchical(m, x):
    """Res2Net: parts of a kept width, each convolved with the sum of the part before it."""
    parts = torch.split(F.relu(m.a(x)), m.width, 1)
    return torch.cat([y := F.relu(m.b(parts[0])), F.relu(m.d(y + parts[1])), parts[2]], 1)


def _residual_of_a_part(m, x):
    """ReXNet: the block's output has more channels than its input, which is added to the first ones."""
    y = m.b(x)
    return torch.cat([y[:, : m.width] + x, y[:, m.width :]], 1)


def _mixed(m, x):
    parts = torch.split(m.a(x), m.splits, 1)
    return m.c(torch.cat([m.b(parts[0]), m.d(parts[1])], 1))


def _partial(m, x):
    """FasterNet: some channels are convolved, the others pass."""
    one, two = torch.split(m.a(x), [m.done, m.left], 1)
    return m.c(torch.cat([m.b(one), two], 1))


class Standardized(nn.Conv2d):
    """Weight standardization (Qiao et al. 2019) with a gain."""

    def __init__(self, *args: int, **kw: int) -> None:
        super().__init__(*args, **kw)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=(self.gain * 0.3).view(-1), training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


def _buffered() -> nn.Module:
    net = Net(lambda m, x: m.c((m.a(x) - m.shift) * m.gain), a=conv(3, 8), c=conv(8, 3))
    net.register_buffer("gain", torch.rand(8, 1, 1) + 0.5)
    net.register_buffer("shift", torch.randn(1, 8, 1, 1))
    return net


def _loose_buffer() -> nn.Module:
    net = Net(lambda m, x: m.c(m.a(x) * m.gain), a=conv(3, 8), c=conv(8, 3))
    net.register_buffer("gain", torch.rand(8, 1, 1), persistent=False)
    return net


def _written_whole() -> nn.Module:
    """Detectors' pooling: rows of a tensor of zeros are written from several maps, places by places."""

    def forward(m, x):
        y = m.a(x)
        whole = torch.zeros(2, y.shape[1], 8, 8, dtype=x.dtype, device=x.device)
        whole[0]  # a view that nobody reads
        whole[torch.tensor([1])] = y[:1]
        whole[torch.tensor([0])] = m.a(x.flip(3))[1:]
        return m.c(m.b(whole))

    return Net(forward, a=conv(3, 6), b=conv(6, 6), c=conv(6, 3))


def _split(m, x):
    a, b, c = m.a(x).split(x.shape[1] + 1, 1)
    return m.c(a + b * c)


PATTERNS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "chunk": (lambda: Net(_chunks, a=conv(3, 8), c=conv(4, 3)), {"a"}),
    "unequal_concat": (lambda: Net(_unequal, a=conv(3, 8), b=conv(3, 5), c=conv(16, 3)), {"a", "b"}),
    "stack_unbind": (lambda: Net(_stacked, a=conv(3, 6), b=conv(3, 6), c=conv(6, 3)), {"a"}),
    "channel_shuffle": (lambda: Net(_shuffled, a=conv(3, 8), c=conv(8, 3)), {"a"}),
    "native_shuffle": (
        lambda: Net(lambda m, x: m.c(m.s(m.a(x))), a=conv(3, 8), s=nn.ChannelShuffle(2), c=conv(8, 3)),
        {"a"},
    ),
    "one_channel": (
        lambda: Net(lambda m, x: m.c(m.a(x) * torch.sigmoid(m.g(x))), a=conv(3, 6), g=conv(3, 1), c=conv(6, 3)),
        {"a"},
    ),
    "transposed_view": (lambda: Net(_generator, fc=nn.Linear(3, 96), up=nn.ConvTranspose2d(6, 3, 2, 2)), {"fc"}),
    "transposed": (
        lambda: Net(
            lambda m, x: m.c(F.relu(m.u(m.a(x)))),
            a=conv(3, 6),
            u=nn.ConvTranspose2d(6, 8, 2, 2, groups=2),
            c=conv(8, 3),
        ),
        {"a", "u"},
    ),
    "pixel_shuffle": (
        lambda: Net(lambda m, x: m.c(m.s(m.a(x))), a=conv(3, 24), s=nn.PixelShuffle(2), c=conv(6, 3)),
        {"a"},
    ),
    "pixel_unshuffle": (
        lambda: Net(lambda m, x: m.c(m.s(m.a(x))), a=conv(3, 5), s=nn.PixelUnshuffle(2), c=conv(20, 3)),
        {"a"},
    ),
    "interpolate_pad": (
        lambda: Net(
            lambda m, x: m.c(F.interpolate(F.pad(m.a(x), (1, 2, 0, 1)), scale_factor=2, mode="bilinear")),
            a=conv(3, 6),
            c=conv(6, 3),
        ),
        {"a"},
    ),
    "channel_pad": (
        lambda: Net(lambda m, x: m.c(F.pad(m.a(x), (0, 0, 0, 0, 1, 1))), a=conv(3, 6), c=conv(8, 3)),
        set(),
    ),
    "group_norm": (
        lambda: Net(lambda m, x: m.c(F.relu(m.n(m.a(x)))), a=conv(3, 12), n=nn.GroupNorm(4, 12), c=conv(12, 3)),
        {"a"},
    ),
    "group_norm_of_all": (
        lambda: Net(lambda m, x: m.c(F.relu(m.n(m.a(x)))), a=conv(3, 7), n=nn.GroupNorm(1, 7), c=conv(7, 3)),
        {"a"},
    ),
    "layer_norm": (
        lambda: Net(
            lambda m, x: m.f(m.n(m.a(x).flatten(2).transpose(1, 2))), a=conv(3, 8), n=nn.LayerNorm(8), f=nn.Linear(8, 3)
        ),
        {"a"},
    ),
    "instance_norm_prelu": (
        lambda: Net(
            lambda m, x: m.c(m.p(m.n(m.a(x)))),
            a=conv(3, 6),
            n=nn.InstanceNorm2d(6, affine=True),
            p=nn.PReLU(6),
            c=conv(6, 3),
        ),
        {"a"},
    ),
    "weight_norm": (
        lambda: Net(lambda m, x: m.c(F.relu(m.a(x))), a=_weight_norm(), c=conv(8, 3)),
        {"a.parametrizations.weight.original1"},
    ),
    "attention": (
        lambda: Net(
            _attention,
            a=conv(3, 6),
            qkv=nn.Linear(6, 36),
            out=nn.Linear(12, 4),
            bias=nn.Parameter(torch.randn(10, 3)),
            index=torch.arange(64 * 64).view(64, 64) % 10,
        ),
        {"a", "qkv"},
    ),
    "multi_head": (
        lambda: Net(
            lambda m, x: m.f(
                m.t(m.a(x).flatten(2).transpose(1, 2), *[m.a(x).flatten(2).transpose(1, 2)] * 2, need_weights=False)[0]
            ),
            a=conv(3, 8),
            t=nn.MultiheadAttention(8, 2, batch_first=True),
            f=nn.Linear(8, 3),
        ),
        {"a", "t.in_proj_weight", "t.out_proj"},
    ),
    "dict_output": (
        lambda: Net(lambda m, x: {"y": [m.c(m.a(x))], "z": m.a(x).mean((2, 3))}, a=conv(3, 6), c=conv(6, 3)),
        set(),
    ),
    "conv1d": (lambda: Net(lambda m, x: m.c(m.a(x.flatten(2))), a=nn.Conv1d(3, 6, 3), c=nn.Conv1d(6, 3, 3)), {"a"}),
    "conv3d": (
        lambda: Net(
            lambda m, x: m.c(m.n(m.a(x.unsqueeze(2)))),
            a=nn.Conv3d(3, 6, (1, 3, 3)),
            n=nn.BatchNorm3d(6),
            c=nn.Conv3d(6, 3, 1),
        ),
        {"a"},
    ),
    "hard_coded": (lambda: Net(_hard_coded, a=conv(3, 8), c=conv(8, 3)), set()),
    "fixed_start": (lambda: Net(lambda m, x: m.c(m.a(x)[:, 4:]), a=conv(3, 8), c=conv(4, 3)), set()),
    "width_in_number": (
        lambda: Net(lambda m, x: m.c((y := m.a(x)) * y.shape[1] ** -0.5), a=conv(3, 8), c=conv(8, 3)),
        set(),
    ),
    "branch_on_width": (
        lambda: Net(lambda m, x: m.c(F.relu(y) if (y := m.a(x)).shape[1] > 6 else y), a=conv(3, 8), c=conv(8, 3)),
        set(),
    ),
    "written_part": (lambda: Net(_constant_written, a=conv(3, 6), c=conv(6, 3)), set()),
    "squeezed": (
        lambda: Net(lambda m, x: m.f(m.a(x).mean((2, 3), keepdim=True).squeeze()), a=conv(3, 6), f=nn.Linear(6, 3)),
        {"a"},
    ),
    "buffers": (_buffered, {"a"}),
    "loose_buffer": (_loose_buffer, set()),
    "even_split": (
        lambda: Net(lambda m, x: m.c(torch.mul(*(y := m.a(x)).split(y.shape[1] // 2, 1))), a=conv(3, 8), c=conv(4, 3)),
        {"a"},
    ),
    "fixed_split": (lambda: Net(_split, a=conv(3, 12), c=conv(4, 3)), set()),
    "kept_width": (
        lambda: Net(
            lambda m, x: m.c(m.two(m.one(x))),
            one=Block(_hierarchical, {"width": 4}, a=conv(3, 12), b=conv(4, 4), d=conv(4, 4)),
            two=Block(_hierarchical, {"width": 5}, a=conv(12, 15), b=conv(5, 5), d=conv(5, 5)),
            c=conv(15, 3),
        ),
        {"one.a", "one.d", "two.a", "two.d"},
    ),
    "kept_part": (
        lambda: Net(
            lambda m, x: m.c(m.two(m.one(m.a(x)))),
            a=conv(3, 5),
            one=Block(_residual_of_a_part, {"width": 5}, b=conv(5, 8)),
            two=Block(_residual_of_a_part, {"width": 8}, b=conv(8, 11)),
            c=conv(11, 3),
        ),
        {"a", "one.b", "two.b"},
    ),
    "kept_sizes": (
        lambda: Keeping(_mixed, {"splits": [5, 3]}, a=conv(3, 8), b=conv(5, 5, groups=5), d=conv(3, 4), c=conv(9, 3)),
        {"a", "a#2", "d"},
    ),
    "kept_two_numbers": (
        lambda: Keeping(_partial, {"done": 2, "left": 6}, a=conv(3, 8), b=conv(2, 2), c=conv(8, 3)),
        {"a", "a#2", "b"},
    ),
    "kept_shape": (
        lambda: Net(
            lambda m, x: m.c(m.s(m.a(x))),
            a=conv(3, 8),
            s=Block(lambda m, x: x * m.gain.view(m.size), {"size": (8, 1, 1)}, gain=nn.Parameter(torch.rand(8) + 0.5)),
            c=conv(8, 3),
        ),
        {"a"},
    ),
    "normalized": (
        lambda: Net(
            lambda m, x: m.c(F.normalize(F.relu(m.n(m.a(x)))) * m.gain.view(1, -1, 1, 1)),
            a=conv(3, 8),
            n=nn.BatchNorm2d(8),
            gain=nn.Parameter(torch.rand(8) + 0.5),
            c=conv(8, 3),
        ),
        {"a"},
    ),
    "normalized_not_zero": (
        lambda: Net(lambda m, x: m.c(F.normalize(torch.sigmoid(m.a(x)))), a=conv(3, 8), c=conv(8, 3)),
        set(),
    ),
    "mean_of_channels": (
        lambda: Net(lambda m, x: m.c((y := m.a(x)) - y.mean(1, keepdim=True)), a=conv(3, 8), c=conv(8, 3)),
        set(),
    ),
    "written_whole": (_written_whole, {"a", "b"}),
    "weight_standardization": (
        lambda: Net(
            lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))),
            a=Standardized(3, 6, 3),
            b=Standardized(6, 7, 3),
            c=conv(7, 3),
        ),
        {"a", "b"},
    ),
    "two_uses": (lambda: Net(lambda m, x: m.a(F.relu(m.b(m.a(x)))), a=conv(3, 6), b=conv(6, 3)), set()),
}
"""Network and the layers whose groups are prunable; an empty set: everything is frozen."""
