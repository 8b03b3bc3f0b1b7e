"""`latency.measure`: a measured table answers every plan on its grid, survives a kill, and is not measured twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from latency_nets import NETS, residual
from pydeploy.backends.base import open_backend
from pydeploy.errors import DataError, Mismatch
from pydeploy.graph import Graph
from pydeploy.latency.probes import measure as measure_module
from pydeploy.latency.probes.cut_onnx import resize
from pydeploy.latency.probes.design import grid, probe_plans
from pydeploy.latency.probes.measure import measure
from pydeploy.latency.table import store
from pydeploy.latency.table.table import Table
from pydeploy.timing.records import Timing

QUICK = {"rounds": 1, "runs": 1}
GRID = {
    "residual": {"a": (8, 16, 24, 40), "b": (8, 24, 32)},
    "squeeze_excite": {"e": (4, 8, 12), "s": (2, 4), "p": (3, 6)},
}


def build_net(name: str, folder: Path) -> tuple[Path, Graph]:
    model, graph = residual(40, 32) if name == "residual" else NETS[name]()
    onnx.save(model, folder / f"{name}.onnx")
    return folder / f"{name}.onnx", graph


def measured_us(backend, path: Path, graph: Graph, widths: dict[str, int], folder: Path) -> float:
    """One plan's latency by building it, past `measure` altogether."""
    source = folder / "plan.onnx"
    onnx.save(resize(onnx.load(path), graph, widths, np.random.default_rng(1)), source)
    with backend.open(backend.build(source, folder / "plan.engine")) as session:
        feeds = {spec.name: np.ones(spec.shape, spec.dtype) for spec in session.inputs}
        return float(np.median(session.time(feeds, 3)))


@pytest.mark.parametrize("name", NETS)
def test_every_plan_of_the_grid_is_predicted_exactly_on_the_analytic_device(tmp_path: Path, name: str) -> None:
    path, graph = build_net(name, tmp_path)
    backend = open_backend("null")
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    report = measure(graph, path, backend, table, widths=GRID[name], workdir=tmp_path, **QUICK)
    plans = probe_plans(graph, GRID[name])
    assert (report.measured, report.skipped, report.missing) == (len(plans), 0, ())
    assert table.widths(graph) == GRID[name]
    random = np.random.default_rng(0)
    seen = [tuple(plan.values()) for plan in plans]
    unseen = 0
    for _ in range(12):
        widths = {group: int(random.choice(values)) for group, values in GRID[name].items()}
        unseen += tuple(widths.values()) not in seen
        truth = measured_us(backend, path, graph, widths, tmp_path)
        assert table.predict_us(graph, widths) == pytest.approx(truth, rel=0.005)
    assert unseen or len(GRID[name]) == 2  # two groups that meet: the probes are all the plans there are


def test_layers_read_while_others_had_the_cores_count_as_shares_of_their_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference was slowed down more than the probes: scaled by it, the layers of half of them came out at 0.4."""
    path, graph = build_net("residual", tmp_path)
    backend = open_backend("null")
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    read = measure_module.layer_timings

    def busy(*given: Any) -> dict[str, dict[str, Timing]]:
        found = read(*given)
        return {probe: {op: replace(timing.scaled(0.4), disturbed=True) for op, timing in layers.items()}
                if number % 2 else layers for number, (probe, layers) in enumerate(found.items())}  # fmt: skip

    monkeypatch.setattr(measure_module, "layer_timings", busy)
    measure(graph, path, backend, table, widths=GRID["residual"], workdir=tmp_path, **QUICK)
    for widths in probe_plans(graph, GRID["residual"]):
        truth = measured_us(backend, path, graph, widths, tmp_path)
        assert table.predict_us(graph, widths) == pytest.approx(truth, rel=0.02)


def test_nothing_is_measured_twice_unless_asked(tmp_path: Path) -> None:
    path, graph = build_net("residual", tmp_path)
    backend = open_backend("null")
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    told: list[tuple[int, int]] = []
    note = {"progress": lambda *numbers: told.append(numbers)}
    first = measure(graph, path, backend, table, widths=GRID["residual"], limit=5, **note, **QUICK)
    assert (first.measured, first.disturbed, told[-1]) == (5, 0, (5, 5))
    assert first.missing
    second = measure(graph, path, backend, table, widths=GRID["residual"], **QUICK)
    assert second.skipped == 5
    third = measure(graph, path, backend, table, widths=GRID["residual"], **QUICK)
    assert (third.measured, third.missing) == (0, ())
    again = measure(graph, path, backend, table, widths=GRID["residual"], resume=False, **QUICK)
    assert again.measured == second.measured + 5
    assert len(table.networks(graph)) == 2 * again.measured
    assert len({network.provenance.probe for network in table.networks(graph)}) == 2 * again.measured


def test_default_grid_announces_the_time_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path, graph = build_net("squeeze_excite", tmp_path)
    backend = open_backend("null")
    table = Table.open(tmp_path / "tables" / "t.sqlite", backend.target())
    work = tmp_path / "work"
    work.mkdir()
    seconds: list[float] = []
    report = measure(graph, path, backend, table, workdir=work, announce=seconds.append, **QUICK)
    assert table.widths(graph) == grid(graph)
    assert len(seconds) == 1
    assert 0 < seconds[0] < 100 * report.seconds
    assert list(work.iterdir()) == []


def test_transform_sees_every_probe(tmp_path: Path) -> None:
    path, graph = build_net("residual", tmp_path)
    backend = open_backend("null")
    widths: list[int] = []

    def note(model: onnx.ModelProto) -> onnx.ModelProto:
        widths.append(next(t.dims[0] for t in model.graph.initializer if t.name == "stem.weight"))
        return model

    table = Table.open(tmp_path / "t.sqlite", backend.target())
    measure(graph, path, backend, table, widths=GRID["residual"], transform=note, **QUICK)
    assert sorted(set(widths)) == [8, 16, 24, 40]


def test_layers_with_equal_keys_share_samples(tmp_path: Path) -> None:
    path, graph = build_net("residual", tmp_path)
    backend = open_backend("null")
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    measure(graph, path, backend, table, widths=GRID["residual"], **QUICK)
    stem = graph.ops[0].key({**graph.widths, "a": 16})
    assert table.lookup(stem).sets == len(GRID["residual"]["b"])


def test_wrong_target_file_or_graph(tmp_path: Path) -> None:
    path, graph = build_net("residual", tmp_path)
    backend = open_backend("null")
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    with pytest.raises(Mismatch, match="batch: 1 against 2"):
        measure(graph, path, open_backend("null", batch=2), table)
    (tmp_path / "broken.onnx").write_bytes(path.read_bytes()[:1000])
    for broken in ("broken.onnx", "none.onnx"):
        with pytest.raises(DataError, match=broken):
            measure(graph, tmp_path / broken, backend, table)
    with pytest.raises(Mismatch, match="no node named"):
        measure(NETS["squeeze_excite"]()[1], path, backend, table)
    assert table.rows() == ()


KILLED = """
import sys, time
from pathlib import Path
import latency_nets, onnx
from pydeploy.backends.base import open_backend
from pydeploy.latency.probes import measure as module
from pydeploy.latency.table.table import Table
folder = Path(sys.argv[1])
model, graph = latency_nets.residual(40, 32)
if not (folder / "net.onnx").exists():
    onnx.save(model, folder / "net.onnx")
backend = open_backend("null")
module.CHUNK = 2
def progress(done, total):
    print(done, flush=True)
    time.sleep(0.05)
module.measure(graph, folder / "net.onnx", backend, Table.open(folder / "t.sqlite", backend.target()),
               widths={"a": (8, 16, 24, 40), "b": (8, 24, 32)}, rounds=1, runs=1, progress=progress)
"""


def test_a_killed_run_loses_no_finished_probe(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
    reported = 0
    assert process.stdout is not None
    while reported < 4:
        line = process.stdout.readline()
        assert line, "the measuring process ended early"
        reported = int(line)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    backend = open_backend("null")
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    kept = len(table.networks())
    assert reported <= kept < len(probe_plans(residual(40, 32)[1], GRID["residual"]))
    report = measure(residual(40, 32)[1], tmp_path / "net.onnx", backend, table, widths=GRID["residual"], **QUICK)
    assert report.skipped == kept
    assert report.missing == ()


def test_two_processes_fill_one_table_without_measuring_twice(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    model, graph = residual(40, 32)
    onnx.save(model, tmp_path / "net.onnx")
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    table = Table.open(tmp_path / "t.sqlite", open_backend("null").target())
    found = [network.provenance.probe for network in table.networks(graph)]
    assert len(found) == len(set(found)) == len(probe_plans(graph, GRID["residual"]))


def test_a_killed_process_frees_its_turn(tmp_path: Path) -> None:
    Table.open(tmp_path / "t.sqlite", open_backend("null").target())
    script = ("import sys, time; from pathlib import Path; from pydeploy.latency.table import store\n"
              "with store.turn(Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)")  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "t.sqlite")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"mine\n"
    process.kill()
    process.wait()
    process.stdout.close()
    with store.turn(tmp_path / "t.sqlite"):
        pass


def test_probes_of_another_level_are_flagged_and_measured_again(tmp_path: Path) -> None:
    path, graph = build_net("residual", tmp_path)
    backend = open_backend("onnxruntime", threads=1)
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    plans = probe_plans(graph, GRID["residual"])[:3]
    measure(graph, path, backend, table, widths=GRID["residual"], plans=plans[:2], **QUICK)
    with sqlite3.connect(table.path) as connection:
        connection.execute("UPDATE networks SET reference_us = reference_us * 3")
    connection.close()
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    measure(graph, path, backend, table, widths=GRID["residual"], plans=plans, **QUICK)
    old = table.networks(graph)[:2]
    assert all(network.whole.disturbed for network in old)
    widths = [network.widths for network in table.networks(graph)]
    assert all(widths.count(network.widths) == 2 for network in old)


def test_int8_probes_are_quantized_without_being_asked(tmp_path: Path) -> None:
    path, graph = build_net("residual", tmp_path)
    backend = open_backend("onnxruntime", precision="int8", threads=1)
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    report = measure(graph, path, backend, table, widths=GRID["residual"], limit=3, **QUICK)
    assert report.measured == 3
    assert table.predict_us(graph, {}) > 0


@pytest.mark.parametrize("name", NETS)
def test_a_real_runtime_fills_the_table(tmp_path: Path, name: str) -> None:
    path, graph = build_net(name, tmp_path)
    backend = open_backend("onnxruntime", threads=1)
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    report = measure(graph, path, backend, table, widths=GRID[name], limit=6, rounds=2, runs=2)
    assert report.measured == 6
    layers = {sample.key.kind for sample in table.rows()}
    assert layers == {"conv", "linear"}
    assert [set(one) >= {"date", "affinity"} for one in Table.open(table.path).conditions] == [True]
    for network in table.networks(graph):
        assert network.whole.n in (4, 6, 8, 10, 12)  # two rounds of two runs, at most three times as many
        assert network.provenance.reference_us > 0
        assert network.whole.median_us > 0
        assert network.layers_us > 0
    assert np.isfinite(table.predict_us(graph, {}))
