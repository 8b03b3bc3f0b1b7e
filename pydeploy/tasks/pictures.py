"""Classification of pictures that do not fit into memory: read by number, decoded ahead of use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from pydeploy.backends.device import usable_cores
from pydeploy.data.decode import pixels_of
from pydeploy.data.picture_set import Cached, Files, Pictures, PictureSet
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.data.room import ROOM
from pydeploy.errors import DataError
from pydeploy.tasks.classification import Classification
from pydeploy.tasks.contract import Batch
from pydeploy.tasks.picture_batches import PictureAugment, Reader

AHEAD = 8
"""Pictures that are decoded beyond those that were asked for: sets are mostly read in order."""


@dataclass(frozen=True)
class PictureClassification(Classification):
    """`Classification` of a `PictureSet`."""

    images: PictureSet  # type: ignore[assignment]
    augmentation: PictureAugment = field(default_factory=PictureAugment)  # type: ignore[assignment]
    workers: int | None = None
    """Processes that read training pictures; by default one a core."""

    def size(self, split: str) -> int:
        return len(self.images.split(split).labels)

    def model_options(self) -> Mapping[str, int]:
        return {"num_classes": self.images.classes, "in_channels": self.images.channels}

    def samples(self, split: str, chosen: NDArray[np.int64], preprocessing: Preprocessing | None = None) -> Batch:
        way = preprocessing or self.images.preprocessing
        if (split, way) not in self._ahead:
            self._ahead[split, way] = _Ahead(self.images.split(split).pictures, way)
        found = list(self._ahead[split, way].read([int(index) for index in chosen]))
        if len(sizes := {image.shape for image in found}) > 1:
            raise DataError(f"pictures become samples of different sizes ({sorted(sizes)}); give 'size' or 'crop'")
        inputs = replace(way, resize=None, crop=None)(np.stack(found))
        return Batch((torch.from_numpy(inputs),), torch.from_numpy(self.images.split(split).labels[chosen]))

    def train_batches(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        order = np.random.default_rng([seed, epoch]).permutation(self.size("train"))
        labels = torch.from_numpy(self.images.train.labels)
        batches = self._reader.batches(order, batch_size, epoch, seed)
        for number, inputs in enumerate(batches):
            chosen = order[number * batch_size : (number + 1) * batch_size]
            yield Batch((inputs,), labels[torch.from_numpy(chosen)])

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.images.train.pictures, self.images.preprocessing, self.augmentation, self.workers)

    @cached_property
    def _ahead(self) -> dict[tuple[str, Preprocessing], _Ahead]:
        return {}


class _Ahead:
    """Samples before they are normalized, decoded by threads a few pictures before they are asked for."""

    def __init__(self, pictures: Pictures, way: Preprocessing) -> None:
        kept = isinstance(pictures, Cached) and pictures.resizing == replace(way, crop=None)
        self._pictures = pictures if kept or not isinstance(pictures, Cached) else pictures.pictures
        inner = self._pictures.pictures if isinstance(self._pictures, Cached) else self._pictures
        self._files = inner if isinstance(inner, Files) else None
        self._way, self._pool = way, ThreadPoolExecutor(usable_cores())
        self._waiting: dict[int, Future[NDArray[np.uint8]]] = {}

    def read(self, chosen: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """The `chosen` ones in order; those that follow the last one are begun."""
        end = chosen[-1] + 1
        order = [*chosen, *range(end, min(end + AHEAD, len(self._pictures)))]
        self._waiting = {index: one for index, one in self._waiting.items() if index in order[:AHEAD]}
        for place, index in enumerate(chosen):
            for other in order[place : place + AHEAD]:
                if other not in self._waiting:
                    self._waiting[other] = self._pool.submit(self._sample, other)
            yield self._waiting[index].result()
            if index not in order[place + 1 : place + AHEAD]:
                del self._waiting[index]

    def _sample(self, index: int) -> NDArray[np.uint8]:
        with ROOM.of(0 if self._files is None else pixels_of(self._files.paths[index])):
            return self._way.pixels(self._pictures.read(index))
