"""Text files beside pictures, one line a box: ``class x y width height`` as shares of the picture (YOLO, Oxford hand)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pydeploy.data.boxes.box_set import BoxSet, Objects, annotated, objects, picture_size, square_samples
from pydeploy.errors import DataError, nearest

KEYS = ("classes", "train", "valid", "test", "images", "labels", "names", "eval", "backup")


def yolo(
    root: str,
    size: int = 320,
    data: str | None = None,
    channels: int = 3,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    max_skipped: float = 0.01,
    cache: str | None = None,
) -> BoxSet:
    """What the file `data` in `root` describes (by default the only one with the suffix ``.data``), in samples of `size` pixels.

    It names ``classes``, the lists ``train`` and ``valid``, the folders ``images`` and ``labels`` and the list of ``names``, all
    relative to `root`. A picture without a label file, or with an empty one, has no objects. Raises `DataError` for what is
    no such layout, and where more than the share `max_skipped` of a list's labels is wrong.
    """
    top, way = Path(root), square_samples(size, channels, mean, std)
    if not top.is_dir():
        raise DataError(f"{top} is no folder; expected a .data file, lists, 'images' and 'labels' in it")
    given = _described(top, data)
    names = _lines(top / given["names"]) if "names" in given else [str(n) for n in range(int(given["classes"]))]
    if len(names) != int(given["classes"]):
        raise DataError(f"{top / given['names']} names {len(names)} classes, 'classes' says {given['classes']}")
    folders = [top / given.get(key, key) for key in ("images", "labels")]
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder")
    read = partial(_labelled, images=folders[0], labels=folders[1], count=len(names))
    parts = [
        annotated(_lines(top / given[key]), read, f"the list '{key}'", channels, max_skipped)
        for key in ("train", "valid")
    ]
    return BoxSet("yolo", tuple(names), parts[0], parts[1], way).cached(cache)


def _described(top: Path, data: str | None) -> dict[str, str]:
    files = [top / data] if data else sorted(top.glob("*.data"))
    if len(files) != 1:
        raise DataError(f"{top} has {len(files)} files with the suffix .data; expected one, or its name as 'data'")
    given: dict[str, str] = {}
    for line in _lines(files[0]):
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or key not in KEYS:
            raise DataError(f"{files[0]}: '{line}' is no setting{nearest(key, KEYS)}")
        given[key] = value
    if missing := [key for key in ("classes", "train", "valid") if key not in given]:
        raise DataError(f"{files[0]} lacks {', '.join(missing)}")
    if not given["classes"].isdecimal() or int(given["classes"]) < 1:
        raise DataError(f"{files[0]}: 'classes' must be a whole number, got '{given['classes']}'")
    return given


def _lines(path: Path) -> list[str]:
    """Lines that say something."""
    try:
        found = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    return [line.strip() for line in found if line.strip()]


def _labelled(name: str, images: Path, labels: Path, count: int) -> tuple[Path, Objects]:
    """One picture and its objects; raises `DataError` that names the file and the line."""
    picture, path = images / name, (labels / name).with_suffix(".txt")
    height, width = picture_size(picture)
    if not path.is_file():
        return picture, objects([], [], [], (height, width))
    corners, classes = [], []
    for number, line in enumerate(_lines(path), 1):
        parts = line.split()
        try:
            label, (x, y, w, h) = int(parts[0]), map(float, parts[1:])
        except ValueError:
            raise DataError(f"{path}, line {number}: expected 'class x y width height', got '{line}'") from None
        if not 0 <= label < count:
            raise DataError(f"{path}, line {number}: class {label} is not one of the {count}")
        corners.append(((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height))
        classes.append(label)
    try:
        return picture, objects(corners, classes, [False] * len(classes), (height, width))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
