"""Random networks: whatever `trace` accepts is cut as if silenced, on other batches and data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from patterns import conv
from test_prune_law import lawful

STEPS = ("conv", "normed", "spectral", "depthwise", "norm", "relu", "sigmoid", "gate", "zeros", "half", "blur", "skip", "dense",
         "shuffle", "hook", "branch", "state", "scale", "sum", "squash", "cache", "ramp", "pool")  # fmt: skip


class Random(nn.Module):
    """A chain of steps drawn by a seed, on 8 x 8 maps; `widths` are known while it is built."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.steps: list[tuple[str, int]] = []
        self.layers, self.kept, self.cached = nn.ModuleList([conv(3, 8)]), {}, {}
        width = 8
        for name in rng.choice(STEPS, size=int(rng.integers(3, 9))):
            if name in ("half", "shuffle") and width % 4:
                continue
            self.steps.append((str(name), len(self.layers)))
            width = self._build(str(name), width, rng)
        self.layers.append(conv(width, 3))
        self.add = width

    def _build(self, name: str, width: int, rng: np.random.Generator) -> int:
        wide = int(rng.integers(2, 5)) * 2
        made: dict[str, Callable[[], tuple[nn.Module, int]]] = {
            "conv": lambda: (conv(width, wide), wide),
            "normed": lambda: (parametrizations.weight_norm(conv(width, wide), dim=int(rng.integers(0, 2))), wide),
            "spectral": lambda: (parametrizations.spectral_norm(conv(width, wide)), wide),
            "depthwise": lambda: (conv(width, width, groups=width), width),
            "norm": lambda: (nn.BatchNorm2d(width), width),
            "gate": lambda: (conv(width, width, 1), width),
            "zeros": lambda: (conv(2 * width, wide), wide),
            "skip": lambda: (nn.Sequential(conv(width, wide), nn.ReLU(), conv(wide, width)), width),
            "dense": lambda: (conv(width, 4), width + 4),
            "hook": lambda: (conv(width, wide), wide),
            "branch": lambda: (nn.ModuleList([conv(width, wide), conv(width, wide)]), wide),
            "state": lambda: (conv(width, width, 1), width),
            "scale": lambda: (nn.PReLU(width), width),
            "blur": lambda: (nn.ParameterList([torch.rand(1, 1, 3, 3)]), width),
        }
        if name in made:
            layer, width = made[name]()
            if name == "hook":
                number = len(self.layers)
                layer.register_forward_hook(lambda _m, _i, out: self.kept.update({number: out}))
            self.layers.append(layer)
        return width // 2 if name == "half" else width

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[0](x)
        for name, number in self.steps:
            layer: Any = self.layers[number] if number < len(self.layers) else None
            y = self._step(name, layer, number, y)
        return self.layers[-1](y)

    def _step(self, name: str, layer: Any, number: int, y: Tensor) -> Tensor:
        channels = y.shape[1]
        if name in ("conv", "normed", "spectral", "depthwise", "norm", "scale"):
            return layer(y)
        if name == "hook":
            layer(y)
            return self.kept[number]
        if name == "branch":
            return layer[0](y) if y.mean() > 0.05 else layer[1](y)
        if name == "state":
            old = self.cached.pop(number, torch.zeros_like(y))
            self.cached[number] = layer(y)
            return y + old.mean((0,), keepdim=True)
        if name == "cache":
            grid = self.cached.setdefault((number, "grid"), torch.linspace(0, 1, y.shape[3], dtype=y.dtype))
            return y * grid
        plain: dict[str, Callable[[], Tensor]] = {
            "relu": lambda: F.relu(y),
            "sigmoid": lambda: torch.sigmoid(y),
            "gate": lambda: y * torch.sigmoid(layer(y.mean((2, 3), keepdim=True))),
            "zeros": lambda: layer(torch.cat([y, y.new_zeros(y.shape)], 1)),
            "half": lambda: torch.mul(*y.chunk(2, 1)),
            "skip": lambda: y + layer(y),
            "dense": lambda: torch.cat([y, layer(y)], 1),
            "shuffle": lambda: F.channel_shuffle(y, 2),
            "blur": lambda: F.conv2d(y, layer[0].repeat(channels, 1, 1, 1), groups=channels, padding=1),
            "sum": lambda: y + y.sum(1, keepdim=True),
            "squash": lambda: y / (1 + y.abs().mean((2, 3), keepdim=True)),
            "ramp": lambda: y * torch.arange(1, channels + 1, dtype=y.dtype).view(1, -1, 1, 1),
            "pool": lambda: F.max_pool2d(y, 3, 1, 1),
        }
        return plain[name]()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_random_networks(seed: int) -> None:
    lawful(lambda: Random(seed), seed)
