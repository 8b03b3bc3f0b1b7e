"""Criteria of the loss's gradients (Molchanov et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pydeploy.prune.criteria.members import Groups, Member, Members, Rows
from pydeploy.prune.criteria.passes import Gradients


def taylor(groups: Groups, gradients: Gradients) -> dict[str, Rows]:
    """Squared first-order change of the loss when the channel is gated off, mean over batches."""
    totals = {name: np.zeros(group.width) for name, group in groups.items()}
    count = 0
    for _ in gradients:
        count += 1
        for name, group in groups.items():
            totals[name] += np.sum([member.products() for member in gate(group)], axis=0) ** 2
    return {name: total / count for name, total in totals.items()}


def gate(group: Members) -> Sequence[Member]:
    """Tensors whose sum of ``value * gradient`` is the derivative of a gate on the channel: what reads it, linearly.

    Between a batch norm and the reader, ReLUs and additions pass a gate through: this is the published gate behind the norm.
    A channel that no layer reads is gated where it is made.
    """
    return group.inputs or [*group.scales, *group.shifts] or [*group.filters, *group.biases]
