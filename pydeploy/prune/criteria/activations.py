"""What the channels of every group are while the model runs: found at the operators that read the group's weights.

Each operator is seen with the tensor that it got for a weight. Where that tensor is the parameter, a view of it or the same
entries computed anew, its strides tell which of the operator's outputs a parameter's entry makes. So layers, functions of bare
parameters and fused projections are seen alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pydeploy.prune.criteria.members import Groups, Member
from pydeploy.prune.criteria.passes import Batches, ran
from pydeploy.prune.forward import arguments

Maps = Mapping[str, Sequence[Tensor]]
"""``{group: tensors (samples, width, positions...)}``, one tensor for each place where the channels are made."""


class _Place(NamedTuple):
    """Channels in one operator's output: outputs ``entries[channel]`` along `axis`, shape ``(width, outputs of a channel)``."""

    output: Tensor
    axis: int
    entries: NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """One batch: what the model made of it, and on the way."""

    output: Any
    target: Any
    samples: int
    places: Mapping[str, Sequence[_Place]]

    @property
    def maps(self) -> Maps:
        """Values of each group's channels behind their norms; where they have none, behind the layers that make them."""
        return {
            name: [self._map(place, place.output.detach()) for place in places] for name, places in self.places.items()
        }

    def gradients(self, of: Tensor) -> Maps:
        """Derivatives of the number `of` by `maps`, 0 where it does not depend on them."""
        every = [place for places in self.places.values() for place in places]
        if not every:
            return {}
        found = torch.autograd.grad(of, [place.output for place in every], retain_graph=True, allow_unused=True,
                                    materialize_grads=True)  # fmt: skip
        by_output = {id(place.output): grad for place, grad in zip(every, found, strict=True)}
        return {name: [self._map(place, by_output[id(place.output)]) for place in places]
                for name, places in self.places.items()}  # fmt: skip

    def _map(self, place: _Place, values: Tensor) -> Tensor:
        width, each = place.entries.shape
        index = torch.from_numpy(place.entries.ravel()).to(values.device)
        taken = values.index_select(place.axis, index)
        if place.axis == 1 and values.dim() > 2:  # samples, channels, positions
            return taken if each == 1 else taken.reshape(len(taken), width, -1)
        taken = taken.movedim(place.axis, -1).flatten(0, -2)
        samples = self.samples if len(taken) % self.samples == 0 else 1
        rows: Tensor = taken.reshape(samples, -1, width, each).movedim(2, 1).flatten(2)
        return rows


class Activations:
    """One run of the model a batch, without gradients of weights; iterating gives `Seen`. Groups that no operator shows are left out."""

    def __init__(self, model: nn.Module, groups: Groups, batches: Batches) -> None:
        self._model, self._groups, self._batches = model, groups, batches

    def __iter__(self) -> Iterator[Seen]:
        for number, (inputs, target) in enumerate(self._batches):
            given: tuple[Any, ...] = arguments(inputs)
            samples = next((len(t) for t in given if isinstance(t, Tensor) and t.dim()), 1)
            with parametrize.cached(), _fast_paths_off():
                with _Watch(self._groups) as watch:
                    output = ran(self._model, given, number)
                yield Seen(output, target, samples, watch.places())


class _Watch(TorchDispatchMode):
    """Takes note of every operator that reads a filter, or a norm's scale or shift."""

    def __init__(self, groups: Groups) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, tuple[list[_Place], list[_Place]]] = {name: ([], []) for name in groups}
        self.known: dict[int, tuple[Tensor, list[tuple[str, str, Member]]]] = {}
        """By memory: the tensor that lies there, whole, and whose channels it makes, scales or shifts."""
        for name, group in groups.items():
            for role, members in (("filter", group.filters), ("scale", group.scales), ("shift", group.shifts)):
                for member in members:
                    tensor = member.tensor.detach()
                    self.known.setdefault(_memory(tensor), (tensor, []))[1].append((name, role, member))

    def places(self) -> dict[str, list[_Place]]:
        return {name: behind or made for name, (made, behind) in self.found.items() if behind or made}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, tuple) else out
        if isinstance(first, Tensor):
            for tensor in args:
                if isinstance(tensor, Tensor) and _memory(tensor) in self.known:
                    self._note(func._schema.name.removeprefix("aten::"), args, tensor, first)
        return out

    def _note(self, op: str, args: Sequence[Any], weight: Tensor, out: Tensor) -> None:
        whole, readers = self.known[_memory(weight)]
        rows = _rows(op, args, weight, out)
        if rows is None:
            same = all(t.is_contiguous() and t.numel() == whole.numel() for t in (whole, weight, out))
            if same and _memory(out) not in self.known:  # the same entries, computed anew
                self.known[_memory(out)] = (out.detach().view(whole.shape), readers)
            return
        axis, starts = rows
        for name, role, member in readers:
            entries = _entries(starts, whole, member)
            if entries is not None and role == _ROLES.get(op, "filter"):
                made, behind = self.found[name]
                if role == "shift":  # the last step of a norm that is written out
                    behind[:] = [
                        _Place(out, axis, entries) if any(a is one.output for a in args) else one for one in behind
                    ]
                else:
                    (made if role == "filter" else behind).append(_Place(out, axis, entries))


_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
          "miopen_batch_norm", "_batch_norm_with_update")  # fmt: skip
_ROLES = {**dict.fromkeys(_NORMS, "scale"), "mul": "scale", "add": "shift"}
"""What operators that are not layers take a parameter for."""
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
"""Operators with two matrices, and which argument is the first."""


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _rows(op: str, args: Sequence[Any], weight: Tensor, out: Tensor) -> tuple[int, NDArray[np.int64]] | None:
    """The axis of an operator's outputs, and where in memory the weights of each output begin; None for other operators."""
    if op == "convolution" and args[1] is weight:
        if not args[6]:
            return 1, _starts(weight, 0)
        groups, outputs = args[8], weight.shape[1]
        one_input = groups > 1 and weight.shape[0] == groups
        starts = _starts(weight, 0).repeat(outputs) if one_input else np.tile(_starts(weight, 1), groups)
        return 1, starts
    if op in _PRODUCTS:
        first, second = args[_PRODUCTS[op]], args[_PRODUCTS[op] + 1]
        if second is weight:
            return out.dim() - 1, _starts(weight, weight.dim() - 1)
        return (out.dim() - 2, _starts(weight, weight.dim() - 2)) if first is weight else None
    if op == "embedding" and args[0] is weight:
        return out.dim() - 1, _starts(weight, 1)
    if op in ("mul", "add") and out.numel() > weight.numel() == max(
        weight.shape, default=0
    ):  # a number for each channel
        axis = weight.shape.index(weight.numel())
        return out.dim() - weight.dim() + axis, _starts(weight, axis)
    return (1, _starts(weight, 0)) if op in _NORMS and args[1] is weight else None


def _starts(weight: Tensor, axis: int) -> NDArray[np.int64]:
    return np.asarray(weight.storage_offset() + np.arange(weight.shape[axis], dtype=np.int64) * weight.stride(axis))


def _entries(starts: NDArray[np.int64], whole: Tensor, member: Member) -> NDArray[np.int64] | None:
    """Outputs of each channel, given where their weights begin; None where these are not the channels of `member`."""
    dim = member.piece.dim
    stride = int(whole.stride(dim))
    at = (starts - int(whole.storage_offset())) % (stride * whole.shape[dim]) // stride
    channel_of = np.full(whole.shape[dim], -1)
    each = len(member.piece.entries(np.zeros(1, dtype=np.int64)))
    channel_of[member.piece.entries(np.arange(member.width, dtype=np.int64))] = np.repeat(np.arange(member.width), each)
    owners = channel_of[at]
    outputs = np.flatnonzero(owners >= 0)
    counts = np.bincount(owners[outputs], minlength=member.width)
    if counts.min() == 0 or counts.min() != counts.max():
        return None
    return np.asarray(outputs[np.argsort(owners[outputs], kind="stable")].reshape(member.width, -1))


class _fast_paths_off:  # noqa: N801 (a context manager)
    """Attention as operators that read its weights one by one."""

    def __enter__(self) -> None:
        self.before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch.backends.mha.set_fastpath_enabled(self.before)


def logits_of(output: Any) -> Tensor | None:
    """The first output that has classes: floating point, ``(samples, classes, positions...)``."""
    found = [
        leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 1
    ]
    return next(iter(found), None)
