"""Criteria of batch norms' scales."""

from __future__ import annotations

import numpy as np

from pydeploy.prune.criteria.magnitude import Reduce, reduced
from pydeploy.prune.criteria.members import Members, Rows


def bn_scale(group: Members, *, reduce: Reduce = "mean") -> Rows | None:
    """abs(gamma) of the batch norms on the group's channels, mean over them (Network Slimming, Liu et al. 2017).

    `reduce` says which of several decides: with max a channel goes only if all of them are small, with first the first one.
    """
    return reduced(_sizes(group), reduce) if group.scales else None


def bn_ista(group: Members) -> Rows | None:
    """The largest abs(gamma) of the batch norms on a channel (Ye et al., ICLR 2018): 0 where all are exactly 0.

    For networks trained with the proximal step, whose zeros a threshold of 0 removes without loss.
    """
    return np.asarray(np.max(_sizes(group), axis=0)) if group.scales else None


def _sizes(group: Members) -> list[Rows]:
    return [member.sums(1) for member in group.scales]
