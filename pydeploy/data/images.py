"""The samples that a manifest's path stands for: images decoded by Pillow, or arrays read where they lie.

Decoding and resizing run on threads ahead of the batches, normalizing on threads of the core. What cannot be read is left out and named,
up to the manifest's `max_skipped`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.decode import MODES, SUFFIXES, decode, pixels_of
from pydeploy.data.manifest import Manifest
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.data.room import ROOM
from pydeploy.errors import ConfigError, DataError

DECODERS = 2
BATCH = 8
log = logging.getLogger(__name__)


def batches(manifest: Manifest, batch: int = BATCH, threads: int = 0) -> Iterator[NDArray[np.float32]]:
    """Model inputs of up to `batch` samples each, of the manifest's images or array.

    A batch is valid until the next one is asked for. Raises `DataError` for what cannot be read beyond the share that
    may be skipped, for samples that do not fit the preprocessing, and where the pinned hash is another one; `ConfigError`
    where the manifest does not say how to preprocess.
    """
    path = manifest.path
    assert path is not None
    if path.suffix == ".npy":
        yield from manifest.checked(_from_array(manifest, path, batch, threads))
        return
    settings = manifest.settings
    if settings is None:
        raise ConfigError(f"calibration set {manifest.source}: images need a 'preprocessing', such as 'imagenet'")
    names = _listed(path)
    chosen = [names[index] for index in manifest.indices(len(names))]
    channels = len(settings.mean)
    if channels not in MODES:
        raise ConfigError(f"calibration set {manifest.source}: images have 1 or 3 channels, not {channels}")
    resized = _resized(chosen, settings, int(manifest.max_skipped * manifest.count))
    ready = replace(settings, resize=None, crop=None)
    yield from manifest.checked(ready.batches(resized, batch, threads=threads))


def _from_array(manifest: Manifest, path: Path, batch: int, threads: int) -> Iterator[NDArray[np.float32]]:
    """uint8 ``(N, H, W, C)`` through the preprocessing, or float32 ``(N, ...)`` as it is; read through a memory map."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not an array of NumPy's format ({error}); write it with numpy.save") from None
    settings = manifest.settings
    kind = ("float32" if settings is None else "uint8", 2 if settings is None else 4)
    if array.dtype != kind[0] or (array.ndim != 4 if settings else array.ndim < 2):
        expected = "uint8 images (N, height, width, channels)" if settings else "float32 samples (N, ...)"
        raise DataError(f"{path} holds {array.dtype} {array.shape}; expected {expected} "
                        f"{'with' if settings else 'without'} a 'preprocessing'")  # fmt: skip
    indices = manifest.indices(len(array))
    if settings is None:
        for start in range(0, len(indices), batch):
            yield np.ascontiguousarray(array[indices[start : start + batch]])
        return
    yield from settings.batches((array[index] for index in indices), batch, threads=threads)


def _listed(path: Path) -> list[Path]:
    """The images of a folder and its folders, by name; or those that the lines of a text file name."""
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the list of calibration images {path} cannot be read: {error}") from None
        found = [path.parent / line.strip() for line in lines if line.strip()]
    elif path.is_dir():
        found = sorted((p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES), key=lambda p: p.as_posix())
    else:
        raise DataError(f"{path} does not exist; expected a folder of images, a .txt list of them or a .npy file")
    if not found:
        raise DataError(f"{path} names no images ({', '.join(sorted(SUFFIXES))})")
    return found


def _one(path: Path, way: Preprocessing) -> NDArray[np.uint8]:
    """A picture resized and cut out. At full size it is in memory no longer than that takes, and only where there is room."""
    with ROOM.of(pixels_of(path)):
        return way.pixels(decode(path, len(way.mean)))


def _resized(paths: Sequence[Path], way: Preprocessing, allowed: int) -> Iterator[NDArray[np.uint8]]:
    skipped: list[str] = []
    with ThreadPoolExecutor(DECODERS) as pool:
        waiting: deque[tuple[Path, Future[NDArray[np.uint8]]]] = deque()
        rest = iter(paths)
        try:
            while True:
                while len(waiting) < 2 * BATCH and (path := next(rest, None)) is not None:
                    waiting.append((path, pool.submit(_one, path, way)))
                if not waiting:
                    break
                path, future = waiting.popleft()
                try:
                    image = future.result()
                except DataError as error:
                    skipped.append(f"{path} ({error})")
                    if len(skipped) > allowed:
                        raise DataError(
                            f"{len(skipped)} of {len(paths)} calibration images cannot be read, {allowed} may be skipped: "
                            f"{'; '.join(skipped[:5])}; repair them or raise 'max_skipped'"
                        ) from None
                    continue
                yield image
        finally:
            for _, future in waiting:
                future.cancel()
    if skipped:
        log.warning("skipped %d of %d calibration images: %s", len(skipped), len(paths), "; ".join(skipped))
