"""All that training, scoring, calibration and evaluation know of a task: its data, its loss, its metric.

A task of one's own is a class that follows `Task`, named ``FILE.py:CLASS`` in a config. Nothing outside a task looks into a
batch's target, knows what an output means, or says by what number networks are judged.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from pydeploy.data.deployment import Deployment
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.tasks.metric import Metric, MetricTable

SPLITS = ("train", "test")

Arrays = Mapping[str, NDArray[Any]]
"""Outputs of an engine by name, samples along the first axis."""
Tensors = Mapping[str, Tensor]
"""Outputs of a network by name, samples along the first axis; in training also those that are not exported."""
Loss = Tensor | Mapping[str, Tensor]
"""A scalar, or its named parts, whose sum is what training makes small."""
Predict = Callable[[Arrays], Arrays]
"""Feeds by input name to outputs by output name, at one fixed batch size: what a session's ``run`` is."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The forward's arguments, each with the samples along its first axis, and whatever the loss compares with."""

    inputs: tuple[Tensor, ...]
    target: Any
    """Any nesting of tensors, arrays and other values in lists, tuples and dicts: a tensor of labels, a list of boxes a sample."""

    progress: float | None = None
    """How far a training is at the beginning of its epoch, from 0 to below 1 (1/2 where there is one epoch only); None elsewhere."""

    def to(self, device: torch.device | str) -> Batch:
        """The batch with every tensor on `device`, however deep it lies in the target; everything else as it is."""

        def moved(value: Any) -> Any:
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        return Batch(tuple(moved(one) for one in self.inputs), tree_map(moved, self.target), self.progress)

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.inputs[0])


class Task(ABC):
    """Data, loss and metric. `size`, `samples`, `loss` and `metrics` have to be written; the rest has a default."""

    data: str = ""
    """Name of the data set."""
    metric: Metric
    """What networks are judged by: a number that `metrics` returns under its name."""
    validation_split: str = "test"
    """Samples by which epochs are compared (`train.keep`, `train.patience`): a split that `size` and `samples` know. A task without
    held-out data leaves ``test``; the report then says that the test set chose the epoch.
    """
    input_names: tuple[str, ...] = ("input",)
    """Names of the forward's arguments, in order, in exported files."""
    output_names: tuple[str, ...] = ("output",)
    """Names of the forward's outputs, in order, in exported files. What else a network returns in training (auxiliary heads)
    reaches `loss` under its own name and nothing else: it is neither exported nor distilled nor evaluated."""

    @abstractmethod
    def size(self, split: str) -> int:
        """Number of samples in ``train`` or ``test``."""

    @abstractmethod
    def samples(self, split: str, chosen: NDArray[np.int64], preprocessing: Preprocessing | None = None) -> Batch:
        """The `chosen` samples of a split as a deployed network sees them: without augmentation, in the order of `chosen`.

        `preprocessing` replaces the data set's own; a task without pictures may ignore it.
        """

    @abstractmethod
    def loss(self, outputs: Tensors, batch: Batch) -> Loss:
        """Scalar training loss of a network's `outputs` (in float32), or its parts by name: summed, and logged apart."""

    @abstractmethod
    def metrics(self, results: Iterable[tuple[Arrays, Batch]]) -> Mapping[str, float | MetricTable]:
        """Numbers by name, that of `metric` among them, from the outputs for batches that make up the test set; tables
        (`MetricTable`) by name go into the report beside them.
        """

    def epoch_size(self) -> int:
        """Samples in one epoch of `train_batches`, of which what remains after the last full batch is left out."""
        return self.size("train")

    def train_batches(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Full batches of one epoch, a function of the arguments alone: here shuffled, without augmentation."""
        order = np.random.default_rng([seed, epoch]).permutation(self.size("train"))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield self.samples("train", order[start : start + batch_size])

    def distill_loss(self, student: Tensors, teacher: Tensors, temperature: float) -> Tensor:  # noqa: ARG002
        """Scalar distance of the student's outputs from the teacher's: here the mean of their squared differences."""
        parts = [F.mse_loss(student[name], teacher[name].detach()) for name in self.output_names]
        return torch.stack(parts).mean()

    def check(self, outputs: Mapping[str, tuple[int, ...]], batch: Batch) -> None:  # noqa: B027  # may be left out
        """Raise `DataError` where outputs of these shapes cannot be those for `batch`; asked before any training."""

    def model_options(self) -> Mapping[str, int]:
        """What the data ask of a network, ``num_classes`` and ``in_channels``: given to model factories that take them."""
        return {}

    def deployment(self) -> Deployment | None:
        """What ``preprocessing.json`` beside the engines says; None where a network is not fed with pictures."""
        return None

    def tuned(self, predict: Predict, batch_size: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Settings of the reading in ``preprocessing.json`` that suit one engine, such as thresholds; from samples that are neither
        trained nor tested on. `predict` takes exactly `batch_size` samples.
        """
        return {}

    def digest(self) -> str:
        """A hash of the data set's contents: here of every sample as `samples` gives it."""
        found = hashlib.sha256()
        for split in SPLITS:
            for start in range(0, self.size(split), 256):
                batch = self.samples(split, np.arange(start, min(start + 256, self.size(split))))
                for tensor in _tensors([*batch.inputs, batch.target]):
                    array = np.ascontiguousarray(tensor.numpy())
                    found.update(repr((array.shape, array.dtype.str)).encode())
                    found.update(array.data)
        return found.hexdigest()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value.detach().cpu()
    elif isinstance(value, Mapping):
        yield from (tensor for key in sorted(value) for tensor in _tensors(value[key]))
    elif isinstance(value, list | tuple):
        yield from (tensor for item in value for tensor in _tensors(item))
    elif isinstance(value, np.ndarray | int | float):
        yield torch.as_tensor(value)
