"""ImageNet's classification set: ``train/SYNSET/*.JPEG``, and ``val/`` in folders or flat with its labels in ``val.txt``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from pydeploy.data.folders import classes, folder, labelled
from pydeploy.data.picture_set import Files, PictureSet, Split, sample_settings
from pydeploy.errors import DataError

LABELS = "val.txt"


def imagenet(root: str, size: int = 224, cache: str | None = None) -> PictureSet:
    """The pictures under `root`, in samples as torchvision's classifiers take them.

    A line of ``val.txt``, beside ``val/``, is ``FILE LABEL``, the label being the place of the synset in their sorted order.
    """
    top = Path(root)
    if not (top / LABELS).is_file():
        return replace(folder(root, size, "val", cache=cache), name="imagenet")
    way, names = sample_settings(size), classes(top / "train")
    test = _listed(top, len(names))
    return PictureSet("imagenet", names, labelled(top / "train", names, names, 3), test, way).cached(cache)


def _listed(top: Path, count: int) -> Split:
    paths: list[Path] = []
    labels: list[int] = []
    try:
        lines = (top / LABELS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{top / LABELS} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal() or int(label) >= count:
            raise DataError(
                f"{top / LABELS}, line {number}: expected FILE LABEL with a label below {count}, got {line[:80]!r}"
            )
        paths.append(top / "val" / name.strip())
        labels.append(int(label))
    return Split(Files(paths), np.array(labels, np.int64))
