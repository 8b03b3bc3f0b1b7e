"""`apply`: cut a model to a plan. All parameters are gathered in one pass in C++; the input model is untouched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pydeploy import _core
from pydeploy.errors import Mismatch
from pydeploy.graph import Graph, Plan
from pydeploy.prune.attributes import update_attributes
from pydeploy.prune.copying import Memo, copied
from pydeploy.prune.entries import kept_entries


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
    # The memo puts the new tensors wherever the old ones are referenced, so the dense ones are never copied.
    memo: Memo = {id(old[name]): tensor for name, tensor in tensors.items()}
    small = copied(model, memo)
    update_attributes(model, small)
    return small
