"""Small trees of pictures with boxes in the layouts of VOC, COCO and YOLO: dark pictures, a bright rectangle for each object.

Odd ones are among them: a picture without objects, a difficult object, a class that no picture holds, grey and 16-bit files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("disc", "bar", "ghost")
"""Of the classes; nothing is a ghost."""


@dataclass(frozen=True)
class Drawn:
    """One picture: its size, and boxes in pixels, right and lower edges exclusive."""

    stem: str
    size: tuple[int, int]
    boxes: tuple[tuple[int, int, int, int], ...]
    labels: tuple[int, ...]
    difficult: tuple[bool, ...]

    @property
    def pixels(self) -> np.ndarray:
        made = np.random.default_rng(len(self.boxes)).integers(20, 60, (*self.size, 3)).astype(np.uint8)
        for (left, top, right, bottom), label in zip(self.boxes, self.labels, strict=True):
            made[top:bottom, left:right] = (230, 60, 60) if label == 0 else (60, 80, 240)
        return made


def drawn(count: int, seed: int) -> list[Drawn]:
    """Pictures 40 to 60 pixels wide with up to two objects; the second one has none, the third a difficult one."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        size = (int(rng.integers(40, 60)), int(rng.integers(40, 60)))
        boxes, labels = [], []
        for _ in range(0 if index == 1 else int(rng.integers(1, 3))):
            side = rng.integers(12, 24, 2)
            left, top = int(rng.integers(0, size[1] - side[0] + 1)), int(rng.integers(0, size[0] - side[1] + 1))
            boxes.append((left, top, left + int(side[0]), top + int(side[1])))
            labels.append(int(rng.integers(0, 2)))
        difficult = tuple(index == 2 and n == 0 for n in range(len(boxes)))
        found.append(Drawn(f"{seed}_{index:03}", size, tuple(boxes), tuple(labels), difficult))
    return found


def write_picture(path: Path, one: Drawn, number: int = 0) -> Path:
    """As PNG in colour, every fifth one grey, every seventh with 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(one.pixels)
    if number % 7 == 6:
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif number % 5 == 4:
        image = image.convert("L")
    image.save(path)
    return path


def voc_tree(top: Path, train: int = 16, test: int = 6) -> Path:
    """Lists ``trainval`` and ``test``; a picture without objects is in neither annotation nor list."""
    lists = top / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (top / "Annotations").mkdir()
    for name, count, seed in (("trainval", train, 1), ("test", test, 2)):
        pictures = [one for one in drawn(count, seed) if one.boxes]
        for number, one in enumerate(pictures):
            write_picture(top / "JPEGImages" / f"{one.stem}.png", one, number)
            write_xml(top / "Annotations" / f"{one.stem}.xml", one)
        (lists / f"{name}.txt").write_text("".join(f"{one.stem}\n" for one in pictures))
    return top


def write_xml(path: Path, one: Drawn, names: tuple[str, ...] = NAMES) -> None:
    objects = "".join(
        f"<object><name>{names[label]}</name><difficult>{int(hard)}</difficult><bndbox><xmin>{left + 1}</xmin>"
        f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for (left, top, right, bottom), label, hard in zip(one.boxes, one.labels, one.difficult, strict=True)
    )
    height, width = one.size
    path.write_text(f"<annotation><filename>{one.stem}.png</filename><size><width>{width}</width><height>{height}</height>"
                    f"<depth>3</depth></size>{objects}</annotation>")  # fmt: skip


def coco_tree(top: Path, train: int = 16, test: int = 6) -> Path:
    (top / "annotations").mkdir(parents=True)
    for name, count, seed in (("train2017", train, 1), ("val2017", test, 2)):
        images, annotations = [], []
        for number, one in enumerate(drawn(count, seed)):
            write_picture(top / name / f"{one.stem}.png", one, number)
            images.append(
                {"id": 10 + number, "file_name": f"{one.stem}.png", "height": one.size[0], "width": one.size[1]}
            )
            annotations += [
                {"id": 100 * number + n, "image_id": 10 + number, "category_id": 3 * (label + 1), "iscrowd": int(hard),
                 "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "area": 1}
                for n, (box, label, hard) in enumerate(zip(one.boxes, one.labels, one.difficult, strict=True))
            ]  # fmt: skip
        categories = [{"id": 3 * (n + 1), "name": name} for n, name in enumerate(NAMES)][::-1]
        data = {"images": images, "annotations": annotations, "categories": categories}
        (top / "annotations" / f"instances_{name}.json").write_text(json.dumps(data))
    return top


def yolo_tree(top: Path, train: int = 16, test: int = 6) -> Path:
    """The picture without objects has an empty label file in training, none in the test list."""
    (top / "labels").mkdir(parents=True)
    for name, count, seed in (("train", train, 1), ("valid", test, 2)):
        pictures = drawn(count, seed)
        for number, one in enumerate(pictures):
            write_picture(top / "images" / name / f"{one.stem}.png", one, number)
            lines = [_line(box, label, one.size) for box, label in zip(one.boxes, one.labels, strict=True)]
            place = top / "labels" / name / f"{one.stem}.txt"
            place.parent.mkdir(exist_ok=True)
            if lines or name == "train":
                place.write_text("".join(lines))
        (top / f"{name}.txt").write_text("".join(f"{name}/{one.stem}.png\n" for one in pictures))
    (top / "hand.names").write_text("".join(f"{name}\n" for name in NAMES))
    (top / "hand.data").write_text(
        "classes=3\ntrain=train.txt\nvalid=valid.txt\nimages=images/\nlabels=labels/\nnames=hand.names\n"
    )
    return top


def _line(box: tuple[int, int, int, int], label: int, size: tuple[int, int]) -> str:
    height, width = size
    left, top, right, bottom = box
    middle = ((left + right) / 2 / width, (top + bottom) / 2 / height)
    return f"{label} {middle[0]:.9f} {middle[1]:.9f} {(right - left) / width:.9f} {(bottom - top) / height:.9f}\n"
