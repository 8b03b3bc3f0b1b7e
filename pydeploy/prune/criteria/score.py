"""Channel importance: one function per criterion, in the literal table `CRITERIA`. Higher = keep.

A criterion is ``f(members, graph, context) -> {group: (width,) array}``. `members` are what makes each group's channels and
what reads them; criteria average or add over them, so a residual stream is judged by all its producers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pydeploy.errors import ConfigError, DataError, nearest
from pydeploy.graph import Graph
from pydeploy.prune.criteria.members import Member, Members, members
from pydeploy.prune.forward import evaluating

Score = NDArray[np.float64]
Loss = Callable[[Any, Any], Tensor]
Batches = Iterable[tuple[Tensor | tuple[Tensor, ...], Any]]
"""``(the forward's arguments, target)``; a single tensor may stand for itself."""


@dataclass(frozen=True)
class Context:
    """What criteria may use besides weights: a seed, batches and the loss."""

    model: nn.Module
    seed: int
    data: Batches | None
    loss: Loss | None


def score(model: nn.Module, graph: Graph, criterion: str, *, data: Batches | None = None, loss: Loss | None = None,
          seed: int = 0) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """Importance of every channel of every prunable group, ``{group: (width,) float32}``, higher = keep.

    Criteria: ``random l1 l2 bn_scale taylor``. `taylor` needs `data`, batches of ``(inputs, target)`` with `inputs` a
    tensor or the tuple of the forward's arguments, and ``loss(outputs, target) -> scalar``. `model` is left as it was.
    """
    if criterion not in CRITERIA:
        raise ConfigError(f"unknown criterion '{criterion}'{nearest(criterion, CRITERIA)}")
    with _no_side_effects(model):
        scores = CRITERIA[criterion](members(model, graph), graph, Context(model, seed, data, loss))
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise DataError(
                f"criterion '{criterion}' gives NaN or infinity for group '{name}': the weights or batches hold such values"
            )
    return {name: values.astype(np.float32) for name, values in scores.items()}


Criterion = Callable[[Mapping[str, Members], Graph, Context], dict[str, Score]]


@contextmanager
def _no_side_effects(model: nn.Module) -> Iterator[None]:
    """Eval mode and gradients on inside; every mode, flag and gradient as before after."""
    before = [(t, t.requires_grad, t.grad) for t in (*model.parameters(), *model.buffers())]
    for tensor, _, _ in before:
        tensor.grad = None
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            tensor.requires_grad_()
    try:
        with torch.inference_mode(mode=False), torch.enable_grad(), evaluating(model):
            yield
    finally:
        for tensor, flag, grad in before:
            tensor.requires_grad_(flag)
            tensor.grad = grad


def _random(groups: Mapping[str, Members], graph: Graph, context: Context) -> dict[str, Score]:
    """U(0, 1), one draw per channel of a group."""
    generator = np.random.default_rng(context.seed)
    return {name: generator.random(graph.by_name[name].width) for name in groups}


def _norm(power: int) -> Criterion:
    """Lp norm of each filter (Li et al. 2017), divided by its layer's mean so that layers compare, mean over producers."""

    def criterion(groups: Mapping[str, Members], _graph: Graph, _context: Context) -> dict[str, Score]:
        result = {}
        for name, group in groups.items():
            norms = [np.linalg.norm(member.rows(), ord=power, axis=1) for member in group.filters]
            result[name] = np.mean([n / max(n.mean(), 1e-30) for n in norms], axis=0)
        return result

    return criterion


def _bn_scale(groups: Mapping[str, Members], _graph: Graph, _context: Context) -> dict[str, Score]:
    """abs(gamma) of the batch norms on the group's channels, mean over them (Network Slimming, Liu et al. 2017)."""
    result = {}
    for name, group in groups.items():
        if not group.scales:
            raise DataError(
                f"criterion 'bn_scale' needs a batch norm on every group; '{name}' has none: use l1, l2 or taylor"
            )
        result[name] = np.mean([np.abs(member.rows()).sum(axis=1) for member in group.scales], axis=0)
    return result


def _taylor(groups: Mapping[str, Members], graph: Graph, context: Context) -> dict[str, Score]:
    """Squared first-order change of the loss when the channel is gated off, mean over batches (Molchanov et al. 2019)."""
    if context.data is None or context.loss is None:
        raise ConfigError("criterion 'taylor' needs labelled batches: pass data= and loss=")
    totals: dict[str, Score] = {name: np.zeros(graph.by_name[name].width) for name in groups}
    count = 0
    for inputs, target in context.data:
        with parametrize.cached():
            _watch([member.tensor for group in groups.values() for member in _gate(group)])
            _loss(context, inputs, target, count).backward()  # type: ignore[no-untyped-call]
            for name, group in groups.items():
                totals[name] += np.sum([member.products() for member in _gate(group)], axis=0) ** 2
        count += 1
    if count == 0:
        raise DataError("criterion 'taylor' got no batches; pass at least one")
    return {name: total / count for name, total in totals.items()}


def _loss(context: Context, inputs: Tensor | tuple[Tensor, ...], target: Any, batch: int) -> Tensor:
    """The loss of one batch, or a `DataError` that says what is wrong with it."""
    assert context.loss is not None
    given: tuple[Any, ...] = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    try:
        value: Any = context.loss(context.model(*given), target)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        shapes = [list(t.shape) for t in given if isinstance(t, Tensor)]
        raise DataError(
            f"the model or the loss fails on batch {batch} with inputs {shapes}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"the loss must be one number that depends on the model's outputs; it gave {found}")
    if not bool(torch.isfinite(value)):
        raise DataError(
            f"the loss is {float(value.detach())} on batch {batch} while scoring: NaN in the weights or the data"
        )
    return value


def _watch(tensors: Iterable[Tensor]) -> None:
    """Gradients of these from zero: of parameters, of buffers that layers use as weights, and of computed weights."""
    for tensor in tensors:
        if tensor.is_leaf:
            tensor.grad = None
            tensor.requires_grad_()
        else:
            tensor.retain_grad()


def _gate(group: Members) -> Sequence[Member]:
    """Tensors whose sum of ``value * gradient`` is the derivative of a gate on the channel: what reads it, linearly.

    Between a batch norm and the reader, ReLUs and additions pass a gate through: this is the published gate behind the norm.
    A channel that no layer reads is gated where it is made.
    """
    return group.inputs or [*group.scales, *group.shifts] or [*group.filters, *group.biases]


CRITERIA: Mapping[str, Criterion] = {
    "random": _random,
    "l1": _norm(1),
    "l2": _norm(2),
    "bn_scale": _bn_scale,
    "taylor": _taylor,
}
"""All criteria, by name."""
