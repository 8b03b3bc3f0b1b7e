"""Which channels matter: all criteria by name, one file a family. A new one is a function and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from pydeploy.guests import resolve
from pydeploy.prune.criteria import batchnorm, gradient, magnitude, random
from pydeploy.prune.criteria.contract import Criterion

_KNOWN = (
    Criterion("random", random.random, "global"),
    Criterion("l1", magnitude.l1, source="Li et al., ICLR 2017"),
    Criterion("l2", magnitude.l2, source="Li et al., ICLR 2017"),
    Criterion("bn_scale", batchnorm.bn_scale, "global", "a batch norm", "Liu et al., ICCV 2017"),
    Criterion("taylor", gradient.taylor, "global", source="Molchanov et al., CVPR 2019"),
)
GROUP = "pydeploy.criteria"
"""Of entry points."""
CRITERIA: Mapping[str, Criterion] = {criterion.name: criterion for criterion in _KNOWN}


def installed() -> list[Criterion]:
    """All criteria that have a name: those of `CRITERIA` and the entry points of installed packages."""
    names = metadata.entry_points(group=GROUP).names
    return [*CRITERIA.values(), *(find(name) for name in sorted(names) if name not in CRITERIA)]


def find(name: str) -> Criterion:
    """The criterion `name`: one of `CRITERIA`, an entry point of the group ``pydeploy.criteria``, or ``FILE.py:FUNCTION``.

    Raises `ConfigError` for a name that is not known and for a function whose signature asks for what there is not,
    `DataError` for a file that does not exist.
    """
    found = resolve.choose(name, CRITERIA, "criterion", GROUP)
    return found if isinstance(found, Criterion) else Criterion(name, found, source="yours")
