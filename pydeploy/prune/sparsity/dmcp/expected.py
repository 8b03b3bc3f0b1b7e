"""What a network costs on average while its widths are random: multiply-accumulates, or microseconds by a latency table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pydeploy.errors import MissingTiming
from pydeploy.graph import Extent, Graph, Op
from pydeploy.prune.sparsity.channel_costs import Timings
from pydeploy.prune.sparsity.dmcp.chains import Chains

TOLERANCE = 0.05
"""Share below the target within which nothing draws the expected cost (as published)."""


def budget_loss(cost: Tensor, target: float) -> Tensor:
    """The published ``log_l1``: log of the distance to the target, 0 from `TOLERANCE` below it up to it; both are shares of dense."""
    value = float(cost.detach())
    if (1 - TOLERANCE) * target <= value < target:
        return cost * 0.0
    return torch.log((cost - (target if value < target else (1 - TOLERANCE) * target)).abs())


def expected_cost(graph: Graph, chains: Chains, timings: Timings | None = None) -> Tensor:
    """The expected cost at the chains' probabilities, as a share of the dense network's.

    Groups are independent. Multiply-accumulates are exact. With `timings` so is the latency of every layer that meets at most
    two of the groups; of others (concatenations), the sum of what each group alone changes.
    """
    probabilities = chains.probabilities()
    if timings is None:
        total = torch.stack([_macs(op, graph, chains, probabilities) for op in graph.ops]).sum()
        return total / graph.macs()
    total = torch.stack([_microseconds(op, graph, chains, probabilities, timings) for op in graph.ops]).sum()
    return (total + timings.overhead_us) / timings.predict_us({})


def _macs(op: Op, graph: Graph, chains: Chains, probabilities: Mapping[str, Tensor]) -> Tensor:
    area = op.h * op.w * math.prod(op.kernel)
    if op.depthwise:
        return area * _mean(op.cout, graph, chains, probabilities)
    product = _mean(op.cin, graph, chains, probabilities) * _mean(op.cout, graph, chains, probabilities)
    inputs, outputs = dict(op.cin.terms), dict(op.cout.terms)
    for name in inputs.keys() & outputs.keys() & probabilities.keys():
        product = product + inputs[name] * outputs[name] * _variance(name, chains, probabilities)
    return area / op.groups * product


def _mean(extent: Extent, graph: Graph, chains: Chains, probabilities: Mapping[str, Tensor]) -> Tensor:
    total = torch.tensor(float(extent.fixed), device=next(iter(probabilities.values())).device)
    for name, repeat in extent.terms:
        width = (
            (probabilities[name] * _states(name, chains, total)).sum() if name in probabilities else graph.widths[name]
        )
        total = total + repeat * width
    return total


def _variance(name: str, chains: Chains, probabilities: Mapping[str, Tensor]) -> Tensor:
    states = _states(name, chains, probabilities[name])
    mean = (probabilities[name] * states).sum()
    return (probabilities[name] * (states - mean) ** 2).sum()


def _states(name: str, chains: Chains, like: Tensor) -> Tensor:
    return torch.tensor([float(width) for width in chains.widths[name]], device=like.device)


def _microseconds(
    op: Op, graph: Graph, chains: Chains, probabilities: Mapping[str, Tensor], timings: Timings
) -> Tensor:
    scope = [name for name in op.scope if name in probabilities]
    like = next(iter(probabilities.values()))
    if len(scope) <= 2:
        times = torch.tensor([_time(op, graph, dict(zip(scope, widths, strict=True)), timings)
                              for widths in itertools.product(*(chains.widths[name] for name in scope))], device=like.device)  # fmt: skip
        times = times.view([len(chains.widths[name]) for name in scope])
        for name in reversed(scope):
            times = times @ probabilities[name]
        return times
    dense = _time(op, graph, {}, timings)
    total = torch.tensor(dense, device=like.device)
    for name in scope:
        alone = [_time(op, graph, {name: width}, timings) - dense for width in chains.widths[name]]
        total = total + torch.tensor(alone, device=like.device) @ probabilities[name]
    return total


def _time(op: Op, graph: Graph, widths: Mapping[str, int], timings: Timings) -> float:
    """The dense layer's time where nothing is known of these widths."""
    try:
        return timings.latency_us(op.key(graph.at(widths)))
    except MissingTiming:
        return timings.latency_us(op.key(graph.widths))
