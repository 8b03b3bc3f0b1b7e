"""The prior boxes of an SSD: what each number of its outputs stands for.

Source: Liu et al., "SSD: Single Shot MultiBox Detector", 2016.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.boxes.geometry import Floats, centres, corners
from pydeploy.errors import ConfigError, Mismatch, nearest

CENTRE, SIZE = 0.1, 0.2
"""What offsets of the centre, and logarithms of the size, are divided by, so that both are of order one."""
SMALL_STRIDES = (8, 16, 32, 64)


@dataclass(frozen=True)
class Priors:
    """Prior boxes of every cell of every feature map; all lengths in pixels of the network's square input.

    A cell has a box of its `min_sizes`, one of the geometric mean of `min_sizes` and `max_sizes`, and for every ratio r two of
    the smaller size, r times as wide as high and the other way round. The network's outputs follow this order: map by map, row
    by row, cell by cell, box by box.
    """

    image: int
    maps: tuple[int, ...]
    """Cells a side."""
    strides: tuple[float, ...]
    min_sizes: tuple[float, ...]
    max_sizes: tuple[float, ...]
    ratios: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        per_map = (self.strides, self.min_sizes, self.max_sizes, self.ratios)
        if not self.maps or any(len(values) != len(self.maps) for values in per_map):
            raise ConfigError(
                f"priors need one stride, min_size, max_size and list of ratios for each of the {len(self.maps)} maps"
            )
        numbers = (self.image, *self.maps, *self.strides, *self.min_sizes, *(r for own in self.ratios for r in own))
        if not all(math.isfinite(value) and value > 0 for value in numbers):
            raise ConfigError("priors: image, maps, strides, sizes and ratios must be positive numbers")
        if any(low > high for low, high in zip(self.min_sizes, self.max_sizes, strict=True)):
            raise ConfigError(f"priors: max_sizes {self.max_sizes} must not be below min_sizes {self.min_sizes}")

    @property
    def per_cell(self) -> tuple[int, ...]:
        """Boxes of a cell, map by map."""
        return tuple(2 + 2 * len(own) for own in self.ratios)

    @property
    def counts(self) -> tuple[int, ...]:
        """Boxes of each map."""
        return tuple(side * side * boxes for side, boxes in zip(self.maps, self.per_cell, strict=True))

    @cached_property
    def boxes(self) -> Floats:
        """``(P, 4)`` float32: x, y, width, height as shares of the picture, at most 1."""
        found = np.concatenate([self._of_map(number) for number in range(len(self.maps))])
        clipped: Floats = np.clip(found, 0, 1).astype(np.float32)
        return clipped

    @cached_property
    def corners(self) -> Floats:
        """`boxes` as left, top, right, bottom; they may lie partly outside of the picture."""
        return corners(self.boxes)

    def first(self, levels: int) -> Priors:
        """Those of the first `levels` feature maps."""
        cut: dict[str, Any] = {field.name: getattr(self, field.name)[:levels] for field in fields(self)[1:]}
        return Priors(self.image, **cut)

    def of(self, count: int) -> Priors:
        """Those of the first feature maps that have `count` boxes in all: what a network without its last branches says.

        Raises `Mismatch` where no number of maps has as many.
        """
        ends = [*accumulate(self.counts)]
        if count not in ends:
            raise Mismatch(
                f"the network gives {count} boxes; the priors of 1 to {len(ends)} feature maps have {', '.join(map(str, ends))}: "
                f"name the priors of this network (maps {self.maps}, boxes a cell {self.per_cell})"
            )
        return self if count == ends[-1] else self.first(ends.index(count) + 1)

    def to_json(self) -> dict[str, Any]:
        """The mapping that `parse` reads."""
        return asdict(self)

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Priors:
        """From a mapping with the keys of this class; raises `ConfigError`."""
        known = [field.name for field in fields(cls)]
        for key in data:
            if key not in known:
                raise ConfigError(f"priors: unknown key '{key}'{nearest(str(key), known)}")
        if missing := [key for key in known if key not in data]:
            raise ConfigError(f"priors lack {', '.join(missing)}")
        try:
            numbers = {key: tuple(float(v) for v in data[key]) for key in ("strides", "min_sizes", "max_sizes")}
            ratios = tuple(tuple(float(v) for v in own) for own in data["ratios"])
            return cls(int(data["image"]), tuple(int(v) for v in data["maps"]), ratios=ratios, **numbers)
        except (TypeError, ValueError):
            raise ConfigError(
                "priors: image is a number, ratios a list of lists, all others are lists of numbers"
            ) from None

    def _of_map(self, number: int) -> NDArray[np.float64]:
        side, cells = self.maps[number], self.image / self.strides[number]
        middle = (np.arange(side) + 0.5) / cells
        y, x = (grid.reshape(-1, 1) for grid in np.meshgrid(middle, middle, indexing="ij"))
        width, height = np.array([*self._sizes(number)]).T / self.image
        whole = np.broadcast_arrays(x, y, width, height)
        return np.stack(whole, axis=-1).reshape(-1, 4)

    def _sizes(self, number: int) -> Iterator[tuple[float, float]]:
        small, large = self.min_sizes[number], self.max_sizes[number]
        yield small, small
        yield math.sqrt(small * large), math.sqrt(small * large)
        for ratio in map(math.sqrt, self.ratios[number]):
            yield small * ratio, small / ratio
            yield small / ratio, small * ratio


def encode(boxes: Floats, priors: Floats) -> Floats:
    """What a network is to say for `boxes` (corners) at `priors` (centres), both ``(P, 4)`` in shares of the picture."""
    given = centres(boxes)
    moved = (given[..., :2] - priors[..., :2]) / priors[..., 2:] / CENTRE
    return np.concatenate([moved, np.log(given[..., 2:] / priors[..., 2:]) / SIZE], axis=-1)


def decode(offsets: Floats, priors: Floats) -> Floats:
    """The boxes (corners, in shares of the picture) that a network means by `offsets` at `priors` (centres): undoes `encode`."""
    middle = offsets[..., :2] * CENTRE * priors[..., 2:] + priors[..., :2]
    sizes = np.exp(offsets[..., 2:] * SIZE) * priors[..., 2:]
    return corners(np.concatenate([middle, sizes], axis=-1))


def small(image: int) -> Priors:
    """For `ssd_small`: four maps of strides 8 to 64, boxes from an eleventh to nine tenths of the picture, up to 1 : 5."""
    sizes = [image * share for share in (0.09, 0.22, 0.42, 0.65, 0.9)]
    maps = tuple(-(-image // stride) for stride in SMALL_STRIDES)
    return Priors(image, maps, SMALL_STRIDES, tuple(sizes[:-1]), tuple(sizes[1:]), ((2.0, 3.0, 5.0),) * len(maps))


NAMED: Mapping[str, Priors] = {
    "ssd300": Priors(300, (38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300), (30, 60, 111, 162, 213, 264),
                     (60, 111, 162, 213, 264, 315), ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))),
    "ssd320": Priors(320, (20, 10, 5, 3, 2, 1), (16, 32, 64, 107, 160, 320), (60, 105, 150, 195, 240, 285),
                     (105, 150, 195, 240, 285, 330), ((2, 3),) * 6),
}  # fmt: skip
"""Priors by the names that a config gives them, beside ``small``, which suits any size."""


def named(priors: str | Mapping[str, Any], image: int) -> Priors:
    """``small``, one of `NAMED`, or the fields of `Priors`; raises `ConfigError` where they are not for inputs of `image` pixels."""
    if isinstance(priors, str):
        if priors == "small":
            return small(image)
        if priors not in NAMED:
            raise ConfigError(
                f"unknown priors '{priors}'{nearest(priors, ['small', *NAMED])}; or a mapping with their sizes"
            )
        found = NAMED[priors]
    else:
        found = Priors.parse(priors)
    if found.image != image:
        raise ConfigError(
            f"the priors are those of inputs of {found.image} pixels, the pictures become {image}: set size: {found.image}"
        )
    return found
