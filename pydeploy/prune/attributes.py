"""Module attributes that repeat a parameter's shape (``out_channels``, ``num_features``, ...) follow the cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import nn


def update_attributes(before: nn.Module, twins: Mapping[int, Any]) -> None:
    """Set the attributes of every module's cut copy, ``twins[id(module)]``, to what its parameters now are."""
    for old in before.modules():
        kind: Any = type(old)  # mypy takes a module class for something without a hash
        update = _updater(kind)
        if update is not None:
            update(old, twins[id(old)])


@cache
def _updater(kind: type[nn.Module]) -> Callable[[Any, Any], None] | None:
    return ATTRIBUTES.get(kind) or next((update for base, update in ATTRIBUTES.items() if issubclass(kind, base)), None)


def _convolution(before: Any, after: Any) -> None:
    ours, theirs = (1, 0) if after.transposed else (0, 1)  # weight axes of output and input channels
    if 1 < before.groups == before.in_channels:
        after.groups = after.weight.shape[0] * before.groups // before.weight.shape[0]
    after.out_channels = after.weight.shape[ours] * (after.groups if ours else 1)
    after.in_channels = after.weight.shape[theirs] * (after.groups if theirs else 1)


def _linear(_before: Any, after: Any) -> None:
    after.out_features, after.in_features = after.weight.shape


def _batch_norm(_before: Any, after: Any) -> None:
    known = after.weight if after.weight is not None else after.running_mean
    if known is not None:
        after.num_features = known.shape[0]


def _group_norm(_before: Any, after: Any) -> None:
    if after.weight is not None:
        after.num_channels = after.weight.shape[0]


def _layer_norm(_before: Any, after: Any) -> None:
    if after.weight is not None:
        after.normalized_shape = tuple(after.weight.shape)


def _prelu(_before: Any, after: Any) -> None:
    after.num_parameters = after.weight.shape[0]


ATTRIBUTES: Mapping[type[nn.Module], Callable[[Any, Any], None]] = {
    nn.modules.conv._ConvNd: _convolution,
    nn.Linear: _linear,
    nn.modules.batchnorm._NormBase: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.PReLU: _prelu,
}
"""How the attributes follow, by module type; subclasses follow their base."""
