"""The criterion that every other one has to beat."""

from __future__ import annotations

import numpy as np

from pydeploy.prune.criteria.members import Members, Rows


def random(group: Members, generator: np.random.Generator) -> Rows:
    """U(0, 1), one draw a channel of a group."""
    return generator.random(group.width)
