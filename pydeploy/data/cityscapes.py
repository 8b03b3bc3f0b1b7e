"""Cityscapes: ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png``.

Source: Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", 2016. Masks hold the ids of labels, of
which 19 are trained on; the numbers of training are made here.
"""

from __future__ import annotations

from pathlib import Path

from pydeploy.data.mask_files import MaskedFiles, masked_files, paired, values_table
from pydeploy.data.masked_set import MaskedSet, sample
from pydeploy.errors import DataError

LABELS = {
    7: ("road", (128, 64, 128)), 8: ("sidewalk", (244, 35, 232)), 11: ("building", (70, 70, 70)), 12: ("wall", (102, 102, 156)),
    13: ("fence", (190, 153, 153)), 17: ("pole", (153, 153, 153)), 19: ("traffic light", (250, 170, 30)),
    20: ("traffic sign", (220, 220, 0)), 21: ("vegetation", (107, 142, 35)), 22: ("terrain", (152, 251, 152)),
    23: ("sky", (70, 130, 180)), 24: ("person", (220, 20, 60)), 25: ("rider", (255, 0, 0)), 26: ("car", (0, 0, 142)),
    27: ("truck", (0, 0, 70)), 28: ("bus", (0, 60, 100)), 31: ("train", (0, 80, 100)), 32: ("motorcycle", (0, 0, 230)),
    33: ("bicycle", (119, 11, 32)),
}  # fmt: skip
"""Name and colour by the id of the label, in the order of the numbers of training."""
IDS = range(34)
MINUS_ONE = 255
"""How the licence plate's id is stored."""


def cityscapes(root: str, size: tuple[int, int] = (512, 1024), max_skipped: float = 0.01) -> MaskedSet:
    """Cityscapes in the folder `root`, in samples of `size` (height and width): trained on ``train``, judged on ``val``."""
    top = Path(root)
    for part in ("leftImg8bit", "gtFine"):
        if not (top / part / "train").is_dir():
            raise DataError(
                f"{top} is not Cityscapes: there is no folder {part}/train; expected leftImg8bit and gtFine, unpacked"
            )
    known = {label: number for number, label in enumerate(LABELS)}
    values = values_table(known, ({*IDS} | {MINUS_ONE}) - {*known})

    def split(part: str) -> MaskedFiles:
        pairs = paired(top / "leftImg8bit" / part, top / "gtFine" / part, "_leftImg8bit", "_gtFine_labelIds")
        return masked_files(pairs, values, 3, max_skipped, top / "leftImg8bit" / part)

    names, colours = zip(*LABELS.values(), strict=True)
    return MaskedSet("cityscapes", names, split("train"), split("val"), sample(size), colours)
