from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import quant_nets as nets
from pydeploy.errors import ConfigError, DataError
from pydeploy.files import sha256
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.observe import OBSERVERS
from pydeploy.quant.placement import STYLES

SAMPLES = np.random.default_rng(3).normal(size=(64, 3, 8, 8)).astype(np.float32)


def in_batches(samples: nets.Array, size: int) -> Iterator[dict[str, nets.Array]]:
    for start in range(0, len(samples), size):
        yield {"x": samples[start : start + size]}


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nets.residual(tmp_path_factory.mktemp("net") / "dynamic.onnx", batch="batch")


def values_of(path: Path, names: list[str]) -> dict[str, nets.Array]:
    """The tensors' values over `SAMPLES`, from ONNX's own list of tensors."""
    model = onnx.load(path)
    del model.graph.output[:]
    for name in names:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(None, {"x": SAMPLES}), strict=True))


def test_minmax_ranges_are_the_extremes_of_every_tensor(dynamic: Path) -> None:
    ranges = calibrate(dynamic, in_batches(SAMPLES, 16), observer="minmax")
    inner = [name for name in ranges.tensors if name not in ("x", "m_pooled")]
    values = {**values_of(dynamic, inner), "x": SAMPLES, "m_pooled": values_of(dynamic, ["m"])["m"]}
    assert set(ranges.tensors) == set(values)
    for name, array in values.items():
        assert ranges[name] == pytest.approx((array.min(), array.max()), rel=1e-5, abs=1e-6), name
    assert (ranges.model, ranges.count, ranges.observer) == (sha256(dynamic), 64, "minmax")


@pytest.mark.parametrize("style", STYLES)
def test_only_tensors_that_carry_a_pair_are_measured(dynamic: Path, style: str) -> None:
    expected = {
        "onnxruntime": {"x", "r0", "r1", "c2", "r2", "m_pooled"},
        "openvino": {"x", "r0", "r1", "m_pooled"},
        "tensorrt": {"x", "r0", "r1", "m_pooled"},
    }
    found = calibrate(dynamic, in_batches(SAMPLES[:4], 4), observer="minmax", style=style)
    assert set(found.tensors) == expected[style]
    assert found.unsigned == (style != "tensorrt")


@pytest.mark.parametrize("observer", OBSERVERS)
def test_ranges_do_not_depend_on_batch_size_or_order(dynamic: Path, observer: str) -> None:
    reference = calibrate(dynamic, in_batches(SAMPLES, 64), observer=observer)
    for size, samples in ((1, SAMPLES), (7, SAMPLES[::-1]), (64, SAMPLES[::-1])):
        found = calibrate(dynamic, in_batches(samples, size), observer=observer)
        assert (found.data, found.count) == (reference.data, 64)
        for name, interval in reference.tensors.items():
            # The runtime's own sums may differ in the last bit between batch sizes.
            assert found[name] == pytest.approx(interval, rel=1e-5), name


def test_other_samples_have_another_hash(dynamic: Path) -> None:
    changed = SAMPLES[:8].copy()
    changed[3, 0, 0, 0] += 1
    hashes = {calibrate(dynamic, in_batches(part, 4), observer="minmax").data for part in (SAMPLES[:8], changed)}
    assert len(hashes) == 2


def test_chosen_tensors_and_progress(dynamic: Path) -> None:
    seen: list[int] = []
    found = calibrate(dynamic, in_batches(SAMPLES, 24), observer="minmax", tensors=["r2", "x"], progress=seen.append)
    assert set(found.tensors) == {"r2", "x"}
    assert seen == [24, 48, 64]
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
    with pytest.raises(DataError, match="calibration set is empty"):
        calibrate(dynamic, [])


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
        ({"x": SAMPLES[:2]}, r"input 'x' .* float\[1, 3, 8, 8\], the batch has float32\[2, 3, 8, 8\]"),
        ({"x": SAMPLES[:1].astype(np.float64)}, "the batch has float64"),
        ({"x": SAMPLES[0]}, r"the batch has float32\[3, 8, 8\]"),
    ],
    ids=["name", "batch", "dtype", "rank"],
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
