"""Training samples that processes of PyTorch's DataLoader make a few batches ahead, in any order.

What a sample becomes depends on the seed, the epoch and its index alone, whatever process makes it.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pydeploy import _core
from pydeploy.backends.device import usable_cores
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import DataError, DeployError

MOST_WORKERS = 8
AHEAD = 2
"""Batches that each process reads ahead."""
KEPT = 4
"""Batches whose memory is used again."""

Read = tuple[int, int, int]
"""Which sample, in which epoch, with which seed."""
Made = tuple[Tensor, Any]
"""``(C, h, w)`` uint8, and what the loss compares with."""
Make = Callable[[int, np.random.Generator], Made]
"""One training sample by index; all that is drawn comes from the generator, or from torch's, which is seeded alike."""
Collate = Callable[[Sequence[Any]], Any]
"""The targets of a batch from those of its samples."""


def workers_of(workers: int | None) -> int:
    """Processes to use: one a core, `MOST_WORKERS` at most, unless the user says."""
    return min(usable_cores(), MOST_WORKERS) if workers is None else workers


class _Samples(Dataset[Made | str]):
    def __init__(self, make: Make) -> None:
        self._make = make

    def __getitem__(self, read: Read) -> Made | str:
        """The sample, or why there is none."""
        index, epoch, seed = read
        seeds = np.random.SeedSequence([seed, epoch, index])
        # A process of the loader's own draws nothing else.
        with torch.random.fork_rng(devices=[]) if get_worker_info() is None else nullcontext():
            torch.manual_seed(int(seeds.generate_state(1)[0]))
            try:
                return self._make(index, np.random.default_rng(seeds))
            except DeployError as error:
                return str(error)


@dataclass(frozen=True)
class _Join:
    """A batch from samples, in the process that made them."""

    collate: Collate

    def __call__(self, samples: Sequence[Made | str]) -> Made | str:
        reasons = [one for one in samples if isinstance(one, str)]
        if reasons:
            return reasons[0]
        made = [one for one in samples if not isinstance(one, str)]
        sizes = {tuple(pixels.shape) for pixels, _ in made}
        if len(sizes) > 1:
            shapes = ", ".join(map(str, sorted(sizes)))
            return f"pictures become samples of different sizes ({shapes}); give 'size' or 'crop'"
        return torch.stack([pixels.contiguous() for pixels, _ in made]), self.collate([target for _, target in made])


@dataclass
class _Order:
    """Which samples the processes make next, batch by batch."""

    batches: list[list[Read]] = field(default_factory=list)

    def __iter__(self) -> Iterator[list[Read]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Loader:
    """Batches of samples in any order, normalized as `way` says; its processes live as long as it does."""

    def __init__(self, make: Make, collate: Collate, way: Preprocessing, workers: int | None = None) -> None:
        count = workers_of(workers)
        self._order, self._pack = _Order(), _Normal(way)
        self._loader: DataLoader[Made | str] = DataLoader(
            _Samples(make), batch_sampler=self._order, collate_fn=_Join(collate), num_workers=count,
            persistent_workers=count > 0, prefetch_factor=AHEAD if count else None,
            generator=torch.Generator(),  # else every epoch would draw from the process's own
        )  # fmt: skip

    def batches(self, order: NDArray[np.int64], batch_size: int, epoch: int, seed: int) -> Iterator[tuple[Tensor, Any]]:
        """Normalized float32 ``(batch_size, C, h, w)`` with their targets, in `order`; what remains at its end is left out."""
        starts = range(0, len(order) - batch_size + 1, batch_size)
        self._order.batches = [[(int(index), epoch, seed) for index in order[at : at + batch_size]] for at in starts]
        for found in self._loader:
            if isinstance(found, str):
                raise DataError(found)
            pixels, target = found
            yield self._pack(pixels.numpy()), target


class _Normal:
    """Packs pixels into normalized tensors; memory is used again where nobody holds it."""

    def __init__(self, way: Preprocessing) -> None:
        self._way = replace(way, resize=None, crop=None)
        self._packer: _core.Batcher | None = None
        self._shape: tuple[int, ...] = ()
        self._buffers: list[tuple[NDArray[np.float32], weakref.ref[NDArray[np.float32]]]] = []

    def __call__(self, pixels: NDArray[np.uint8]) -> Tensor:
        if self._packer is None or self._shape != pixels.shape:
            self._shape, self._buffers = pixels.shape, []
            self._packer = self._way.batcher((pixels.shape[2], pixels.shape[3]), len(pixels), planar=True)
        self._packer.submit(list(pixels))
        made = self._buffer(pixels.shape)
        np.copyto(made, self._packer.take())
        return torch.from_numpy(made)

    def _buffer(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Memory that nobody uses any more, else new: from the system, because the C library's is split between the pieces
        that processes send until a hundred batches fill it.
        """
        unused = [place for place, (_, user) in enumerate(self._buffers) if user() is None]
        place = unused[0] if unused else len(self._buffers)
        memory = self._buffers[place][0] if unused else np.frombuffer(mmap.mmap(-1, 4 * math.prod(shape)), np.float32)
        made: NDArray[np.float32] = memory.reshape(shape)  # a tensor of it, or of a part, keeps this array alive
        self._buffers[place : place + 1] = [(memory, weakref.ref(made))]
        del self._buffers[KEPT:]
        return made
