"""Terms that make channels small while a network trains: after the gradients are there, or after the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pydeploy.errors import ConfigError
from pydeploy.graph import Graph
from pydeploy.prune.criteria.members import Groups, Member, Members, members
from pydeploy.prune.sparsity.channel_costs import Timings, channel_costs
from pydeploy.prune.sparsity.settings import SparsitySettings

SMALL = 1e-3
"""Scales below this count as small."""
STRONGEST = 16.0
"""How much more the least important channel of a group decays than the most important one."""
FADES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0, "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}  # fmt: skip


@dataclass(frozen=True)
class _Entries:
    """Entries of one scale that belong to groups, and how strongly each is drawn to zero."""

    tensor: nn.Parameter
    index: Tensor
    strength: Tensor

    @property
    def values(self) -> Tensor:
        """A copy of the entries; a scale is one number a channel, whatever its shape."""
        return self.tensor.detach().view(-1)[self.index]


class Sparsity:
    """The term that `settings` name, on the prunable groups of `graph`, a trace of `model`; `model` is what is trained.

    `timings` are the table's predictions for `graph`, where its cost is latency. Raises `ConfigError` where no such group has a
    batch norm, which slimming and ista act on.
    """

    def __init__(
        self, model: nn.Module, graph: Graph, settings: SparsitySettings, timings: Timings | None = None
    ) -> None:
        self.settings = settings
        chosen = {g.name for g in graph.prunable if settings.layers == "shortcut" or g.name not in graph.shortcuts}
        self.groups: Groups = {name: group for name, group in members(model, graph).items() if name in chosen}
        scaled = {name: group for name, group in self.groups.items() if group.scales}
        if not (scaled if settings.kind != "group_norm" else self.groups):
            raise ConfigError(f"sparsity '{settings.kind}' acts on batch norms of groups that may be cut; the model has none"
                              f"{' without shortcuts' if settings.layers == 'normal' else ''}: "
                              "use group_norm, or a model with batch norms")  # fmt: skip
        costs = channel_costs(graph, settings.cost, timings) if settings.kind == "ista" else {}
        self._scales = _scales(scaled, costs)

    @property
    def without_momentum(self) -> list[nn.Parameter]:
        """Parameters whose steps are proximal: momentum and weight decay have no place there."""
        return [part.tensor for part in self._scales] if self.settings.kind == "ista" else []

    def after_backward(self, progress: float) -> None:
        """Add the term's gradient; `progress` through the training is from 0 to 1."""
        rate = self._rate(progress)
        with torch.no_grad():
            if self.settings.kind == "slimming":
                for part in self._scales:
                    if part.tensor.grad is not None:
                        part.tensor.grad.view(-1)[part.index] += rate * part.values.sign()
            elif self.settings.kind == "group_norm":
                for group in self.groups.values():
                    _decay(group, rate)

    def after_step(self, progress: float, lr: float) -> None:
        """The proximal step of ista: everything that is not farther from zero than this becomes zero."""
        if self.settings.kind != "ista":
            return
        rate = self._rate(progress)
        with torch.no_grad():
            for part in self._scales:
                values = part.values
                part.tensor.view(-1)[part.index] = values.sign() * (
                    values.abs() - lr * rate * part.strength.to(values.device)
                ).clamp_min(0)

    def small_scales(self) -> float:
        """Share of the batch norms' scales that are below 1e-3 (0 where there are none)."""
        sizes = [part.values.abs() < SMALL for part in self._scales]
        return float(torch.cat(sizes).double().mean()) if sizes else 0.0

    def _rate(self, progress: float) -> float:
        return self.settings.rate * FADES[self.settings.schedule](progress)


def _scales(groups: Groups, costs: Mapping[str, float]) -> list[_Entries]:
    found: dict[int, tuple[nn.Parameter, dict[int, float]]] = {}
    for group in groups.values():
        for member in group.scales:
            tensor: Any = member.tensor
            entries = member.piece.entries(np.arange(group.width, dtype=np.int64)).tolist()
            strengths = dict.fromkeys(entries, costs.get(group.name, 1.0))
            found.setdefault(id(tensor), (tensor, {}))[1].update(strengths)
    return [_Entries(tensor, torch.tensor(list(by_entry), device=tensor.device),
                     torch.tensor(list(by_entry.values()), device=tensor.device, dtype=tensor.dtype))
            for tensor, by_entry in found.values()]  # fmt: skip


def _decay(group: Members, rate: float) -> None:
    """Weight decay of every weight of the group, `STRONGEST` times as strong for its least important channel as for its first."""
    weights = [*group.filters, *group.inputs, *group.scales]
    rows = [_rows(member) for member in weights]
    size = torch.stack([row.flatten(1).square().sum(dim=1) for row in rows]).mean(dim=0).sqrt()
    spread = size.max() - size.min()
    if not spread > 0:
        return
    strength = rate * STRONGEST ** ((size.max() - size) / spread)
    for member, row in zip(weights, rows, strict=True):
        if member.tensor.grad is not None:
            factor = strength.to(row.dtype).view(-1, *[1] * (row.dim() - 1))
            index = _index(member)
            change = (factor * row).flatten(0, 1).movedim(0, member.piece.dim)
            member.tensor.grad.index_add_(member.piece.dim, index, change)


def _index(member: Member) -> Tensor:
    return torch.from_numpy(member.piece.entries(np.arange(member.width, dtype=np.int64))).to(member.tensor.device)


def _rows(member: Member) -> Tensor:
    """Weights by channel, shape ``(width, entries of a channel, rest...)``."""
    tensor = member.tensor.detach().movedim(member.piece.dim, 0)[_index(member)]
    return tensor.unflatten(0, (member.width, -1))  # type: ignore[no-any-return,no-untyped-call]


def rescale(groups: Groups, factor: float) -> None:
    """Times `factor` everything that scales and shifts the groups' channels, over it what reads them, in place.

    Where activations are positively homogeneous (ReLU) the network computes what it did. ``rescale(groups, 1 / factor)``
    takes it back.
    """
    with torch.no_grad():
        for group in groups.values():
            sides: Sequence[tuple[Sequence[Member], float]] = (
                ((group.scales, factor), (group.shifts, factor), (group.inputs, 1 / factor)) if group.scales else ()
            )
            for side, by in sides:
                for member in side:
                    part = member.tensor.index_select(member.piece.dim, _index(member)) * by
                    member.tensor.index_copy_(member.piece.dim, _index(member), part)
