"""Which entries of which tensors a plan keeps, and the plan that two plans in turn amount to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pydeploy import _core
from pydeploy.errors import Mismatch
from pydeploy.graph import Graph
from pydeploy.plan import Plan

Kept = Mapping[str, list[NDArray[np.int64] | None]]
"""Kept entries along each dim of every tensor that is cut, by ``state_dict`` name; None = all."""


def kept_entries(graph: Graph, plan: Plan) -> Kept:
    """Entries of every tensor that survive `plan`, ascending; tensors that stay whole are not named."""
    found: dict[tuple[str, int], NDArray[np.int64]] = {}
    axes: dict[tuple[str, int], int] = {}
    slices: list[int] = []  # five numbers each
    widths: list[int] = []
    channels: list[NDArray[np.int64]] = []
    for name, kept in plan.channels.items():
        group = graph.by_name[name]
        if len(kept) == group.width:
            continue
        for piece in group.slices:
            place = (piece.param, piece.dim)
            if piece.offset == 0 and group.width == graph.params[piece.param][piece.dim]:
                found[place] = kept  # the axis is the group: no entry belongs to two channels
                continue
            axis = axes.setdefault(place, len(axes))
            slices += len(widths), axis, piece.offset, piece.repeat, piece.step
        widths.append(group.width)
        channels.append(kept)
    sizes = [graph.params[param][dim] for param, dim in axes]
    rows = _integers(slices).reshape(-1, 5)
    found |= zip(axes, _core.kept_entries(_integers(widths), channels, _integers(sizes), rows), strict=True)
    result: dict[str, list[NDArray[np.int64] | None]] = {}
    for (param, dim), entries in found.items():
        result.setdefault(param, [None] * len(graph.params[param]))[dim] = entries
    return result


def _integers(values: object) -> NDArray[np.int64]:
    return np.asarray(values, dtype=np.int64)


def compose(graph: Graph, first: Plan, small_graph: Graph, second: Plan) -> Plan:
    """The plan for `graph` that cuts as much as `first` and then `second`, a plan for `small_graph`.

    `small_graph` is the graph of the model that `first` made. Groups are matched by the tensors in which they lie, not
    by name. Raises `Mismatch` when `small_graph` is of another model than the one that `first` makes, and when the
    second plan cuts what only the small model allows.
    """
    first.check(graph)
    second.check(small_graph)
    once, twice = kept_entries(graph, first), kept_entries(small_graph, second)
    _same_tensors(graph, once, small_graph)
    both = {(param, dim): _through(once, twice, param, dim)
            for param in {**once, **twice} for dim in range(len(graph.params[param]))}  # fmt: skip
    kept: dict[str, tuple[int, ...]] = {}
    for group in graph.groups:
        place = group.slices[0] if group.slices else None
        survivors = both.get((place.param, place.dim)) if place else None
        if place is not None and survivors is not None:
            firsts = place.offset + place.step * np.arange(group.width)
            kept[group.name] = tuple(np.flatnonzero(np.isin(firsts, survivors)).tolist())
    plan = Plan({**first.kept, **kept}, graph.fingerprint, second.method, second.score, second.latency_us, second.bound,
                dense=graph.params)  # fmt: skip
    _same_cut(kept_entries(graph, plan), both)
    plan.check(graph)
    return plan


def _same_cut(found: Kept, wanted: Mapping[tuple[str, int], NDArray[np.int64] | None]) -> None:
    for (param, dim), entries in wanted.items():
        own = found[param][dim] if param in found else None
        if not np.array_equal(entries if entries is not None else (), own if own is not None else ()):
            raise Mismatch(
                f"no plan for the first graph cuts '{param}' as both plans do: the second splits channels that belong "
                "together in the dense model (a grouped convolution cut to one channel a group, or to one group)"
            )


def _same_tensors(graph: Graph, once: Kept, small_graph: Graph) -> None:
    for name in dict.fromkeys(piece.param for group in graph.groups for piece in group.slices):
        shape = graph.params[name]
        entries = once.get(name, [None] * len(shape))
        want = tuple(size if kept is None else len(kept) for size, kept in zip(shape, entries, strict=True))
        if small_graph.params.get(name) != want:
            raise Mismatch(
                f"the second plan's graph has '{name}' with shape {list(small_graph.params.get(name, ()))}, the first "
                f"plan makes it {list(want)}; trace the model that the first plan made"
            )


def _through(once: Kept, twice: Kept, param: str, dim: int) -> NDArray[np.int64] | None:
    """Entries of the dense axis that survive both cuts; None where neither touches it."""
    outer = once[param][dim] if param in once else None
    inner = twice[param][dim] if param in twice else None
    if inner is None:
        return outer
    return inner if outer is None else outer[inner]
