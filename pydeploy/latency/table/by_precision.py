"""What layers take in float and in int8 by two latency tables, for the choice of the layers that become int8.

One table is the run's own, the other is named in the config (``quantize.table``); both hold networks of one graph, on targets
that differ in precision only. They were not measured at the same time, so each is scaled to what its network takes now.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydeploy.backends.base import Backend
from pydeploy.graph import Graph, Widths
from pydeploy.latency.table.table import Table
from pydeploy.timing.ratio import of_limit
from pydeploy.timing.records import Target, Timing


def other_target(backend: Backend) -> Target:
    """The int8 target beside a float one; beside an int8 one, the float target of what int8 leaves unquantized."""
    return replace(backend.target(), precision=backend.beside_int8 if backend.precision == "int8" else "int8")


def other_table(path: Path, backend: Backend) -> Table:
    """The latency table of the precision beside the backend's; raises `DataError` or `Mismatch`, naming the fact."""
    table = Table.open(path)
    table.target.require(other_target(backend), f"quantize.table: the latency table {path}")
    return table


def layer_times(graph: Graph, widths: Widths, table: Table, network: Timing) -> dict[str, float]:
    """Each operator's time in us at `widths`, as the table has it, where the whole network takes `network` now.

    Raises `MissingTiming` for a layer or a graph that the table does not hold.
    """
    predictions, keys = table.predictions(graph), graph.keys(widths)
    speed = of_limit(network, predictions.predict_us(widths)).value
    return {op.name: speed * predictions.latency_us(key) for op, key in zip(graph.ops, keys, strict=True)}
