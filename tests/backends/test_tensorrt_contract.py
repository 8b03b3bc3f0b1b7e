"""Only in `make trt-contract`: the committed tables equal the real bindings, and what the fakes assume of them is so."""

from __future__ import annotations

import os
from typing import Any

import pytest

import trt_surface

VERSION = os.environ.get("PYDEPLOY_TRT_VERSION", "")
pytestmark = pytest.mark.skipif(not VERSION, reason="needs NVIDIA's binding wheels: make trt-contract")


@pytest.fixture
def real() -> Any:
    import trt_contract

    return trt_contract.real_module(VERSION)


def test_the_committed_table_is_the_real_one(real: Any) -> None:
    assert trt_surface.extract(real) == trt_surface.load(VERSION)


def test_builder_and_runtime_need_a_driver(real: Any) -> None:
    """The stub's factories return NULL, as the real ones do without a driver: a TypeError, hence the probe before."""
    logger = real.Logger(real.Logger.ERROR)
    with pytest.raises(TypeError, match="nullptr"):
        real.Builder(logger)


def test_loggers_profilers_and_monitors_can_be_derived(real: Any) -> None:
    from pydeploy.backends.tensorrt.compat import watch_progress
    from pydeploy.backends.tensorrt.layer_times import make_profiler
    from pydeploy.backends.tensorrt.logger import make_logger

    messages = make_logger(real)
    assert isinstance(messages, real.ILogger)
    messages.log(real.ILogger.ERROR, "broken\n pipe")
    messages.log(real.ILogger.INFO, "fine")
    assert messages.reason() == "broken pipe"
    profiler = make_profiler(real)
    assert isinstance(profiler, real.IProfiler)
    profiler.report_layer_time("conv", 0.5)
    assert profiler.rows == [("conv", 0.5)]

    class Config:
        progress_monitor: Any = None

    config, steps = Config(), []
    watch_progress(real, config, lambda *step: steps.append(step) is None)
    assert (config.progress_monitor is not None) == hasattr(real, "IProgressMonitor")
    if config.progress_monitor is not None:
        assert isinstance(config.progress_monitor, real.IProgressMonitor)
        config.progress_monitor.phase_start("build", None, 2)
        assert config.progress_monitor.step_complete("build", 0)
        assert steps == [("build", 1, 2)]


def test_the_cache_reader_is_a_real_calibrator(real: Any, tmp_path: Any) -> None:
    from pydeploy.backends.tensorrt.calibration import cache_reader
    from pydeploy.backends.tensorrt.compat import cache_header

    if not hasattr(real, "IInt8EntropyCalibrator2"):
        pytest.skip(f"TensorRT {VERSION} has no calibrators")
    cache = tmp_path / "c.cache"
    cache.write_text(cache_header(real) + "\n")
    reader = cache_reader(real, cache)
    assert isinstance(reader, real.IInt8EntropyCalibrator2)
    assert reader.read_calibration_cache() == cache.read_bytes()
    assert reader.get_batch(["x"]) is None


def test_the_fed_calibrator_is_a_real_one(real: Any) -> None:
    import numpy as np

    from pydeploy.quant.implicit import entropy_calibrator

    if not hasattr(real, "IInt8EntropyCalibrator2"):
        pytest.skip(f"TensorRT {VERSION} has no calibrators")
    feeds = [{"x": np.zeros((2, 3), np.float32)}]
    calibrator = entropy_calibrator(real.IInt8EntropyCalibrator2, lambda name, array: 4096, feeds, 2)
    assert isinstance(calibrator, real.IInt8EntropyCalibrator2)
    assert calibrator.get_algorithm() == real.CalibrationAlgoType.ENTROPY_CALIBRATION_2
    assert (calibrator.get_batch_size(), calibrator.get_batch(["x"]), calibrator.get_batch(["x"])) == (2, [4096], None)


def test_tuples_are_taken_where_shapes_are(real: Any) -> None:
    assert tuple(real.Dims((1, 3, 8, 8))) == (1, 3, 8, 8)


def test_numpy_names_match_the_bindings_own(real: Any) -> None:
    import numpy as np

    from pydeploy.backends.tensorrt.compat import numpy_name

    for name, value in real.DataType.__members__.items():
        mine = numpy_name(value)
        if mine is not None and name != "UINT8":
            assert np.dtype(real.nptype(value)).name == mine, name


def test_autospec_is_strict(real: Any) -> None:
    from unittest.mock import create_autospec

    config = create_autospec(real.IBuilderConfig, instance=True, spec_set=True)
    with pytest.raises(AttributeError):
        config.max_workspace_sise = 1
    assert hasattr(config, "max_workspace_size") == VERSION.startswith("8.")
