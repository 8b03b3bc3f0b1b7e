"""`latency.table`: what is stored comes back, gaps are errors, predictions are sums, targets do not mix."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latency_nets import residual
from pydeploy.errors import DataError, Mismatch, MissingTiming
from pydeploy.graph import OpKey
from pydeploy.latency.probes.design import grid, probe_plans
from pydeploy.latency.table import store
from pydeploy.latency.table.store import Sample, append, create
from pydeploy.latency.table.table import Table, provenance
from pydeploy.timing.records import Profile, Target, Timing

TARGET = Target("board", "null", "1", "fp32", 1, 2, {"clock": "fixed"}, measured=False)
KEY = OpKey("conv", 16, 32, 8, 8, (3, 3), tail="relu")
MODEL, GRAPH = residual(32, 32)


def flat(us: float, n: int = 5, disturbed: bool = False) -> Timing:
    return Timing(n, us, us, us, disturbed)


def cost(key: OpKey) -> float:
    """A made-up device with a staircase."""
    return 3.0 + key.h * key.w * -(-key.cin // 16) * -(-key.cout // 16) * 0.1


def fill(table: Table, plans: list[dict[str, int]], overhead: float = 20.0) -> None:
    for index, plan in enumerate(plans):
        layers = {op.name: flat(cost(op.key({**GRAPH.widths, **plan}))) for op in GRAPH.ops}
        whole = flat(sum(timing.median_us for timing in layers.values()) + overhead)
        table.add_network(GRAPH, plan, whole, layers, provenance("probe", f"p{index}"))


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table.open(tmp_path / "latency.sqlite", TARGET)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "latency.sqlite"
    fill(Table.open(path, TARGET), probe_plans(GRAPH, grid(GRAPH)))
    return path


@pytest.fixture
def full(filled: Path, tmp_path: Path) -> Table:
    shutil.copy(filled, tmp_path / "latency.sqlite")
    return Table.open(tmp_path / "latency.sqlite", TARGET)


# Lookup


def test_median_of_sample_sets_prefers_undisturbed(table: Table) -> None:
    for us in (10.0, 11.0, 30.0):
        table.add([(KEY, flat(us))], provenance("probe", f"{us}"))
    table.add([(KEY, flat(99.0, disturbed=True))], provenance("probe", "busy"))
    found = table.lookup(KEY)
    assert (found.latency_us, found.n, found.sets, found.interpolated) == (11.0, 15, 3, False)


def test_disturbed_counts_where_there_is_nothing_else(table: Table) -> None:
    table.add([(KEY, flat(99.0, disturbed=True))], provenance("probe", "busy"))
    assert table.latency_us(KEY) == 99.0


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    points=st.dictionaries(st.integers(1, 64), st.floats(1, 1e4), min_size=1, max_size=6),
    axis=st.sampled_from(["cin", "cout"]), x=st.integers(1, 64),
)  # fmt: skip
def test_interpolation_is_numpys_and_never_leaves_the_measured_range(tmp_path, points, axis, x) -> None:
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite"
    table = Table.open(path, TARGET)
    table.add([(replace(KEY, **{axis: at}), flat(us)) for at, us in points.items()], provenance("probe", "p"))
    key = replace(KEY, **{axis: x})
    if min(points) <= x <= max(points):
        found = table.lookup(key)
        ordered = sorted(points)
        assert found.latency_us == pytest.approx(np.interp(x, ordered, [points[at] for at in ordered]))
        assert found.interpolated == (x not in points)
    else:
        with pytest.raises(MissingTiming):
            table.lookup(key)


def test_interpolation_takes_the_closer_neighbours(table: Table) -> None:
    around = [replace(KEY, cout=8), replace(KEY, cout=64), replace(KEY, cin=8), replace(KEY, cin=24)]
    table.add(list(zip(around, map(flat, (1.0, 1.0, 5.0, 7.0)), strict=True)), provenance("probe", "p"))
    assert table.latency_us(KEY) == 6.0


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cin=st.integers(8, 32), cout=st.integers(16, 64), slopes=st.tuples(*[st.floats(0.1, 9.0)] * 4))
def test_between_widths_that_were_never_measured_together(tmp_path, cin, cout, slopes) -> None:
    """On a grid, the interpolation is exact for every function that is linear in each width."""

    def truth(x: int, y: int) -> float:
        return slopes[0] + slopes[1] * x + slopes[2] * y + slopes[3] * x * y

    table = Table.open(tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite", TARGET)
    grid = [replace(KEY, cin=x, cout=y) for x in (8, 17, 32) for y in (16, 40, 64)]
    table.add([(key, flat(truth(key.cin, key.cout))) for key in grid], provenance("probe", "p"))
    found = table.lookup(replace(KEY, cin=cin, cout=cout))
    assert found.latency_us == pytest.approx(truth(cin, cout))
    assert found.interpolated == (replace(KEY, cin=cin, cout=cout) not in grid)
    for outside in ({"cin": 7}, {"cin": 33}, {"cout": 15}, {"cout": 65}):
        with pytest.raises(MissingTiming):
            table.lookup(replace(KEY, **{"cin": 9, "cout": 17, **outside}))


def test_depthwise_interpolates_along_its_channels(table: Table) -> None:
    wide = OpKey("conv", 32, 32, 8, 8, (3, 3), groups=32)
    thin = replace(wide, cin=8, cout=8, groups=8)
    table.add([(wide, flat(30.0)), (thin, flat(6.0))], provenance("probe", "p"))
    assert table.latency_us(replace(wide, cin=16, cout=16, groups=16)) == pytest.approx(14.0)
    with pytest.raises(MissingTiming):
        table.lookup(replace(wide, cin=16, cout=16, groups=1))


def test_a_miss_names_neighbours_and_the_command(table: Table) -> None:
    table.add([(replace(KEY, cout=8), flat(1.0)), (replace(KEY, cout=16), flat(2.0))], provenance("probe", "p"))
    with pytest.raises(MissingTiming) as error:
        table.latency_us(KEY)
    text = str(error.value)
    assert f"no timing for {KEY}" in text
    assert "measured cout: 8, 16" in text
    assert f"pydeploy table measure MODEL --target null:fp32 --db {table.path}" in text


# Prediction


def test_prediction_is_the_sum_plus_overhead_for_every_plan_of_the_grid(full: Table) -> None:
    widths = full.widths(GRAPH)
    assert widths == grid(GRAPH)
    for a in widths["a"]:
        for b in widths["b"]:
            plan = {"a": a, "b": b}
            truth = sum(cost(op.key({**GRAPH.widths, **plan})) for op in GRAPH.ops) + 20.0
            assert full.predict_us(GRAPH, plan) == pytest.approx(truth)


def test_disturbed_networks_do_not_set_the_overhead(full: Table) -> None:
    layers = {op.name: flat(1.0) for op in GRAPH.ops}
    for index in range(17):  # more than the calm ones
        full.add_network(GRAPH, {"a": 8}, flat(9e3, disturbed=True), layers, provenance("probe", f"busy{index}"))
    fresh = Table.open(full.path)
    assert fresh.predictions(GRAPH).overhead_us < 100


def test_a_half_filled_table_offers_only_widths_it_can_answer(table: Table) -> None:
    plans = probe_plans(GRAPH, grid(GRAPH))
    fill(table, plans[:6])
    widths = table.widths(GRAPH)
    assert all(values[-1] == 32 for values in widths.values())
    for a in widths["a"]:
        for b in widths["b"]:
            table.predict_us(GRAPH, {"a": a, "b": b})


def test_widths_and_overhead_of_an_unknown_graph_are_missing(table: Table) -> None:
    for asked in (table.widths, table.predictions):
        with pytest.raises(MissingTiming, match="no network of graph"):
            asked(GRAPH)


def test_rows_are_read_once_until_something_is_written(full: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    read, new = store.read, replace(KEY, kernel=(7, 7))
    monkeypatch.setattr(store, "read", lambda path: reads.append(path) or read(path))
    predictions, plan, stem = full.predictions(GRAPH), {"a": 8, "b": 24}, GRAPH.ops[0].key(GRAPH.widths)
    predictions.corrected(plan, profile(plan, 1.3, 35.0)).at_speed(profile({}, 1.1, 20.0)).predict_us(plan)
    assert full.predictions(GRAPH) is predictions
    assert full.latency_us(stem) == predictions.latency_us(stem)
    assert len(reads) == 1
    full.add([(new, flat(3.0))], provenance("probe", "more"))
    assert full.latency_us(new) == 3.0
    assert len(reads) == 2
    assert full.predictions(GRAPH) is not predictions


# Correction


def profile(plan: dict[str, int], factor: float, rest: float, missing: str = "") -> Profile:
    full = {**GRAPH.widths, **plan}
    layers = {op.name: flat(cost(op.key(full)) * factor) for op in GRAPH.ops if op.name != missing}
    return Profile(TARGET, flat(sum(t.median_us for t in layers.values()) + rest), layers)


@pytest.mark.parametrize("missing", ["", "conv1"], ids=["all layers", "one layer fused away"])
@pytest.mark.parametrize("plan", [{"a": 8, "b": 24}, {"a": 13, "b": 24}], ids=["on the grid", "off the grid"])
def test_corrected_equals_the_measurement_and_leaves_the_file(full: Table, plan: dict[str, int], missing: str) -> None:
    before = full.predict_us(GRAPH, plan)
    measured = profile(plan, 1.3, 35.0, missing)
    view = full.predictions(GRAPH).corrected(plan, measured)
    assert view.predict_us(plan) == pytest.approx(measured.whole.median_us)
    assert full.predict_us(GRAPH, plan) == Table.open(full.path).predict_us(GRAPH, plan) == before


def test_a_correction_reaches_plans_that_share_a_layer_but_not_by_one_factor(full: Table) -> None:
    plan, other = {"a": 8, "b": 24}, {"a": 8, "b": 8}
    view = full.predictions(GRAPH).corrected(plan, profile(plan, 1.5, 20.0))
    stem = GRAPH.ops[0].key({**GRAPH.widths, **other})
    unshared = GRAPH.ops[1].key({**GRAPH.widths, **other})
    assert view.latency_us(stem) == pytest.approx(1.5 * full.latency_us(stem))
    assert view.latency_us(unshared) == full.latency_us(unshared)


def test_corrections_accumulate(full: Table) -> None:
    first, second = {"a": 8, "b": 24}, {"a": 24, "b": 24}
    view = (
        full.predictions(GRAPH)
        .corrected(first, profile(first, 1.2, 20.0))
        .corrected(second, profile(second, 1.1, 20.0))
    )
    assert view.predict_us(second) == pytest.approx(profile(second, 1.1, 20.0).whole.median_us)
    key = GRAPH.ops[1].key({**GRAPH.widths, **first})
    assert view.latency_us(key) == pytest.approx(1.2 * cost(key))


def test_a_profile_of_another_target_is_refused(full: Table) -> None:
    foreign = replace(profile({}, 1.0, 0.0), target=replace(TARGET, batch=8))
    with pytest.raises(Mismatch, match="batch: 1 against 8"):
        full.predictions(GRAPH).corrected({}, foreign)


# The file


def test_another_target_is_refused_by_the_differing_fact(full: Table) -> None:
    with pytest.raises(Mismatch, match="threads: 2 against 4"):
        Table.open(full.path, replace(TARGET, threads=4))
    assert Table.open(full.path).target == TARGET


def test_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pydeploy table measure"):
        Table.open(tmp_path / "none.sqlite")


def foreign_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE meta (name TEXT, value TEXT)")
    connection.commit()
    connection.close()


def truncated(path: Path) -> None:
    table = Table.open(path, TARGET)
    table.add([(replace(KEY, cout=1 + index), flat(1.0)) for index in range(300)], provenance("probe", "p"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwritten(path: Path) -> None:
    truncated(path)
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)


DAMAGE = {
    "text": lambda path: path.write_text("cin,cout,us\n" * 500),
    "empty": lambda path: path.touch(),
    "foreign": foreign_database,
    "truncated": truncated,
    "overwritten": overwritten,
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("target", [None, TARGET], ids=["reading", "writing"])
def test_a_damaged_or_foreign_file_is_a_data_error_and_stays_as_it_is(tmp_path: Path, kind: str, target) -> None:
    path = tmp_path / "latency.sqlite"
    DAMAGE[kind](path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(DataError, match=r"latency\.sqlite"):
        Table.open(path, target).rows()
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_another_schema_is_refused(table: Table) -> None:
    connection = sqlite3.connect(table.path)
    connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema'")
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match="schema 99"):
        Table.open(table.path)


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot create"):
        Table.open(tmp_path / "file" / "latency.sqlite", TARGET)


def _writer(path: Path, name: str, count: int) -> None:
    table = Table.open(path, TARGET)
    for index in range(count):
        table.add([(replace(KEY, cout=index + 1), flat(1.0))], provenance("probe", f"{name}{index}"))


def test_two_processes_start_and_fill_one_table(tmp_path: Path) -> None:
    path = tmp_path / "latency.sqlite"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_writer, args=(path, name, 25)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    probes = [sample.provenance.probe for sample in Table.open(path).rows()]
    assert sorted(probes) == sorted(f"{name}{index}" for name in "ab" for index in range(25))


def test_starting_a_table_twice_keeps_the_first(full: Table) -> None:
    rows = Table.open(full.path).rows()
    create(full.path, TARGET)
    assert Table.open(full.path).rows() == rows
    assert [path.name for path in full.path.parent.iterdir() if path.name.startswith(".")] == []


def test_a_transaction_is_all_or_nothing(table: Table) -> None:
    good = Timing(3, 1.0, 1.0, 1.0)
    bad = replace(good, median_us=None)  # NOT NULL in the file
    with pytest.raises(DataError):
        append(table.path, [Sample(KEY, timing, provenance("probe", "p")) for timing in (good, bad)])
    assert Table.open(table.path).rows() == ()


# Exchange


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_export_and_import_round_trip(full: Table, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"table.{kind}"
    getattr(full, f"to_{kind}")(path)
    copy = Table.open(tmp_path / "copy.sqlite", TARGET)
    added = copy.import_file(path)
    assert list(copy.rows()) == list(full.rows())
    assert added == len(full.rows()) + (len(full.networks()) if kind == "json" else 0)
    assert copy.import_file(path) == 0
    if kind == "json":
        assert copy.predict_us(GRAPH, {"a": 8}) == full.predict_us(GRAPH, {"a": 8})


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_import_of_another_target_is_refused(full: Table, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"table.{kind}"
    getattr(full, f"to_{kind}")(path)
    other = Table.open(tmp_path / "other.sqlite", replace(TARGET, device="another board"))
    with pytest.raises(Mismatch, match="target"):
        other.import_file(path)


@pytest.mark.parametrize("name", ["missing.json", "missing.csv", "list.json", "words.csv", "rows.json"])
def test_import_of_something_else(table: Table, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    texts = {"list.json": "[1]", "words.csv": "a,b\n1,2\n",
             "rows.json": json.dumps({"target": TARGET.to_json(), "samples": [{"key": 3}]})}  # fmt: skip
    if name in texts:
        path.write_text(texts[name])
    with pytest.raises(DataError, match=name):
        table.import_file(path)
    assert table.rows() == ()


def test_rows_carry_their_provenance(full: Table) -> None:
    row = full.rows()[0]
    assert row.provenance.source == "probe"
    assert row.provenance.probe == "p0"
    assert row.provenance.date.endswith("+00:00")
    assert row.provenance.version
    network = full.networks(GRAPH)[0]
    assert network.graph == GRAPH.fingerprint
    assert network.widths == {"a": 32, "b": 32}
    assert network.whole.median_us == pytest.approx(network.layers_us + 20.0)


def test_counters_that_tell_too_little_are_scaled_by_what_networks_show(table: Table) -> None:
    # Whole networks take 1.06 times what their layers' counters say, and 30 us more; one network is an outlier.
    for index, (a, b) in enumerate((a, b) for a in grid(GRAPH)["a"] for b in grid(GRAPH)["b"]):
        widths = {"a": a, "b": b}
        layers = {op.name: flat(cost(op.key({**GRAPH.widths, **widths}))) for op in GRAPH.ops}
        whole = 30.0 + 1.06 * sum(timing.median_us for timing in layers.values())
        table.add_network(
            GRAPH, widths, flat(whole * (2.0 if index == 3 else 1.0)), layers, provenance("probe", f"p{index}")
        )
    assert table.predictions(GRAPH).slope == pytest.approx(1.06, rel=1e-6)
    widths = {"a": grid(GRAPH)["a"][0], "b": grid(GRAPH)["b"][-1]}
    truth = sum(cost(op.key({**GRAPH.widths, **widths})) for op in GRAPH.ops)
    assert table.predict_us(GRAPH, widths) == pytest.approx(30.0 + 1.06 * truth)


def test_layers_read_at_another_speed_than_their_network_are_scaled_to_it(table: Table) -> None:
    # Each network's layers were read while the computer ran at a speed of its own, 40 % apart at most.
    random = np.random.default_rng(0)
    plans = probe_plans(GRAPH, grid(GRAPH))
    truths = []
    for index, widths in enumerate(plans):
        costs = {op.name: cost(op.key({**GRAPH.widths, **widths})) for op in GRAPH.ops}
        truths.append(sum(costs.values()) + 20.0)
        speed = random.uniform(0.8, 1.2)
        layers = {name: flat(us * speed) for name, us in costs.items()}
        table.add_network(GRAPH, widths, flat(truths[-1]), layers, provenance("probe", f"p{index}"))
    predicted = np.array([table.predict_us(GRAPH, widths) for widths in plans])
    assert np.abs(predicted / truths - 1).max() < 0.03


def test_the_offset_is_right_for_small_networks_where_large_ones_are_noisy(table: Table) -> None:
    # Noise is a share of what is measured, so a large network says little of microseconds that all have in common.
    random = np.random.default_rng(0)
    grid_ = [{"a": a, "b": b} for a in grid(GRAPH)["a"] for b in grid(GRAPH)["b"]]
    for index, widths in enumerate(grid_):
        layers = {op.name: flat(8 * cost(op.key({**GRAPH.widths, **widths}))) for op in GRAPH.ops}
        whole = sum(timing.median_us for timing in layers.values()) - 60.0
        whole *= random.normal(1.0, 0.03)
        table.add_network(GRAPH, widths, flat(whole), layers, provenance("probe", f"p{index}"))
    smallest = {name: widths[0] for name, widths in grid(GRAPH).items()}
    truth = 8 * sum(cost(op.key({**GRAPH.widths, **smallest})) for op in GRAPH.ops) - 60.0
    assert table.predict_us(GRAPH, smallest) == pytest.approx(truth, rel=0.05)


def test_a_table_is_taken_to_another_speed_layer_by_layer(full: Table) -> None:
    # The computer now runs 3x3 convolutions at 40 % and everything else as before.
    def slowed(key: OpKey) -> float:
        return cost(key) * (2.5 if key.kernel == (3, 3) else 1.0)

    layers = {op.name: flat(slowed(op.key(GRAPH.widths))) for op in GRAPH.ops}
    dense = Profile(TARGET, flat(sum(timing.median_us for timing in layers.values()) + 20.0), layers)
    view = full.predictions(GRAPH).at_speed(dense)
    assert view.predict_us({}) == pytest.approx(dense.whole.median_us, rel=0.02)
    before = full.predict_us(GRAPH, {})
    for plan in probe_plans(GRAPH, grid(GRAPH)):
        truth = sum(slowed(op.key({**GRAPH.widths, **plan})) for op in GRAPH.ops) + 20.0
        by_one_factor = full.predict_us(GRAPH, plan) * dense.whole.median_us / before
        assert abs(view.predict_us(plan) - truth) <= abs(by_one_factor - truth) + 1e-9
        assert view.predict_us(plan) == pytest.approx(truth, rel=0.04)
    plan = {"a": 8, "b": 24}
    corrected = view.corrected(plan, profile(plan, 1.3, 35.0))
    assert corrected.predict_us(plan) == pytest.approx(profile(plan, 1.3, 35.0).whole.median_us)
    assert full.predict_us(GRAPH, {}) == before


def test_a_slope_needs_enough_networks(table: Table) -> None:
    layers = {op.name: flat(1.0) for op in GRAPH.ops}
    for index in range(3):
        table.add_network(GRAPH, {}, flat(50.0 + index), layers, provenance("probe", f"p{index}"))
    assert table.predictions(GRAPH).slope == 1.0
