"""Criteria of weights alone: norms of filters."""

from __future__ import annotations

import numpy as np

from pydeploy.prune.criteria.members import Members, Rows


def l1(group: Members) -> Rows:
    """L1 norm of each filter (Li et al. 2017), divided by its layer's mean so that layers compare, mean over producers."""
    return _norm(group, 1)


def l2(group: Members) -> Rows:
    """L2 norm of each filter, otherwise as `l1`."""
    return _norm(group, 2)


def _norm(group: Members, power: int) -> Rows:
    norms = [np.linalg.norm(member.rows(), ord=power, axis=1) for member in group.filters]
    return np.asarray(np.mean([n / max(n.mean(), 1e-30) for n in norms], axis=0))
