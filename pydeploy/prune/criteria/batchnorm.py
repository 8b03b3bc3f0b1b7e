"""Criteria of batch norms' scales."""

from __future__ import annotations

import numpy as np

from pydeploy.prune.criteria.members import Members, Rows


def bn_scale(group: Members) -> Rows | None:
    """abs(gamma) of the batch norms on the group's channels, mean over them (Network Slimming, Liu et al. 2017)."""
    if not group.scales:
        return None
    return np.asarray(np.mean([np.abs(member.rows()).sum(axis=1) for member in group.scales], axis=0))
