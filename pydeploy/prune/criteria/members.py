"""Producers and consumers of a group: the parameter entries that make a channel and those that read it, with their values.

Which entries these are, and on which dim they lie, `trace` has learnt from the operators (`Slice.roles`); so weights that are
transposed, grouped, fused, bare or shared need no rules of their own here. A parametrized weight is the one that its layer
computes with, not what it is stored as.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pydeploy.errors import DataError, Mismatch
from pydeploy.graph import ROLES, Graph, Group, Slice

Rows = NDArray[np.float64]
ROWS = 64
"""Rows of a weight that are added in float32."""


@dataclass(frozen=True)
class Member:
    """A group's entries of one tensor, which is attribute `name` of `owner` when asked for."""

    piece: Slice
    owner: nn.Module
    name: str
    width: int
    """Channels of the group."""

    @property
    def tensor(self) -> Tensor:
        """Inside ``torch.nn.utils.parametrize.cached()`` always the same one, and the one that the forward uses."""
        value = getattr(self.owner, self.name)
        assert isinstance(value, Tensor)
        return value

    @property
    def entries(self) -> int:
        """Entries of a channel."""
        tensor = self.tensor
        return tensor.numel() // tensor.shape[self.piece.dim] * self.piece.repeat

    def rows(self) -> Rows:
        """Values by channel, shape ``(width, entries of a channel)`` in float64."""
        return np.asarray(self.values().to("cpu", torch.float64).numpy())

    def values(self) -> Tensor:
        """Values by channel, shape ``(width, entries of a channel)``, in the tensor's own type and on its device."""
        return self._part(self.tensor).movedim(self.piece.dim, 0).reshape(self.width, -1)

    def sums(self, power: int, factor: Tensor | None = None) -> Rows:
        """Sum of ``abs(value * factor) ** power`` over each channel, shape ``(width,)``; `factor` is one for each entry of the dim."""
        tensor = self.tensor.detach()
        if factor is not None:
            shape = [-1 if axis == self.piece.dim else 1 for axis in range(tensor.dim())]
            tensor = tensor * factor.to(tensor.device).view(shape)
        return self._sums(tensor, power)

    def products(self) -> Rows:
        """Sum of value * gradient over each channel's entries, shape ``(width,)``; 0 where there is no gradient."""
        product = self._product()
        if product is None:
            return np.zeros(self.width)
        found = product.sum(self._others(product), dtype=torch.float64) if product.dim() > 1 else product.double()
        return np.asarray(found.view(self.width, -1).sum(dim=1).cpu().numpy())

    def product_sums(self, power: int) -> Rows:
        """Sum of ``abs(value * gradient) ** power`` over each channel's entries, shape ``(width,)``."""
        product = self._product()
        return np.zeros(self.width) if product is None else self._sums(product, power, whole=False)

    def contributions(self) -> Rows:
        """Value * gradient of each entry, shape as `rows`; 0 where there is no gradient."""
        product = self._product()
        if product is None:
            return np.zeros_like(self.rows())
        by_channel = product.movedim(self.piece.dim, 0).reshape(self.width, -1)
        return np.asarray(by_channel.to("cpu", torch.float64).numpy())

    def _product(self) -> Tensor | None:
        tensor = self.tensor
        return None if tensor.grad is None else self._part(tensor) * self._part(tensor.grad)

    def _sums(self, tensor: Tensor, power: int, *, whole: bool = True) -> Rows:
        part = self._part(tensor) if whole else tensor
        if self.piece.dim == 1 and part.dtype == torch.float32:
            quick = _sums_of_columns(part, power)
            if bool(torch.isfinite(quick).all()):
                return np.asarray(quick.view(self.width, -1).sum(dim=1).cpu().numpy())
        norms = (
            torch.linalg.vector_norm(part, power, self._others(part), dtype=torch.float64)
            if part.dim() > 1
            else part.double().abs()
        )
        return np.asarray((norms**power).view(self.width, -1).sum(dim=1).cpu().numpy())

    def _others(self, part: Tensor) -> list[int]:
        return [axis for axis in range(part.dim()) if axis != self.piece.dim]

    def _part(self, tensor: Tensor) -> Tensor:
        """The group's entries along the dim, channel after channel; a view where they lie side by side."""
        piece = self.piece
        if piece.step == piece.repeat:
            return tensor.detach().narrow(piece.dim, piece.offset, self.width * piece.repeat)
        entries = torch.from_numpy(piece.entries(np.arange(self.width, dtype=np.int64)))
        return tensor.detach().index_select(piece.dim, entries.to(tensor.device))


def _sums_of_columns(part: Tensor, power: int) -> Tensor:
    """Sum of ``abs(value) ** power`` for each entry of dim 1 in float64: of a few rows at a time in float32, which is many times as
    fast as reductions over several dims, and as good as float64 to seven digits where nothing overflows.
    """
    total = torch.zeros(part.shape[1:], dtype=torch.float64, device=part.device)
    for rows in torch.split(part, ROWS):
        total += (rows.abs() if power == 1 else rows * rows).sum(dim=0)
    return total.flatten(1).sum(dim=1) if total.dim() > 1 else total


@dataclass(frozen=True)
class Members:
    """What makes and what reads one group's channels. `filters` is never empty."""

    name: str
    width: int
    """Number of channels."""
    filters: Sequence[Member]
    """Outputs of weights of layers, first the one that the group is called after. A weight that holds them in several runs
    (fused, grouped) has several members."""
    biases: Sequence[Member]
    """Biases of layers, and parameters that are added to the channels."""
    inputs: Sequence[Member]
    """Inputs of weights of the layers that read the channels."""
    scales: Sequence[Member]
    """Of batch norms over the channels."""
    shifts: Sequence[Member]

    def __iter__(self) -> Iterator[Member]:
        return iter((*self.filters, *self.biases, *self.inputs, *self.scales, *self.shifts))


Groups = Mapping[str, Members]
"""Of every prunable group, by name."""


def members(model: nn.Module, graph: Graph) -> Groups:
    """Of every prunable group of `graph`, a trace of `model`. Raises `Mismatch` for another model, `DataError` for a graph
    without roles.
    """
    found = {group.name: _members(model, graph, group) for group in graph.prunable}
    for name, group in found.items():
        if not group.filters:
            raise DataError(
                f"the graph does not tell what makes the channels of '{name}': an earlier version wrote it; trace again"
            )
    return found


def _members(model: nn.Module, graph: Graph, group: Group) -> Members:
    by_role: dict[str, dict[tuple[int, str, Slice], Member]] = {role: {} for role in ROLES}
    for piece in sorted(group.slices, key=lambda piece: piece.param.removesuffix(".weight") != group.name):
        owner, name = _place(model, piece, graph.params[piece.param]) if piece.roles else (model, "")
        for role in piece.roles:
            # Parts of one parametrized weight (direction and length) are one member.
            key = id(owner), name, Slice("", piece.dim, piece.offset, piece.repeat, piece.step)
            by_role[role].setdefault(key, Member(piece, owner, name, group.width))
    return Members(
        group.name,
        group.width,
        *(list(by_role[role].values()) for role in ("filter", "bias", "input", "scale", "shift")),
    )


def _place(model: nn.Module, piece: Slice, shape: Sequence[int]) -> tuple[nn.Module, str]:
    """The module and attribute that hold a parameter, or the parametrized tensor made of it if its dim is as long there."""
    path, _, leaf = piece.param.rpartition(".")
    place, parametrized, below = path.partition("parametrizations.")
    owner, tensor = _module(model, place.removesuffix(".")), below.partition(".")[0]
    if owner is not None and parametrized and parametrize.is_parametrized(owner, tensor):
        made = getattr(owner, tensor).shape
        if len(made) > piece.dim and made[piece.dim] == shape[piece.dim]:
            return owner, tensor
    owner = _module(model, path)
    value = getattr(owner, leaf, None)
    if owner is None or not isinstance(value, Tensor) or tuple(value.shape) != tuple(shape):
        found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else "nothing"
        raise Mismatch(
            f"the graph has '{piece.param}' with shape {list(shape)}, the model has {found}; trace this model"
        )
    return owner, leaf


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
