"""Criteria of the loss's gradients (Molchanov et al., CVPR 2019): what the loss changes by, to first order, without a channel.

Squares are taken for each batch and then averaged: the mean gradient of a trained network is about zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pydeploy.prune.criteria.members import Groups, Member, Members, Rows
from pydeploy.prune.criteria.passes import Gradients


def taylor(groups: Groups, gradients: Gradients) -> dict[str, Rows]:
    """Squared derivative of the loss by a gate on the channel, mean over batches."""
    return _mean(groups, gradients, lambda group: np.sum([m.products() for m in gate(group)], axis=0) ** 2)


def taylor_fo(groups: Groups, gradients: Gradients) -> dict[str, Rows]:
    """Sum of squares of weight * gradient over the weights of the channel's filters, mean over batches."""
    return _mean(groups, gradients,
                 lambda group: np.sum([m.product_sums(2) for m in group.filters], axis=0))  # fmt: skip


def taylor_abs(groups: Groups, gradients: Gradients) -> dict[str, Rows]:
    """Sum of abs(weight * gradient) over the weights of the channel's filters, mean over batches."""
    return _mean(groups, gradients,
                 lambda group: np.sum([m.product_sums(1) for m in group.filters], axis=0))  # fmt: skip


def taylor_bn(groups: Groups, gradients: Gradients, *, include_beta: bool = True) -> dict[str, Rows]:
    """Squared gamma * its gradient + beta * its gradient of the channel's batch norms, mean over batches.

    That is the derivative by a gate right behind the batch norm. `include_beta`: with the second term.
    """
    judged = {name: group for name, group in groups.items() if group.scales}

    def gated(group: Members) -> Rows:
        members = [*group.scales, *group.shifts] if include_beta else group.scales
        return np.asarray(np.sum([m.products() for m in members], axis=0) ** 2)

    return _mean(judged, gradients, gated)


def _mean(groups: Groups, gradients: Gradients, of_batch: Callable[[Members], Rows]) -> dict[str, Rows]:
    """Mean over all batches of a number for each channel."""
    totals = {name: np.zeros(group.width) for name, group in groups.items()}
    count = 0
    for _ in gradients:
        count += 1
        for name, group in groups.items():
            totals[name] += of_batch(group)
    return {name: total / count for name, total in totals.items()}


def gate(group: Members) -> Sequence[Member]:
    """Tensors whose sum of ``value * gradient`` is the derivative of a gate on the channel: what reads it, linearly.

    Between a batch norm and the reader, ReLUs and additions pass a gate through: this is the published gate behind the norm.
    A channel that no layer reads is gated where it is made.
    """
    return group.inputs or [*group.scales, *group.shifts] or [*group.filters, *group.biases]
