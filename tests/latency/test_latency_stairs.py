"""`latency.stairs`: the analytic device's stairs of 16 channels are found from a coarse grid."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from latency_nets import residual
from pydeploy.backends.base import open_backend
from pydeploy.latency.probes.design import plan_keys, probe_plans
from pydeploy.latency.probes.measure import measure
from pydeploy.latency.probes.refine import _middles, further_plans, off_grid, refine
from pydeploy.latency.table.table import Table

GRID = {"a": (8, 64, 128), "b": (8, 64, 128)}


@pytest.fixture
def measured(tmp_path: Path):
    model, graph = residual(128, 128)
    onnx.save(model, tmp_path / "net.onnx")
    backend = open_backend("null")
    table = Table.open(tmp_path / "t.sqlite", backend.target())

    def fill(widths, plans=None) -> Table:
        measure(graph, tmp_path / "net.onnx", backend, table, widths=widths, plans=plans, rounds=1, runs=1)
        return table

    return graph, fill


def test_middles_are_taken_at_steep_rises_and_falls_only() -> None:
    curve = [(8, 10.0), (40, 10.0), (72, 30.0), (104, 32.0), (136, 31.0)]
    assert _middles(curve, 8) == [56, 120]
    assert _middles([(8, 1.0), (16, 9.0), (24, 9.5)], 8) == []  # nothing lies between them
    assert _middles([(8, 1.0), (64, 2.0)], 8) == []


def test_refined_widths_are_measured_with_few_networks(measured) -> None:
    graph, fill = measured
    table = fill(GRID)
    finer = refine(graph, table, GRID, align=16)
    assert all(set(GRID[name]) <= set(values) for name, values in finer.items())
    known = probe_plans(graph, GRID)
    plans = further_plans(graph, {"a": (8, 32, 64, 96, 128), "b": (8, 32, 64, 96, 128)}, known, 6)
    assert 0 < len(plans) <= 6
    seen = set().union(*(plan_keys(graph, plan) for plan in known))
    for plan in plans:
        assert plan_keys(graph, plan) - seen
        seen |= plan_keys(graph, plan)
    assert further_plans(graph, GRID, known, 4) == []
    table = fill(GRID, plans)
    assert {32, 96} & set(table.widths(graph)["a"])


def test_off_grid_lies_between() -> None:
    plan = off_grid(GRID, align=8, seed=3)
    assert plan == off_grid(GRID, align=8, seed=3)
    for name, width in plan.items():
        assert width not in GRID[name]
        assert 8 < width < 128
        assert width % 8 == 0
