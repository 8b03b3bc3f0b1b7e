"""`latency.verify`: exact on the analytic device, with statistics checked against SciPy-free oracles."""

from __future__ import annotations

import sqlite3
from itertools import permutations
from pathlib import Path

import numpy as np
import onnx
import pytest

from latency_nets import squeeze_excite
from pydeploy.backends.base import open_backend
from pydeploy.errors import DataError, Mismatch
from pydeploy.latency.check.verify import errors, random_plans, spearman, verify
from pydeploy.latency.probes.design import probe_plans
from pydeploy.latency.probes.measure import measure
from pydeploy.latency.table.table import Table

GRID = {"e": (4, 6, 8, 12), "s": (2, 3, 4), "p": (2, 3, 4, 6)}


@pytest.fixture
def net(tmp_path: Path):
    model, graph = squeeze_excite()
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx", graph


def filled(net, tmp_path: Path, backend=None, **options) -> Table:
    backend = backend or open_backend("null")
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    measure(net[1], net[0], backend, table, widths=GRID, **{"rounds": 1, "runs": 1, **options})
    return table


def test_the_analytic_device_is_predicted_exactly(net, tmp_path: Path) -> None:
    path, graph = net
    table = filled(net, tmp_path)
    found = verify(graph, path, open_backend("null"), table, plans=3, seed=4, rounds=1, runs=1)
    assert found.table.n == len(found.pairs) == 3
    assert found.floor.median_error == found.floor.p95_error == 0.0
    for pair in found.pairs:
        assert pair.macs == graph.macs(pair.widths)
        assert pair.builds_us == pytest.approx((pair.measured_us, pair.measured_us))
        assert pair.predicted_us == pytest.approx(pair.measured_us, rel=0.005)
        assert pair.isolated_us is not None
    data = found.to_json()
    assert {"median_error", "p95_error", "spearman", "n", "floor", "isolated", "macs", "pairs"} <= set(data)


def test_a_table_of_a_slower_hour_is_judged_by_networks_that_it_knows(net, tmp_path: Path) -> None:
    path, graph = net
    table = filled(net, tmp_path)
    with sqlite3.connect(table.path) as base:
        for name, columns in {"samples": (), "networks": ("layers_us",)}.items():
            slower = ", ".join(f"{column} = {column} * 1.1" for column in ("median_us", "p10_us", "p90_us", *columns))
            base.execute(f"UPDATE {name} SET {slower}")
    base.close()
    table = Table.open(table.path)
    found = verify(graph, path, open_backend("null"), table, plans=3, seed=4, rounds=1, runs=1)
    assert found.table.p95_error < 0.005
    assert not any(pair.disturbed for pair in found.pairs)


def test_plans_are_new_seeded_and_of_the_tables_widths(net, tmp_path: Path) -> None:
    table, graph = filled(net, tmp_path), net[1]
    plans = random_plans(graph, table, 4, seed=1)
    assert plans == random_plans(graph, table, 4, seed=1)
    assert plans != random_plans(graph, table, 4, seed=2)
    assert len({tuple(plan.values()) for plan in plans}) == 4
    probed = probe_plans(graph, GRID)
    assert not [plan for plan in plans if plan in probed]
    assert all(plan[name] in table.widths(graph)[name] for plan in plans for name in plan)
    with pytest.raises(DataError, match="were asked for: verify fewer plans"):
        random_plans(graph, table, 49, seed=1)


def test_another_target_is_refused_by_the_differing_fact(net, tmp_path: Path) -> None:
    table = filled(net, tmp_path)
    with pytest.raises(Mismatch, match="batch: 1 against 2"):
        verify(net[1], net[0], open_backend("null", batch=2), table)


def test_a_real_runtime(net, tmp_path: Path) -> None:
    backend = open_backend("onnxruntime", threads=1)
    table = filled(net, tmp_path, backend=backend, rounds=2, runs=2)
    found = verify(net[1], net[0], backend, table, plans=3, rounds=2, runs=2)
    assert found.dense_us > 0
    assert all(min(pair.measured_us, *pair.builds_us) > 0 and (pair.isolated_us or 0) > 0 for pair in found.pairs)


def test_errors_are_relative_to_what_was_measured() -> None:
    found = errors([110.0, 90.0, 200.0], [100.0, 100.0, 200.0])
    assert (found.median_error, found.n) == (pytest.approx(0.1), 3)
    assert found.p95_error == pytest.approx(0.1)


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_spearman_is_the_textbook_formula(order: tuple[int, ...]) -> None:
    one = np.array([3.0, 1.0, 7.0, 5.0])
    other = np.array([10.0, 20.0, 30.0, 40.0])[list(order)]
    difference = one.argsort().argsort() - other.argsort().argsort()
    assert spearman(one, other) == pytest.approx(1 - 6 * float((difference**2).sum()) / (4 * 15))


def test_spearman_with_ties_and_without_spread() -> None:
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([5.0, 5.0, 9.0])) == pytest.approx(1.0)
    assert np.isnan(spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])))
