"""Knowledge distillation: a student learns from the outputs of a frozen teacher.

`LOSSES` has functions of (task, student's outputs, teacher's outputs, settings) by name. `Teacher` runs the teacher once
per batch and remembers its outputs, so that several students may share them.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pydeploy.guests.names import Names
from pydeploy.tasks.contract import Batch, Task, Tensors
from pydeploy.train.distill.settings import DistillSettings


def logits(task: Task, student: Tensors, teacher: Tensors, settings: DistillSettings) -> Tensor:
    """The task's own distance between the final outputs."""
    return task.distill_loss(student, teacher, settings.temperature)


DistillLoss = Callable[[Task, Tensors, Tensors, DistillSettings], Tensor]
"""``(task, student's outputs, teacher's outputs, settings) -> scalar``; outputs by name, in float32."""

LOSSES: Names[DistillLoss] = Names(
    kind="distillation loss",
    expected="a function (task, student, teacher, settings) -> scalar tensor",
    known={"logits": logits},
    group="pydeploy.losses",
)


@dataclass
class Teacher:
    """A frozen network in evaluation mode, and its outputs on the batches seen so far.

    Students that are trained on the same batches (same task, seed, batch size and epochs) share one `Teacher`: outputs
    are found again by the batch's contents, up to `room_bytes` of them.
    """

    model: nn.Module
    room_bytes: int = 256 << 20
    hits: int = 0
    _outputs: dict[bytes, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = copy.deepcopy(self.model).eval().requires_grad_(requires_grad=False)

    def __call__(self, batch: Batch, run: Callable[[nn.Module, Batch], Any]) -> Any:
        """The teacher's outputs on `batch`; `run` applies a network under the student's precision and memory format."""
        key = _digest(batch.inputs)
        if key in self._outputs:
            self.hits += 1
            return self._outputs[key]
        with torch.no_grad():
            outputs = run(self.model, batch)
        size = sum(t.numel() * t.element_size() for t in _tensors(outputs))
        if size <= self.room_bytes:
            self.room_bytes -= size
            self._outputs[key] = outputs
        return outputs


def _digest(inputs: tuple[Tensor, ...]) -> bytes:
    digest = hashlib.sha256()
    for value in inputs:
        digest.update(repr(tuple(value.shape)).encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.digest()


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [tensor for value in values for tensor in _tensors(value)]
