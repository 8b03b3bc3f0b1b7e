"""The first layers of a library's classifier, changed for pictures that it was not designed for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pydeploy.errors import ConfigError

KERNEL = 3
"""Of the first convolution for small pictures, where the network has a larger one."""


def changed_stem(
    factory: Callable[..., nn.Module], *, in_channels: int | None = None, small_stem: bool = False, **options: Any
) -> nn.Module:
    """What `factory` builds with `options`, with two changes that libraries have no arguments for.

    `in_channels` is that of the first convolution. `small_stem` is for pictures of 28 to 64 pixels: the first convolution keeps their
    size (stride 1, a kernel of at most 3), and the first max-pooling, of ResNets that after the stem, is left out.
    A first convolution that changes starts anew, even where `options` ask for trained weights.
    """
    model = factory(**options)
    if in_channels is None and not small_stem:
        return model
    name, first = _first(model, nn.Conv2d)
    channels = in_channels or first.in_channels
    if small_stem:
        kernel = min(KERNEL, max(first.kernel_size))
        _put(model, name, _like(first, channels, kernel, stride=1, padding=kernel // 2))
        if pools := [where for where, module in model.named_modules() if isinstance(module, nn.MaxPool2d)]:
            _put(model, pools[0], nn.Identity())
    elif channels != first.in_channels:
        _put(model, name, _like(first, channels, first.kernel_size, first.stride, first.padding))
    return model


def _first(model: nn.Module, kind: type[nn.Conv2d]) -> tuple[str, nn.Conv2d]:
    for name, module in model.named_modules():
        if isinstance(module, kind):
            return name, module
    raise ConfigError("'in_channels' and 'small_stem' change the first 2-D convolution, and this network has none")


def _like(first: nn.Conv2d, channels: int, kernel: Any, stride: Any, padding: Any) -> nn.Conv2d:
    made = nn.Conv2d(channels, first.out_channels, kernel, stride, padding, bias=first.bias is not None)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    if made.bias is not None:
        nn.init.zeros_(made.bias)
    return made


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
