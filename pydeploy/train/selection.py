"""Which epoch was best, and when there is no hope of a better one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pydeploy.errors import DataError
from pydeploy.files import replacing
from pydeploy.prune.surgery.save import write_tensors
from pydeploy.tasks.contract import Task
from pydeploy.tasks.evaluate import evaluate, predict_with
from pydeploy.tasks.metric import Metric

BEST = "best.safetensors"
"""In the folder of a training: the weights of its best epoch so far."""


def judge(model: nn.Module, task: Task, batch_size: int) -> float:
    """The task's metric of a network on the validation split."""
    found = evaluate(task, predict_with(model, task), batch_size=batch_size, split=task.validation_split)
    return found[task.metric.name]


def best_epoch(values: Sequence[float | None], metric: Metric) -> int:
    """The first epoch that no other is better than; -1 where none was judged."""
    known = [value for value in values if value is not None]
    return values.index((max if metric.better == "higher" else min)(known)) if known else -1


def hopeless(values: Sequence[float | None], metric: Metric, patience: int) -> bool:
    """Whether the last `patience` epochs were no better than one before them."""
    return bool(values) and 0 < patience <= len(values) - 1 - best_epoch(values, metric)


def save_best(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write the weights of the best epoch so far."""
    plain = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    with replacing(path) as partial:
        write_tensors(plain, partial, {})


def load_best(path: Path) -> dict[str, Tensor]:
    """The weights that `save_best` wrote."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}, the best epoch's weights, cannot be read ({error}); start without resuming") from None
