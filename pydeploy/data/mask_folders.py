"""Pictures in ``images`` and masks of the same names in ``masks``: with ``train`` and ``test`` in both, or a drawn split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pydeploy.data.folders import TEST, TRAIN
from pydeploy.data.mask_files import IGNORED, masked_files, paired, values_table
from pydeploy.data.masked_set import MaskedSet, hues, sample
from pydeploy.data.picture_set import held_out
from pydeploy.errors import ConfigError, DataError

Pair = tuple[Path | None, Path | None]


def mask_folder(
    root: str,
    size: tuple[int, int],
    classes: tuple[str, ...],
    values: tuple[int, ...] | None = None,
    holdout: float = 0.2,
    seed: int = 0,
    channels: int = 3,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    max_skipped: float = 0.01,
) -> MaskedSet:
    """The pictures in ``root/images`` and their masks in ``root/masks``, in samples of `size` (height and width).

    `classes` are the names in order; a mask holds 0, 1, ... for them, or `values`, such as 0 and 255, and 255 where nothing is
    labelled. Without ``train`` and ``test`` (or ``val``) in both folders a share `holdout` is drawn by `seed` to test on.
    """
    top, used = Path(root), values or tuple(range(len(classes)))
    if len(used) != len(classes) or len({*used}) != len(used) or not all(0 <= value <= 255 for value in used):
        raise ConfigError(
            f"'values' are the different values 0..255 of the {len(classes)} classes in masks, got {list(used)}"
        )
    for part in ("images", "masks"):
        if not (top / part).is_dir():
            raise DataError(f"{top} holds no folder '{part}'; expected images/ and masks/ with files of the same names")
    table = values_table({value: number for number, value in enumerate(used)}, {IGNORED} - {*used})
    train, test = (
        masked_files(pairs, table, channels, max_skipped, top / "images") for pairs in _splits(top, holdout, seed)
    )
    way = sample(size, channels, mean, std)
    return MaskedSet(f"folder {top.name}", tuple(classes), train, test, way, hues(len(classes)))


def _splits(top: Path, holdout: float, seed: int) -> tuple[Sequence[Pair], Sequence[Pair]]:
    if (top / "images" / TRAIN).is_dir():
        judged = [name for name in TEST if (top / "images" / name).is_dir()]
        if not judged:
            raise DataError(f"{top}/images has a folder 'train' but no folder 'test' or 'val' to test on")
        first, second = (paired(top / "images" / part, top / "masks" / part) for part in (TRAIN, judged[0]))
        return first, second
    whole = paired(top / "images", top / "masks")
    if len(whole) < 2:
        raise DataError(f"{top}/images holds {len(whole)} pictures; expected at least one to train and one to test on")
    parts = held_out(np.zeros(len(whole), np.int64), holdout, seed)
    first, second = ([whole[index] for index in chosen] for chosen in parts)
    return first, second
