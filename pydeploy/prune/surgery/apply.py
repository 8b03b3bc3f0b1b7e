"""`apply`: cut a model to a plan. All parameters are gathered in one pass in C++; the input model is untouched."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pydeploy import _core
from pydeploy.errors import Mismatch
from pydeploy.graph import Graph
from pydeploy.plan import Plan
from pydeploy.prune.surgery.absorb import Means, shifted
from pydeploy.prune.surgery.copying import Memo, copied
from pydeploy.prune.surgery.kept_entries import Kept, kept_entries
from pydeploy.prune.surgery.module_attributes import update_attributes
from pydeploy.prune.surgery.module_numbers import set_numbers
from pydeploy.prune.surgery.surroundings import Surroundings
from pydeploy.prune.surgery.tensors import check_dense, packed, unpacked


def apply(model: nn.Module, graph: Graph, plan: Plan, *, means: Means | None = None, threads: int = 0) -> nn.Module:
    """A new, smaller module that computes what `model` computes with the other channels silenced.

    With `means` (from `channel_means`) a removed channel is not silenced but held at its mean, which goes into the bias or
    batch norm of the layers that read it. `model` is not changed and shares no memory with the result.
    Raises `Mismatch` when the plan is for another graph or the model's parameters differ from the graph's, `DataError` for
    meta, sparse or quantized tensors; nothing is cut then.
    """
    plan.check(graph)
    with torch.inference_mode(mode=False):  # tensors made in it could not be trained
        tensors = _tensors(model, graph)
        kept = kept_entries(graph, plan)
        new = _gathered(tensors, kept, threads)
        if means is not None:
            new |= shifted(model, tensors, kept, new, means, threads)
        small = replaced(model, tensors, new)
        set_numbers(small, graph.numbers, graph.at(plan.widths))
    return small


def _tensors(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    hooked = any(module._state_dict_hooks or module._state_dict_pre_hooks for module in model.modules())
    around = Surroundings(model) if hooked else None
    try:
        return _fitting(model, graph)
    finally:
        if around is not None:
            around.restore(model=True)


def _fitting(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    tensors = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    for name, shape in graph.params.items():
        tensor = tensors.get(name)
        if tensor is not None:
            check_dense(name, tensor)
        if tensor is None or tensor.shape != shape:
            found = f"shape {list(tensor.shape)}" if tensor is not None else "nothing"
            raise Mismatch(
                f"the graph has '{name}' with shape {list(shape)}, the model has {found}; trace this model again"
            )
    return tensors


def _gathered(tensors: Mapping[str, Tensor], kept: Kept, threads: int) -> dict[str, Tensor]:
    arrays = [packed(tensors[name]) for name in kept]
    jobs = [(array, entries if order is None else [entries[dim] for dim in order])
            for (array, order), entries in zip(arrays, kept.values(), strict=True)]  # fmt: skip
    cut = _core.gather_many(jobs, threads)
    return {name: unpacked(tensors[name], array, order)
            for name, (_, order), array in zip(kept, arrays, cut, strict=True)}  # fmt: skip


def replaced(model: nn.Module, tensors: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` with `new` in place of its `tensors` of the same names; module attributes follow.

    Tied tensors stay tied. Everything that is not replaced is copied.
    """
    # The memo puts the new tensors wherever the old ones are referenced, so the dense ones are never copied.
    memo = Memo({id(tensors[name]): tensor for name, tensor in new.items()})
    small = copied(model, memo)
    update_attributes(model, memo)
    return small
