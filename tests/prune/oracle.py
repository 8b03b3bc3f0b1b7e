"""What a cut model must compute: the dense one with every entry of every removed channel set to zero."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pydeploy.graph import Graph
from pydeploy.plan import Plan


def random_plan(graph: Graph, rng: np.random.Generator, ratio: float | None = None) -> Plan:
    """Any choice of enough channels per prunable group; about ``1 - ratio`` of each where a ratio is given."""
    kept = {}
    for group in graph.prunable:
        least = group.min_width
        count = (
            int(rng.integers(least, group.width + 1)) if ratio is None else max(least, round(group.width * (1 - ratio)))
        )
        kept[group.name] = tuple(sorted(int(c) for c in rng.choice(group.width, count, replace=False)))
    return Plan(kept, graph.fingerprint)


def silence(model: nn.Module, graph: Graph, plan: Plan) -> dict[int, Tensor]:
    """Zero the removed channels of `model` in place; returns the kept entries of each cut 1-D tensor by its `id`."""
    tensors = model.state_dict(keep_vars=True)
    kept = {}
    for name, channels in plan.kept.items():
        removed = np.setdiff1d(np.arange(graph.by_name[name].width), channels)
        for piece in graph.by_name[name].slices if len(removed) else ():
            tensor = tensors[piece.param]
            entries = torch.from_numpy(piece.entries(removed))
            # A row of zeros has no direction: weight norm would give 0 / 0 times a gain of 0.
            direction = piece.param.rpartition(".")[2] in ("original1", "weight_v", "v")
            tensor.data.index_fill_(piece.dim, entries, 1e-100 if direction else 0)
            if tensor.dim() == 1:
                mask = kept.setdefault(id(tensor), torch.ones(tensor.shape[0], dtype=torch.bool))
                mask[entries] = False
    return {key: mask.nonzero().ravel() for key, mask in kept.items()}


@contextmanager
def masked_norms(kept: dict[int, Tensor]) -> Iterator[None]:
    """Layer norms, group norms of one group and standardized weights run their statistics over the kept channels only, as in
    the cut model.
    """
    plain = F.layer_norm, F.group_norm, F.batch_norm

    def chosen_only(
        x: Tensor, own: Tensor, axes: tuple[int, ...], weight: Tensor, bias: Tensor | None, eps: float
    ) -> Tensor:
        """`x` with channels last."""
        chosen = x[..., own]
        mean = chosen.mean(axes, keepdim=True)
        variance = ((chosen - mean) ** 2).mean(axes, keepdim=True)
        out = (chosen - mean) / torch.sqrt(variance + eps) * weight[own]
        full = torch.zeros_like(x)
        full[..., own] = out if bias is None else out + bias[own]
        return full

    def layer_norm(
        x: Tensor, shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        own = kept.get(id(weight)) if weight is not None else None
        if weight is None or own is None:
            return plain[0](x, shape, weight, bias, eps)
        return chosen_only(x, own, (-1,), weight, bias, eps)

    def group_norm(
        x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        own = kept.get(id(weight)) if weight is not None and groups == 1 else None
        if weight is None or own is None:
            return plain[1](x, groups, weight, bias, eps)
        return chosen_only(x.movedim(1, -1), own, tuple(range(1, x.dim())), weight, bias, eps).movedim(-1, 1)

    def batch_norm(x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None = None,
                   bias: Tensor | None = None, training: bool = False, momentum: float = 0.1,
                   eps: float = 1e-5) -> Tensor:  # fmt: skip
        """Of a weight, ``(1, outputs, the rest)``, only what is not silenced counts."""
        if not training or mean is not None or x.dim() != 3 or x.shape[0] != 1:
            return plain[2](x, mean, var, weight, bias, training, momentum, eps)
        own = x != 0
        count = own.sum(-1, keepdim=True).clamp_min(1)
        middle = x.sum(-1, keepdim=True) / count
        variance = ((x - middle) ** 2 * own).sum(-1, keepdim=True) / count
        out = (x - middle) / torch.sqrt(variance + eps) * (1 if weight is None else weight[:, None])
        return (out if bias is None else out + bias[:, None]) * own

    F.layer_norm, F.group_norm, F.batch_norm = layer_norm, group_norm, batch_norm  # type: ignore[assignment]
    try:
        yield
    finally:
        F.layer_norm, F.group_norm, F.batch_norm = plain


def silenced(model: nn.Module, graph: Graph, plan: Plan) -> nn.Module:
    """A silenced copy of `model`; for models without layer norms, see `silenced_output`."""
    twin = copy.deepcopy(model)
    silence(twin, graph, plan)
    return twin


def silenced_output(model: nn.Module, graph: Graph, plan: Plan, *inputs: Tensor):
    """The output of a silenced copy of `model`."""
    twin = copy.deepcopy(model)
    with torch.no_grad(), masked_norms(silence(twin, graph, plan)):
        return twin(*inputs)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random normalization statistics, scales and shifts, so that a wrong channel shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)):
                for name, low, high in (
                    ("weight", 0.5, 1.5),
                    ("bias", -0.5, 0.5),
                    ("running_mean", -0.3, 0.3),
                    ("running_var", 0.5, 2.0),
                ):
                    tensor = getattr(module, name, None)
                    if tensor is not None:
                        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
        for tensor in model.parameters():
            if not tensor.any():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


def tensors_of(tree) -> list[Tensor]:
    """All tensors in nested outputs, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else []
    return [leaf for item in items for leaf in tensors_of(item)]
