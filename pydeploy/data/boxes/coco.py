"""COCO's layout: a folder of pictures and one JSON file of instances for each split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydeploy.data.boxes.box_set import BoxSet, Objects, annotated, objects, square_samples
from pydeploy.errors import DataError
from pydeploy.files import parsed

Image = Mapping[str, Any]


def coco(
    root: str,
    size: int = 300,
    train: str = "train2017",
    test: str = "val2017",
    channels: int = 3,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    max_skipped: float = 0.01,
    cache: str | None = None,
) -> BoxSet:
    """``annotations/instances_SPLIT.json`` and the pictures in ``SPLIT`` of `root`, in samples of `size` pixels.

    Classes are the categories in the order of their ids; crowds count as difficult. Raises `DataError` for what is no such
    layout, and where more than the share `max_skipped` of a split's pictures have boxes that are wrong.
    """
    top, way = Path(root), square_samples(size, channels, mean, std)
    names: dict[int, str] = {}
    parts = []
    for split in (train, test):
        path = top / "annotations" / f"instances_{split}.json"
        if not (top / split).is_dir():
            raise DataError(
                f"{top} is no folder in COCO's layout: it has no '{split}' beside 'annotations'; expected pictures there"
            )
        images, boxes, found = parsed(path, _instances)
        if names and found != names:
            raise DataError(f"{path}: its categories are others than those of '{train}'")
        names = found
        read = partial(_picture, folder=top / split, boxes=boxes, numbers={key: n for n, key in enumerate(names)})
        parts.append(annotated(images, read, f"'{split}'", channels, max_skipped))
    return BoxSet("coco", tuple(names.values()), parts[0], parts[1], way).cached(cache)


def _instances(data: Any) -> tuple[list[Image], dict[int, list[Image]], dict[int, str]]:
    """Pictures, annotations by the picture's id, and names of the categories by id."""
    try:
        images: list[Image] = [dict(one) for one in data["images"]]
        names = {int(one["id"]): str(one["name"]) for one in sorted(data["categories"], key=lambda one: one["id"])}
        boxes: dict[int, list[Image]] = defaultdict(list)
        for one in data["annotations"]:
            boxes[one["image_id"]].append(one)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"no instances in COCO's format: {error}; expected images, annotations and categories"
        ) from None
    if unknown := set(boxes) - {one.get("id") for one in images}:
        raise DataError(f"{len(unknown)} annotations are of pictures that are not listed (id {min(unknown, key=str)})")
    return images, dict(boxes), names


def _picture(
    image: Image, folder: Path, boxes: Mapping[int, Sequence[Image]], numbers: Mapping[int, int]
) -> tuple[Path, Objects]:
    name = str(image.get("file_name", ""))
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file():
        raise DataError(f"{path}: missing")
    try:
        corners, labels, difficult = [], [], []
        for one in boxes.get(image["id"], ()):
            left, top, width, height = map(float, one["bbox"])
            if one["category_id"] not in numbers:
                raise DataError(f"unknown category {one['category_id']}")
            corners.append((left, top, left + width, top + height))
            labels.append(numbers[one["category_id"]])
            difficult.append(bool(one.get("iscrowd", 0)))
        return path, objects(corners, labels, difficult, (int(image["height"]), int(image["width"])))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"picture {name}: its annotations are damaged ({error})") from None
    except DataError as error:
        raise DataError(f"picture {name}: {error}") from None
