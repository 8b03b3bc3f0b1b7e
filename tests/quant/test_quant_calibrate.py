from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import quant_nets as nets
from pydeploy.errors import ConfigError, DataError, Mismatch
from pydeploy.files import sha256
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.counts import Counts
from pydeploy.quant.observe import OBSERVERS
from pydeploy.quant.styles import STYLES
from pydeploy.quant.tapped import Tapped

SAMPLES = np.random.default_rng(3).normal(size=(64, 3, 8, 8)).astype(np.float32)


def in_batches(samples: nets.Array, size: int) -> Iterator[dict[str, nets.Array]]:
    for start in range(0, len(samples), size):
        yield {"x": samples[start : start + size]}


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nets.residual(tmp_path_factory.mktemp("net") / "dynamic.onnx", batch="batch")


def values_of(path: Path, names: list[str], count: int = 0) -> dict[str, nets.Array]:
    """The tensors' values over `SAMPLES` (or the first `count`, one by one), from ONNX's own list of tensors."""
    model = onnx.load(path)
    del model.graph.output[:]
    for name in names:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batches = [SAMPLES] if not count else [SAMPLES[i : i + 1] for i in range(count)]
    runs = [session.run(None, {"x": batch}) for batch in batches]
    return {name: np.concatenate([run[i] for run in runs]) for i, name in enumerate(names)}


def test_minmax_ranges_are_the_extremes_of_every_tensor(dynamic: Path) -> None:
    ranges = calibrate(dynamic, in_batches(SAMPLES, 16), observer="minmax")
    inner = [name for name in ranges.tensors if name not in ("x", "m_pooled")]
    values = {**values_of(dynamic, inner), "x": SAMPLES, "m_pooled": values_of(dynamic, ["m"])["m"]}
    assert set(ranges.tensors) == set(values)
    for name, array in values.items():
        assert ranges[name] == pytest.approx((array.min(), array.max()), rel=1e-5, abs=1e-6), name
    assert (ranges.model, ranges.count, ranges.observer) == (sha256(dynamic), 64, "minmax")


@pytest.mark.parametrize("style", STYLES)
def test_only_tensors_that_carry_a_pair_or_that_a_layer_reads_are_measured(dynamic: Path, style: str) -> None:
    expected = {
        "onnxruntime": {"x", "r0", "r1", "c2", "r2", "m_pooled"},
        "openvino": {"x", "r0", "r1", "c2", "m_pooled"},
        "tensorrt": {"x", "r0", "r1", "m_pooled"},
        "tensorrt-rtx": {"x", "r0", "r1", "m_pooled"},
    }
    found = calibrate(dynamic, in_batches(SAMPLES[:4], 4), observer="minmax", style=style)
    assert set(found.tensors) == expected[style] | {"m"}  # flattened, what the layer at the end reads
    assert found.unsigned == (style in ("onnxruntime", "openvino"))


@pytest.mark.parametrize("observer", OBSERVERS)
def test_ranges_do_not_depend_on_batch_size_or_order(dynamic: Path, observer: str) -> None:
    reference = calibrate(dynamic, in_batches(SAMPLES, 64), observer=observer)
    shuffled = np.random.default_rng(1).permutation(SAMPLES)
    for size, samples in ((1, SAMPLES), (7, SAMPLES), (7, shuffled), (64, SAMPLES[::-1])):
        assert calibrate(dynamic, in_batches(samples, size), observer=observer) == reference  # to the last bit


@pytest.mark.parametrize("batch", [1, 8])
def test_a_written_batch_changes_nothing(dynamic: Path, tmp_path: Path, batch: int) -> None:
    reference = calibrate(dynamic, in_batches(SAMPLES, 64))
    static = nets.residual(tmp_path / "static.onnx", batch=batch)
    assert calibrate(static, in_batches(SAMPLES, 24)).tensors == reference.tensors


def test_a_graph_that_needs_its_batch_runs_whole_batches(tmp_path: Path) -> None:
    parts = [nets.conv("first", "x", "c", 3, 4), (nets.NODE("Reshape", ["c", "s"], ["f"]), {"s": np.array([8, 256])}),
             nets.gemm("fc", "f", "y", 256, 4)]  # fmt: skip
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [8, 3, 8, 8]}, ["y"])
    values = nets.run(path, [{"x": SAMPLES[i : i + 8]} for i in range(0, 24, 8)])
    found = calibrate(path, in_batches(SAMPLES[:21], 7), observer="minmax", tensors=["y"])
    assert found["y"] == pytest.approx((values[:21].min(), values[:21].max()), rel=1e-5)
    assert found.count == 21


def test_moving_average_is_the_mean_of_the_samples_extremes(dynamic: Path) -> None:
    values = values_of(dynamic, ["r2"])["r2"].reshape(64, -1).astype(np.float64)
    found = calibrate(dynamic, in_batches(SAMPLES, 16), observer="moving_average", tensors=["r2"])
    assert found["r2"] == pytest.approx((values.min(axis=1).mean(), values.max(axis=1).mean()), rel=1e-5)


class Interrupted(Exception):
    """Stands for a kill."""


def interrupted(samples: nets.Array, batches: int) -> Iterator[dict[str, nets.Array]]:
    for index, feeds in enumerate(in_batches(samples, 8)):
        if index == batches:
            raise Interrupted
        yield feeds


def test_an_interrupted_calibration_goes_on(dynamic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydeploy.quant.calibrate.SAVE_SECONDS", 0.0)
    file, ran = tmp_path / "counts.json", []
    with pytest.raises(Interrupted):
        calibrate(dynamic, interrupted(SAMPLES, 3), resume=file, key="set")
    monkeypatch.setattr(Tapped, "run", recording(Tapped.run, ran))
    shuffled = np.random.default_rng(1).permutation(SAMPLES)
    found = calibrate(dynamic, in_batches(shuffled, 7), resume=file, key="set")
    assert len(ran) == 64 - 24
    assert found == calibrate(dynamic, in_batches(SAMPLES, 64))


def test_another_observer_costs_no_inference(dynamic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, ran, seen = tmp_path / "counts.json", [], []
    expected = calibrate(dynamic, in_batches(SAMPLES, 16), observer="moving_average")
    calibrate(dynamic, in_batches(SAMPLES, 16), resume=file)
    monkeypatch.setattr(Tapped, "run", recording(Tapped.run, ran))
    found = calibrate(dynamic, in_batches(SAMPLES, 16), observer="moving_average", resume=file, progress=seen.append)
    assert (found, ran, seen[-1]) == (expected, [], 64)


def test_samples_that_occur_twice_count_twice(dynamic: Path, tmp_path: Path) -> None:
    twice = np.concatenate([SAMPLES[:8], SAMPLES[:8]])
    calibrate(dynamic, in_batches(SAMPLES[:8], 8), resume=tmp_path / "counts.json")
    found = calibrate(dynamic, in_batches(twice, 5), resume=tmp_path / "counts.json")
    assert found == calibrate(dynamic, in_batches(twice, 16))
    assert found.count == 16


def recording(run: Any, ran: list[int]) -> Any:
    def record(self: Tapped, feeds: Any, rows: list[int]) -> Any:
        ran.extend(rows)
        return run(self, feeds, rows)

    return record


def test_counts_of_another_model_or_set_begin_anew(dynamic: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "counts.json", nets.residual(tmp_path / "other.onnx", zero_channel=1)
    calibrate(dynamic, in_batches(SAMPLES, 16), resume=file, key="one")
    assert calibrate(other, in_batches(SAMPLES, 16), resume=file, key="one") == calibrate(other, in_batches(SAMPLES, 9))
    calibrate(dynamic, in_batches(SAMPLES[:8], 8), resume=file, key="two")
    assert len(Counts.load(file).samples) == 8
    with pytest.raises(Mismatch, match="holds 8 samples that are not in this calibration set"):
        calibrate(dynamic, in_batches(SAMPLES[8:], 8), resume=file, key="two")


def test_damaged_counts_are_refused(dynamic: Path, tmp_path: Path) -> None:
    file = tmp_path / "counts.json"
    calibrate(dynamic, in_batches(SAMPLES[:4], 4), resume=file)
    good = json.loads(file.read_text())
    for change in ({"schema": 7}, {"samples": ["zz"]}, {"tensors": {"x": {}}}, {"tensors": []}):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(DataError, match="does not hold calibration counts"):
            calibrate(dynamic, in_batches(SAMPLES[:4], 4), resume=file)
    file.write_text("{")
    with pytest.raises(DataError, match="truncated"):
        calibrate(dynamic, in_batches(SAMPLES[:4], 4), resume=file)


def test_other_samples_have_another_hash(dynamic: Path) -> None:
    changed = SAMPLES[:8].copy()
    changed[3, 0, 0, 0] += 1
    hashes = {calibrate(dynamic, in_batches(part, 4), observer="minmax").data for part in (SAMPLES[:8], changed)}
    assert len(hashes) == 2


def test_chosen_tensors_and_progress(dynamic: Path) -> None:
    seen: list[int] = []
    found = calibrate(dynamic, in_batches(SAMPLES, 24), observer="minmax", tensors=["r2", "x"], progress=seen.append)
    assert set(found.tensors) == {"r2", "x"}
    assert seen == list(range(1, 65))
    with pytest.raises(DataError, match="no tensor 'r9'"):
        calibrate(dynamic, in_batches(SAMPLES, 8), tensors=["r9"])


def test_only_one_batch_is_asked_for_at_a_time(dynamic: Path) -> None:
    alive: list[int] = []

    def batches() -> Iterator[dict[str, nets.Array]]:
        for index, feeds in enumerate(in_batches(SAMPLES, 8)):
            alive.append(index)
            yield feeds
            assert alive[-1] == index

    calibrate(dynamic, batches(), observer="minmax")
    assert len(alive) == 8


def test_empty_set(dynamic: Path) -> None:
    for batches in ([], [{"x": SAMPLES[:0]}]):
        with pytest.raises(DataError, match="calibration set is empty"):
            calibrate(dynamic, batches)


def test_one_sample_is_enough_to_run_and_worth_a_warning(dynamic: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = calibrate(dynamic, [{"x": SAMPLES[:1]}], observer="minmax")
    assert found["x"] == (SAMPLES[:1].min(), SAMPLES[:1].max())
    assert "only 1 calibration samples" in caplog.text


@pytest.mark.parametrize("observer", OBSERVERS)
def test_constant_tensors_and_channels_of_zeros(tmp_path: Path, observer: str) -> None:
    # A dead channel and a constant input: every range is finite, ascending, and within what was seen.
    path = nets.residual(tmp_path / "net.onnx", zero_channel=3)
    found = calibrate(path, [{"x": np.zeros((2, 3, 8, 8), np.float32)}], observer=observer)
    assert found["x"] == (0, 0)
    for lo, hi in found.tensors.values():
        assert np.isfinite([lo, hi]).all()
        assert lo <= hi


def test_height_and_width_may_be_dynamic(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx", batch="n")
    model = onnx.load(path)
    for axis, name in ((2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del model.graph.value_info[:]
    onnx.save(model, path)
    small, large = SAMPLES[:3], np.random.default_rng(0).normal(size=(2, 3, 12, 10)).astype(np.float32)
    found = calibrate(path, [{"x": small}, {"x": large}], observer="minmax")
    assert found["x"] == (min(small.min(), large.min()), max(small.max(), large.max()))
    assert found.count == 5


def test_shapes_that_depend_on_values(tmp_path: Path) -> None:
    """The positive values alone: as many as each sample happens to have, so no run's arrays fit the next one."""
    parts = [nets.conv("first", "x", "c", 3, 4), (nets.NODE("Greater", ["c", "zero"], ["above"]), {"zero": np.float32([0])}),
             nets.NODE("Compress", ["flat", "mask"], ["kept"]), nets.NODE("ReduceSum", ["kept"], ["y"])]  # fmt: skip
    shape = {"all": np.array([-1])}
    parts[2:2] = [
        (nets.NODE("Reshape", ["c", "all"], ["flat"]), shape),
        nets.NODE("Reshape", ["above", "all"], ["mask"]),
    ]
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 3, 8, 8]}, ["y"])
    values = values_of(path, ["c"], 4)["c"]
    found = calibrate(path, in_batches(SAMPLES[:4], 2), observer="minmax", tensors=["c", "kept"])
    above = values[values > 0]
    assert found["kept"] == pytest.approx((above.min(), above.max()), rel=1e-5, abs=1e-6)
    assert found["c"] == pytest.approx((values.min(), values.max()), rel=1e-5, abs=1e-6)


def test_half_precision_models_are_counted(tmp_path: Path) -> None:
    path = nets.chain(tmp_path / "net.onnx")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, path)
    half = SAMPLES[:4].astype(np.float16)
    found = calibrate(path, [{"x": half}], observer="minmax", tensors=["x", "a"])
    assert found["x"] == (half.min(), half.max())
    assert found["a"][0] == 0


def test_tensors_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    parts = [nets.conv("first", "x", "c", 3, 4), nets.NODE("Shape", ["c"], ["s"]),
             (nets.NODE("Reshape", ["c", "t"], ["y"]), {"t": np.array([0, -1])})]  # fmt: skip
    path = nets.save(tmp_path / "net.onnx", parts, {"x": ["n", 3, 8, 8]}, ["y"])
    with pytest.raises(DataError, match="tensor 's' is int64"):
        calibrate(path, [{"x": SAMPLES[:1]}], tensors=["s"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "-inf"])
def test_values_that_are_not_finite_name_the_tensor(dynamic: Path, tmp_path: Path, value: float) -> None:
    bad = SAMPLES[:2].copy()
    bad[1, 2, 3, 4] = value
    with pytest.raises(DataError, match="tensor 'x' holds"):
        calibrate(dynamic, [{"x": bad}])
    model = onnx.load(dynamic)
    weight = next(w for w in model.graph.initializer if w.name == "block.conv1.bias")
    weight.CopyFrom(numpy_helper.from_array(np.full(16, abs(value), np.float32), weight.name))
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(DataError, match="tensor 'r1' holds"):
        calibrate(tmp_path / "bad.onnx", [{"x": SAMPLES[:2]}])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"y": SAMPLES[:1]}, "takes inputs .'x'., the batch has .'y'."),
        ({"x": SAMPLES[:2, :, 1:]}, r"input 'x' .* float32\['N', 3, 8, 8\] for N samples, .* float32\[2, 3, 7, 8\]"),
        ({"x": SAMPLES[:1].astype(np.float64)}, "the batch has float64"),
        ({"x": SAMPLES[0]}, r"the batch has float32\[3, 8, 8\]"),
    ],
    ids=["name", "size", "dtype", "rank"],
)
def test_batches_that_do_not_fit_are_refused(tmp_path: Path, feeds: dict[str, nets.Array], message: str) -> None:
    static = nets.residual(tmp_path / "static.onnx")
    with pytest.raises(DataError, match=message):
        calibrate(static, [feeds])


def test_unknown_names_are_refused_before_anything_runs(dynamic: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'entropy'"):
        calibrate(dynamic, [], observer="entropi")
    with pytest.raises(ConfigError, match="did you mean 'tensorrt'"):
        calibrate(dynamic, [], style="tensort")


def test_the_model_file_is_not_changed(dynamic: Path) -> None:
    before = dynamic.read_bytes()
    calibrate(dynamic, in_batches(SAMPLES, 32), observer="minmax")
    assert dynamic.read_bytes() == before
