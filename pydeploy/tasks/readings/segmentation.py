"""Logits, one a class and pixel: masks, drawn in the classes' colours with a legend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.deployment import Deployment
from pydeploy.errors import DataError, Mismatch
from pydeploy.tasks.readings.base import Outputs, Picture, Reading
from pydeploy.tasks.readings.pens import WHITE, colour, font, font_size, sayable

OPACITY = 0.55
SHOWN = 3
"""Classes in a headline."""


class Masks(Reading):
    """``{"size", "classes": {name: share of the pixels}, "runs": [[class, pixels], ...]}``: the mask row by row.

    `size` is height and width of the mask: that of the network's input where the preprocessing fixes it, else of the logits.
    """

    def __init__(self, way: Deployment) -> None:
        super().__init__(way)
        self._colours = colours(way)

    def read(self, outputs: Outputs) -> dict[str, Any]:
        logits, names = self.output(outputs, self.way.outputs[0], ndim=3), self.way.class_names
        if len(logits) != len(names):
            raise Mismatch(
                f"the engine gives {len(logits)} scores a pixel, the preprocessing names {len(names)} classes"
            )
        fixed = self.way.preprocessing.resize
        mask = resized(logits, fixed if isinstance(fixed, tuple) else logits.shape[1:]).argmax(axis=0)
        counts = np.bincount(mask.ravel(), minlength=len(names))
        order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
        return {
            "size": [*mask.shape],
            "classes": {names[index]: counts[index] / mask.size for index in order},
            "runs": runs(mask),
        }

    def draw(self, picture: Picture, record: Mapping[str, Any]) -> Picture:
        mask = mask_of(record)
        rows, columns = (np.arange(side) * own // side for side, own in zip(picture.shape[:2], mask.shape, strict=True))
        coloured = self._colours[mask[rows][:, columns]]
        blended = np.rint(picture * (1 - OPACITY) + coloured * OPACITY).astype(np.uint8)
        names = self.way.class_names
        entries = [
            (self._colours[names.index(name)], f"{name} {share:.1%}") for name, share in record["classes"].items()
        ]
        return with_legend(blended, entries)

    def headline(self, record: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {share:.0%}" for name, share in [*record["classes"].items()][:SHOWN])


def colours(way: Deployment) -> NDArray[np.uint8]:
    """``(classes, 3)``: the setting ``colours``, or colours that are told apart. Raises `DataError` for others."""
    given = way.settings.get("colours", [colour(number) for number in range(len(way.class_names))])
    try:
        found = np.array(given, np.int64)
    except (TypeError, ValueError):
        found = np.zeros(0, np.int64)
    if found.shape != (len(way.class_names), 3) or found.min() < 0 or found.max() > 255:
        raise DataError(f"'settings.colours' must hold {len(way.class_names)} colours [red, green, blue] of 0 to 255")
    return found.astype(np.uint8)


def resized(values: NDArray[np.float64], size: tuple[int, ...]) -> NDArray[np.float64]:
    """``(K, h, w)`` resized bilinearly to `size`, corners not aligned, as PyTorch and ONNX resize by default."""
    for axis, length in zip((1, 2), size, strict=True):
        own = values.shape[axis]
        if own == length:
            continue
        centres = np.clip((np.arange(length) + 0.5) * (own / length) - 0.5, 0, None)
        low = np.minimum(centres.astype(np.int64), own - 1)
        share = (centres - low).reshape([-1 if place == axis else 1 for place in range(3)])
        values = values.take(low, axis) * (1 - share) + values.take(np.minimum(low + 1, own - 1), axis) * share
    return values


def runs(mask: NDArray[np.integer]) -> list[list[int]]:
    """``[[class, pixels], ...]`` of a mask read row by row."""
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    lengths = np.diff(np.concatenate([starts, [flat.size]]))
    return [[int(value), int(length)] for value, length in zip(flat[starts], lengths, strict=True)]


def mask_of(record: Mapping[str, Any]) -> NDArray[np.int64]:
    """The mask that `runs` wrote."""
    values, lengths = np.array(record["runs"], np.int64).T
    return np.repeat(values, lengths).reshape(record["size"])


def with_legend(picture: Picture, entries: list[tuple[NDArray[np.uint8], str]]) -> Picture:
    """The picture with a strip at its right: a square of each colour, and what it stands for."""
    from PIL import Image, ImageDraw

    size = min(font_size(picture), max(8, picture.shape[0] // (2 * len(entries) + 1)))
    letters, step = font(size), round(1.6 * size)
    entries = [(own, sayable(text, letters)) for own, text in entries]
    width = round(max(letters.getlength(text) for _, text in entries)) + 3 * size
    height = max(picture.shape[0], step * len(entries) + size)
    image = Image.new("RGB", (picture.shape[1] + width, height))
    image.paste(Image.fromarray(picture), (0, 0))
    pen, left = ImageDraw.Draw(image), picture.shape[1] + size // 2
    for number, (own, text) in enumerate(entries):
        top = size // 2 + number * step
        pen.rectangle((left, top, left + size, top + size), fill=(int(own[0]), int(own[1]), int(own[2])), outline=WHITE)
        pen.text((left + 1.5 * size, top), text, font=letters, fill=WHITE)
    return np.array(image, np.uint8)
