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

from pydeploy.prune.axis_maps import AxisMap, joined
from pydeploy.prune.structure.layout import FIXED, Labels, Unknown
from pydeploy.prune.structure.moves import axis_maps
from pydeploy.prune.structure.operators import AVERAGES, KINDS, SUMS, reduced_axes
from pydeploy.prune.structure.tape import Value
from pydeploy.prune.structure.zeros import stays_zero


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


Views = Mapping[Value, ParamView]


def whole(value: Value) -> ParamView:
    """The parameter itself."""
    return ParamView(tuple((Origin(value.param, dim, n, np.arange(n)),) for dim, n in enumerate(value.shape)))


def derived(op: str, views: Views, args: Sequence[Any], outs: Sequence[Value]) -> dict[Value, ParamView]:
    """Origins of what `op` makes of parameters; none where it is not followed through them. Raises `Unknown`."""
    kind = KINDS.get(op, "")
    if kind == "entrywise":
        return {outs[0]: _entrywise(op, views, args, outs[0])}
    if op in _SEVERAL:
        return {outs[0]: _SEVERAL[op](views, args, outs[0])}
    source = args[0]
    if not isinstance(source, Value) or source not in views:
        return {}
    if op in _ONE:
        return {outs[0]: _ONE[op](views, args, outs[0])}
    if op in SUMS:
        return {outs[0]: _normed(op, views[source], args, outs[0])}
    if op in AVERAGES:
        return {out: _averaged(op, views[source], args, out) for out in outs}
    maps = axis_maps(op, args, outs)
    return (
        {}
        if maps is None
        else {out: _moved(views[source], source, how, out) for out, how in zip(outs, maps, strict=True)}
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


def _moved(view: ParamView, source: Value, how: AxisMap, out: Value) -> ParamView:
    """Entries that are only moved; those that come to lie along several axes, or along none, can no longer be told apart."""
    axes: list[tuple[Origin, ...]] = [()] * out.rank
    lost = view.lost
    for axis, origins in enumerate(view.axes):
        for origin in origins:
            target, grid = how.carry(axis, origin.entries)
            at = (0,) if len(target) == 1 else _varying(grid)
            if len(at) == 1 and (origin.size > 1 or grid.shape == origin.entries.shape):
                line = grid[tuple(slice(None) if i == at[0] else 0 for i in range(grid.ndim))]
                axes[target[at[0]]] += (
                    origin if line is origin.entries else replace(origin, entries=np.ascontiguousarray(line)),
                )
            elif origin.size > 1:
                lost += (origin,)
    even = {axis for axis, origins in enumerate(view.axes) if origins and not _many(origins)}
    for axis in how.repeated(source.shape, even):
        if out.shape[axis] > 1 and not axes[axis]:
            axes[axis] = (evenly(out.shape[axis]),)
    return replace(view, axes=tuple(axes), lost=lost)


def _varying(grid: Labels) -> tuple[int, ...]:
    """Axes along which entries differ."""
    return tuple(i for i in range(grid.ndim) if (grid != grid.take([0], axis=i)).any())


def _entrywise(op: str, views: Views, args: Sequence[Any], out: Value) -> ParamView:
    axes: list[tuple[Origin, ...]] = [()] * out.rank
    lost: tuple[Origin, ...] = ()
    operands = [leaf for leaf in args if isinstance(leaf, Value)]
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
    return _joined([views[value] for value in known], axes, lost, zero=_silent(op, views, args, axes))


def _silent(op: str, views: Views, args: Sequence[Any], axes: Sequence[tuple[Origin, ...]]) -> bool:
    """Whether what is cut along any of the axes is zero: an operand that is broadcast along one is cut along the others alone."""

    def along(back: int) -> bool:
        def zero(value: Value) -> bool:
            view = views.get(value)
            return view is not None and view.zero and back <= value.rank and bool(_many(view.axes[-back]))

        return stays_zero(op, args, zero)

    return all(along(len(axes) - at) for at, origins in enumerate(axes) if _many(origins))


def _product(views: Views, args: Sequence[Any], _out: Value) -> ParamView:
    """A matrix or vector times a vector: the entries along the axis that is summed over are cut alike, in spectral norms."""
    left, right = args[:2]
    if left not in views or right not in views:
        raise Unknown("parameters are multiplied by something else")
    one, two = views[left], views[right]
    if not (one.zero or two.zero):
        raise Unknown("reduces over entries of a parameter")
    summed = (*one.axes[-1], *two.axes[0])
    joint = _joined([one, two], one.axes[:-1])
    normed = joint.normed | {origin.place for origin in _many(summed)}
    return replace(joint, normed=normed, alike=(*joint.alike, summed))


def _cat(views: Views, args: Sequence[Any], out: Value) -> ParamView:
    parts, axis = args[0], (args[1] if len(args) > 1 else 0) % out.rank
    axes: list[tuple[Origin, ...]] = [()] * out.rank
    sizes = [part.shape[axis] for part in parts]
    for number, part in enumerate(parts):
        for at, origins in enumerate(views[part].axes if part in views else ()):
            axes[at] += tuple(
                replace(o, entries=joined(number, sizes, o.entries, FIXED)) if at == axis else o for o in origins
            )
    return _joined([views[part] for part in parts if part in views], axes)


def _standardized(views: Views, args: Sequence[Any], _out: Value) -> ParamView:
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


def _index(views: Views, args: Sequence[Any], out: Value) -> ParamView:
    source, view = args[0], views[args[0]]
    if [i for i, index in enumerate(args[1]) if index is not None] != [0]:
        raise Unknown("a parameter is indexed on an inner axis")
    wide = out.rank - (source.rank - 1)
    return replace(view, axes=((),) * wide + view.axes[1:], lost=(*view.lost, *_many(view.axes[0])))


def _normed(op: str, view: ParamView, args: Sequence[Any], out: Value) -> ParamView:
    """A norm or sum over some axes: cut entries are zero, so they do not count."""
    source = args[0]
    axes = reduced_axes(op, args, source.rank)
    if not view.zero and any(_many(view.axes[axis]) for axis in axes):
        return _averaged(op, view, args, out)
    return _reduced(view, source, axes, out)


def _reduced(view: ParamView, source: Value, axes: set[int], out: Value) -> ParamView:
    keep = out.rank == source.rank
    kept = tuple(() if i in axes else o for i, o in enumerate(view.axes) if keep or i not in axes)
    normed = {origin.place for axis in axes for origin in _many(view.axes[axis])}
    return replace(view, axes=kept, normed=view.normed | normed)


def _averaged(op: str, view: ParamView, args: Sequence[Any], out: Value) -> ParamView:
    """A mean, variance or deviation over some axes: without some of their entries it is another one."""
    source = args[0]
    axes = reduced_axes(op, args, source.rank)
    gone = tuple(origin for axis in sorted(axes) for origin in _many(view.axes[axis]))
    return replace(_reduced(view, source, axes, out), zero=False, averaged=(*view.averaged, *gone))


def _weight_normed(views: Views, args: Sequence[Any], out: Value) -> ParamView:
    """``_weight_norm_interface(v, g, dim)``: v scaled so that its norm over all axes but one is g."""
    product = _entrywise("mul", views, args[:2], out)
    others = [origins for axis, origins in enumerate(views[args[0]].axes) if axis != args[2] % args[0].rank]
    return replace(product, normed=product.normed | {o.place for origins in others for o in _many(origins)})


def _many(origins: Sequence[Origin]) -> tuple[Origin, ...]:
    return tuple(o for o in origins if o.size > 1)


Step = Callable[[Views, Sequence[Any], Value], ParamView]
_SEVERAL: Mapping[str, Step] = {
    **dict.fromkeys(("mv", "dot", "vdot"), _product),
    **dict.fromkeys(("cat", "concat"), _cat),
    "native_batch_norm": _standardized,
}
"""Operators on several tensors that do not work entry by entry."""
_ONE: Mapping[str, Step] = {"index": _index, "_weight_norm_interface": _weight_normed}
"""Operators on one weight that neither reduce nor only move entries."""
