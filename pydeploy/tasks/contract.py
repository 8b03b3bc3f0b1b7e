"""All that training, evaluation and calibration know of a task.

A task owns its data, its loss and its metric. Nothing outside ``pydeploy.train`` looks into a batch's
target or a model's outputs, so segmentation, detection and inspection fit behind the same contract.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import ConfigError, nearest
from pydeploy.guests.arguments import make
from pydeploy.prune.forward import evaluating

Predict = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""Feeds by input name to outputs by output name, at one fixed batch size: what a session's ``run`` is."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The forward's arguments, each with the samples along its first axis, and whatever the loss compares with."""

    inputs: tuple[Tensor, ...]
    target: Any


class Task(Protocol):
    """A model, its data, its loss and its metric."""

    @property
    def name(self) -> str:
        """The task's name in `TASKS`."""

    @property
    def data(self) -> str:
        """The name of the task's data set."""

    @property
    def metric(self) -> str:
        """The primary metric: a key of what `evaluate` returns; higher is better."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the forward's arguments in an exported file."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the forward's outputs in an exported file."""

    def digest(self) -> str:
        """A hash of the data set's contents."""

    @property
    def train_size(self) -> int:
        """Number of training samples in an epoch."""

    def build_model(self) -> nn.Module:
        """A freshly initialized model (weights follow torch's global seed)."""

    def example(self) -> tuple[Tensor, ...]:
        """The forward's arguments at batch size 1."""

    def train_batches(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Augmented full batches of one epoch, a function of the arguments alone: no state is carried over."""

    def eval_batches(
        self, batch_size: int, split: str = "test", preprocessing: Preprocessing | None = None
    ) -> Iterator[Batch]:
        """Batches as deployed, without augmentation, in a fixed order; the last one may be smaller.

        `split` is ``test``, or ``train`` (for calibration and recalibration of normalization statistics);
        `preprocessing` replaces the data set's own.
        """

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Scalar training loss of a model's `outputs` (what its forward returned, in float32)."""

    def distill_loss(self, student_outputs: Any, teacher_outputs: Any, temperature: float) -> Tensor:
        """Scalar distance of the student's outputs from the teacher's; gradients flow to the student only."""

    def evaluate(self, predict: Predict, *, batch_size: int, limit: int | None = None) -> dict[str, float]:
        """Metrics over the test set (its first `limit` samples), computed from what `predict` returns.

        `predict` always gets exactly `batch_size` samples: the last batch is padded and the padding ignored.
        Raises `DataError` when an output is missing, has another shape or holds NaN.
        """


TASKS: Mapping[str, str] = {
    "classification": "pydeploy.tasks.classification:classification",
}
"""Where each task's factory lives; its parameters are the task's settings."""


def build_task(name: str, **settings: Any) -> Task:
    """The named task; raises `ConfigError` for an unknown name or setting, `DataError` when its data is missing."""
    if name not in TASKS:
        raise ConfigError(f"unknown task '{name}'{nearest(name, TASKS)}")
    module, _, attribute = TASKS[name].partition(":")
    factory: Callable[..., Task] = getattr(importlib.import_module(module), attribute)
    return make(factory, settings, f"task '{name}'")


def predict_with(model: nn.Module, task: Task) -> Predict:
    """A `Predict` that runs `model` itself in float32, to evaluate a network that was not built into an engine."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def predict(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with evaluating(model), torch.no_grad():
            outputs = model(*(torch.from_numpy(feeds[name]).to(device) for name in task.input_names))
        values = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        return {name: value.float().cpu().numpy() for name, value in zip(task.output_names, values, strict=True)}

    return predict


def padded(array: NDArray[Any], batch_size: int) -> NDArray[Any]:
    """`array` with its last sample repeated until there are `batch_size` of them."""
    missing = batch_size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
