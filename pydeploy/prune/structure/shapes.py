"""Running operators on the meta device, without the detours that PyTorch takes there.

PyTorch decomposes some frequent operators in Python to find a shape that is plain to see; that would take most of a trace.
They are answered here when their arguments are the usual ones. Everything else, errors above all, is left to PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

aten = torch.ops.aten


def run_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """``func(*args, **kwargs)`` where tensors have shapes only."""
    quick = _QUICK.get(func) if args and not kwargs else None
    fits = quick is not None and (isinstance(args[0], list) or args[0].is_meta)
    found = quick(*args) if quick is not None and fits else None
    return func(*args, **kwargs) if found is None else found


def _made(source: Any, shape: Sequence[int]) -> Any:
    return source.new_empty(shape)


def _like(source: Any, *_: Any) -> Any:
    if not source.is_floating_point():
        return None
    # empty_like keeps the memory format, but takes four times as long.
    return _made(source, source.shape) if source.is_contiguous() else torch.empty_like(source)


def _itself(source: Any, *_: Any) -> Any:
    return source if source.is_floating_point() else None


def _fits(small: Any, large: Any) -> bool:
    """Whether `small` is broadcast to the shape of `large`."""
    last = large.shape[large.dim() - small.dim() :] if small.dim() <= large.dim() else ()
    return len(last) == small.dim() and all(n in (1, size) for n, size in zip(small.shape, last, strict=True))


def _pair(left: Any, right: Any) -> Any:
    """Two tensors of one type, the smaller one broadcast to the larger one, or a tensor and a number."""
    if isinstance(right, float | int):
        return _like(left)
    if not isinstance(right, torch.Tensor) or left.dtype != right.dtype or not right.is_meta:
        return None
    large, small = (left, right) if left.numel() >= right.numel() else (right, left)
    return _like(large) if _fits(small, large) else None


def _pair_into(left: Any, right: Any) -> Any:
    """The same, written into the first."""
    if isinstance(right, float | int):
        return _itself(left)
    meta = isinstance(right, torch.Tensor) and left.dtype == right.dtype and right.is_meta
    return _itself(left) if meta and _fits(right, left) else None


def _filled(source: Any, mask: Any, value: Any) -> Any:
    plain = mask.dtype == torch.bool and mask.is_meta and isinstance(value, float | int)
    return _like(source) if plain and _fits(mask, source) else None


def _reduced(source: Any, axes: Any, keep: bool = False) -> Any:
    """A mean or sum over some axes."""
    if not axes or not source.is_floating_point() or any(not -source.dim() <= axis < source.dim() for axis in axes):
        return None
    gone = {axis % source.dim() for axis in axes}
    if len(gone) != len(axes):
        return None
    return _made(source, [1 if axis in gone else n for axis, n in enumerate(source.shape) if keep or axis not in gone])


def _cat(parts: Any, axis: Any = 0) -> Any:
    first = parts[0]
    rank = first.dim()
    if not -rank <= axis < rank or any(
        not part.is_meta or part.dim() != rank or part.dtype != first.dtype or not part.is_contiguous()
        for part in parts
    ):
        return None
    axis %= rank
    shape, rest = list(first.shape), (*first.shape[:axis], *first.shape[axis + 1 :])
    if any((*part.shape[:axis], *part.shape[axis + 1 :]) != rest for part in parts):
        return None
    shape[axis] = sum(part.shape[axis] for part in parts)
    return _made(first, shape)


def _resized(source: Any, size: Any, *_: Any) -> Any:
    """Interpolation of ``(n, c, h, w)`` to a given size."""
    plain = source.dim() == 4 and size and len(size) == 2 and min(*size, *source.shape) > 0
    return _made(source, (*source.shape[:2], *size)) if plain and source.is_contiguous() else None


def _convolution(
    source: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: Any, _: Any, groups: Any
) -> Any:
    """Batched and not transposed."""
    shape, space, rank = weight.shape, source.shape[2:], source.dim() - 2
    plain = (
        rank > 0 and len(shape) == rank + 2 and len(stride) == len(padding) == len(dilation) == rank and not transposed
    )
    if not plain or source.shape[1] != shape[1] * groups or shape[0] % groups or source.dtype != weight.dtype:
        return None
    if 0 in source.shape or 0 in shape or (bias is not None and bias.shape != shape[:1]) or not weight.is_meta:
        return None
    sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1
             for n, p, d, k, s in zip(space, padding, dilation, shape[2:], stride, strict=True)]  # fmt: skip
    return _made(source, (source.shape[0], shape[0], *sizes)) if min(sizes) > 0 else None


def _batch_norm(source: Any, weight: Any, bias: Any, mean: Any, var: Any, training: Any, *_: Any) -> Any:
    channels = source.shape[1:2]
    if training or source.dim() < 2 or any(t is not None and t.shape != channels for t in (weight, bias, mean, var)):
        return None
    out = _like(source)
    return None if out is None else (out, *_NOTHING)


def _group_norm(source: Any, weight: Any, bias: Any, n: Any, c: Any, area: Any, groups: Any, *_: Any) -> Any:
    plain = source.is_contiguous() and source.is_floating_point() and n * c * area == source.numel()
    if (
        not plain
        or source.shape[:2] != (n, c)
        or c % groups
        or any(t is not None and t.shape != (c,) for t in (weight, bias))
    ):
        return None
    return _made(source, source.shape), _made(source, (n, groups)), _made(source, (n, groups))


def _layer_norm(source: Any, shape: Any, weight: Any, bias: Any, *_: Any) -> Any:
    first = source.dim() - len(shape)
    inner = source.shape[max(first, 0) :]
    if tuple(shape) != inner or any(t is not None and t.shape != inner for t in (weight, bias)):
        return None
    outer = (*source.shape[:first], *(1 for _ in shape))
    return _made(source, source.shape), _made(source, outer), _made(source, outer)


def _addmm(bias: Any, left: Any, right: Any, *_: Any) -> Any:
    fits = left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0] and bias.shape == right.shape[1:]
    return _made(left, (left.shape[0], right.shape[1])) if fits and bias.dtype == left.dtype == right.dtype else None


_NOTHING = (torch.empty(0, device="meta"), torch.empty(0, device="meta"))
"""The statistics of a batch norm in eval mode."""

_QUICK: Mapping[Any, Callable[..., Any]] = {
    **dict.fromkeys(
        (aten.gelu.default, aten.hardtanh.default, aten.relu.default, aten.silu.default, aten.sigmoid.default), _like
    ),
    **dict.fromkeys(
        (aten.hardswish.default, aten.hardsigmoid.default, aten.leaky_relu.default, aten.elu.default), _like
    ),
    **dict.fromkeys((aten.tanh.default, aten.rsqrt.default, aten.sqrt.default, aten.exp.default), _like),
    **dict.fromkeys((aten.hardtanh_.default, aten.relu_.default, aten.silu_.default, aten.sigmoid_.default), _itself),
    **dict.fromkeys(
        (aten.hardswish_.default, aten.hardsigmoid_.default, aten.leaky_relu_.default, aten.elu_.default), _itself
    ),
    **dict.fromkeys((aten.mul.Tensor, aten.div.Tensor), _pair),
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor), _pair),
    **dict.fromkeys((aten.add_.Tensor, aten.sub_.Tensor, aten.mul_.Tensor, aten.div_.Tensor), _pair_into),
    **dict.fromkeys((aten.mean.dim, aten.sum.dim_IntList), _reduced),
    **dict.fromkeys((aten.upsample_bilinear2d.default, aten.upsample_bicubic2d.default), _resized),
    aten.roll.default: _like,
    aten.pow.Tensor_Scalar: _like,
    aten.masked_fill.Scalar: _filled,
    aten.cat.default: _cat,
    aten.convolution.default: _convolution,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_group_norm.default: _group_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.addmm.default: _addmm,
}
"""Result by operator and arguments, None where PyTorch shall answer."""
