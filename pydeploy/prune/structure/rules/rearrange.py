"""Rules of operators that move entries: axes that are split, merged and reordered, concatenation, parts, indexing, shuffles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pydeploy.prune.axis_maps import AxisMap, Moved
from pydeploy.prune.structure.layout import FIXED, Layout, Unknown
from pydeploy.prune.structure.layout import moved as carried
from pydeploy.prune.structure.moves import axis_maps
from pydeploy.prune.structure.rules.meeting import met
from pydeploy.prune.structure.state import Made, Tracer
from pydeploy.prune.structure.tape import Call


def moved(t: Tracer, call: Call) -> Made:
    """Entries are only moved, as `axis_maps` says."""
    layout = t.layout(call.args[0])
    if layout is None:
        return None
    return [carried(t.atoms, layout, how, t.choose) for how in _maps(call)]


def _maps(call: Call) -> list[AxisMap]:
    maps = axis_maps(call.op, call.args, call.outs)
    if maps is None:
        raise Unknown("places are computed, or there are none")
    return maps


def cat(t: Tracer, call: Call) -> Made:
    """``aten::cat(tensors, dim)``: along the channel axis layouts are joined, along others united."""
    out = call.outs[0]
    axis = (call.args[1] if len(call.args) > 1 else 0) % out.rank
    parts = [part for part in call.args[0] if part.rank == out.rank]
    axes = {layout.axis for part in parts if (layout := t.layout(part)) is not None}
    if axes - {axis}:
        if axis in axes:
            raise Unknown("channels lie on different axes")
        return met(t, parts, out.rank)
    layouts = [t.like(call.site, number, parts, axis) for number in range(len(parts))]
    if not any(layouts):
        return None
    for part in parts:
        if part in t.views:
            t.freeze(part, f"{call.location}: joined with channels")
    pieces = [np.full(p.shape[axis], FIXED, dtype=np.int64) if layout is None else layout.atoms
              for p, layout in zip(parts, layouts, strict=True)]  # fmt: skip
    return Layout(axis, np.concatenate(pieces))


def stack(t: Tracer, call: Call) -> Made:
    """``aten::stack(tensors, dim)``: a new axis; channels of equal number are united."""
    out = call.outs[0]
    at = (call.args[1] if len(call.args) > 1 else 0) % out.rank
    joint = met(t, call.args[0], out.rank - 1)
    return None if joint is None else Layout(joint.axis + (at <= joint.axis), joint.atoms)


def parts(t: Tracer, call: Call) -> Made:
    """Slices along an axis. Of n equal parts of the channels equally many stay in each; whether others follow, trials show."""
    source, layout = call.args[0], t.layout(call.args[0])
    if layout is None:
        return None
    size = source.shape[layout.axis]
    maps = [how for how in _maps(call) if isinstance(how, Moved)]
    ranges = [range(size)[which] for how in maps for axis, which in how.taken if axis == layout.axis]
    if not ranges or ranges == [range(size)]:
        return [layout] * len(call.outs)
    lengths = {len(found) for found in ranges}
    if 0 in lengths or any(found.step != 1 for found in ranges):
        raise Unknown("takes an irregular part of the channels")
    each = lengths.pop()
    if lengths or size % each or any(found.start % each for found in ranges):
        return [Layout(layout.axis, layout.atoms[found.start : found.stop]) for found in ranges]
    rows = _equal_parts(t, layout, size // each)
    return [Layout(layout.axis, rows[found.start // each]) for found in ranges]


def _equal_parts(t: Tracer, layout: Layout, count: int) -> NDArray[np.int64]:
    """`count` parts of the channels, of which equally many must stay in each: shape ``(count, -1)``."""
    rows = layout.atoms.reshape(count, -1)
    for row in rows[1:]:
        t.atoms.balance(rows[0], row)
    return rows


def index(t: Tracer, call: Call) -> Made:
    """``aten::index(self, indices)`` on axes without channels."""
    source, out = call.args[0], call.outs[0]
    layout = t.layout(source)
    if any(t.layout(i) is not None for i in call.args[1] if i is not None):
        raise Unknown("channels choose entries")
    if layout is None:
        return None
    at = [axis for axis, i in enumerate(call.args[1]) if i is not None]
    if layout.axis in at or not at:
        raise Unknown("takes chosen channels")
    wide = out.rank - (source.rank - len(at))
    begin = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    rest = [axis for axis in range(source.rank) if axis not in at]
    place = rest.index(layout.axis)
    return Layout(place + wide if place >= begin else place, layout.atoms)


def index_put(t: Tracer, call: Call) -> Made:
    """``aten::index_put_(self, indices, values)`` on the first axis: the rest of `values` lies where that of `self` does."""
    target, values = call.args[0], call.args[2]
    at = [axis for axis, i in enumerate(call.args[1]) if i is not None]
    if (
        at != [0]
        or call.args[1][0].rank != 1
        or values.rank > target.rank
        or any(t.layout(i) is not None for i in call.args[1] if i is not None)
    ):
        raise Unknown("writes to chosen places")
    layout = met(t, [target, values], target.rank)
    if layout is not None and layout.axis == 0:
        raise Unknown("writes to chosen channels")
    return layout


def index_select(t: Tracer, call: Call) -> Made:
    layout = t.layout(call.args[0])
    if layout is not None and layout.axis == call.args[1] % call.args[0].rank:
        raise Unknown("takes chosen channels")
    return layout


def as_strided(t: Tracer, call: Call) -> Made:
    """The identity, as pooling uses it to change the memory format of a 1x1 map."""
    source, size, stride, offset = call.args[0], tuple(call.args[1]), call.args[2], call.args[3]
    long = [axis for axis, n in enumerate(size) if n > 1]
    if size != source.shape or offset or len(long) > 1 or any(stride[axis] != 1 for axis in long):
        raise Unknown("reads memory in an order of its own")
    return t.layout(source)


def _before_space(t: Tracer, call: Call, axis: int) -> Layout | None:
    """The first argument's layout, which must be on `axis`, behind which only places follow."""
    layout = t.layout(call.args[0])
    if layout is not None and layout.axis != axis % call.args[0].rank:
        raise Unknown("channels lie on a spatial axis")
    return layout


def pixel_shuffle(t: Tracer, call: Call) -> Made:
    """Channel c gathers r*r entries: blocks of r*r channels live together."""
    layout = _before_space(t, call, -3)
    if layout is None:
        return None
    blocks = layout.atoms.reshape(-1, call.args[1] ** 2)
    t.atoms.unite(blocks, blocks[:, :1])
    return Layout(layout.axis, np.ascontiguousarray(blocks[:, 0]))


def pixel_unshuffle(t: Tracer, call: Call) -> Made:
    layout = _before_space(t, call, -3)
    return None if layout is None else Layout(layout.axis, np.repeat(layout.atoms, call.args[1] ** 2))


def channel_shuffle(t: Tracer, call: Call) -> Made:
    """Channels of equal number in all parts are united, then the order is changed."""
    layout = _before_space(t, call, 1)
    if layout is None:
        return None
    grid = layout.atoms.reshape(call.args[1], -1)
    t.atoms.unite(grid, grid[:1])
    return Layout(1, np.ascontiguousarray(grid.T.ravel()))


def im2col(t: Tracer, call: Call) -> Made:
    """``aten::im2col(self, kernel_size, ...)``: each channel becomes one row per kernel entry."""
    layout = _before_space(t, call, -3)
    if layout is None:
        return None
    # The result has one axis less: (batch, rows, places).
    return Layout(layout.axis, np.repeat(layout.atoms, call.outs[0].shape[layout.axis] // len(layout.atoms)))


def unfold(t: Tracer, call: Call) -> Made:
    layout = t.layout(call.args[0])
    if layout is not None and layout.axis == call.args[1] % call.args[0].rank:
        raise Unknown("works along the channels")
    return layout
