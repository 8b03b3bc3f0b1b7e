"""What trial cuts of a tape taught so far; layouts are followed again with it (see `propagate`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydeploy.prune.structure.tape import Site, Value

FREE = -1
"""Instead of the number of a part: zeros that follow no channels that are known where they are made."""


@dataclass
class Decisions:
    """What trial cuts taught: which of several axes stays free where a view splits channels, which numbers of modules follow
    a width, and what must not be cut.
    """

    turns: dict[Site, int] = field(default_factory=dict)
    numbers: dict[Site, Mapping[str, int]] = field(default_factory=dict)
    """Attributes that an operator's sizes come from, and which of its channels they count (see `numbers`)."""
    rounds: dict[Site, int] = field(default_factory=dict)
    """How often attributes were tried at a site."""
    zeros: dict[tuple[Site, int], list[int | Value]] = field(default_factory=dict)
    """Parts of a concatenation that are made of zeros, and whose channels they may follow: those of another part, or of an
    earlier value. The first one is tried.
    """
    refused: set[str] = field(default_factory=set)
    """Modules whose numbers do not follow because of what lies around them ('*': none's do)."""
    pairs: set[int] = field(default_factory=set)
    """Calls that fail with a single channel and may run with two."""
    blocked: dict[int, str] = field(default_factory=dict)
