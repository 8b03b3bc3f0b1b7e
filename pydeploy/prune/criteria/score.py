"""Channel importance: one function per criterion, in the literal table `CRITERIA`. Higher = keep.

A criterion is ``f(members, group, context) -> (width,) array`` for one group. `members` are the layers that *make* the
group's channels; criteria average or add over them, so a residual stream is judged by all its producers.
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

from pydeploy.errors import ConfigError, DataError, nearest
from pydeploy.graph import Graph, Group, Slice
from pydeploy.prune.forward import evaluating

Score = NDArray[np.float64]
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Members:
    """One group's entries in the model: weights of the layers that make its channels, and its normalisation scales."""

    weights: Sequence[tuple[Slice, Tensor]]
    """(slice on dim 0, weight of a convolution or linear layer)."""
    norms: Sequence[tuple[Slice, nn.Module]]
    """(slice of gamma, batch-norm module)."""
    biases: Sequence[tuple[Slice, Tensor]]


@dataclass(frozen=True)
class Context:
    """What criteria may use besides weights: a seed, batches and the loss."""

    model: nn.Module
    seed: int
    data: Iterable[tuple[tuple[Tensor, ...], Any]] | None
    loss: Loss | None


def score(model: nn.Module, graph: Graph, criterion: str, *, data: Iterable[tuple[tuple[Tensor, ...], Any]] | None = None,
          loss: Loss | None = None, seed: int = 0) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """Importance of every channel of every prunable group, ``{group: (width,) float32}``, higher = keep.

    Criteria: ``random l1 l2 bn_scale taylor``. `taylor` needs `data`, batches of ``(inputs, target)`` with `inputs` a
    tuple of tensors, and ``loss(outputs, target) -> scalar``. `model` is left as it was.
    """
    if criterion not in CRITERIA:
        raise ConfigError(f"unknown criterion '{criterion}'{nearest(criterion, CRITERIA)}")
    members = {group.name: _members(model, group) for group in graph.prunable}
    with _no_side_effects(model):
        scores = CRITERIA[criterion](members, graph, Context(model, seed, data, loss))
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise DataError(
                f"criterion '{criterion}' gives NaN or infinity for group '{name}': the weights or batches hold such values"
            )
    return {name: values.astype(np.float32) for name, values in scores.items()}


def _members(model: nn.Module, group: Group) -> Members:
    weights, norms, biases = [], [], []
    for piece in group.slices:
        path, _, leaf = piece.param.rpartition(".")
        module = model.get_submodule(path)
        if piece.dim != 0:
            continue
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if leaf == "weight":
                norms.append((piece, module))
        elif leaf == "weight":
            weights.append((piece, model.get_parameter(piece.param)))
        elif leaf == "bias":
            biases.append((piece, model.get_parameter(piece.param)))
    return Members(weights, norms, biases)


@contextmanager
def _no_side_effects(model: nn.Module) -> Iterator[None]:
    """Eval mode and gradients on inside; every mode, flag and gradient as before after."""
    params = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    for p, _, _ in params:
        p.grad = None
        if p.is_floating_point():
            p.requires_grad_()
    try:
        with evaluating(model):
            yield
    finally:
        for p, flag, grad in params:
            p.requires_grad_(flag)
            p.grad = grad


def _rows(piece: Slice, tensor: Tensor, width: int) -> Score:
    """Entries of a group's channels along dim 0, flattened: shape ``(width, -1)`` in float64."""
    entries = piece.entries(np.arange(width, dtype=np.int64))
    values = tensor.detach().to("cpu", torch.float64)[torch.from_numpy(entries)]
    return np.asarray(values.reshape(width, -1).numpy())


def _random(members: Mapping[str, Members], graph: Graph, context: Context) -> dict[str, Score]:
    """U(0, 1), one draw per channel of a group."""
    generator = np.random.default_rng(context.seed)
    return {name: generator.random(graph.by_name[name].width) for name in members}


def _norm(power: int) -> Callable[[Mapping[str, Members], Graph, Context], dict[str, Score]]:
    """Lp norm of each filter (Li et al. 2017), divided by its layer's mean so that layers compare, mean over members."""

    def criterion(members: Mapping[str, Members], graph: Graph, _context: Context) -> dict[str, Score]:
        result = {}
        for name, group in members.items():
            norms = [
                np.linalg.norm(_rows(piece, w, graph.by_name[name].width), ord=power, axis=1)
                for piece, w in group.weights
            ]
            result[name] = np.mean([n / max(n.mean(), 1e-30) for n in norms], axis=0)
        return result

    return criterion


def _bn_scale(members: Mapping[str, Members], graph: Graph, _context: Context) -> dict[str, Score]:
    """abs(gamma) of the batch norms on the group's channels, mean over them (Network Slimming, Liu et al. 2017)."""
    result = {}
    for name, group in members.items():
        if not group.norms:
            raise DataError(
                f"criterion 'bn_scale' needs a batch norm on every group; '{name}' has none: use l1, l2 or taylor"
            )
        scales = [
            np.abs(_rows(piece, _parameter(m, "weight"), graph.by_name[name].width)).sum(axis=1)
            for piece, m in group.norms
        ]
        result[name] = np.mean(scales, axis=0)
    return result


def _taylor(members: Mapping[str, Members], graph: Graph, context: Context) -> dict[str, Score]:
    """Squared first-order change of the loss when the channel is gated off, mean over batches (Molchanov et al. 2019).

    The gate's derivative is ``gamma*g_gamma + beta*g_beta`` of the batch norm, or ``sum w*g`` of a layer without one.
    Derivatives of the members of one group add up before squaring, because one gate closes them all.
    """
    if context.data is None or context.loss is None:
        raise ConfigError("criterion 'taylor' needs labelled batches: pass data= and loss=")
    totals: dict[str, Score] = {name: np.zeros(graph.by_name[name].width) for name in members}
    count = 0
    for inputs, target in context.data:
        context.model.zero_grad(set_to_none=True)
        value = context.loss(context.model(*inputs), target)
        if not bool(torch.isfinite(value)):
            raise DataError(
                f"the loss is {float(value.detach())} on batch {count} while scoring: NaN in the weights or the data"
            )
        value.backward()  # type: ignore[no-untyped-call]
        for name, group in members.items():
            totals[name] += _gate(group, graph.by_name[name].width) ** 2
        count += 1
    if count == 0:
        raise DataError("criterion 'taylor' got no batches; pass at least one")
    return {name: total / count for name, total in totals.items()}


def _gate(group: Members, width: int) -> Score:
    total = np.zeros(width)
    for piece, module in group.norms:
        for leaf in ("weight", "bias"):
            total += _products(piece, _parameter(module, leaf), width)
    if not group.norms:
        for piece, tensor in [*group.weights, *group.biases]:
            total += _products(piece, tensor, width)
    return total


def _products(piece: Slice, tensor: Tensor, width: int) -> Score:
    """Sum of value * gradient over each channel's entries."""
    if tensor.grad is None:
        return np.zeros(width)
    return np.asarray((_rows(piece, tensor, width) * _rows(piece, tensor.grad, width)).sum(axis=1))


def _parameter(module: nn.Module, leaf: str) -> Tensor:
    value = getattr(module, leaf)
    assert isinstance(value, Tensor)
    return value


CRITERIA: Mapping[str, Callable[[Mapping[str, Members], Graph, Context], dict[str, Score]]] = {
    "random": _random,
    "l1": _norm(1),
    "l2": _norm(2),
    "bn_scale": _bn_scale,
    "taylor": _taylor,
}
"""All criteria, by name."""
