"""`apply`: cut a model to a plan. All parameters are gathered in one pass in C++; the input model is untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pydeploy import _core
from pydeploy.errors import Mismatch
from pydeploy.graph import Graph, Plan

Kept = Mapping[str, list[NDArray[np.int64] | None]]
"""Kept entries along each dim of every parameter that is cut; None = all."""


def apply(model: nn.Module, graph: Graph, plan: Plan, *, threads: int = 0) -> nn.Module:
    """A new, smaller module that computes what `model` computes with the other channels silenced.

    `model` is not changed and shares no memory with the result. Raises `Mismatch` when the plan is for another graph
    or the model's parameters differ from the graph's.
    """
    plan.check(graph)
    tensors = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    for name, shape in graph.params.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            found = f"shape {list(tensors[name].shape)}" if name in tensors else "nothing"
            raise Mismatch(
                f"the graph has '{name}' with shape {list(shape)}, the model has {found}; trace this model again"
            )
    kept = kept_entries(graph, plan)
    arrays = {name: as_numpy(tensors[name]) for name in kept}
    cut = _core.gather_many([(arrays[name], kept[name]) for name in kept], threads)
    return replaced(model, {name: like(tensors[name], array) for name, array in zip(kept, cut, strict=True)})


def kept_entries(graph: Graph, plan: Plan) -> Kept:
    """Entries of every parameter that survive `plan`."""
    masks: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for name, channels in plan.kept.items():
        group = graph.by_name[name]
        removed = np.setdiff1d(np.arange(group.width), np.asarray(channels, dtype=np.int64))
        for piece in group.slices if len(removed) else ():
            size = graph.params[piece.param][piece.dim]
            mask = masks.setdefault((piece.param, piece.dim), np.ones(size, dtype=np.bool_))
            mask[piece.entries(removed)] = False
    kept: dict[str, list[NDArray[np.int64] | None]] = {}
    for (param, dim), mask in masks.items():
        kept.setdefault(param, [None] * len(graph.params[param]))[dim] = np.flatnonzero(mask).astype(np.int64)
    return kept


def as_numpy(tensor: Tensor) -> NDArray[Any]:
    """The tensor's values as a C-contiguous array; 16-bit floats as their bits, because NumPy lacks bfloat16."""
    plain = tensor.detach().cpu().contiguous()
    array: NDArray[Any] = (plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy()
    return array


def like(source: Tensor, array: NDArray[Any]) -> Tensor:
    """`array` as a tensor with the dtype, device, memory format and gradient flag of `source`."""
    tensor = torch.from_numpy(array)
    if source.dtype == torch.bfloat16:
        tensor = tensor.view(torch.bfloat16)
    if source.dim() == 4 and source.is_contiguous(memory_format=torch.channels_last) and not source.is_contiguous():
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    tensor = tensor.to(source.device)
    return nn.Parameter(tensor, requires_grad=source.requires_grad) if isinstance(source, nn.Parameter) else tensor


def replaced(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` in which the named parameters and buffers are replaced and module attributes follow.

    Tied tensors stay tied. Everything that is not replaced is copied.
    """
    old = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    # The memo makes deepcopy use the new tensors wherever the old ones are referenced, so the dense ones are not copied.
    memo: dict[int, Any] = {id(old[name]): tensor for name, tensor in tensors.items()}
    small = copy.deepcopy(model, memo)
    for (_, before), (_, after) in zip(model.named_modules(), small.named_modules(), strict=True):
        update = ATTRIBUTES.get(type(after)) or next((f for t, f in ATTRIBUTES.items() if isinstance(after, t)), None)
        if update is not None:
            update(before, after)
    return small


def _convolution(before: Any, after: Any) -> None:
    depthwise = 1 < before.groups == before.in_channels
    if depthwise:
        after.groups = after.weight.shape[0] // (before.out_channels // before.groups)
    after.out_channels = after.weight.shape[0]
    after.in_channels = after.weight.shape[1] * after.groups


def _linear(_before: Any, after: Any) -> None:
    after.out_features, after.in_features = after.weight.shape


def _batch_norm(_before: Any, after: Any) -> None:
    known = after.weight if after.weight is not None else after.running_mean
    if known is not None:
        after.num_features = known.shape[0]


def _prelu(_before: Any, after: Any) -> None:
    after.num_parameters = after.weight.shape[0]


ATTRIBUTES: Mapping[type[nn.Module], Callable[[Any, Any], None]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.modules.batchnorm._BatchNorm: _batch_norm,
    nn.PReLU: _prelu,
}
"""Module attributes that repeat a parameter's shape, by module type; subclasses follow their base."""
