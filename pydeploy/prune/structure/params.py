"""Where the entries of a tensor computed from parameters come from: ``weight.t()``, ``bias[:c]``, ``gamma[:, None, None]``.

For each axis of such a tensor a `ParamView` lists the parameter dims whose entries lie along it. Channels that meet
the tensor on that axis are thereby placed in the parameters. Cut parameter entries are zero in the silenced model,
so norms and sums over an axis may drop it; anything unclear loses the origin, and then the parameter is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pydeploy.prune.structure.layout import FIXED, Labels, Unknown, blocks
from pydeploy.prune.structure.tape import Value


@dataclass(frozen=True, slots=True)
class Origin:
    """Entry ``entries[i]`` of `dim` of `param` (of `size` entries) lies at place ``i`` of an axis; negative: none does."""

    param: str
    dim: int
    size: int
    entries: Labels
    note: str = ""
    """Why cutting these entries changes what the others become ('' = it does not)."""

    @property
    def place(self) -> tuple[str, int]:
        return self.param, self.dim


def evenly(size: int) -> Origin:
    """An axis of any size along which one entry is repeated."""
    return Origin("", 0, 1, np.zeros(size, dtype=np.int64))


Axes = tuple[tuple[Origin, ...], ...]
"""Origins along every axis."""


@dataclass(frozen=True, slots=True)
class ParamView:
    """What a tensor is made of; `lost` are dims whose entries can no longer be told apart."""

    axes: Axes
    lost: tuple[Origin, ...] = ()
    zero: bool = True
    """Entries that are cut are zero in the silenced model."""
    normed: frozenset[tuple[str, int]] = frozenset()
    """Parameter dims over which a norm runs: without some of their entries the others are scaled in another way."""
    alike: tuple[tuple[Origin, ...], ...] = ()
    """Origins along axes that were summed over in a product: they are cut alike."""
    averaged: tuple[Origin, ...] = ()
    """Origins along axes over which a mean or deviation ran. Where their dims meet channels again, as in weight standardization,
    these are `normed`; elsewhere nobody could tell.
    """

    @property
    def origins(self) -> tuple[Origin, ...]:
        return (*(origin for axis in self.axes for origin in axis), *self.lost)


def whole(value: Value) -> ParamView:
    """The parameter itself."""
    return ParamView(
        tuple(
            (Origin(value.param, dim, size, np.arange(size, dtype=np.int64)),) for dim, size in enumerate(value.shape)
        )
    )


def _joined(views: Sequence[ParamView], axes: Sequence[tuple[Origin, ...]], lost: tuple[Origin, ...] = (), *,
            zero: bool = True) -> ParamView:  # fmt: skip
    """A view of several ones, with what each of them knows."""
    lost = (*(origin for view in views for origin in view.lost), *lost)
    normed = frozenset().union(*(view.normed for view in views))
    alike = tuple(group for view in views for group in view.alike)
    return ParamView(
        tuple(axes), lost, zero, normed, alike, tuple(origin for view in views for origin in view.averaged)
    )


def derived(op: str, views: Mapping[Value, ParamView], args: Sequence[Any], out: Value) -> ParamView | None:
    """Origins of `out`; None when `op` is none of the operators that are followed. Raises `Unknown`."""
    first = args[0]
    if op in _ELEMENTWISE:
        return _elementwise(op, views, args, out)
    if op in ("mv", "dot", "vdot"):
        return _product(views, args)
    if op in ("cat", "concat"):
        return _cat(views, first, args[1] % out.rank if len(args) > 1 else 0, out)
    if op == "native_batch_norm":
        return _standardized(views, args)
    if not isinstance(first, Value) or first not in views:
        return None
    step = _STEPS.get(op)
    return step(views[first], first, args, out) if step is not None else None


def _elementwise(op: str, views: Mapping[Value, ParamView], args: Sequence[Any], out: Value) -> ParamView:
    axes: list[tuple[Origin, ...]] = [()] * out.rank
    lost: tuple[Origin, ...] = ()
    operands = [arg for arg in args if isinstance(arg, Value)]
    known = [operand for operand in operands if operand in views]
    for value in known:
        for axis, origins in enumerate(views[value].axes):
            at = axis + out.rank - value.rank
            if value.shape[axis] == out.shape[at]:
                axes[at] += origins
            else:
                lost += _many(origins)
    for value in (operand for operand in operands if operand not in views):
        for at, size in enumerate(value.shape, start=out.rank - value.rank):
            if size > 1:
                lost, axes[at] = lost + _many(axes[at]), ()
    silent = [views[value].zero for value in known]
    zero = op in _ZERO_KEEPING and (any(silent) if op == "mul" else silent[0] if op == "div" else all(silent))
    return _joined([views[value] for value in known], axes, lost, zero=zero and (op != "div" or args[0] in views))


def _product(views: Mapping[Value, ParamView], args: Sequence[Any]) -> ParamView:
    """A matrix or vector times a vector: the entries along the axis that is summed over are cut alike, in spectral norms."""
    left, right = args[:2]
    if left not in views or right not in views:
        raise Unknown("parameters are multiplied by something else")
    one, two = views[left], views[right]
    if not (one.zero or two.zero):
        raise Unknown("reduces over entries of a parameter")
    summed = (*one.axes[-1], *two.axes[0])
    joined = _joined([one, two], one.axes[:-1])
    normed = joined.normed | {origin.place for origin in _many(summed)}
    return replace(joined, normed=normed, alike=(*joined.alike, summed))


def _cat(views: Mapping[Value, ParamView], parts: Sequence[Value], axis: int, out: Value) -> ParamView:
    axes: list[tuple[Origin, ...]] = [()] * out.rank
    start = 0
    for part in parts:
        view = views.get(part, ParamView(((),) * part.rank))
        for at, origins in enumerate(view.axes):
            for origin in origins:
                if at == axis:
                    entries = np.full(out.shape[axis], FIXED, dtype=np.int64)
                    entries[start : start + part.shape[axis]] = origin.entries
                    axes[at] += (replace(origin, entries=entries),)
                else:
                    axes[at] += (origin,)
        start += part.shape[axis]
    return _joined([views[part] for part in parts if part in views], axes)


def _standardized(views: Mapping[Value, ParamView], args: Sequence[Any]) -> ParamView:
    """Weight standardization (Qiao et al. 2019): a batch norm in training mode of a weight as ``(1, outputs, the rest)``."""
    source, gain, shift, mean, _, training = args[:6]
    if not training or mean is not None or source.rank != 3 or source not in views:
        raise Unknown("a normalization of parameters that is not weight standardization")
    text = "a weight's statistics run over its kept inputs"
    batch, outputs, rest = views[source].axes
    for extra in (gain, shift):
        outputs += views[extra].axes[0] if extra in views else ()
    known = [views[value] for value in (source, gain, shift) if value in views]
    return _joined(known, (batch, outputs, tuple(replace(o, note=text) for o in rest)), zero=False)


_STATISTICS = frozenset(("var_mean", "std_mean"))
SEVERAL = _STATISTICS | {"split", "split_with_sizes", "unbind", "chunk", "unsafe_split", "_weight_norm_interface"}
"""Operators of several results."""


def several(
    op: str, views: Mapping[Value, ParamView], args: Sequence[Any], outs: Sequence[Value]
) -> dict[Value, ParamView]:
    """Origins of the results of one of `SEVERAL`; none when it works on something else than parameters."""
    source = args[0]
    view = views.get(source)
    if view is None:
        return {}
    if op == "_weight_norm_interface":
        return {outs[0]: _weight_normed(views, args, outs[0])}
    if op in _STATISTICS:
        return {out: _averaged(view, source, args, out) for out in outs}
    axis = (args[-1] if isinstance(args[-1], int) else 0) % source.rank
    if op == "unbind":
        return {out: _select(view, source, [source, axis, number], out) for number, out in enumerate(outs)}
    begins = np.cumsum([0, *(out.shape[axis] for out in outs)]).tolist()
    return {
        out: _narrow(view, source, [source, axis, begin, out.shape[axis]], out)
        for begin, out in zip(begins, outs, strict=False)
    }


Step = Callable[[ParamView, Value, Sequence[Any], Value], ParamView]


def _same(view: ParamView, _source: Value, _args: Sequence[Any], _out: Value) -> ParamView:
    return view


def _t(view: ParamView, _source: Value, _args: Sequence[Any], _out: Value) -> ParamView:
    return replace(view, axes=view.axes[::-1])


def _transpose(view: ParamView, _source: Value, args: Sequence[Any], _out: Value) -> ParamView:
    axes = list(view.axes)
    axes[args[1]], axes[args[2]] = axes[args[2]], axes[args[1]]
    return replace(view, axes=tuple(axes))


def _permute(view: ParamView, _source: Value, args: Sequence[Any], _out: Value) -> ParamView:
    return replace(view, axes=tuple(view.axes[axis] for axis in args[1]))


def _unsqueeze(view: ParamView, _source: Value, args: Sequence[Any], out: Value) -> ParamView:
    at = args[1] % out.rank
    return replace(view, axes=(*view.axes[:at], (), *view.axes[at:]))


def _reshape(view: ParamView, source: Value, _args: Sequence[Any], out: Value) -> ParamView:
    axes: list[tuple[Origin, ...]] = [()] * out.rank
    lost = view.lost
    for inner, outer in blocks(source.shape, out.shape):
        shape, target = [source.shape[a] for a in inner], [out.shape[a] for a in outer]
        for axis in inner:
            for origin in view.axes[axis]:
                aligned = origin.entries.reshape([-1 if a == axis else 1 for a in inner])
                grid = np.broadcast_to(aligned, shape).reshape(target)
                varying = [i for i in range(grid.ndim) if (grid != grid.take([0], axis=i)).any()]
                if len(varying) == 1:
                    line = grid[tuple(slice(None) if i == varying[0] else 0 for i in range(grid.ndim))]
                    axes[outer[varying[0]]] += (replace(origin, entries=np.ascontiguousarray(line)),)
                elif origin.size > 1:
                    lost += (origin,)
                elif len(long := [i for i, size in enumerate(target) if size > 1]) == 1:
                    axes[outer[long[0]]] += (evenly(target[long[0]]),)
    return replace(view, axes=tuple(axes), lost=lost)


def _expand(view: ParamView, source: Value, _args: Sequence[Any], out: Value) -> ParamView:
    new, lost = out.rank - source.rank, view.lost
    axes: list[tuple[Origin, ...]] = [(evenly(size),) if size > 1 else () for size in out.shape]
    for axis, origins in enumerate(view.axes):
        if source.shape[axis] == out.shape[axis + new]:
            axes[axis + new] = origins
        else:
            lost += _many(origins)
    return replace(view, axes=tuple(axes), lost=lost)


def _repeat(view: ParamView, source: Value, args: Sequence[Any], out: Value) -> ParamView:
    new = out.rank - source.rank
    axes: list[tuple[Origin, ...]] = [(evenly(size),) if size > 1 else () for size in out.shape]
    for axis, origins in enumerate(view.axes):
        if source.shape[axis] > 1 or _many(origins):
            axes[axis + new] = tuple(replace(o, entries=np.tile(o.entries, args[1][axis + new])) for o in origins)
    return replace(view, axes=tuple(axes))


def _slice(view: ParamView, source: Value, args: Sequence[Any], _out: Value) -> ParamView:
    axis, start, end, step = (args[1] or 0) % source.rank, args[2], args[3], args[4] if len(args) > 4 else 1
    return _taken(view, axis, slice(start, end, step))


def _narrow(view: ParamView, source: Value, args: Sequence[Any], _out: Value) -> ParamView:
    return _taken(view, args[1] % source.rank, slice(args[2], args[2] + args[3]))


def _taken(view: ParamView, axis: int, which: slice) -> ParamView:
    origins = tuple(replace(o, entries=o.entries[which]) for o in view.axes[axis])
    return replace(view, axes=(*view.axes[:axis], origins, *view.axes[axis + 1 :]))


def _select(view: ParamView, source: Value, args: Sequence[Any], _out: Value) -> ParamView:
    axis = args[1] % source.rank
    return replace(view, axes=(*view.axes[:axis], *view.axes[axis + 1 :]), lost=(*view.lost, *_many(view.axes[axis])))


def _index(view: ParamView, source: Value, args: Sequence[Any], out: Value) -> ParamView:
    at = [i for i, index in enumerate(args[1]) if index is not None]
    if at != [0]:
        raise Unknown("a parameter is indexed on an inner axis")
    wide = out.rank - (source.rank - 1)
    return replace(view, axes=((),) * wide + view.axes[1:], lost=(*view.lost, *_many(view.axes[0])))


def _norm(view: ParamView, source: Value, args: Sequence[Any], out: Value) -> ParamView:
    """A norm or sum over some axes: cut entries are zero, so they do not count."""
    dims = next((arg for arg in args[1:] if isinstance(arg, list | tuple)), None)
    axes = {d % source.rank for d in (dims or range(source.rank))}
    keep = out.rank == source.rank
    if not view.zero and any(_many(view.axes[axis]) for axis in axes):
        return _averaged(view, source, args, out)
    kept = tuple(() if i in axes else o for i, o in enumerate(view.axes) if keep or i not in axes)
    normed = {origin.place for axis in axes for origin in _many(view.axes[axis])}
    return replace(view, axes=kept, normed=view.normed | normed)


def _averaged(view: ParamView, source: Value, args: Sequence[Any], out: Value) -> ParamView:
    """A mean, variance or deviation over some axes: without some of their entries it is another one."""
    made = _norm(replace(view, zero=True), source, args, out)
    dims = next((arg for arg in args[1:] if isinstance(arg, list | tuple)), None) or range(source.rank)
    gone = tuple(origin for d in dims for origin in _many(view.axes[d % source.rank]))
    return replace(made, zero=False, averaged=(*view.averaged, *gone))


def _weight_normed(views: Mapping[Value, ParamView], args: Sequence[Any], out: Value) -> ParamView:
    """``_weight_norm_interface(v, g, dim)``: v scaled so that its norm over all axes but one is g."""
    joined = _elementwise("mul", views, args[:2], out)
    others = [origins for axis, origins in enumerate(views[args[0]].axes) if axis != args[2] % args[0].rank]
    return replace(joined, normed=joined.normed | {o.place for origins in others for o in _many(origins)})


def _many(origins: Sequence[Origin]) -> tuple[Origin, ...]:
    return tuple(o for o in origins if o.size > 1)


_ELEMENTWISE = frozenset(
    ("add", "sub", "mul", "div", "exp", "log", "neg", "abs", "sqrt", "rsqrt", "pow", "clamp", "clamp_min", "clamp_max", "sigmoid",
     "tanh", "softplus", "relu", "square", "reciprocal", "where", "maximum", "minimum", "rsub", "sign")
)  # fmt: skip

_ZERO_KEEPING = frozenset(("mul", "div", "neg", "abs", "sqrt", "square", "relu", "tanh", "sign"))

_STEPS: Mapping[str, Step] = {
    **dict.fromkeys(["clone", "detach", "alias", "contiguous", "_to_copy", "to", "lift_fresh", "fill", "zero"], _same),
    **dict.fromkeys(["view", "_unsafe_view", "reshape", "squeeze", "flatten", "_reshape_alias"], _reshape),
    **dict.fromkeys(("linalg_vector_norm", "norm", "sum"), _norm),
    **dict.fromkeys(("mean", "std", "var"), _averaged),
    "t": _t,
    "transpose": _transpose,
    "permute": _permute,
    "unsqueeze": _unsqueeze,
    "expand": _expand,
    "repeat": _repeat,
    "slice": _slice,
    "narrow": _narrow,
    "select": _select,
    "index": _index,
}
"""How each operator on one parameter moves origins."""
