"""Tasks whose samples are a picture and something about it: a label map, boxes, a mask.

Such a task writes what is its own: `sample`, `fitted`, `augmented`, `collate` where targets are not all of one shape, loss and
metrics. Reading by index, processes, seeds, normalization and the description beside the engine are here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from pydeploy.backends.device import usable_cores
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import DataError
from pydeploy.tasks.contract import Batch, Task
from pydeploy.tasks.loading import Loader


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture ``(H, W, C)`` uint8, and what is known of it: any nesting of arrays, tensors and other values."""

    picture: NDArray[np.uint8]
    target: Any


class PictureTask(Task):
    """`Task` by samples. `preprocessing` is how a deployed network is fed, `workers` how many processes make training samples."""

    preprocessing: Preprocessing
    workers: int | None = None
    input_names = ("image",)

    @abstractmethod
    def sample(self, split: str, index: int) -> Sample:
        """One sample as the files have it. Raises `DataError` naming what cannot be read."""

    def fitted(self, sample: Sample, way: Preprocessing) -> Sample:
        """The sample as a deployed network sees it, of the size that `way` makes; here the target stays as it is."""
        return Sample(way.pixels(sample.picture), sample.target)

    def augmented(self, sample: Sample, rng: np.random.Generator) -> Sample:  # noqa: ARG002
        """A training sample, of the size that the network takes: picture and target transformed alike.

        Everything random comes from `rng`, or from torch's generator (torchvision's v2), which is seeded alike.
        """
        return self.fitted(sample, self.preprocessing)

    def collate(self, targets: Sequence[Any]) -> Any:
        """The targets of a batch: stacked along a new first axis where they are tensors or arrays of one shape, else a list."""
        tensors = [tensors_of(one) for one in targets]
        if all(isinstance(one, Tensor) for one in tensors) and len({one.shape for one in tensors}) == 1:
            return torch.stack(tensors)
        return tensors

    def training_order(self, epoch: int, seed: int) -> NDArray[np.int64]:
        """Indices of one epoch's samples, `epoch_size` of them: here every one once, shuffled."""
        return np.random.default_rng([seed, epoch]).permutation(self.epoch_size())

    def samples(self, split: str, chosen: NDArray[np.int64], preprocessing: Preprocessing | None = None) -> Batch:
        way = preprocessing or self.preprocessing

        def made(index: Any) -> Sample:
            return self.fitted(self.sample(split, int(index)), way)

        found = list(self._pool.map(made, chosen))
        if len(sizes := {one.picture.shape for one in found}) > 1:
            raise DataError(f"pictures become samples of different sizes ({sorted(sizes)}); give 'size' or 'crop'")
        inputs = replace(way, resize=None, crop=None)(np.stack([one.picture for one in found]))
        return Batch((torch.from_numpy(inputs),), self.collate([one.target for one in found]))

    def train_batches(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        order = self.training_order(epoch, seed)
        for pixels, target in self._loader.batches(order, batch_size, epoch, seed):
            yield Batch((pixels,), target)

    def model_options(self) -> Mapping[str, int]:
        return {"in_channels": len(self.preprocessing.mean)}

    def _training_sample(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Any]:
        made = self.augmented(self.sample("train", index), rng)
        return torch.from_numpy(np.ascontiguousarray(made.picture.transpose(2, 0, 1))), tensors_of(made.target)

    @cached_property
    def _loader(self) -> Loader:
        return Loader(self._training_sample, self.collate, self.preprocessing, self.workers)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(usable_cores())

    def __getstate__(self) -> dict[str, Any]:
        """What processes of the loader need; threads and the loader itself stay behind."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_loader", "_pool")}


def tensors_of(value: Any) -> Any:
    """The same nesting with tensors in place of NumPy arrays."""
    return tree_map(
        lambda one: torch.from_numpy(np.array(one, order="C")) if isinstance(one, np.ndarray) else one, value
    )
