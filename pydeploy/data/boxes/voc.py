"""PASCAL VOC's layout: ``JPEGImages``, ``Annotations/*.xml`` and lists in ``ImageSets/Main``."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydeploy.data.boxes.box_set import BoxSet, Objects, annotated, class_number, objects, picture_size, square_samples
from pydeploy.data.decode import SUFFIXES
from pydeploy.errors import DataError

CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
           "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")  # fmt: skip
SHOWN = 20
LONGEST = 1 << 22
"""Bytes of an annotation; longer ones are something else."""


def voc(
    root: str | list[str],
    size: int = 300,
    train: str = "trainval",
    test: str = "test",
    test_root: str | None = None,
    classes: list[str] | None = None,
    channels: int = 3,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    empty: bool = False,
    max_skipped: float = 0.01,
    cache: str | None = None,
) -> BoxSet:
    """The pictures that the lists `train` of `root` name, one folder or several (VOC2007 and VOC2012), in samples of `size` pixels.

    The list `test` is that of `test_root`, else of the first `root` that has it. `classes` are VOC's without others. Annotations
    without ``object`` are wrong, unless pictures may be `empty`. Raises `DataError` for what is no such layout, and where more
    than the share `max_skipped` of a split's annotations is wrong.
    """
    roots = [Path(one) for one in ([root] if isinstance(root, str) else root)]
    way = square_samples(size, channels, mean, std)
    names = tuple(classes or CLASSES)
    for top in [*roots, *([Path(test_root)] if test_root else [])]:
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            if not (top / part).is_dir():
                raise DataError(
                    f"{top} is no folder in VOC's layout: it has no '{part}'; expected Annotations, JPEGImages and ImageSets/Main"
                )
    judged = Path(test_root) if test_root else next((top for top in roots if _list(top, test).is_file()), roots[0])
    read = partial(_annotation, names=names, empty=empty)
    parts = [
        annotated(_listed(tops, part), read, f"the list '{part}'", channels, max_skipped)
        for tops, part in ((roots, train), ([judged], test))
    ]
    return BoxSet("voc", names, parts[0], parts[1], way).cached(cache)


def _list(top: Path, name: str) -> Path:
    return top / "ImageSets" / "Main" / f"{name}.txt"


def _listed(tops: Sequence[Path], name: str) -> list[tuple[Path, str]]:
    items = []
    for top in tops:
        path = _list(top, name)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            others = sorted(p.stem for p in path.parent.glob("*.txt"))[:SHOWN]
            raise DataError(f"{path} cannot be read; the lists there are {', '.join(others) or 'none'}") from None
        items += [(top, line.split()[0]) for line in lines if line.strip()]
    return items


def _annotation(item: tuple[Path, str], names: Sequence[str], empty: bool) -> tuple[Path, Objects]:
    """One picture and its objects; raises `DataError` that names the file."""
    top, stem = item
    path = top / "Annotations" / f"{stem}.xml"
    tree = _xml(path)
    picture = _picture(top / "JPEGImages", stem, tree.findtext("filename"))
    try:
        found = _objects(tree, names, picture)
        if not len(found) and not empty:
            raise DataError("no objects; where pictures without any are meant, set 'empty: true'")
        return picture, found
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _xml(path: Path) -> ET.Element:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {'missing' if isinstance(error, FileNotFoundError) else error.strerror}") from None
    if len(text) > LONGEST or b"<!ENTITY" in text:
        raise DataError(f"{path}: no annotation: it is longer than {LONGEST >> 20} MB, or defines entities")
    try:
        tree = ET.fromstring(text)  # noqa: S314  # short, and without entities
    except ET.ParseError as error:
        raise DataError(f"{path}: damaged XML: {error}") from None
    if tree.tag != "annotation":
        raise DataError(f"{path}: expected <annotation>, got <{tree.tag}>")
    return tree


def _picture(folder: Path, stem: str, given: str | None) -> Path:
    """The file of the name of its annotation, whatever its suffix; else the one that the annotation names."""
    choices = [folder / f"{stem}{suffix}" for suffix in (".jpg", *sorted(SUFFIXES))]
    found = next((path for path in choices if path.is_file()), None)
    if found is None and given and Path(given.strip()).name == given.strip():
        found = folder / given.strip()
    if found is None or not found.is_file():
        raise DataError(f"{choices[0]}: missing; the list names it")
    return found


def _objects(tree: ET.Element, names: Sequence[str], picture: Path) -> Objects:
    height, width = (_number(tree.findtext(f"size/{key}"), 0.0, key) for key in ("height", "width"))
    size = (int(height), int(width)) if min(height, width) >= 1 else picture_size(picture)
    corners, labels, difficult = [], [], []
    for one in tree.iter("object"):
        name = (one.findtext("name") or "").strip()
        labels.append(class_number(name, names))
        left, top, right, bottom = (
            _number(one.findtext(f"bndbox/{key}"), None, key) for key in ("xmin", "ymin", "xmax", "ymax")
        )
        corners.append((left - 1, top - 1, right, bottom))  # pixels are counted from 1, and both ends belong to the box
        difficult.append(_number(one.findtext("difficult"), 0.0, "difficult") != 0)
    return objects(corners, labels, difficult, size)


def _number(text: str | None, missing: float | None, key: str) -> float:
    if text is None and missing is not None:
        return missing
    try:
        return float(text or "")
    except ValueError:
        raise DataError(f"'{key}' must be a number, got {text!r}") from None
