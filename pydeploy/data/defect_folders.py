"""Folders of pictures with masks of their defects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pydeploy.data.decode import SUFFIXES
from pydeploy.data.defect_set import DefectSet, Size, drawn, fixed_size, from_masks, mixed, supervised
from pydeploy.data.folders import pictures_in
from pydeploy.errors import DataError

ENDING = "_GT"
TRAIN, TEST = "train", ("test", "val", "valid", "validation")
TILES = "MT_"
KSDD2_SIZE = (640, 232)
"""Height and width to which the authors of SegDecNet stretch these pictures."""


def ksdd2(root: str, size: Size = KSDD2_SIZE, supervision: float | str = 1.0, seed: int = 0, channels: int = 3,
          mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None, interpolation: str = "bilinear",
          max_skipped: float = 0.0) -> DefectSet:  # fmt: skip
    """KolektorSDD2: ``train`` and ``test`` with ``10301.png`` and ``10301_GT.png``; settings as `masked_folder`."""
    top = folder_at(root)
    for part in ("train", "test"):
        if not (top / part).is_dir():
            raise DataError(f"{top} has no folder '{part}'; KSDD2 has the folders 'train' and 'test'")
    made = masked_folder(root, size, 0.25, supervision, seed, channels, mean, std, interpolation, max_skipped)
    return replace(made, name="ksdd2")


def masked_folder(root: str, size: Size = 224, holdout: float = 0.25, supervision: float | str = 1.0, seed: int = 0,
                  channels: int = 3, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None,
                  interpolation: str = "bilinear", max_skipped: float = 0.0) -> DefectSet:  # fmt: skip
    """Pictures ``NAME.jpg`` with masks ``NAME_GT.png``, in folders ``train`` and ``test`` or in one, of which a share `holdout`
    of each kind is drawn by `seed` to test on. A picture is defective where its mask is not empty.

    Samples are stretched to `size`. `supervision`: the share of defective training pictures whose masks are used, or a JSON
    list of their names. `max_skipped`: share of the pictures that may be unusable.
    """
    way = fixed_size(size, channels, mean, std, interpolation)
    top = folder_at(root)
    judged = [name for name in TEST if (top / name).is_dir()]
    if (top / TRAIN).is_dir():
        if not judged:
            raise DataError(f"{top} has a folder 'train' but no folder 'test' to test on")
        train, test = (
            from_masks(place, _with_masks(place), channels, max_skipped) for place in (top / TRAIN, top / judged[0])
        )
    else:
        whole = from_masks(top, _with_masks(top), channels, max_skipped)
        train, test = drawn(whole, whole.defective.astype(np.int64), holdout, seed)
    return DefectSet(f"folder {top.name}", supervised(train, supervision, seed), mixed(test), way)


def magnetic_tiles(root: str, size: Size = 192, holdout: float = 0.25, supervision: float | str = 1.0, seed: int = 0,
                   channels: int = 1, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None,
                   interpolation: str = "bilinear", max_skipped: float = 0.0) -> DefectSet:  # fmt: skip
    """Magnetic tiles (Huang, Qiu and Yuan 2018): folders ``MT_Blowhole`` ... ``MT_Free`` with ``NAME.jpg`` and ``NAME.png``, also
    under ``Imgs`` as published. The share `holdout` is drawn from every folder; settings as `masked_folder`.
    """
    way = fixed_size(size, channels, mean, std, interpolation)
    top = folder_at(root)
    kinds = sorted(path for path in top.iterdir() if path.name.startswith(TILES) and path.is_dir())
    if not kinds:
        raise DataError(f"{top} has no folders MT_Blowhole, ..., MT_Free; 'root' is the folder that holds them")
    pairs = [
        (picture, picture.with_suffix(".png"))
        for kind in kinds
        for picture in pictures_in(kind)
        if picture.suffix != ".png"
    ]
    _require_masks([picture for picture, mask in pairs if not mask.is_file()], "NAME.png", top)
    whole = from_masks(top, pairs, channels, max_skipped)
    names = [kind.name for kind in kinds]
    strata = np.array([names.index(Path(name).parts[0]) for name in whole.names], np.int64)
    train, test = drawn(whole, strata, holdout, seed)
    return DefectSet("magnetic_tiles", supervised(train, supervision, seed), mixed(test), way)


def folder_at(root: str) -> Path:
    """`root`; `DataError` where it is no folder."""
    top = Path(root)
    if not top.is_dir():
        raise DataError(f"{top} is no folder; 'root' is the folder with the pictures, relative to the config")
    return top


def _with_masks(top: Path) -> list[tuple[Path, Path]]:
    """Pictures under `top` and their masks, by name."""
    files = pictures_in(top)
    masks = {(path.parent, path.stem.removesuffix(ENDING)): path for path in files if path.stem.endswith(ENDING)}
    pictures = [path for path in files if not path.stem.endswith(ENDING)]
    if not pictures:
        raise DataError(f"{top} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    _require_masks([path for path in pictures if (path.parent, path.stem) not in masks], f"NAME{ENDING}.png", top)
    return [(path, masks[path.parent, path.stem]) for path in pictures]


def _require_masks(alone: Sequence[Path], wanted: str, top: Path) -> None:
    if alone:
        raise DataError(f"{len(alone)} pictures in {top} have no mask {wanted} beside them, such as {alone[0].name}; add empty "
                        "masks for sound pictures, or use the data 'labels' without masks")  # fmt: skip
