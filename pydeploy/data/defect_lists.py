"""Lists of pictures with a label each, without masks."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pydeploy.data.defect_folders import TEST, TRAIN, folder_at
from pydeploy.data.defect_set import DefectSet, DefectSplit, MaskFiles, Size, drawn, fixed_size, mixed, require_few
from pydeploy.data.picture_set import Files
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import ConfigError, DataError


def labels(root: str, size: Size = 224, at_least: float = 0.5, holdout: float = 0.25, seed: int = 0, channels: int = 3,
           mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None, interpolation: str = "bilinear",
           max_skipped: float = 0.0) -> DefectSet:  # fmt: skip
    """Pictures that the CSV file `root` lists, with the columns ``path,label`` and maybe ``split``, without masks.

    A label is 0 for sound, else how probable a defect is: from `at_least` on the picture is defective, below it is left out.
    """
    way, rows = fixed_size(size, channels, mean, std, interpolation), _rows(Path(root))
    return _labelled(f"labels {Path(root).name}", rows, way, at_least, holdout, seed, max_skipped)


def elpv(root: str | None = None, size: Size = 160, at_least: float = 0.5, holdout: float = 0.25, seed: int = 0,
         channels: int = 1, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None,
         interpolation: str = "bilinear", max_skipped: float = 0.0) -> DefectSet:  # fmt: skip
    """Solar cells in electroluminescence (Buerhop-Lutz et al. 2018): ``labels.csv`` and ``images``, in `root` or, without it, in
    the installed package ``elpv-dataset``. The share `holdout` is drawn from every probability and kind of cell; else as `labels`.
    """
    way = fixed_size(size, channels, mean, std, interpolation)
    top = _elpv_package() if root is None else folder_at(root)
    place = next((path for path in (top / "labels.csv", top / "data" / "labels.csv") if path.is_file()), None)
    if place is None:
        raise DataError(f"{top} has no labels.csv; 'root' is the folder that holds it and 'images'")
    rows = []
    for number, line in enumerate(_text(place).splitlines(), 1):
        words = line.replace(",", " ").split()
        if len(words) != 3:
            raise DataError(f"{place}, line {number}: expected 'picture probability kind of cell', got {line[:80]!r}")
        rows.append(_Row(place.parent / words[0], _number(words[1], place, number), stratum=words[1] + words[2]))
    return _labelled("elpv", rows, way, at_least, holdout, seed, max_skipped)


@dataclass(frozen=True)
class _Row:
    """A line of a list of labels."""

    picture: Path
    probability: float
    split: str = ""
    stratum: str = ""


def _labelled(
    name: str, rows: Sequence[_Row], way: Preprocessing, at_least: float, holdout: float, seed: int, max_skipped: float
) -> DefectSet:  # fmt: skip
    if not 0 < at_least <= 1:
        raise ConfigError(f"'at_least' is a probability above 0 and at most 1, got {at_least}")
    missing = [f"{row.picture} (missing)" for row in rows if not row.picture.is_file()]
    require_few(missing, len(rows), max_skipped)
    kept = [row for row in rows if row.picture.is_file() and (row.probability == 0 or row.probability >= at_least)]
    if any(row.split for row in kept):
        train, test = (
            mixed(_without_masks([row for row in kept if (row.split == TRAIN) is wanted], len(way.mean)))
            for wanted in (True, False)
        )
        return DefectSet(name, train, test, way)
    keys = [row.stratum or str(row.probability >= at_least) for row in kept]
    names = sorted({*keys})
    whole = _without_masks(kept, len(way.mean))
    first, held = drawn(whole, np.array([names.index(key) for key in keys], np.int64), holdout, seed)
    return DefectSet(name, first, mixed(held), way)


def _without_masks(rows: Sequence[_Row], channels: int) -> DefectSplit:
    defective = np.array([row.probability > 0 for row in rows], np.bool_)
    return DefectSplit([row.picture.stem for row in rows], Files([row.picture for row in rows], channels), defective,
                       MaskFiles([None] * len(rows)), ~defective)  # fmt: skip


def _rows(path: Path) -> list[_Row]:
    lines = [line for line in csv.reader(_text(path).splitlines()) if line]
    head = [name.strip().lower() for name in lines[0]] if lines else []
    if missing := [name for name in ("path", "label") if name not in head]:
        raise DataError(f"{path}: the first line must name the columns path,label (and split), '{missing[0]}' is missing; it says "
                        f"{','.join(head)[:100]!r}")  # fmt: skip
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(head):
            raise DataError(f"{path}, row {number}: {len(line)} values for {len(head)} columns")
        values = dict(zip(head, (value.strip() for value in line), strict=True))
        split = values.get("split", "").lower()
        if "split" in head and split not in (TRAIN, *TEST):
            raise DataError(f"{path}, row {number}: the split is {split!r}; expected train or test")
        rows.append(_Row(path.parent / values["path"], _number(values["label"], path, number), split))
    return rows


def _number(text: str, path: Path, line: int) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise DataError(
            f"{path}, line {line}: the label is {text!r}; expected 0 for sound, 1 for defective, or a probability"
        )
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list of labels {path} cannot be read: {error}") from None


def _elpv_package() -> Path:
    found = importlib.util.find_spec("elpv_dataset")
    if found is None or not found.submodule_search_locations:
        raise DataError("ELPV's pictures are not here: pip install elpv-dataset, or name their folder as 'root'")
    return Path(next(iter(found.submodule_search_locations)))
