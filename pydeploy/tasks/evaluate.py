"""What is done with any task: batches in order, one example, named outputs, and the numbers that a network reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import ConfigError, DataError
from pydeploy.prune.forward import evaluating
from pydeploy.tasks.contract import Arrays, Batch, Predict, Task, Tensors
from pydeploy.tasks.metric import MetricTable


def batches(
    task: Task, split: str, batch_size: int, *, limit: int | None = None, preprocessing: Preprocessing | None = None
) -> Iterator[Batch]:
    """The first `limit` samples of a split in order, as deployed; the last batch may be smaller."""
    total = min(task.size(split), limit or task.size(split))
    for start in range(0, total, batch_size):
        yield task.samples(split, np.arange(start, min(start + batch_size, total)), preprocessing)


def example(task: Task) -> tuple[Tensor, ...]:
    """The forward's arguments at batch size 1."""
    return task.samples("test", np.zeros(1, dtype=np.int64)).inputs


def named(task: Task, outputs: Any, *, training: bool = False) -> Tensors:
    """What a network's forward returned: the task's outputs under its names and in its order, then the rest under their own.

    A dict's tensors are taken by name where it has all of the task's names, else in order; what a dict or, in `training`, a tuple
    holds beyond them are outputs that only the loss sees. Raises `ConfigError` for fewer, or for more that have no name.
    """
    found = {"output": outputs} if isinstance(outputs, Tensor) else _by_name(outputs)
    names = task.output_names
    taken = names if all(name in found for name in names) else tuple(found)[: len(names)]
    rest = {name: value for name, value in found.items() if name not in taken and isinstance(value, Tensor)}
    more = len(found) > len(names) and not (training or isinstance(outputs, Mapping))
    if len(taken) < len(names) or more or not all(isinstance(found[name], Tensor) for name in taken):
        kinds = ", ".join(type(value).__name__ for value in found.values())
        raise ConfigError(
            f"the network returns {len(found)} output{'s' * (len(found) != 1)} ({kinds}), the task names "
            f"{len(names)} tensors: {', '.join(names)}"
        )
    given = dict(zip(names, (found[name] for name in taken), strict=True))
    return given | {f"extra.{name}" if name in given else name: value for name, value in rest.items()}


def _by_name(outputs: Any) -> dict[str, Any]:
    """Parts of a dict, a named tuple, or anything else that can be iterated over."""
    if isinstance(outputs, Mapping):
        return {str(name): value for name, value in outputs.items()}
    if hasattr(outputs, "_asdict"):
        return dict(outputs._asdict())
    return {f"output_{index}": value for index, value in enumerate(outputs)}


def deployed(task: Task) -> Callable[[Any], Tensors]:
    """Of a network's result what its engines give: the task's outputs by name. For `trace` and `export`."""

    def given(outputs: Any) -> Tensors:
        found = named(task, outputs, training=True)
        return {name: found[name] for name in task.output_names}

    return given


def loss_parts(task: Task, outputs: Tensors, batch: Batch) -> dict[str, Tensor]:
    """The parts of the task's loss by name, ``task`` where it is one tensor. Their sum is the loss."""
    found = task.loss(outputs, batch)
    return {"task": found} if isinstance(found, Tensor) else dict(found)


def total_loss(task: Task, outputs: Tensors, batch: Batch) -> Tensor:
    """The task's loss as one scalar."""
    return reduce(add, loss_parts(task, outputs, batch).values())


def evaluate(
    task: Task, predict: Predict, *, batch_size: int, limit: int | None = None, split: str = "test"
) -> dict[str, float]:
    """The task's metrics over the test set, or another split (its first `limit` samples), from what `predict` returns.

    `predict` always gets exactly `batch_size` samples: the last batch is padded, and the padding is ignored. Numbers beside the
    task's metric that are undefined here (NaN) are left out. Raises `DataError` where an output is missing, has another shape than
    the task expects or holds NaN.
    """
    return judged(task, predict, batch_size=batch_size, limit=limit, split=split)[0]


def judged(
    task: Task, predict: Predict, *, batch_size: int, limit: int | None = None, split: str = "test"
) -> tuple[dict[str, float], dict[str, MetricTable]]:
    """`evaluate`, and the tables beside its numbers."""
    given = task.metrics(results(task, predict, batch_size, limit, split))
    tables = {name: value for name, value in given.items() if isinstance(value, MetricTable)}
    found = {name: float(value) for name, value in given.items() if not isinstance(value, MetricTable)}
    value = found.get(task.metric.name)
    if value is None:
        raise ConfigError(
            f"the task's metrics are {', '.join(found) or 'none'}; expected '{task.metric.name}' among them"
        )
    if not np.isfinite(value) or (task.metric.share and not 0 <= value <= 1):
        wanted = "a share in [0, 1]" if task.metric.share else "a number"
        raise DataError(f"the metric '{task.metric.name}' came out as {value}; expected {wanted}")
    return {name: number for name, number in found.items() if np.isfinite(number)}, tables


def results(
    task: Task, predict: Predict, batch_size: int, limit: int | None, split: str = "test"
) -> Iterator[tuple[Arrays, Batch]]:
    """Outputs of `predict` for batches of a split, checked, without the padding."""
    for batch in batches(task, split, batch_size, limit=limit):
        arrays = (padded(tensor.numpy(), batch_size) for tensor in batch.inputs)
        outputs = predict(dict(zip(task.input_names, arrays, strict=True)))
        shapes = {name: value.shape for name, value in outputs.items()}
        if any(name not in outputs or len(outputs[name]) != batch_size for name in task.output_names):
            raise DataError(
                f"the network must return {', '.join(map(repr, task.output_names))} for {batch_size} samples, got {shapes}"
            )
        task.check(shapes, batch)
        cut = {name: outputs[name][: batch.count] for name in task.output_names}
        for name, value in cut.items():
            if not np.isfinite(value).all():
                raise DataError(
                    f"output '{name}' holds NaN or infinity; the weights or the quantization ranges are broken"
                )
        yield cut, batch


def predict_with(model: nn.Module, task: Task) -> Predict:
    """A `Predict` that runs `model` itself in float32, to evaluate a network that was not built into an engine."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def predict(feeds: Arrays) -> dict[str, NDArray[Any]]:
        with evaluating(model), torch.no_grad():
            outputs = model(*(torch.from_numpy(feeds[name]).to(device) for name in task.input_names))
        found = named(task, outputs)
        return {name: found[name].float().cpu().numpy() for name in task.output_names}

    return predict


def padded(array: NDArray[Any], batch_size: int) -> NDArray[Any]:
    """`array` with its last sample repeated until there are `batch_size` of them."""
    missing = batch_size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
