"""What one channel of each group takes: memory, multiply-accumulates, or microseconds by a latency table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from pydeploy.errors import ConfigError
from pydeploy.graph import Graph, OpKey, Widths


class Timings(Protocol):
    """What is asked of the predictions of a latency table for one graph."""

    @property
    def overhead_us(self) -> float: ...

    @property
    def widths(self) -> Mapping[str, Sequence[int]]: ...

    def latency_us(self, key: OpKey) -> float: ...

    def predict_us(self, widths: Widths) -> float: ...


def channel_costs(graph: Graph, kind: str, timings: Timings | None = None) -> dict[str, float]:
    """What one channel of each group takes; 1 for kind 'none'.

    In units of the input's positions (Ye et al., ICLR 2018) memory: weights of its filters and of what reads it, and the
    positions of its maps; speed: multiply-accumulates over the square of the input's positions. latency: what the network
    saves for each channel between the group's dense and its narrowest measured width, over the mean of all channels; 0 for a
    group that saves nothing.
    """
    if kind == "none":
        return {group.name: 1.0 for group in graph.prunable}
    return _saved(graph, timings) if kind == "latency" else _counted(graph, kind)


def _saved(graph: Graph, timings: Timings | None) -> dict[str, float]:
    if timings is None:
        raise ConfigError("sparsity.cost is latency, which needs sparsity.table: a latency table of this network")
    dense, saved = timings.predict_us({}), {}
    for group in graph.prunable:
        narrow = min(timings.widths.get(group.name, (group.width,)))
        gain = dense - timings.predict_us({group.name: narrow}) if narrow < group.width else 0.0
        saved[group.name] = max(gain, 0.0) / max(group.width - narrow, 1)
    mean = sum(saved[g.name] * g.width for g in graph.prunable) / max(sum(g.width for g in graph.prunable), 1)
    if mean <= 0:
        raise ConfigError("by the latency table no narrower width is faster: cost latency draws no channel to zero")
    return {name: value / mean for name, value in saved.items()}


def _counted(graph: Graph, kind: str) -> dict[str, float]:
    pixels = max(math.prod(graph.inputs[0][2:]) if graph.inputs else 1, 1)
    costs = {group.name: 0.0 for group in graph.prunable}
    for op in graph.ops:
        cin, cout = op.cin.at(graph.widths), op.cout.at(graph.widths)
        kernel, groups = math.prod(op.kernel), cin if op.depthwise else op.groups
        made = kernel * cin // groups
        for extent, weights in ((op.cout, made), *(() if op.depthwise else ((op.cin, kernel * cout // groups),))):
            for name, repeat in extent.terms:
                if name in costs:
                    maps = op.h * op.w if extent is op.cout else 0
                    costs[name] += (
                        repeat * (weights + maps if kind == "memory" else weights * op.h * op.w / pixels) / pixels
                    )
    return costs
