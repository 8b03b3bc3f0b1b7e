"""The timing cache: kernel timings that one build leaves for the next, in one file shared by all processes."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

from pydeploy.errors import DataError
from pydeploy.files import replacing

log = getLogger(__name__)

_IGNORE_MISMATCH = False  # another version's or device's timings are refused


def attach(config: Any, path: Path) -> None:
    """Give the builder configuration what `path` holds; an empty cache where the file is missing or does not fit.

    TensorRT checks version and device itself and refuses another one's cache.
    """
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    cache = config.create_timing_cache(data)
    if cache is not None and config.set_timing_cache(cache, _IGNORE_MISMATCH):
        return
    log.warning("the timing cache %s is of another TensorRT version or device, or damaged: starting a new one", path)
    config.set_timing_cache(config.create_timing_cache(b""), _IGNORE_MISMATCH)


def store(config: Any, path: Path) -> None:
    """Write what this build learned, together with what other processes have written since."""
    learned = config.get_timing_cache()
    if learned is None:
        return
    try:
        with _locked(path):
            newest = path.read_bytes() if path.exists() else b""
            if newest:
                other = config.create_timing_cache(newest)
                if other is not None:
                    learned.combine(other, _IGNORE_MISMATCH)
            with replacing(path) as partial:
                partial.write_bytes(bytes(memoryview(learned.serialize())))
    except (OSError, DataError) as error:
        log.warning("the timing cache %s cannot be written (%s): the next build will take as long", path, error)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
