"""CamVid as SegNet's tutorial has it: ``train``, ``val`` and ``test`` with pictures, ``trainannot``, ... with masks.

Source: Brostow, Fauqueur and Cipolla, "Semantic object classes in video", 2009; layout: Badrinarayanan, Kendall and Cipolla,
"SegNet", 2017. Masks hold 0 to 10 for the eleven classes, 11 where nothing is labelled.
"""

from __future__ import annotations

from pathlib import Path

from pydeploy.data.mask_files import MaskedFiles, masked_files, paired, values_table
from pydeploy.data.masked_set import MaskedSet, sample
from pydeploy.errors import ConfigError, DataError

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
    "void",
)
COLOURS = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128), (64, 64, 128),
    (64, 0, 128), (64, 64, 0), (0, 128, 192), (0, 0, 0),
)  # fmt: skip
TRAINING = {"train": ("train",), "trainval": ("train", "val")}


def camvid(
    root: str,
    size: tuple[int, int] = (360, 480),
    classes: int = 11,
    training: str = "train",
    max_skipped: float = 0.01,
) -> MaskedSet:
    """CamVid in the folder `root`, in samples of `size` (height and width).

    With 11 `classes` unlabelled pixels are ignored; with 12 they are a class of their own. `training` is ``train`` or
    ``trainval``; evaluation is on ``test``. ``val``, where it is there and not trained on, compares epochs.
    """
    if classes not in (11, 12):
        raise ConfigError(f"CamVid has 11 classes, or 12 with 'void'; got {classes}")
    if training not in TRAINING:
        raise ConfigError(f"'training' is train or trainval, got '{training}'")
    top = Path(root)
    if not (top / "trainannot").is_dir():
        raise DataError(f"{top} is not CamVid in SegNet's layout: there is no folder 'trainannot'; expected train, trainannot, "
                        "test, testannot")  # fmt: skip
    values = values_table({number: number for number in range(classes)}, {11, 255} - {*range(classes)})

    def split(*parts: str) -> MaskedFiles:
        pairs = [pair for part in parts for pair in paired(top / part, top / f"{part}annot")]
        return masked_files(pairs, values, 3, max_skipped, top / parts[0])

    held_out = split("val") if training == "train" and (top / "val").is_dir() else None
    return MaskedSet(
        "camvid",
        CLASSES[:classes],
        split(*TRAINING[training]),
        split("test"),
        sample(size),
        COLOURS[:classes],
        held_out,
    )
