"""How channels meet: tensors that are combined entry by entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydeploy.prune.structure.layout import Layout, Unknown
from pydeploy.prune.structure.state import Tracer
from pydeploy.prune.structure.tape import Value


def met(t: Tracer, operands: Sequence[Any], rank: int, role: str = "") -> Layout | None:
    """Tensors that meet entry by entry, broadcast to `rank` axes: channels are united, parameters are cut along, and have `role`."""
    values = [value for value in operands if isinstance(value, Value)]
    result: Layout | None = None
    for value in values:
        layout = t.layout(value)
        if layout is None:
            continue
        aligned = layout if value.rank == rank else Layout(layout.axis + rank - value.rank, layout.atoms)
        if result is None:
            result = aligned
        elif result.axis != aligned.axis:
            raise Unknown("channels lie on different axes")
        else:
            t.atoms.unite(result.atoms, aligned.atoms)
    if result is None:
        return None
    for value in values:
        own = result.axis - (rank - value.rank)
        if value in t.views:
            t.bind(value, {own: result.atoms} if own >= 0 and value.shape[own] > 1 else {}, {own: role} if role else {})
        elif (
            t.layout(value) is None
            and own >= 0
            and value.shape[own] > 1
            and value not in t.contents.uniform
            and own not in t.contents.repeated.get(value, ())
        ):
            raise Unknown("combined with a tensor that has no channels of its own")
    return result
