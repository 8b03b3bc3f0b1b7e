"""The canvas as a set of pictures with boxes: drawn when they are asked for, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.boxes.box_set import BoxSet, BoxSplit, Objects, objects, square_samples
from pydeploy.data.canvas import Canvas
from pydeploy.errors import ConfigError


def canvas(size: int = 128, train_size: int = 2000, test_size: int = 500, most: int = 4, seed: int = 0) -> BoxSet:
    """Garments on textures, `size` pixels a side, up to `most` in a picture; mostly covered ones are difficult."""
    if size < 32:
        raise ConfigError(f"'size' must be at least 32 pixels, got {size}")
    source = Canvas((size, size), train_size, test_size, most, seed)
    parts = [BoxSplit(scenes := _Scenes(source, split), scenes.objects) for split in ("train", "test")]
    return BoxSet("canvas", source.objects, parts[0], parts[1], square_samples(size, 3), source.digest())


@dataclass(frozen=True)
class _Scenes:
    """Pictures of one split."""

    source: Canvas
    split: str

    def __len__(self) -> int:
        return self.source.count(self.split)

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.source.scene(self.split, index).picture

    def fingerprint(self, index: int) -> bytes:
        return f"{self._digest} {self.split} {index}".encode()

    @cached_property
    def _digest(self) -> str:
        return self.source.digest()

    @cached_property
    def objects(self) -> Sequence[Objects]:
        return _Objects(self)


@dataclass
class _Objects(Sequence[Objects]):
    """What lies in each scene, drawn when it is asked for first."""

    scenes: _Scenes

    def __post_init__(self) -> None:
        self._kept: dict[int, Objects] = {}

    def __len__(self) -> int:
        return len(self.scenes)

    @overload
    def __getitem__(self, index: int) -> Objects: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Objects]: ...
    def __getitem__(self, index: int | slice) -> Objects | Sequence[Objects]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index not in self._kept:
            scene = self.scenes.source.scene(self.scenes.split, index)
            self._kept[index] = objects(
                scene.boxes.tolist(), scene.labels.tolist(), scene.difficult.tolist(), self.scenes.source.size
            )
        return self._kept[index]
