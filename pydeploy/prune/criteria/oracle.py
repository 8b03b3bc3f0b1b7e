"""How well a criterion finds the channels that can be spared: against the loss without each of them, one at a time.

Silencing a channel changes nothing before the first layer that holds it, so the outputs of all modules up to there are kept from
the first run and only the rest is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pydeploy.errors import ConfigError, DataError, Mismatch
from pydeploy.graph import Graph, Group
from pydeploy.prune.criteria.passes import Batch, Batches, Loss, ran
from pydeploy.prune.forward import Inputs, arguments, evaluating

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Spared:
    """What the loss grows by without each channel of a group that was tried."""

    channels: NDArray[np.int64]
    increase: Rows
    """Of the mean loss over all batches, one for each of `channels`."""


def oracle(model: nn.Module, graph: Graph, *, data: Iterable[Batch], loss: Loss, channels: int | None = None,
           groups: Callable[[str], bool] = lambda _: True, seed: int = 0) -> dict[str, Spared]:  # fmt: skip
    """The loss without each channel of the prunable groups for which `groups` says yes, ``{group: Spared}``.

    `data` and `loss` as for `score`. Of groups wider than `channels` a random choice of so many is tried. `model` is left as it
    was. Costs a part of a forward pass for every channel and batch.
    """
    if channels is not None and channels < 2:
        raise ConfigError(f"channels is {channels}, expected at least 2 of each group")
    chosen = [group for group in graph.prunable if groups(group.name)]
    if not chosen:
        raise ConfigError("no prunable group is chosen")
    generator = np.random.default_rng(seed)
    tried = {group.name: _sample(group.width, channels, generator) for group in chosen}
    totals = {name: np.zeros(len(which)) for name, which in tried.items()}
    count = 0
    with evaluating(model), torch.no_grad():
        for count, (inputs, target) in enumerate(Batches(data), 1):
            given = arguments(inputs)
            with _recorded(model) as runs:
                base = _number(loss, ran(model, given, count - 1), target)
                for group in chosen:
                    start = runs.first_with(_touched(model, graph, group))
                    for place, channel in enumerate(tried[group.name]):
                        with silenced(model, graph, group, int(channel)):
                            runs.replay(start)
                            totals[group.name][place] += _number(loss, ran(model, given, count - 1), target) - base
    return {name: Spared(tried[name], total / count) for name, total in totals.items()}


@dataclass(frozen=True)
class Agreement:
    """How far a criterion and the oracle name the same channels. `precision` is the share of the K least important channels by the
    criterion that are among the K least important by the oracle; `chance` is what a random choice reaches.
    """

    precision: float
    chance: float
    spearman: float

    @property
    def lift(self) -> float:
        """Times better than chance."""
        return self.precision / self.chance


def agreement(
    scores: Mapping[str, NDArray[Any]], spared: Mapping[str, Spared], share: float = 0.2
) -> dict[str, Agreement]:
    """By group, with K the given share of the channels that were tried, at least one. Groups of one channel are left out."""
    if not 0 < share < 1:
        raise ConfigError(f"share is {share}, expected more than 0 and less than 1")
    found = {}
    for name, truth in spared.items():
        width = len(truth.channels)
        if width < 2:
            continue
        if name not in scores:
            raise DataError(f"the scores lack group '{name}'; score the model of this graph")
        own, number = np.asarray(scores[name], dtype=np.float64)[truth.channels], max(1, int(share * width))
        least = [set(np.argsort(values, kind="stable")[:number].tolist()) for values in (own, truth.increase)]
        found[name] = Agreement(len(least[0] & least[1]) / number, number / width, _spearman(own, truth.increase))
    return found


def reconstruction(model: nn.Module, small: nn.Module, batches: Iterable[Tensor | Inputs]) -> tuple[float, float]:
    """Mean square of the difference of the outputs of two models before any softmax, and its share of the first one's square."""
    difference = square = 0.0
    number = 0
    with evaluating(model), evaluating(small), torch.no_grad():
        for index, batch in enumerate(batches):
            outputs = [[leaf.double() for leaf in tree_leaves(ran(net, arguments(batch), index))
                        if isinstance(leaf, Tensor) and leaf.is_floating_point()] for net in (model, small)]  # fmt: skip
            if [one.shape for one in outputs[0]] != [two.shape for two in outputs[1]]:
                raise Mismatch("the outputs of the two models have different shapes")
            for one, two in zip(*outputs, strict=True):
                difference += float((one - two).square().sum())
                square += float(one.square().sum())
                number += one.numel()
    if number == 0:
        raise DataError("reconstruction errors need at least one batch of inputs; got none")
    return difference / number, difference / max(square, 1e-30)


@contextmanager
def silenced(model: nn.Module, graph: Graph, group: Group, channel: int) -> Iterator[None]:
    """Inside, all entries of one channel are zero, in every tensor that the graph places it in."""
    places = []
    for tensor, piece in _pieces(model, graph, group):
        entries = torch.from_numpy(piece.entries(np.array([channel]))).to(tensor.device)
        places.append((tensor, piece.dim, entries, tensor.data.index_select(piece.dim, entries)))
    try:
        for tensor, dim, entries, _ in places:
            tensor.data.index_fill_(dim, entries, 0)
        yield
    finally:
        for tensor, dim, entries, values in reversed(places):
            tensor.data.index_copy_(dim, entries, values)


def _pieces(model: nn.Module, graph: Graph, group: Group) -> Iterator[tuple[Tensor, Any]]:
    tensors = model.state_dict(keep_vars=True)
    for piece in group.slices:
        tensor = tensors.get(piece.param)
        if tensor is None or tuple(tensor.shape) != tuple(graph.params[piece.param]):
            raise Mismatch(
                f"the graph has '{piece.param}', which the model lacks or has with another shape; trace this model"
            )
        yield tensor, piece


def _touched(model: nn.Module, graph: Graph, group: Group) -> set[int]:
    return {id(tensor) for tensor, _ in _pieces(model, graph, group)}


def _sample(width: int, most: int | None, generator: np.random.Generator) -> NDArray[np.int64]:
    if most is None or most >= width:
        return np.arange(width)
    return np.asarray(np.sort(generator.choice(width, most, replace=False)))


def _number(loss: Loss, output: Any, target: Any) -> float:
    value = float(loss(output, target))
    if not np.isfinite(value):
        raise DataError(f"the loss is {value}: NaN in the weights or the data")
    return value


def _spearman(one: Rows, two: Rows) -> float:
    """Correlation of ranks, equal values sharing theirs; 0 where either is constant."""
    ranks = [_ranks(values) for values in (one, two)]
    deviations = [rank - rank.mean() for rank in ranks]
    size = float(np.sqrt((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum()))
    return float((deviations[0] * deviations[1]).sum() / size) if size > 0 else 0.0


def _ranks(values: Rows) -> Rows:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])


@dataclass
class _Runs:
    """Outputs of the modules of one run, in order, and from which one on they are computed again."""

    outputs: list[Any] = field(default_factory=list)
    owners: list[set[int]] = field(default_factory=list)
    """`id` of every tensor that a call's module holds."""
    inside: set[int] = field(default_factory=set)
    """`id` of every tensor that some module in here holds."""
    start: int | None = None
    number: int = 0

    def replay(self, start: int) -> None:
        """The next run takes the outputs before `start` as they were."""
        self.start, self.number = start, 0

    def first_with(self, tensors: set[int]) -> int:
        """The first call that holds one of `tensors`; 0 where one of them is used outside of modules."""
        if tensors - self.inside:
            return 0
        return next((number for number, own in enumerate(self.owners) if own & tensors), len(self.owners))

    def call(
        self, module: nn.Module, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        number, self.number = self.number, self.number + 1
        if self.start is None:
            out = forward(*args, **kwargs)
            self.outputs.append(_copied(out))  # what comes later may change it in place
            self.owners.append({id(t) for t in (*module.parameters(), *module.buffers())})
            self.inside |= self.owners[-1]
            return out
        return _copied(self.outputs[number]) if number < self.start else forward(*args, **kwargs)


@contextmanager
def _recorded(model: nn.Module) -> Iterator[_Runs]:
    """Inside, calls of modules without submodules are recorded in the first run, and replayed where that is asked for."""
    runs = _Runs()
    modules = [module for module in model.modules()
               if "forward" not in vars(module) and (not list(module.children()) or isinstance(module, nn.MultiheadAttention))]  # fmt: skip
    nested = {id(child) for module in modules for child in module.modules() if child is not module}
    modules = [module for module in modules if id(module) not in nested]
    try:
        for module in modules:
            forward = module.forward
            module.forward = lambda *args, _m=module, _f=forward, **kwargs: runs.call(_m, _f, args, kwargs)
        yield runs
    finally:
        for module in modules:
            del module.forward


def _copied(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)
