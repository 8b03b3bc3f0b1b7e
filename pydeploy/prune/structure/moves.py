"""Where ATen operators move entries: one map of axes for each that does nothing else.

`axis_maps` reads an operator's arguments once; what it returns carries atoms of channels (`layout`) and entries of
parameters (`params`) alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pydeploy.prune.axis_maps import NEW, AxisMap, Moved, Regrouped
from pydeploy.prune.structure.operators import KINDS
from pydeploy.prune.structure.tape import Value


def axis_maps(op: str, args: Sequence[Any], outs: Sequence[Value]) -> list[AxisMap] | None:
    """How each result lies in ``args[0]``; None where `op` does more than move entries."""
    make = _MAKERS.get(KINDS.get(op, ""))
    return None if make is None else make(args, outs)


def _view(args: Sequence[Any], outs: Sequence[Value]) -> list[AxisMap] | None:
    before, after = args[0].shape, outs[0].shape
    if 0 in before:
        return None
    return [_all(args[0]) if before == after else Regrouped(before, after)]


def _all(source: Value, *taken: tuple[int, Any]) -> AxisMap:
    return Moved(tuple(range(source.rank)), taken)


def _squeeze(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap]:
    given = args[1] if len(args) > 1 and args[1] is not None else range(args[0].rank)
    asked = {axis % max(args[0].rank, 1) for axis in ([given] if isinstance(given, int) else given)}
    return [Moved(tuple(axis for axis, n in enumerate(args[0].shape) if n != 1 or axis not in asked))]


def _unsqueeze(args: Sequence[Any], outs: Sequence[Value]) -> list[AxisMap]:
    at = args[1] % outs[0].rank
    return [Moved((*range(at), NEW, *range(at, args[0].rank)))]


def _permute(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap]:
    return [Moved(tuple(axis % args[0].rank for axis in args[1]))]


def _transpose(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap]:
    axes = list(range(args[0].rank))
    one, two = (args[1], args[2]) if len(args) > 1 else (0, -1)
    if axes:
        axes[one], axes[two] = axes[two], axes[one]
    return [Moved(tuple(axes))]


def _expand(args: Sequence[Any], outs: Sequence[Value]) -> list[AxisMap]:
    source, out = args[0], outs[0]
    new = out.rank - source.rank
    of = (*(NEW,) * new, *range(source.rank))
    long = [axis for axis, n in enumerate(source.shape) if n != out.shape[axis + new]]
    return [Moved(of, tuple((axis, np.zeros(out.shape[axis + new], dtype=np.int64)) for axis in long))]


def _repeat(args: Sequence[Any], outs: Sequence[Value]) -> list[AxisMap]:
    source, new = args[0], outs[0].rank - args[0].rank
    times = args[1][new:]
    taken = [(axis, np.tile(np.arange(n), times[axis])) for axis, n in enumerate(source.shape) if times[axis] != 1]
    return [Moved((*(NEW,) * new, *range(source.rank)), tuple(taken))]


def _interleave(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap] | None:
    """``aten::repeat_interleave.self_int(self, repeats, dim)``; repeats that are computed are not followed."""
    source, repeats, axis = (*args, None, None)[:3]
    if not isinstance(source, Value) or not isinstance(repeats, int) or axis is None:
        return None
    own = axis % source.rank
    return [_all(source, (own, np.repeat(np.arange(source.shape[own]), repeats)))]


def _slice(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap]:
    source, axis, start, end, step = (*args, *(None,) * 4)[:5]
    return [_all(source, ((axis or 0) % source.rank, slice(start, end, 1 if step is None else step)))]


def _narrow(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap] | None:
    source, axis, start = args[0], args[1] % args[0].rank, args[2]
    if not isinstance(start, int):
        return None
    begin = start if start >= 0 else start + source.shape[axis]
    return [_all(source, (axis, slice(begin, begin + args[3])))]


def _split(args: Sequence[Any], outs: Sequence[Value]) -> list[AxisMap]:
    source, axis = args[0], (args[2] if len(args) > 2 else 0) % args[0].rank
    ends = np.cumsum([0, *(out.shape[axis] for out in outs)]).tolist()
    return [_all(source, (axis, slice(begin, end))) for begin, end in pairwise(ends)]


def _select(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap]:
    return [_without(args[0], args[1] % args[0].rank, args[2])]


def _unbind(args: Sequence[Any], outs: Sequence[Value]) -> list[AxisMap]:
    axis = (args[1] if len(args) > 1 else 0) % args[0].rank
    return [_without(args[0], axis, number) for number in range(len(outs))]


def _without(source: Value, axis: int, entry: int) -> AxisMap:
    return Moved(tuple(a for a in range(source.rank) if a != axis), ((axis, entry),))


def _flip(args: Sequence[Any], _outs: Sequence[Value]) -> list[AxisMap]:
    back = slice(None, None, -1)
    return [_all(args[0], *((axis % args[0].rank, back) for axis in args[1]))]


_MAKERS: Mapping[str, Callable[[Sequence[Any], Sequence[Value]], list[AxisMap] | None]] = {
    "view": _view,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "permute": _permute,
    "transpose": _transpose,
    "expand": _expand,
    "repeat": _repeat,
    "interleave": _interleave,
    "slice": _slice,
    "narrow": _narrow,
    "split": _split,
    "select": _select,
    "unbind": _unbind,
    "flip": _flip,
}
"""By kind of operator."""
MOVES = frozenset(_MAKERS)
"""Kinds of operators that only move entries."""
