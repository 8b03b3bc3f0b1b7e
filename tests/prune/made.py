"""Networks whose sizes are computed: zeros, blurs, gates, normed weights; inputs are (2, 3, 8, 8). With the layers whose groups are
prunable, and those among them whose channels change when others go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from patterns import Net, conv


def _zeros_beside(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.c(m.b(torch.cat([y, torch.zeros(y.shape[0], y.shape[1], 8, 8, dtype=y.dtype)], 1)))


def _zeros_of_another(m: Any, x: Tensor) -> Tensor:
    y, z = m.a(x), m.e(x)
    return m.c(m.b(torch.cat([y, z.new_zeros(z.shape).tanh()], 1)) + m.d(z))


def _two_zeros(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.c(torch.cat([torch.zeros_like(y), y, torch.full_like(y, 0.0)], 1))


class Cell(nn.Module):
    """A convolutional LSTM over the first input repeated; `how` says where the first state comes from."""

    def __init__(self, how: str, hidden: int = 6) -> None:
        super().__init__()
        self.a, self.how, self.hidden = conv(3, 5), how, hidden
        self.both, self.c = conv(5 + hidden, 4 * hidden), conv(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        h = c = x.new_zeros(x.shape[0], self.hidden, *x.shape[2:])
        for _ in range(2):
            i, f, o, g = self.both(torch.cat([y, h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.c(h)


class Gated(nn.Module):
    """A convolutional GRU whose first state, zeros of a kept width, goes through a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.x, self.h, self.c = 6, conv(3, 12), conv(6, 12, bias=False), conv(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], self.hidden, 8, 8, dtype=x.dtype)
        for _ in range(2):
            gate, new = (self.x(x) + self.h(h)).chunk(2, 1)
            h = torch.sigmoid(gate) * h + torch.tanh(new)
        return self.c(h)


def _blur(kernel: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.a(x))
        return m.c(F.conv2d(y, kernel(m, y), groups=y.shape[1], padding=1, stride=2))

    return forward


def _blurred(kernel: Callable[[Any, Tensor], Tensor], **more: Any) -> nn.Module:
    return Net(_blur(kernel), a=conv(3, 8), c=conv(8, 2), k=nn.Parameter(torch.rand(1, 1, 3, 3)), **more)


def _buffered_blur() -> nn.Module:
    model = Net(
        _blur(lambda m, y: m.filter[None, None].expand(y.shape[1], 1, 3, 3) / m.filter.sum()),
        a=conv(3, 8),
        c=conv(8, 2),
    )
    model.register_buffer("filter", torch.rand(3, 3))
    return model


class Blur(nn.Module):
    """A block that keeps its width as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 8
        self.register_buffer("k", torch.rand(1, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.k.repeat(self.channels, 1, 1, 1), groups=self.channels)


def _gate(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.a(x))
    y = y * torch.sigmoid(m.g(y.mean((2, 3), keepdim=True)))
    return m.c(y) + y.sum(1, keepdim=True)


def _shifted_sum(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.c(y) + (y + 1.0).sum(1, keepdim=True)


def _ramp(m: Any, x: Tensor) -> Tensor:
    """Not one entry like another: 1, 2, 3, ... over the channels."""
    y = m.a(x)
    return m.c(y * torch.ones(y.shape[1], dtype=y.dtype).cumsum(0).view(1, -1, 1, 1))


def _part_written(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    scale = torch.ones(1, y.shape[1], 1, 1, dtype=y.dtype)
    scale[:, 0] = 3.0
    return m.c(y * scale)


def _zeros_written(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    state = torch.zeros_like(y)
    state[:, :2] = 1.0
    return m.c(torch.cat([y, state], 1))


def _deformable(bias: bool) -> nn.Module:
    from torchvision.ops import DeformConv2d

    layers = {"a": conv(3, 8), "o": conv(3, 18), "d": DeformConv2d(8, 6, 3, padding=1, bias=bias), "c": conv(6, 2)}
    return Net(lambda m, x: m.c(m.d(m.a(x), m.o(x))), **layers)


def _normed(norm: Callable[..., nn.Module], dim: int | None = 0, **more: Any) -> nn.Module:
    return Net(
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), a=conv(3, 6), b=norm(conv(6, 8), dim=dim), c=conv(8, 3), **more
    )


def _settled(model: nn.Module) -> nn.Module:
    """Spectral norms with singular vectors that fit."""
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 8, 8))
    return model.eval()


def _by_hand(m: Any, x: Tensor) -> Tensor:
    weight = m.v / m.v.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * m.g.view(-1, 1, 1, 1)
    return m.c(F.relu(F.conv2d(F.relu(m.a(x)), weight)))


def _cosine(m: Any, x: Tensor) -> Tensor:
    return F.linear(F.relu(m.a(x)).mean((2, 3)), F.normalize(m.w))


V1 = "b.parametrizations.weight.original1"
V = "b.parametrizations.weight.original"
MADE: dict[str, tuple[Callable[[], nn.Module], set[str], set[str]]] = {
    "zeros_beside": (lambda: Net(_zeros_beside, a=conv(3, 8), b=conv(16, 8), c=conv(8, 2)), {"a", "b"}, set()),
    "zeros_of_another": (
        lambda: Net(_zeros_of_another, a=conv(3, 8), e=conv(3, 8), b=conv(16, 8), d=conv(8, 8), c=conv(8, 2)),
        {"a", "e", "b"},
        set(),
    ),
    "two_zeros": (lambda: Net(_two_zeros, a=conv(3, 5), c=conv(15, 2)), {"a"}, set()),
    "lstm": (lambda: Cell("zeros"), {"a", "both"}, set()),
    "gru": (Gated, {"x"}, set()),
    "blur_expanded": (lambda: _blurred(lambda m, y: m.k.expand(y.shape[1], 1, 3, 3)), {"a"}, set()),
    "blur_repeated": (lambda: _blurred(lambda m, y: m.k.repeat(y.shape[1], 1, 1, 1)), {"a"}, set()),
    "blur_tiled": (lambda: _blurred(lambda m, y: torch.cat([m.k] * y.shape[1])), set(), set()),
    "blur_viewed": (lambda: _blurred(lambda m, y: m.k[0].expand(y.shape[1], 3, 3).unsqueeze(1)), {"a"}, set()),
    "blur_constant": (lambda: _blurred(lambda m, y: torch.ones(y.shape[1], 1, 3, 3, dtype=y.dtype) / 9), {"a"}, set()),
    "blur_literal": (
        lambda: _blurred(
            lambda m, y: torch.tensor([[[[0.0, 1, 0], [1, 4, 1], [0, 1, 0]]]], dtype=y.dtype).repeat(
                y.shape[1], 1, 1, 1
            )
        ),
        {"a"},
        set(),
    ),
    "blur_buffer": (_buffered_blur, {"a"}, set()),
    "blur_block": (lambda: nn.Sequential(conv(3, 8), Blur(), conv(8, 2)), {"0"}, set()),
    "gate": (lambda: Net(_gate, a=conv(3, 8), g=conv(8, 8, 1), c=conv(8, 2)), {"a"}, set()),
    "shifted_sum": (lambda: Net(_shifted_sum, a=conv(3, 8), c=conv(8, 2)), set(), set()),
    "ramp": (lambda: Net(_ramp, a=conv(3, 8), c=conv(8, 2)), set(), set()),
    "part_written": (lambda: Net(_part_written, a=conv(3, 8), c=conv(8, 2)), set(), set()),
    "zeros_written": (lambda: Net(_zeros_written, a=conv(3, 8), c=conv(16, 2)), set(), set()),
    "deformable": (lambda: _deformable(bias=True), {"a", "d"}, set()),
    "deformable_without_bias": (lambda: _deformable(bias=False), {"a", "d"}, set()),
    "weight_norm": (lambda: _normed(parametrizations.weight_norm), {"a", V1}, {"a"}),
    "weight_norm_of_inputs": (lambda: _normed(parametrizations.weight_norm, 1), {"a", V1}, {V1}),
    "weight_norm_of_all": (lambda: _normed(parametrizations.weight_norm, None), {"a", V1}, {"a", V1}),
    "weight_norm_last": (lambda: _normed(parametrizations.weight_norm, 3), {"a", V1}, {"a", V1}),
    "legacy_weight_norm": (lambda: _normed(_old("weight_norm")), {"a", "b.weight_v"}, {"a"}),
    "spectral_norm": (lambda: _settled(_normed(parametrizations.spectral_norm)), {"a", V}, {"a", V}),
    "spectral_norm_of_inputs": (lambda: _settled(_normed(parametrizations.spectral_norm, 1)), {"a", V}, {"a", V}),
    "legacy_spectral_norm": (
        lambda: _settled(_normed(_old("spectral_norm"))),
        {"a", "b.weight_orig"},
        {"a", "b.weight_orig"},
    ),
    "normed_by_hand": (
        lambda: Net(
            _by_hand,
            a=conv(3, 6),
            c=conv(8, 3),
            v=nn.Parameter(torch.randn(8, 6, 3, 3)),
            g=nn.Parameter(torch.rand(8) + 0.5),
        ),
        {"a", "v"},
        {"a"},
    ),
    "cosine_head": (lambda: Net(_cosine, a=conv(3, 8), w=nn.Parameter(torch.randn(4, 8))), {"a"}, {"a"}),
}


def _old(name: str) -> Callable[..., nn.Module]:
    """The norms before parametrizations, which are deprecated."""

    def norm(layer: nn.Module, dim: int | None = 0) -> nn.Module:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(nn.utils, name)(layer, dim=dim)

    return norm
