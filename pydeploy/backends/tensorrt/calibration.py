"""Implicit int8 on TensorRT 8.6 and 10: ranges from a calibration cache, or found by the device on samples fed to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from pydeploy.backends.base import TensorSpec, check_feeds
from pydeploy.backends.tensorrt import compat
from pydeploy.backends.tensorrt.cuda import Stream
from pydeploy.errors import DataError

Upload = Callable[[str, NDArray[Any]], int]
"""Copies an input to the device; its address there."""
MakeCalibrator = Callable[[type, Upload], Any]
"""From TensorRT's base class: ``pydeploy.quant.implicit.entropy_calibrator`` with samples and batch size filled in."""


def uploader(stream: Stream, inputs: Sequence[TensorSpec]) -> Upload:
    """Every input has one place on the device, which the next batch overwrites; it lives as long as `stream`.

    `DataError` for an array that does not fit the input.
    """
    specs, places = {spec.name: spec for spec in inputs}, dict[str, int]()

    def upload(name: str, array: NDArray[Any]) -> int:
        check_feeds({name: array}, [specs[name]])
        if name not in places:
            places[name] = stream.allocate(array.nbytes)
        stream.upload(places[name], array)
        return places[name]

    return upload


def cache_reader(trt: ModuleType, path: Path) -> Any:
    """An IInt8EntropyCalibrator2 that has a cache and no batches."""
    base = compat.calibrator_base(trt)
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

    class CacheReader(base):  # type: ignore[misc, valid-type]
        failure = None

        def __init__(self) -> None:
            base.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:  # noqa: ARG002
            return None

        def read_calibration_cache(self) -> bytes:
            return content

        def write_calibration_cache(self, cache: Any) -> None:
            """Nothing was measured that would be worth keeping."""

    return CacheReader()
