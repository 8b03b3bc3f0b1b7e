"""Running operators on the meta device, without the detours that PyTorch takes there.

PyTorch decomposes some frequent operators in Python to find a shape that is plain to see; that would take most of a trace.
They are answered here when their arguments are the usual ones. Everything else, errors above all, is left to PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

aten = torch.ops.aten


def run_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """``func(*args, **kwargs)`` where tensors have shapes only."""
    quick = _QUICK.get(func) if args and isinstance(args[0], torch.Tensor) and args[0].is_meta else None
    found = quick(*args) if quick is not None and not kwargs else None
    return func(*args, **kwargs) if found is None else found


def _like(source: Any, *_: Any) -> Any:
    return torch.empty_like(source) if source.is_floating_point() else None


def _itself(source: Any, *_: Any) -> Any:
    return source if source.is_floating_point() else None


def _pair(left: Any, right: Any) -> Any:
    """Two tensors of one type, the smaller one broadcast to the larger one."""
    if not isinstance(right, torch.Tensor) or left.dtype != right.dtype or not right.is_meta:
        return None
    large, small = (left, right) if left.numel() >= right.numel() else (right, left)
    last = large.shape[large.dim() - small.dim() :] if small.dim() <= large.dim() else ()
    fits = len(last) == small.dim() and all(n in (1, size) for n, size in zip(small.shape, last, strict=True))
    return torch.empty_like(large) if fits else None


def _batch_norm(source: Any, weight: Any, bias: Any, mean: Any, var: Any, training: Any, *_: Any) -> Any:
    channels = source.shape[1:2]
    if training or source.dim() < 2 or any(t is not None and t.shape != channels for t in (weight, bias, mean, var)):
        return None
    return torch.empty_like(source), source.new_empty(0), source.new_empty(0)


def _layer_norm(source: Any, shape: Any, weight: Any, bias: Any, *_: Any) -> Any:
    first = source.dim() - len(shape)
    inner = source.shape[max(first, 0) :]
    if tuple(shape) != inner or any(t is not None and t.shape != inner for t in (weight, bias)):
        return None
    outer = (*source.shape[:first], *(1 for _ in shape))
    return source.new_empty(source.shape), source.new_empty(outer), source.new_empty(outer)


def _addmm(bias: Any, left: Any, right: Any, *_: Any) -> Any:
    fits = left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0] and bias.shape == right.shape[1:]
    return left.new_empty((left.shape[0], right.shape[1])) if fits and bias.dtype == left.dtype == right.dtype else None


_QUICK: Mapping[Any, Callable[..., Any]] = {
    **dict.fromkeys(
        (aten.gelu.default, aten.hardtanh.default, aten.relu.default, aten.silu.default, aten.sigmoid.default), _like
    ),
    **dict.fromkeys((aten.hardtanh_.default, aten.relu_.default, aten.silu_.default), _itself),
    **dict.fromkeys((aten.add.Tensor, aten.mul.Tensor), _pair),
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.addmm.default: _addmm,
}
"""Result by operator and arguments, None where PyTorch shall answer."""
