"""Attention layers whose heads can be removed.

PyTorch's and torchvision's attention modules compute the width of a head from the width of the stream, so they break when
either is cut. While a model is traced, and after its attention was cut, these modules run the forwards below: the same
result from the same parameters, with the head width taken from the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NORMALIZED = "_pydeploy_by_heads"


@contextmanager
def by_heads(model: nn.Module) -> Iterator[None]:
    """Attention modules of `model` run the forwards of this file inside."""
    changed = [(module, type(module)) for module in model.modules() if supported(module)]
    try:
        for module, _ in changed:
            adopt(module)
        yield
    finally:
        for module, before in changed:
            module.__class__ = before


def supported(module: nn.Module) -> bool:
    """Whether `module` is an attention layer that `adopt` can change."""
    if f"{type(module).__module__}.{type(module).__qualname__}" not in _FORWARDS or hasattr(type(module), _NORMALIZED):
        return False
    if isinstance(module, nn.MultiheadAttention):
        return module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn
    return True


def adopt(module: nn.Module) -> None:
    """Make `module` run the forward of this file from now on."""
    module.__class__ = _variant(type(module))


def _variant(base: type[nn.Module]) -> type[nn.Module]:
    if base not in _VARIANTS:
        forward = _FORWARDS[f"{base.__module__}.{base.__qualname__}"]
        _VARIANTS[base] = type(
            base.__name__, (base,), {"forward": forward, _NORMALIZED: True, "__module__": base.__module__}
        )
    return _VARIANTS[base]


_VARIANTS: dict[type[nn.Module], type[nn.Module]] = {}
"""One changed class for each class, so that equal modules stay of equal type."""


def _multi_head(
    self: Any, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = True,
    attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,  # noqa: ARG001 (a hint; the mask says it)
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """`nn.MultiheadAttention` (Vaswani et al. 2017); shapes and arguments as documented there."""
    batched, first = query.dim() == 3, self.batch_first
    rows = self.in_proj_weight.shape[0] // 3
    weights = self.in_proj_weight.split(rows)
    biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.split(rows)
    heads = []
    for tensor, weight, bias in zip((query, key, value), weights, biases, strict=True):
        tokens = tensor if not batched or first else tensor.transpose(0, 1)
        projected = F.linear(tokens if batched else tokens.unsqueeze(0), weight, bias)
        heads.append(projected.view(projected.shape[0], projected.shape[1], -1, self.head_dim).transpose(1, 2))
    q, k, v = heads
    mask = _mask(attn_mask, key_padding_mask, q, batched)
    scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
    attention = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    out = F.dropout(attention, self.dropout, self.training) @ v
    out = F.linear(out.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
    out = out[0] if not batched else out if first else out.transpose(0, 1)
    if not need_weights:
        return out, None
    shown = attention.mean(1) if average_attn_weights else attention
    return out, shown if batched else shown[0]


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, batched: bool) -> Tensor | None:
    """One additive mask that broadcasts to (batch, heads, queries, keys)."""
    parts = []
    if attn_mask is not None:
        own = attn_mask if attn_mask.dim() == 2 else attn_mask.view(q.shape[0], -1, *attn_mask.shape[-2:])
        parts.append(own)
    if padding is not None:
        parts.append((padding if batched else padding.unsqueeze(0))[:, None, None, :])
    added = [
        torch.zeros_like(p, dtype=q.dtype).masked_fill(p, -math.inf) if p.dtype == torch.bool else p for p in parts
    ]
    return None if not added else added[0] if len(added) == 1 else added[0] + added[1]


def _windowed(self: Any, x: Tensor) -> Tensor:
    """Shifted-window attention in two or three dimensions (Liu et al. 2021, 2022), ``(n, *space, channels)`` in and out."""
    space = x.shape[1:-1]
    window, shift = list(self.window_size), list(self.shift_size)
    if len(space) == 3:  # a window adapts to a smaller video, an image is padded to the window
        window = [min(w, s) for w, s in zip(window, space, strict=True)]
        shift = [0 if s <= w else k for w, s, k in zip(self.window_size, space, shift, strict=True)]
        bias = self.get_relative_position_bias(window)
    else:
        bias = self.get_relative_position_bias()
    padded = [-(-s // w) * w for s, w in zip(space, window, strict=True)]
    shift = [0 if w >= s else k for w, s, k in zip(window, padded, shift, strict=True)]
    x = F.pad(
        x, (0, 0, *chain.from_iterable((0, p - s) for p, s in zip(reversed(padded), reversed(space), strict=True)))
    )
    axes = list(range(1, 1 + len(space)))
    if any(shift):
        x = torch.roll(x, [-k for k in shift], axes)
    tokens, n = _partition(x, window), x.shape[0]
    attention, v = _window_scores(self, tokens)
    attention = attention + bias
    if any(shift):
        mask = _shift_mask(padded, window, shift, x)
        attention = attention.view(n, mask.shape[0], -1, *mask.shape[1:]) + mask[None, :, None]
        attention = attention.flatten(0, 1)
    attention = F.dropout(torch.softmax(attention, dim=-1), self.attention_dropout, self.training)
    out = F.linear((attention @ v).transpose(1, 2).flatten(2), self.proj.weight, self.proj.bias)
    out = _assembled(F.dropout(out, self.dropout, self.training), n, padded, window)
    if any(shift):
        out = torch.roll(out, shift, axes)
    for axis, size in zip(axes, space, strict=True):
        out = out.narrow(axis, 0, size)
    return out.contiguous()


def _window_scores(self: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Attention logits ``(windows, heads, tokens, tokens)`` and values; cosine attention where there is a logit scale."""
    width = self.qkv.weight.shape[0] // 3 // self.num_heads
    scale, bias = getattr(self, "logit_scale", None), self.qkv.bias
    if scale is not None and bias is not None:  # the key has no bias in version 2
        length = bias.numel() // 3
        bias = bias.clone()
        bias[length : 2 * length].zero_()
    qkv = F.linear(tokens, self.qkv.weight, bias)
    q, k, v = qkv.view(tokens.shape[0], tokens.shape[1], 3, -1, width).permute(2, 0, 3, 1, 4).unbind(0)
    if scale is None:
        return (q * width**-0.5) @ k.transpose(-2, -1), v
    return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale.clamp(max=math.log(100.0)).exp(), v


def _partition(x: Tensor, window: list[int]) -> Tensor:
    """``(n, *space, c)`` → ``(n * windows, tokens, c)``."""
    d = len(window)
    split = chain.from_iterable((s // w, w) for s, w in zip(x.shape[1:-1], window, strict=True))
    x = x.view(x.shape[0], *split, x.shape[-1])
    x = x.permute(0, *range(1, 2 * d, 2), *range(2, 2 * d + 1, 2), 2 * d + 1)
    return x.reshape(-1, math.prod(window), x.shape[-1])


def _assembled(x: Tensor, n: int, padded: list[int], window: list[int]) -> Tensor:
    """The inverse of `_partition`."""
    d = len(window)
    x = x.view(n, *(s // w for s, w in zip(padded, window, strict=True)), *window, x.shape[-1])
    x = x.permute(0, *chain.from_iterable((1 + i, 1 + d + i) for i in range(d)), 2 * d + 1)
    return x.reshape(n, *padded, x.shape[-1])


def _shift_mask(padded: list[int], window: list[int], shift: list[int], x: Tensor) -> Tensor:
    """-100 between tokens that are neighbours only because the map was rolled: ``(windows, tokens, tokens)``."""
    region = x.new_zeros((1, *padded, 1))
    for axis, (size, w, k) in enumerate(zip(padded, window, shift, strict=True)):
        steps = torch.arange(size, device=x.device)
        part = (
            (steps >= size - w).to(x.dtype) + (steps >= size - k).to(x.dtype)
            if k
            else torch.zeros_like(steps, dtype=x.dtype)
        )
        region = region * 3 + part.view([-1 if i == axis + 1 else 1 for i in range(len(padded) + 2)])
    tokens = _partition(region, window).squeeze(-1)
    return torch.where(tokens[:, None] == tokens[:, :, None], 0.0, -100.0).to(x.dtype)


def _relative(self: Any, x: Tensor) -> Tensor:
    """Multi-head attention with relative positions of MaxViT (Tu et al. 2022), ``(n, groups, tokens, channels)``."""
    n, groups, tokens, _ = x.shape
    qkv = self.to_qkv(x).view(n, groups, tokens, 3, -1, self.head_dim)
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
    scores = q @ (k * self.scale_factor).transpose(-2, -1) + self.get_relative_positional_bias()
    out = torch.softmax(scores, dim=-1) @ v
    return self.merge(out.transpose(2, 3).flatten(3))  # type: ignore[no-any-return]


_FORWARDS: Mapping[str, Callable[..., Any]] = {
    "torch.nn.modules.activation.MultiheadAttention": _multi_head,
    "torchvision.models.swin_transformer.ShiftedWindowAttention": _windowed,
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": _windowed,
    "torchvision.models.video.swin_transformer.ShiftedWindowAttention3d": _windowed,
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": _relative,
}
"""Forward by the full name of the module's class; naming avoids importing torchvision."""
