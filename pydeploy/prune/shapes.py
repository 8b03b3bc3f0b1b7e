"""Running operators on the meta device, without the detours that PyTorch takes there."""

from __future__ import annotations

from typing import Any

import torch


def run_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """``func(*args, **kwargs)`` where tensors have shapes only.

    Batch norm in eval mode is answered here: PyTorch decomposes it in Python, which takes most of a network's run.
    """
    if func is torch.ops.aten.native_batch_norm.default and not kwargs and _regular(args):
        source = args[0]
        return torch.empty_like(source), source.new_empty(0), source.new_empty(0)
    return func(*args, **kwargs)


def _regular(args: Any) -> bool:
    """Eval mode, and all that belongs to channels has their number; whatever else there is PyTorch shall judge."""
    source, training = args[0], args[5]
    if training or not source.is_meta or source.dim() < 2:
        return False
    return all(tensor is None or tensor.shape == source.shape[1:2] for tensor in args[1:5])
