"""Pictures listed in a CSV file: columns ``path,label``, and ``split`` where the file says what is tested on."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pydeploy.data.picture_set import Files, PictureSet, Split, held_out, sample_settings
from pydeploy.errors import DataError

COLUMNS = ("path", "label")
TRAIN, TEST = ("train", "training"), ("test", "val", "valid", "validation")

Row = tuple[Path, str, str]
"""Picture, label, split ('' where the file has none)."""


def csv_file(
    root: str,
    test: str | None = None,
    size: int = 224,
    holdout: float = 0.2,
    seed: int = 0,
    channels: int = 3,
    resize: int | tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    interpolation: str = "bilinear",
    cache: str | None = None,
) -> PictureSet:
    """The pictures that the CSV file `root` lists, with paths relative to it, in samples of `size` pixels a side.

    What is tested on: the rows of the file `test`, else those whose ``split`` says so, else a share `holdout` of each label
    drawn by `seed`. Labels are sorted: as numbers where all are whole numbers, else as text.
    """
    way = sample_settings(size, channels, resize, mean, std, interpolation)
    rows = _rows(Path(root))
    judged = _rows(Path(test)) if test is not None else [row for row in rows if row[2] in TEST]
    if test is None and judged:
        rows = [row for row in rows if row[2] in TRAIN]
    if not rows:
        raise DataError(f"{root} lists no pictures to train on")
    names = _sorted({label for _, label, _ in rows})
    if unknown := sorted({label for _, label, _ in judged} - set(names)):
        raise DataError(f"label '{unknown[0]}' is among the pictures to test on only ({len(unknown)} such labels), so it "
                        "cannot be learned; add training pictures or remove it")  # fmt: skip
    if not judged:
        kept, drawn = held_out(_split(rows, names, channels).labels, holdout, seed)
        rows, judged = [rows[index] for index in kept], [rows[index] for index in drawn]
    return PictureSet(f"csv {Path(root).name}", tuple(names), _split(rows, names, channels), _split(judged, names, channels),
                      way).cached(cache)  # fmt: skip


def _split(rows: Sequence[Row], names: Sequence[str], channels: int) -> Split:
    at = {name: index for index, name in enumerate(names)}
    labels = np.array([at[label] for _, label, _ in rows], np.int64)
    return Split(Files([path for path, _, _ in rows], channels), labels)


def _sorted(labels: set[str]) -> list[str]:
    if all(label.lstrip("-").isdecimal() for label in labels):
        return sorted(labels, key=int)
    return sorted(labels)


def _rows(path: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = [line for line in csv.reader(stream, strict=True) if line]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; 'root' is a CSV file with the columns path,label") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV file: {error}") from None
    head = [name.strip().lower() for name in lines[0]] if lines else []
    if missing := [name for name in COLUMNS if name not in head]:
        raise DataError(f"{path}: the first line must name the columns path,label (and split), '{missing[0]}' is missing; "
                        f"it says {','.join(head)[:100]!r}")  # fmt: skip
    found: list[Row] = []
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(head):
            raise DataError(f"{path}, row {number}: {len(line)} values for {len(head)} columns")
        values = dict(zip(head, (value.strip() for value in line), strict=True))
        split = values.get("split", "").lower()
        if not values["path"] or not values["label"] or ("split" in head and split not in (*TRAIN, *TEST)):
            raise DataError(
                f"{path}, row {number}: a path, a label and a split (train, val or test) are needed, got {line}"
            )
        found.append((path.parent / values["path"], values["label"], split))
    return found
