"""Pictures in one folder a class: ``train/CLASS/*.jpg`` and ``val/`` or ``test/``, or ``CLASS/*.jpg`` with a drawn split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pydeploy.data.decode import SUFFIXES
from pydeploy.data.picture_set import Files, PictureSet, Split, held_out, sample_settings
from pydeploy.errors import DataError

TRAIN, TEST = "train", ("test", "val", "valid", "validation")


def folder(
    root: str,
    size: int = 224,
    test: str | None = None,
    holdout: float = 0.2,
    seed: int = 0,
    channels: int = 3,
    resize: int | tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    interpolation: str = "bilinear",
    cache: str | None = None,
) -> PictureSet:
    """The pictures under `root`, in samples of `size` pixels a side (`sample_settings`).

    `test` names the folder to judge by (``test``, else ``val``, by default); where there is no ``train``, `root` holds the
    classes, and a share `holdout` of each is drawn by `seed` to test on. `cache` is ``memory`` or a folder.
    Raises `DataError` for what is no such layout.
    """
    way = sample_settings(size, channels, resize, mean, std, interpolation)
    top = Path(root)
    if not top.is_dir():
        raise DataError(f"{top} is no folder; 'root' is the folder with the pictures, relative to the config")
    made = _two_folders(top, test, channels) if (top / TRAIN).is_dir() else _drawn(top, holdout, seed, channels)
    names, train, judged = made
    return PictureSet(f"folder {top.name}", names, train, judged, way).cached(cache)


def _two_folders(top: Path, test: str | None, channels: int) -> tuple[tuple[str, ...], Split, Split]:
    judged = [test] if test is not None else [name for name in TEST if (top / name).is_dir()]
    if not judged or not (top / judged[0]).is_dir():
        raise DataError(f"{top} has a folder 'train' but no folder '{judged[0] if judged else 'val'}' to test on")
    names = classes(top / TRAIN)
    found = classes(top / judged[0])
    if unknown := [name for name in found if name not in names]:
        raise DataError(f"class '{unknown[0]}' is in {top / judged[0]} only ({len(unknown)} such classes), so it cannot be "
                        f"learned; add it to {top / TRAIN} or remove it")  # fmt: skip
    return names, labelled(top / TRAIN, names, names, channels), labelled(top / judged[0], found, names, channels)


def _drawn(top: Path, holdout: float, seed: int, channels: int) -> tuple[tuple[str, ...], Split, Split]:
    if others := [name for name in TEST if (top / name).is_dir()]:
        raise DataError(f"{top} has a folder '{others[0]}' but no folder 'train'")
    names = classes(top)
    whole = labelled(top, names, names, channels)
    assert isinstance(whole.pictures, Files)
    paths = whole.pictures.paths
    parts = [Split(Files([paths[index] for index in chosen], channels), whole.labels[chosen])
             for chosen in held_out(whole.labels, holdout, seed)]  # fmt: skip
    return names, parts[0], parts[1]


def classes(top: Path) -> tuple[str, ...]:
    """Names of the folders in `top`, sorted, those that begin with a dot left out."""
    found = sorted(entry.name for entry in os.scandir(top) if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise DataError(f"{top} holds no folders; expected one folder of pictures for each class")
    return tuple(found)


def labelled(top: Path, found: Sequence[str], names: Sequence[str], channels: int) -> Split:
    """The pictures of the classes `found` in `top`, class by class and by name; labels are places in `names`."""
    paths: list[Path] = []
    labels: list[int] = []
    for name in found:
        own = pictures_in(top / name)
        if not own:
            raise DataError(
                f"{top / name} holds no pictures ({', '.join(sorted(SUFFIXES))}); add some, or remove the folder"
            )
        paths += own
        labels += [names.index(name)] * len(own)
    return Split(Files(paths, channels), np.array(labels, np.int64))


def pictures_in(top: Path) -> list[Path]:
    """All picture files in a folder and its folders, by name."""
    found = [Path(place) / name for place, _, files in os.walk(top, followlinks=True) for name in files]
    return sorted((p for p in found if p.suffix.lower() in SUFFIXES), key=lambda p: p.as_posix())
