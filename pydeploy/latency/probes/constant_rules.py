"""How constants that follow a channel axis are cut: one small rule per operator, used by `latency.probes`.

A rule sees one node (`Site`) and returns the constant inputs that must change, ``{input index: new array}``. It keeps
first entries: latency does not depend on values. An operator without a rule keeps its constants; should that
contradict the cut shapes, shape inference says so with the node's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """The inputs of one node: shapes in the dense and in the cut model (None = unknown), and constant values."""

    dense: Sequence[Shape | None]
    cut: Sequence[Shape | None]
    constants: Sequence[NDArray[Any] | None]

    @property
    def data(self) -> tuple[Shape, Shape] | None:
        """Dense and cut shape of the first input that is computed (not a constant), if both are known."""
        for dense, cut, constant in zip(self.dense, self.cut, self.constants, strict=True):
            if constant is None and dense is not None and cut is not None:
                return dense, cut
        return None


Changes = Mapping[int, NDArray[Any]]
Rule = Callable[[Site, Shape, Shape], Changes]
"""Takes the site, and the dense and cut shape of its data input."""


def cut_constants(kind: str, site: Site) -> Changes:
    """Constant inputs of an operator of `kind` that must change for its cut data input."""
    rule, data = RULES.get(kind), site.data
    return {} if rule is None or data is None or data[0] == data[1] else rule(site, *data)


def _elementwise(site: Site, dense: Shape, cut: Shape) -> Changes:
    """Broadcast operands: axes align from the right."""
    changes = {}
    for index, constant in enumerate(site.constants):
        if constant is None:
            continue
        new = constant
        for back in range(1, min(constant.ndim, len(dense)) + 1):
            if constant.shape[-back] == dense[-back] > cut[-back]:
                new = np.take(new, range(cut[-back]), axis=-back)
        if new is not constant:
            changes[index] = new
    return changes


def _per_channel(site: Site, dense: Shape, cut: Shape) -> Changes:
    """One value per channel (axis 1), as in normalization layers."""
    return {
        index: constant[: cut[1]]
        for index, constant in enumerate(site.constants)
        if constant is not None and constant.shape == (dense[1],) and dense[1] > cut[1]
    }


def _reshape(site: Site, dense: Shape, cut: Shape) -> Changes:
    """Entries of the target shape that hold channels shrink with them; so a flatten or a shuffle stays one."""
    target = site.constants[1] if len(site.constants) > 1 else None
    if target is None:
        return {}
    wanted = [dense[i] if size == 0 and i < len(dense) else int(size) for i, size in enumerate(target.tolist())]
    free = wanted.index(-1) if -1 in wanted else None
    if free is not None:
        wanted[free] = prod(dense) // max(1, -prod(wanted))
    new = list(wanted)
    for before, after in segments(dense, wanted):
        old_size, new_size = prod(dense[i] for i in before), prod(cut[i] for i in before)
        # The largest entry that can absorb the change: in (groups, channels per group) the channels shrink.
        for at in sorted(after, key=lambda i: -wanted[i]):
            if old_size != new_size and wanted[at] * new_size % old_size == 0:
                new[at] = wanted[at] * new_size // old_size
                break
    if new == wanted:
        return {}
    if free is not None and new[free] != wanted[free]:
        new[free] = -1
    result = np.asarray(new, dtype=np.int64)
    return {} if (result == target).all() else {1: result}


def segments(left: Sequence[int], right: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split the axes of two shapes with equal products into the shortest runs whose products agree."""
    result: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(left) and j < len(right):
        a, b = [i], [j]
        size, other = left[i], right[j]
        i, j = i + 1, j + 1
        while size != other and (i < len(left) if size < other else j < len(right)):
            if size < other:
                size, a, i = size * left[i], [*a, i], i + 1
            else:
                other, b, j = other * right[j], [*b, j], j + 1
        result.append((a, b))
    return result


def _expand(site: Site, dense: Shape, cut: Shape) -> Changes:
    """Target entries that repeat the data's own (dense) size follow the cut."""
    target = site.constants[1] if len(site.constants) > 1 else None
    if target is None:
        return {}
    new = target.copy()
    for back in range(1, min(len(target), len(dense)) + 1):
        if target[-back] == dense[-back] != cut[-back]:
            new[-back] = cut[-back]
    return {} if (new == target).all() else {1: new}


def _split(site: Site, dense: Shape, cut: Shape) -> Changes:
    """Equal parts stay equal; other splits are left to shape inference to refuse."""
    sizes = site.constants[1] if len(site.constants) > 1 else None
    axes = [axis for axis, size in enumerate(dense) if size != cut[axis]]
    if sizes is None or len(axes) != 1 or len(set(sizes.tolist())) != 1 or int(sizes.sum()) != dense[axes[0]]:
        return {}
    parts = len(sizes)
    return {1: np.full(parts, cut[axes[0]] // parts, dtype=np.int64)} if cut[axes[0]] % parts == 0 else {}


def _resize(site: Site, dense: Shape, cut: Shape) -> Changes:
    """``Resize(data, roi, scales, sizes)``: a target size that repeats the data's own (dense) size follows the cut."""
    sizes = site.constants[3] if len(site.constants) > 3 else None
    if sizes is None or len(sizes) != len(dense):
        return {}
    new = [int(after) if size == before else int(size) for size, before, after in zip(sizes, dense, cut, strict=True)]
    return {} if new == sizes.tolist() else {3: np.asarray(new, dtype=sizes.dtype)}


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "PRelu", "Where", "LayerNormalization"), _elementwise
    ),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "GroupNormalization"), _per_channel),
    "Reshape": _reshape,
    "Expand": _expand,
    "Split": _split,
    "Resize": _resize,
}
