"""Which channels of each group stay: all that surgery reads. No tensors, no torch."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.errors import DataError, Mismatch, nearest
from pydeploy.files import parsed, write_json
from pydeploy.graph import Graph, Group, Widths

Scores = Mapping[str, NDArray[np.float32]]
"""Importance of each channel, ``{group: (width,) float32}``; higher is kept first."""


@dataclass(frozen=True)
class Plan:
    """Which channels stay: ``{group: kept channels, ascending}``; a group not named stays whole."""

    kept: Mapping[str, tuple[int, ...]]
    graph: str
    """`Graph.fingerprint` of the model that the plan is for."""
    method: str = ""
    score: float = float("nan")
    """Sum of the kept channels' scores."""
    latency_us: float = float("nan")
    """Predicted latency, re-read from the table (NaN where no table was used)."""
    bound: float = float("nan")
    """Upper bound on `score` that was proven for this budget."""
    dense: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of every tensor of the uncut model, by ``state_dict`` name; says what differs when a model does not fit."""

    @property
    def gap(self) -> float:
        """Relative distance of `score` to its proven upper bound (0 = proven optimal)."""
        return (self.bound - self.score) / max(abs(self.bound), 1e-12)

    @property
    def widths(self) -> dict[str, int]:
        return {name: len(channels) for name, channels in self.kept.items()}

    @cached_property
    def channels(self) -> dict[str, NDArray[np.int64]]:
        """The kept channels as arrays, made once. Raises `Mismatch` for numbers beyond 64 bits."""
        try:
            return {name: np.fromiter(kept, np.int64, len(kept)) for name, kept in self.kept.items()}
        except OverflowError:
            raise Mismatch("the plan names a channel that needs more than 64 bits; solve again") from None

    def check(self, graph: Graph) -> None:
        """Raise `Mismatch` unless this plan is valid for `graph`."""
        if self.graph != graph.fingerprint:
            raise Mismatch(
                f"the plan is for graph {self.graph}, the model's graph is {graph.fingerprint}{self._difference(graph)}: "
                "trace the model that the plan was made for, or solve again"
            )
        for name, channels in self.channels.items():
            group = graph.by_name.get(name)
            if group is None:
                raise Mismatch(f"the plan names group '{name}', which the model lacks{nearest(name, graph.by_name)}")
            _check_channels(group, channels)

    def _difference(self, graph: Graph) -> str:
        """The first tensor that differs, for messages; '' where the tensors are the same or not known."""
        for name in [*self.dense, *graph.params] if self.dense else ():
            want, have = self.dense.get(name), graph.params.get(name)
            if want is None or have is None or tuple(want) != tuple(have):
                shapes = [list(s) if s is not None else "absent" for s in (want, have)]
                return f" ('{name}' is {shapes[0]} there, {shapes[1]} here)"
        return ""

    def after(self, first: Plan | None) -> Plan:
        """The plan from the network that `first` cut (None: that is the dense one itself) to what this one leaves of its result."""
        if first is None:
            return self
        kept = {name: tuple(first.kept[name][c] for c in channels) if name in first.kept else channels
                for name, channels in self.kept.items()}  # fmt: skip
        return replace(self, kept={**first.kept, **kept}, graph=first.graph, dense=first.dense)

    def to_json(self) -> dict[str, Any]:
        return {"schema": 1, "graph": self.graph, "method": self.method, "score": self.score,
                "latency_us": self.latency_us, "bound": self.bound,
                "dense": {name: list(shape) for name, shape in self.dense.items()},
                "kept": {name: list(channels) for name, channels in self.kept.items()}}  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        try:
            kept = {name: tuple(operator.index(c) for c in channels) for name, channels in data["kept"].items()}
            dense = {name: tuple(operator.index(n) for n in shape) for name, shape in data.get("dense", {}).items()}
            numbers = {
                key: float(data[key]) if data[key] is not None else float("nan")
                for key in ("score", "latency_us", "bound")
            }
            return cls(kept, data["graph"], data["method"], **numbers, dense=dense)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not a plan file: {error!r}; expected the JSON that 'pydeploy prune' writes") from None

    def save(self, path: Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Plan:
        return parsed(path, cls.from_json)


def _check_channels(group: Group, channels: NDArray[np.int64]) -> None:
    if len(channels) == 0:
        raise Mismatch(
            f"the plan empties group '{group.name}': keep at least {group.min_width} of {group.width} channels"
        )
    if len(channels) < min(group.min_width, group.width):
        raise Mismatch(
            f"the plan keeps {len(channels)} channels of group '{group.name}', where {group.min_width} must stay"
        )
    if not (channels[:-1] < channels[1:]).all() or channels[0] < 0 or channels[-1] >= group.width:
        raise Mismatch(
            f"group '{group.name}': kept channels must ascend, without repetition, within 0..{group.width - 1}"
        )
    if group.frozen and len(channels) != group.width:
        raise Mismatch(f"the plan cuts group '{group.name}', which is frozen: {group.frozen}")


def top_channels(score: NDArray[np.float32], count: int) -> tuple[int, ...]:
    """The `count` best channels, ascending; equal scores keep the lower index."""
    order = np.argsort(-score, kind="stable")[:count]
    return tuple(int(c) for c in np.sort(order))


def plan_from_widths(graph: Graph, scores: Scores, widths: Widths, **facts: Any) -> Plan:
    """Keep the best ``widths[g]`` channels of every prunable group (groups not named stay whole)."""
    kept: dict[str, tuple[int, ...]] = {}
    total = 0.0
    for group in graph.prunable:
        channels = top_channels(scores[group.name], widths.get(group.name, group.width))
        kept[group.name] = channels
        total += float(np.sum(scores[group.name][list(channels)], dtype=np.float64))
    return Plan(kept, graph.fingerprint, score=total, dense=graph.params, **facts)
