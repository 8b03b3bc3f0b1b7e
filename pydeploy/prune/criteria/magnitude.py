"""Criteria of weights alone: norms of filters, and of everything that belongs to a channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pydeploy.prune.criteria.members import Member, Members, Rows
from pydeploy.settings import Share

Normalize = Literal["mean", "none", "max", "numel"]
Reduce = Literal["mean", "sum", "max", "first"]
NormAfter = Callable[[nn.Module], Any]
"""The batch norm that alone follows a layer, or None."""


def l1(group: Members, norm_after: NormAfter, *, normalize: Normalize = "mean", reduce: Reduce = "mean",
       fold_bn: bool = False) -> Rows:  # fmt: skip
    """L1 norm of each filter, divided by its layer's mean so that layers compare, mean over the layers that make the channel.

    `normalize`: divide by the layer's mean or max, by the number of weights (numel), or by nothing. `fold_bn`: norms of the
    weights with the batch norm right behind them folded in, because such a layer's own scale means nothing.
    """
    return _norm(group, 1, norm_after if fold_bn else None, normalize, reduce)


def l2(group: Members, norm_after: NormAfter, *, normalize: Normalize = "mean", reduce: Reduce = "mean",
       fold_bn: bool = False) -> Rows:  # fmt: skip
    """L2 norm of each filter, otherwise as `l1`."""
    return _norm(group, 2, norm_after if fold_bn else None, normalize, reduce)


def group_norm(
    group: Members, *, normalize: Normalize = "mean", reduce: Literal["mean", "sum", "max"] = "mean"
) -> Rows:
    """Sum of squares of each weight that makes, scales or reads the channel, mean over them, divided by the group's mean."""
    sizes = [member.sums(2) for member in _weights(group)]
    entries = np.mean([member.entries for member in _weights(group)])
    return normalized(reduced(sizes, reduce), normalize, float(entries))


def lamp(group: Members) -> Rows:
    """Layer-adaptive magnitudes: squared size of a channel over that of all channels in the group that are not smaller.

    The squared size is that of `group_norm`. The largest channel of every group scores 1, so one threshold over the network
    never empties a group.
    """
    sizes = reduced([member.sums(2) for member in _weights(group)], "mean")
    return lamp_scores(sizes)


def lamp_scores(squares: Rows) -> Rows:
    """LAMP scores of squared magnitudes (Lee et al., ICLR 2021): each over the sum of all that are not smaller."""
    order = np.argsort(squares, kind="stable")
    rest = np.cumsum(squares[order][::-1])[::-1]
    scores = np.empty_like(squares)
    scores[order] = np.divide(squares[order], rest, out=np.zeros_like(rest), where=rest > 0)
    return scores


def fpgm(group: Members, *, norm_rate: Share = 1.0) -> Rows:
    """Sum of distances of each filter to the others of its layer, over the layer's mean: low = replaceable (He et al., CVPR 2019).

    Only the share `norm_rate` of filters with the largest L2 norms are compared; the others score below all of them, by norm.
    """
    norms = np.mean([normalized(np.sqrt(member.sums(2)), "mean") for member in group.filters], axis=0)
    few = np.argsort(norms, kind="stable")[: group.width - max(1, round(group.width * norm_rate))]
    rest = np.setdiff1d(np.arange(group.width), few)
    scores = np.empty(group.width)
    scores[rest] = np.mean([normalized(_distances(member.values()[rest]), "mean") for member in group.filters], axis=0)
    scores[few] = norms[few] / max(norms[few].max(initial=0.0), 1e-30) * scores[rest].min() * 0.999
    return scores


def _distances(values: Tensor) -> Rows:
    values = values.float()
    return np.asarray(torch.cdist(values, values).sum(dim=1, dtype=torch.float64).cpu().numpy())


def _weights(group: Members) -> Sequence[Member]:
    return [*group.filters, *group.inputs, *group.scales]


def _norm(group: Members, power: int, norm_after: NormAfter | None, normalize: Normalize, reduce: Reduce) -> Rows:
    norms = []
    for member in group.filters:
        sums = member.sums(power, _folded(member, norm_after) if norm_after is not None else None)
        norms.append(normalized(sums ** (1 / power), normalize, member.entries))
    return reduced(norms, reduce)


def _folded(member: Member, norm_after: NormAfter) -> Tensor | None:
    """What the batch norm behind a layer multiplies each of its outputs by; None where there is none."""
    norm = norm_after(member.owner) if member.name == "weight" else None
    if norm is None or norm.weight is None or len(norm.weight) != member.tensor.shape[member.piece.dim]:
        return None
    factor: Tensor = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return factor


def normalized(values: Rows, how: Normalize, entries: float = 1) -> Rows:
    by = {"mean": values.mean(), "max": values.max(), "numel": entries, "none": 1}[how]
    return np.asarray(values / max(by, 1e-30))


def reduced(values: Sequence[Rows], how: Reduce) -> Rows:
    if how == "first":
        return values[0]
    by: dict[str, Callable[..., Any]] = {"mean": np.mean, "sum": np.sum, "max": np.max}
    return np.asarray(by[how](values, axis=0))
