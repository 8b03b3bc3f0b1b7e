"""Attribution of layers to operators, and profiles of real engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_nets import RESIDUAL_OPS, residual
from pydeploy.backends.base import Backend, Engine, LayerTime, TensorSpec, open_backend
from pydeploy.profiling.profile import attribute, profile, random_feeds, time_engines
from pydeploy.timing.overhead import net
from pydeploy.timing.records import Profile, Target, Timing


def layer(name: str, *nodes: str, samples: tuple[float, ...] = (1.0, 2.0)) -> LayerTime:
    return LayerTime(name, nodes, np.array(samples))


def test_layers_count_to_the_operator_before_them() -> None:
    layers = [
        layer("reorder"), layer("conv_a", "a", "a.relu"), layer("pool", "pool"), layer("conv_b", "b.pre", "b"),
        layer("relu", "b.relu", samples=(10.0, 20.0)),
    ]  # fmt: skip
    times = attribute(layers, ["a", "b"])
    assert {name: samples.tolist() for name, samples in times.items()} == {
        "": [1.0, 2.0], "a": [2.0, 4.0], "b": [11.0, 22.0]
    }  # fmt: skip
    assert list(times) == ["", "a", "b"]


def test_merged_operators_count_to_the_first_and_split_ones_add_up() -> None:
    times = attribute(
        [layer("ab", "a", "b"), layer("c1", "c"), layer("a again", "a"), layer("c2", "c")], ["c", "b", "a"]
    )
    assert {name: samples[0] for name, samples in times.items()} == {"a": 2.0, "c": 2.0}


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b", "other"]), st.integers(0, 9)), max_size=9))
def test_attribution_loses_no_time(rows: list[tuple[str, int]]) -> None:
    layers = [LayerTime(str(index), (node,) if node else (), np.full(3, float(us))) for index, (node, us) in
              enumerate(rows)]  # fmt: skip
    kept = [entry.samples_us.copy() for entry in layers]
    times = attribute(layers, ["a", "b"])
    assert sum(samples.sum() for samples in times.values()) == 3 * sum(us for _, us in rows)
    assert all((entry.samples_us == before).all() for entry, before in zip(layers, kept, strict=True))


def test_random_feeds_fit_and_repeat() -> None:
    specs = [TensorSpec("x", "float32", (2, 3)), TensorSpec("ids", "int64", (4,)), TensorSpec("m", "bool", (5,))]
    feeds, again = random_feeds(specs), random_feeds(specs)
    for spec in specs:
        assert (feeds[spec.name].dtype.name, feeds[spec.name].shape) == (spec.dtype, spec.shape)
        np.testing.assert_array_equal(feeds[spec.name], again[spec.name])
    assert (random_feeds(specs, seed=1)["x"] != feeds["x"]).any()


BACKENDS = ["onnxruntime", pytest.param("openvino", marks=pytest.mark.openvino), "null"]


def built(name: str, folder: Path, width: int = 16) -> tuple[Backend, Engine]:
    if name == "openvino":
        pytest.importorskip("openvino", reason="needs the package openvino: pip install 'pydeploy-hil[openvino]'")
    backend = open_backend(name, threads=1)
    return backend, backend.build(residual(folder / "net.onnx", width=width), folder / f"{name}{width}.engine")


@pytest.mark.parametrize("name", BACKENDS)
def test_profile_has_whole_and_layers(name: str, tmp_path: Path) -> None:
    backend, engine = built(name, tmp_path)
    told: list[int] = []
    found = profile(
        backend, engine, RESIDUAL_OPS, rounds=2, runs=5, on_round=lambda done, _all, _load: told.append(done)
    )
    assert found.target == backend.target()
    assert found.whole.n == 10
    assert found.whole.median_us > 0
    assert set(found.layers) - {""} == set(RESIDUAL_OPS)
    assert {timing.n for timing in found.layers.values()} <= {2, 10}  # OpenVINO: one mean per round
    assert set(found.condition) == {"foreign_share", "kernel_drift", "repeated"}
    assert told[-1] == 2
    assert Profile.from_json(found.to_json()) == found


@pytest.mark.parametrize("name", BACKENDS)
def test_profile_without_operators_uses_the_files_node_names(name: str, tmp_path: Path) -> None:
    backend, engine = built(name, tmp_path)
    with backend.open(engine) as session:
        layers = session.layers(random_feeds(session.inputs), 1)
    names = list(dict.fromkeys(one.nodes[0] if one.nodes else one.name for one in layers))
    assert {"stem"} < set(names)
    assert list(profile(backend, engine, rounds=1, runs=2).layers) == names


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("ops", [None, RESIDUAL_OPS], ids=["nodes", "operators"])
def test_layers_for_people_add_up_to_the_network_at_most(
    name: str, ops: tuple[str, ...] | None, tmp_path: Path
) -> None:
    backend, engine = built(name, tmp_path)
    read = profile(backend, engine, ops, rounds=2, runs=5)
    found = net(read)
    total_us = sum(timing.median_us for timing in found.layers.values())
    assert total_us <= found.whole.median_us * (1 + 1e-9)
    assert list(found.layers) == list(read.layers)
    assert found.condition["overhead_us"] >= 0
    if found.condition["overhead_us"]:
        assert total_us == pytest.approx(found.whole.median_us)
    else:
        assert found.layers == read.layers
    with backend.open(engine) as session:
        layers = session.layers(random_feeds(session.inputs), 2)
    assert len(RESIDUAL_OPS) <= sum(read.parts.values()) <= len(layers)
    assert Profile.from_json(found.to_json()) == found


entries = st.lists(st.tuples(st.floats(0, 1000), st.integers(1, 9)), min_size=1, max_size=12)


@given(entries, st.floats(0.1, 5000))
def test_every_layer_is_freed_of_the_same_overhead(rows: list[tuple[float, int]], whole_us: float) -> None:
    """The oracle is bisection: the constant a layer at which the rest adds up to the network."""
    layers = {str(i): Timing.of([us, us, us]) for i, (us, _) in enumerate(rows)}
    read = Profile(Target("c", "b", "1", "fp32", 1, 1), Timing.of([whole_us]), layers,
                   parts={str(i): count for i, (_, count) in enumerate(rows)})  # fmt: skip
    found = net(read)
    medians, parts = np.array([us for us, _ in rows]), np.array([count for _, count in rows])
    low, high = 0.0, float(medians.max())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(medians - parts * middle, 0).sum() > whole_us else (low, middle)
    expected = np.maximum(medians - parts * (high if medians.sum() > whole_us else 0.0), 0)
    assert [timing.median_us for timing in found.layers.values()] == pytest.approx(expected, abs=1e-6)


def test_what_reading_costs_is_found_again() -> None:
    true_us, parts = {"a": 50.0, "b": 3.0, "c": 0.4}, {"a": 3, "b": 1, "c": 2}
    layers = {name: Timing.of(np.full(5, us + 2.0 * parts[name])) for name, us in true_us.items()}
    found = net(Profile(Target("c", "b", "1", "fp32", 1, 1), Timing.of([sum(true_us.values())]), layers, parts=parts))
    assert found.condition["overhead_us"] == pytest.approx(2.0)
    assert {name: timing.median_us for name, timing in found.layers.items()} == pytest.approx(true_us)


def test_a_layer_that_a_runtime_lists_now_and_then_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, engine = built("null", tmp_path)
    with backend.open(engine) as session:
        kind = type(session)
    whole, calls = kind.layers, iter(range(99))
    monkeypatch.setattr(kind, "layers", lambda *args: whole(*args)[next(calls) % 2 :])
    for ops in (None, RESIDUAL_OPS):
        found = profile(backend, engine, ops, rounds=4, runs=1)
        assert {timing.n for timing in found.layers.values()} <= {2, 4}


def test_null_profile_is_exact_and_never_disturbed(tmp_path: Path) -> None:
    backend, engine = built("null", tmp_path)
    found = profile(backend, engine, RESIDUAL_OPS, rounds=2, runs=3)
    assert found.whole.median_us == pytest.approx(sum(t.median_us for t in found.layers.values()) + 10)
    assert not found.whole.disturbed
    assert found.whole.spread == 0.0


def test_larger_network_is_slower_when_timed_in_turns(tmp_path: Path) -> None:
    """The wide one has 36 times the arithmetic, far beyond what other load could turn around."""
    feeds = {
        "wide": {"image": np.zeros((1, 3, 12, 12), np.float32)},
        "narrow": {"image": np.ones((1, 3, 12, 12), np.float32)},
    }
    pairs = {"wide": built("onnxruntime", tmp_path, 192), "narrow": built("onnxruntime", tmp_path, 32)}
    found = time_engines(pairs, feeds=feeds, rounds=3, runs=5)
    assert list(found) == ["wide", "narrow"]
    assert found["wide"].timing.median_us > 2 * found["narrow"].timing.median_us
    assert len(found["wide"].rounds_us) == 3
