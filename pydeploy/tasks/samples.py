"""The samples of a calibration manifest as network inputs: a task's own, another data set's, or files'."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.base import Feeds
from pydeploy.data.manifest import Manifest
from pydeploy.errors import ConfigError, nearest

if TYPE_CHECKING:
    from pydeploy.tasks.contract import Task


def calibration_batches(task: Task, manifest: Manifest) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Feeds of the network of `task` with the samples that `manifest` names, in batches of any size.

    Where the source is the task's own data set, its samples are those of evaluation; with another preprocessing in the
    manifest, that one. Any other data set, folder or file is read as the manifest says. Raises `ConfigError` where such
    samples are not of the network's shape, `DataError` where they cannot be read or have another hash than the pinned one.
    """
    from pydeploy.tasks.evaluate import example

    own = manifest.path is None and manifest.source == task.data
    for feeds in _of_task(task, manifest) if own else _of_manifest(task, manifest):
        for name, one in zip(task.input_names, example(task), strict=True):
            found, wanted = feeds[name].shape[1:], tuple(one.shape[1:])
            if found != wanted:
                raise ConfigError(
                    f"calibration samples of '{manifest.source}' have the shape {found}, the network takes {wanted}: name "
                    "the data that the network sees, with its preprocessing (resize, crop, mean and std)"
                )
        yield feeds


def samples_digest(task: Task, manifest: Manifest) -> str:
    """SHA-256 of all samples that `manifest` names: every one is read once. Raises as `calibration_batches` does."""
    digest = hashlib.sha256()
    for feeds in calibration_batches(task, manifest):
        for name in task.input_names:
            digest.update(np.ascontiguousarray(feeds[name], dtype="<f4").data)
    return digest.hexdigest()


def under(names: Sequence[str], batches: Iterable[Feeds]) -> Iterator[Feeds]:
    """Batches under the input `names` of a file: by name where they have them, else in order. Raises `ConfigError` for more or
    fewer.
    """
    for feeds in batches:
        if len(feeds) != len(names):
            raise ConfigError(f"the task gives inputs {list(feeds)}, the file takes {list(names)}")
        yield dict(feeds) if set(feeds) == set(names) else dict(zip(names, feeds.values(), strict=True))


def _of_task(task: Task, manifest: Manifest) -> Iterator[dict[str, NDArray[np.float32]]]:
    wanted = manifest.indices(task.size(manifest.split))
    digest = hashlib.sha256()
    for start in range(0, len(wanted), 256):
        batch = task.samples(manifest.split, wanted[start : start + 256], manifest.settings)
        arrays = [tensor.numpy() for tensor in batch.inputs]
        digest.update(np.ascontiguousarray(arrays[0], dtype="<f4").data)
        yield dict(zip(task.input_names, arrays, strict=True))
    manifest.require_hash(digest.hexdigest())


def _of_manifest(task: Task, manifest: Manifest) -> Iterator[dict[str, NDArray[np.float32]]]:
    if len(task.input_names) != 1:
        raise ConfigError(
            f"'{manifest.source}' gives one array a sample, the network takes {len(task.input_names)} "
            f"({', '.join(task.input_names)}): calibrate on the task's own data, '{task.data}'"
        )
    for samples in manifest_batches(manifest):
        yield {task.input_names[0]: samples.copy()}  # `samples` is valid for one step only


def manifest_batches(manifest: Manifest, threads: int = 0, batch: int = 8) -> Iterator[NDArray[np.float32]]:
    """Model inputs of the manifest's samples, without a task: a data set by its name, or a path. Valid for one step."""
    if manifest.path is not None:
        from pydeploy.data.images import batches

        yield from batches(manifest, batch, threads)
        return
    from pydeploy.data.named import load
    from pydeploy.data.picture_set import PictureSet

    images = load(manifest.source)
    if isinstance(images, PictureSet):
        raise ConfigError(
            f"a manifest alone cannot read the data set '{manifest.source}', whose settings the config has: name its folder "
            "as the source, or calibrate with --config"
        )
    parts = {"train": images.train_images, "test": images.test_images}
    if manifest.split not in parts:
        raise ConfigError(f"unknown split '{manifest.split}'{nearest(manifest.split, parts)}")
    pixels = parts[manifest.split]
    settings = manifest.settings or images.preprocessing
    chosen = (pixels[index] for index in manifest.indices(len(pixels)))
    yield from manifest.checked(settings.batches(chosen, batch, planar=True, threads=threads))


def exact_batches(feeds: Iterable[Feeds], batch: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The samples of `feeds` in batches of exactly `batch`. The last one is filled up by repeating its samples."""
    waiting: dict[str, NDArray[np.float32]] = {}
    for given in feeds:
        waiting = {name: np.concatenate([waiting[name], part]) if waiting else part for name, part in given.items()}
        while waiting and len(next(iter(waiting.values()))) >= batch:
            yield {name: part[:batch] for name, part in waiting.items()}
            waiting = {name: part[batch:] for name, part in waiting.items()}
    if waiting and len(next(iter(waiting.values()))):
        yield {name: np.resize(part, (batch, *part.shape[1:])) for name, part in waiting.items()}
