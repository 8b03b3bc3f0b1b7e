"""Module attributes that repeat a parameter's shape (``out_channels``, ``num_features``, ...) follow the cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pydeploy.prune.surgery.attention_heads import adopt, supported
from pydeploy.prune.surgery.copying import own_class


def update_attributes(before: nn.Module, twins: Mapping[int, Any]) -> None:
    """Set the attributes of every module's cut copy, ``twins[id(module)]``, to what its parameters now are."""
    for old in before.modules():
        kind: Any = type(old)  # mypy takes a module class for something without a hash
        update = _updater(kind.__base__ if own_class(kind) else kind)
        if old._forward_pre_hooks:
            _legacy(twins[id(old)])
        if update is not None:
            update(old, twins[id(old)])


@cache
def _updater(kind: type[nn.Module]) -> Callable[[Any, Any], None] | None:
    named = [NAMED[name] for base in kind.__mro__ if (name := f"{base.__module__}.{base.__qualname__}") in NAMED]
    if named:
        return named[0]
    return ATTRIBUTES.get(kind) or next((update for base, update in ATTRIBUTES.items() if issubclass(kind, base)), None)


def _convolution(before: Any, after: Any) -> None:
    groups, wide, narrow = before.groups, before.out_channels, before.in_channels // before.groups
    dense = (before.in_channels, wide // groups) if before.transposed else (wide, narrow)
    shape = _shape(after, (*dense, *before.kernel_size))
    if shape[:2] == dense:
        return
    if 1 < groups == before.in_channels:
        groups = shape[0] * groups // dense[0]
    if before.transposed:
        _set(after, groups=groups, in_channels=shape[0], out_channels=shape[1] * groups)
    else:
        _set(after, groups=groups, in_channels=shape[1] * groups, out_channels=shape[0])


def _shape(after: Any, dense: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a cut layer's weight. A parametrized one is not computed for that, which could change the state of its
    parametrization; the tensor that it is made of has its shape.
    """
    made = vars(after)["_modules"].get("parametrizations", ())
    if "weight" not in made:
        return tuple(after.weight.shape)
    tensors = [*made["weight"].parameters(recurse=False), *made["weight"].buffers(recurse=False)]
    largest = max((t.shape for t in tensors), key=lambda shape: (len(shape) == len(dense), math.prod(shape)))
    return tuple(largest) if len(largest) == len(dense) else tuple(after.weight.shape)


def _legacy(after: Any) -> None:
    """`torch.nn.utils.weight_norm` and `spectral_norm` of old keep the last computed weight as a plain attribute."""
    for hook in after._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            setattr(after, hook.name, hook.compute_weight(after).detach())
        elif isinstance(hook, SpectralNorm):
            setattr(after, hook.name, hook.compute_weight(after, do_power_iteration=False).detach())


def _set(module: nn.Module, **numbers: int) -> None:
    """Set plain numbers; torch's `__setattr__` first looks for each among parameters, buffers and submodules."""
    vars(module).update(numbers)


def _linear(before: Any, after: Any) -> None:
    rows, columns = _shape(after, (before.out_features, before.in_features))
    _set(after, out_features=rows, in_features=columns)


def _batch_norm(_before: Any, after: Any) -> None:
    weight = after.weight
    known = weight if weight is not None else after.running_mean
    if known is not None:
        _set(after, num_features=known.shape[0])


def _group_norm(before: Any, after: Any) -> None:
    if after.weight is not None:
        after.num_channels = after.weight.shape[0]
        if before.num_groups > 1:  # norm groups are cut as a whole
            after.num_groups = after.num_channels * before.num_groups // before.num_channels


def _layer_norm(_before: Any, after: Any) -> None:
    if after.weight is not None:
        after.normalized_shape = tuple(after.weight.shape)


def _prelu(_before: Any, after: Any) -> None:
    after.num_parameters = after.weight.shape[0]


def _embedding(_before: Any, after: Any) -> None:
    after.num_embeddings, after.embedding_dim = after.weight.shape


def _multi_head(before: Any, after: Any) -> None:
    if after.in_proj_weight is not None and after.in_proj_weight.shape != before.in_proj_weight.shape:
        after.num_heads = after.in_proj_weight.shape[0] // 3 // before.head_dim
        after.embed_dim = after.in_proj_weight.shape[1]
        _adopted(after)


def _heads(projection: str, count: str) -> Callable[[Any, Any], None]:
    """The number of heads follows the rows of the projection to query, key and value."""

    def update(before: Any, after: Any) -> None:
        rows, dense = getattr(after, projection).weight.shape[0], getattr(before, projection).weight.shape[0]
        setattr(after, count, getattr(before, count) * rows // dense)
        if hasattr(after, "output_dim"):
            after.output_dim = rows // 3
        if getattr(after, projection).weight.shape != getattr(before, projection).weight.shape:
            _adopted(after)

    return update


def _adopted(after: Any) -> None:
    if supported(after):
        adopt(after)


def _stream(_before: Any, after: Any) -> None:
    after.hidden_dim = after.conv_proj.weight.shape[0]


NAMED: Mapping[str, Callable[[Any, Any], None]] = {
    "torchvision.models.swin_transformer.ShiftedWindowAttention": _heads("qkv", "num_heads"),
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": _heads("qkv", "num_heads"),
    "torchvision.models.video.swin_transformer.ShiftedWindowAttention3d": _heads("qkv", "num_heads"),
    "torchvision.models.video.mvit.MultiscaleAttention": _heads("qkv", "num_heads"),
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": _heads("to_qkv", "n_heads"),
    "torchvision.models.vision_transformer.VisionTransformer": _stream,
}
"""The same for torchvision's modules, by full class name: naming avoids importing it."""

ATTRIBUTES: Mapping[type[nn.Module], Callable[[Any, Any], None]] = {
    nn.modules.conv._ConvNd: _convolution,
    nn.Linear: _linear,
    nn.modules.batchnorm._NormBase: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.PReLU: _prelu,
    nn.Embedding: _embedding,
    nn.MultiheadAttention: _multi_head,
}
"""How the attributes follow, by module type; subclasses follow their base."""
