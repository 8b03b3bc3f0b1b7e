"""Implicit int8 on TensorRT 8.6 and 10: ranges from a calibration cache, so that the device calibrates nothing itself."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from pydeploy.backends.tensorrt import compat
from pydeploy.errors import ConfigError, DataError


def cache_reader(trt: ModuleType, path: Path) -> Any:
    """An IInt8EntropyCalibrator2 that has a cache and no batches."""
    if not hasattr(trt, "IInt8EntropyCalibrator2"):
        raise ConfigError(
            f"TensorRT {trt.__version__} has no calibrators any more; quantize the ONNX file instead ('pydeploy quantize')"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"the calibration cache {path} cannot be read: {error.strerror}") from None
    first, expected = content.split(b"\n", 1)[0].decode(errors="replace").strip(), compat.cache_header(trt)
    if not first.startswith("TRT-"):
        raise DataError(f"{path} is not a TensorRT calibration cache (its first line must begin with 'TRT-')")
    if first != expected:
        raise DataError(
            f"{path} is a calibration cache '{first}', TensorRT {trt.__version__} reads '{expected}'; write it again"
        )

    class CacheReader(trt.IInt8EntropyCalibrator2):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:  # noqa: ARG002
            return None

        def read_calibration_cache(self) -> bytes:
            return content

        def write_calibration_cache(self, cache: Any) -> None:
            """Nothing was measured that would be worth keeping."""

    return CacheReader()
