"""TensorRT's calibration cache, read back by its published format; the calibrator on a stand-in of TensorRT's base."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

import quant_nets as nets
from pydeploy.errors import ConfigError
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.implicit import cache_version, entropy_calibrator, write_cache
from pydeploy.quant.observe import Ranges


def read_cache(path: Path) -> tuple[str, dict[str, float]]:
    header, *lines = path.read_text().splitlines()
    pairs = (line.rsplit(": ", 1) for line in lines)
    return header, {name: struct.unpack(">f", bytes.fromhex(scale))[0] for name, scale in pairs}


def test_a_cache_holds_every_scale(tmp_path: Path) -> None:
    tensors = {"x": (-2.0, 1.27), "/layer1/relu: 0": (0.0, 6.0), "negative": (-3.0, -1.0), "zero": (0.0, 0.0)}
    write_cache(Ranges(tensors, "entropy", "m", "d", 5), tmp_path / "c.cache", "8.6.1")
    header, found = read_cache(tmp_path / "c.cache")
    assert header == "TRT-8601-EntropyCalibration2"
    assert found == {"x": np.float32(2 / 127), "/layer1/relu: 0": np.float32(6 / 127), "negative": np.float32(3 / 127),
                     "zero": 1.0}  # fmt: skip


def test_a_known_line_of_tensorrt() -> None:
    # An image in [0, 1]: TensorRT writes 3c010a14, which is 0.9999999 / 127.
    assert struct.unpack(">f", bytes.fromhex("3c010a14"))[0] * 127 == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(("text", "number"), [("8.6.1", 8601), ("8.6", 8600), ("10.3.0", 100300), ("10.0.1.6", 100001)])
def test_versions_as_tensorrt_writes_them(text: str, number: int) -> None:
    assert cache_version(text) == number


@pytest.mark.parametrize("text", ["11.0.0", "6.0", "8", "eight", "8.x", ""])
def test_other_versions_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="TensorRT"):
        cache_version(text)


def test_implicit_int8_measures_every_float_tensor(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    found = calibrate(path, nets.random_feeds(path), every=True)
    assert set(found.tensors) == {"x", "c0", "r0", "c1", "r1", "c2", "s", "r2", "m_pooled", "m", "y"}
    few = calibrate(path, nets.random_feeds(path))
    assert {name: found[name] for name in few.tensors} == dict(few.tensors)


class Base:
    """What TensorRT's base class demands: that its own initializer is called."""

    ready = False

    def __init__(self) -> None:
        self.ready = True


def test_the_calibrator_feeds_full_batches_then_ends(tmp_path: Path) -> None:
    samples = np.arange(20, dtype=np.float32).reshape(10, 2)
    uploaded: list[np.ndarray] = []

    def upload(name: str, array: np.ndarray) -> int:
        assert name == "x"
        uploaded.append(array.copy())
        return 4096 + len(uploaded)

    feeds = ({"x": samples[i : i + 4]} for i in range(0, 10, 4))
    calibrator = entropy_calibrator(Base, upload, feeds, 4, tmp_path / "new.cache")
    assert calibrator.ready
    assert isinstance(calibrator, Base)
    assert calibrator.get_batch_size() == 4
    assert calibrator.read_calibration_cache() is None
    assert [calibrator.get_batch(["x"]) for _ in range(4)] == [[4097], [4098], [4099], None]
    np.testing.assert_array_equal(np.concatenate(uploaded)[:10], samples)
    np.testing.assert_array_equal(uploaded[2][2:], samples[8:])
    calibrator.write_calibration_cache(memoryview(b"TRT-8601-EntropyCalibration2\n"))
    assert calibrator.read_calibration_cache() == b"TRT-8601-EntropyCalibration2\n"


def test_the_calibrator_works_without_a_cache_file() -> None:
    calibrator = entropy_calibrator(Base, lambda name, array: 0, [], 1)
    calibrator.write_calibration_cache(b"x")
    assert calibrator.read_calibration_cache() is None
    assert calibrator.get_batch(["x"]) is None
