"""Implicit int8 of TensorRT up to 10 and of Jetson: a calibration cache from our ranges, or a calibrator fed by us.

A cache is text: ``TRT-<version>-EntropyCalibration2``, then a line per tensor with its name and its scale, ``max|x| / 127``,
as the eight hexadecimal digits of the float32. TensorRT ignores a cache of another version or algorithm and would calibrate
on the device. (The format as TensorRT 7 to 10 write it; NVIDIA/TensorRT#2036 and #625.)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.errors import ConfigError, DataError
from pydeploy.files import replacing, write_text
from pydeploy.quant.observe import Ranges

log = getLogger(__name__)

LAST = 10
"""The last major version that quantizes implicitly."""


def cache_version(text: str) -> int:
    """TensorRT's number of a version: ``8.6.1`` is 8601, ``10.3.0`` is 100300. Raises `ConfigError`."""
    parts = text.split(".")
    if not 2 <= len(parts) <= 4 or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"'{text}' is not a version of TensorRT; expected e.g. 8.6.1")
    major, minor, patch = (*map(int, parts[:3]), 0)[:3]
    if not 7 <= major <= LAST:
        raise ConfigError(f"TensorRT {text} reads no calibration cache (7 to {LAST} do); use 'pydeploy quantize'")
    return major * 1000 + minor * 100 + patch if major < 10 else major * 10000 + minor * 100 + patch


def write_cache(ranges: Ranges, path: Path, version: str) -> None:
    """Write the calibration cache of `ranges` for one version of TensorRT.

    A tensor that was zero throughout gets the scale 1. A tensor without a line stays in float on the device, so measure
    every tensor (``calibrate(..., every=True)``).
    """
    lines = [f"TRT-{cache_version(version)}-EntropyCalibration2"]
    for name, (low, high) in ranges.tensors.items():
        scale = np.float32(max(-low, high) / 127)
        lines.append(f"{name}: {struct.pack('>f', scale if scale > 0 else 1.0).hex()}")
    write_text(path, "\n".join(lines) + "\n")


def entropy_calibrator(
    base: type,
    upload: Callable[[str, NDArray[Any]], int],
    batches: Iterable[Mapping[str, NDArray[Any]]],
    batch: int,
    cache: Path | None = None,
) -> Any:
    """A calibrator for ``IBuilderConfig.int8_calibrator`` that feeds `batches` of up to `batch` samples.

    `base` is ``tensorrt.IInt8EntropyCalibrator2``; `upload` copies an input to the device and returns its address, which
    stays valid until it is called for the same input again. A short batch is filled up by repeating its samples. What
    `cache` holds is used instead of the batches; without it, TensorRT's result is written there.

    TensorRT prints what its calibrator raises and goes on with the batches that it has. So the calibrator ends instead
    and keeps the error in `failure`, for who builds to raise; nothing is then written. `samples` counts what was fed.
    """
    source = iter(batches)

    class Calibrator(base):  # type: ignore[misc]
        def __init__(self) -> None:
            # TensorRT's classes must not be initialized through super().
            base.__init__(self)  # type: ignore[misc]
            self.failure: Exception | None = None
            self.samples = 0

        def get_batch_size(self) -> int:
            return batch

        def get_batch(self, names: list[str]) -> list[int] | None:
            try:
                feeds = None if self.failure else next(source, None)
                if feeds is None:
                    return None
                addresses = [upload(name, _filled(_input(feeds, name), batch)) for name in names]
            except Exception as error:
                self.failure = error
                return None
            self.samples += len(_input(feeds, names[0]))
            return addresses

        def read_calibration_cache(self) -> bytes | None:
            return cache.read_bytes() if cache is not None and cache.exists() else None

        def write_calibration_cache(self, content: Any) -> None:
            if cache is None or self.failure:
                return
            try:
                with replacing(cache) as partial:
                    partial.write_bytes(bytes(content))
            except DataError as error:
                log.warning("%s: the next build calibrates again", error)

    return Calibrator()


def _input(feeds: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in feeds:
        raise DataError(f"the network has an input '{name}', the calibration samples are for {sorted(feeds)}")
    return feeds[name]


def _filled(array: NDArray[Any], batch: int) -> NDArray[Any]:
    return np.ascontiguousarray(array if len(array) == batch else np.resize(array, (batch, *array.shape[1:])))
