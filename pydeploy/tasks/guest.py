"""A network, data and functions that a program hands over, as a task: what `pd.deploy` works with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pydeploy.backends.base import Backend, Engine, Session
from pydeploy.errors import ConfigError, DataError, Mismatch
from pydeploy.export.arguments import filled, outputs
from pydeploy.graph import Graph
from pydeploy.guests.functions import digest
from pydeploy.onnxfile.execute import as_written
from pydeploy.plan import Scores
from pydeploy.prune.criteria.score import score
from pydeploy.prune.forward import evaluating
from pydeploy.prune.surgery.recalibrate import has_statistics, recalibrate
from pydeploy.tasks.contract import Arrays, Batch, Task, Tensors
from pydeploy.tasks.evaluate import padded
from pydeploy.tasks.metric import Metric

BATCHES = 20
"""How many batches of a program's data are kept: they score channels, calibrate INT8 and check engines."""
DEVIATION = Metric("deviation from PyTorch", unit="", better="lower")
"""What engines are judged by where no `evaluate` was given: the relative error against the network that they were made from."""
SAMPLES = "samples"
"""Beside the metric, how many samples an engine was judged on."""
NO_ACCURACY = "no 'evaluate' was given, so nothing is known of what the networks are worth; engines are compared with their networks"


@dataclass(frozen=True)
class Guest:
    """What a program hands over; `batches` are the first of its data, read once."""

    model: nn.Module
    example: tuple[Tensor, ...]
    batches: tuple[Batch, ...] = ()
    loss: Callable[[Any, Any], Tensor] | None = None
    evaluate: Callable[[Callable[..., Any]], Any] | None = None
    finetune: Callable[[nn.Module], Any] | None = None
    scores: str | Scores = "l1"
    """A criterion, or the scores themselves."""
    metric: Metric = field(default_factory=lambda: Metric("score", unit=""))

    def settings(self) -> dict[str, Any]:
        """What stages read of it, each by a hash (`pydeploy.guests.functions`)."""
        parts = {"evaluate": self.evaluate, "finetune": self.finetune, "loss": self.loss, "scores": self.scores,
                 "data": [(batch.inputs, batch.target) for batch in self.batches]}  # fmt: skip
        return {f"guest.{name}": {"sha256": digest(part)} for name, part in parts.items()}

    def network(self) -> nn.Module:
        """A copy of the network."""
        return copy.deepcopy(self.model)

    def scored(self, model: nn.Module, graph: Graph) -> Scores:
        """Importance of every channel of `model`, this network with its weights."""
        if not isinstance(self.scores, str):
            return self.scores
        data = [(batch.inputs, batch.target) for batch in self.batches] or None
        return score(model, graph, self.scores, data=data, loss=self.loss)

    def tuned(self, small: nn.Module) -> nn.Module:
        """What `finetune` makes of the cut network; without one, the network with its batch norms measured again on the data.

        Raises `ConfigError`, `Mismatch` and `DataError` for what `finetune` must not return.
        """
        if self.finetune is None:
            return recalibrate(small, self._several()) if self._recalibrates else small
        shapes = {name: tuple(tensor.shape) for name, tensor in small.state_dict().items()}
        found = self.finetune(small)
        if not isinstance(found, nn.Module):
            raise ConfigError(
                f"finetune returned {_shown(found)}; expected the trained module: end it with 'return module'"
            )
        now = {name: tuple(tensor.shape) for name, tensor in found.state_dict().items()}
        for name in [*shapes, *now]:
            if shapes.get(name) != now.get(name):
                before, after = (list(one[name]) if name in one else "absent" for one in (shapes, now))
                raise Mismatch(f"finetune changed the network: '{name}' was {before}, is {after}; its engine was measured as it was "
                               "cut: train the module that finetune is given, and return it")  # fmt: skip
        for name, tensor in found.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise DataError(f"after finetune '{name}' holds NaN or infinity; lower the learning rate")
        return found.cpu().eval()

    def metrics(self, backend: Backend, engine: Engine) -> dict[str, float]:
        """What `evaluate` says of an engine, by the metric's name; without one, how far it is from its network."""
        with backend.open(engine) as session:
            if self.evaluate is None:
                return {self.metric.name: self._deviation(session, engine), SAMPLES: float(backend.batch)}
            seen: list[int] = []
            value = self.evaluate(self._predict(session, backend.batch, seen))
        number = _number(value)
        if number is None:
            raise ConfigError(f"evaluate returned {_shown(value)}; expected a number, such as the accuracy")
        if not math.isfinite(number):
            raise DataError(f"evaluate returned {number} for {engine.path}; expected a finite number")
        if self.metric.share and not 0 <= number <= 1:
            raise DataError(f"evaluate returned {number}; a metric in % is a share in [0, 1]")
        return {self.metric.name: number, SAMPLES: float(sum(seen))}

    @property
    def _recalibrates(self) -> bool:
        return bool(self.batches) and has_statistics(self.model)

    def _several(self) -> list[tuple[Tensor, ...]]:
        """The inputs of all batches; as one batch where each is a single sample, which has no spread."""
        inputs = [batch.inputs for batch in self.batches]
        single = all(len(one[0]) == 1 for one in inputs)
        return [tuple(torch.cat(parts) for parts in zip(*inputs, strict=True))] if single else inputs

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the report has to know."""
        untrained = "no 'finetune' was given: the network was cut and not trained again"
        if self._recalibrates:
            untrained += f"; its batch norms were measured again on {len(self.batches)} batches of the data"
        elif has_statistics(self.model):
            untrained += (
                "; its batch norms still have the dense network's statistics, as there is no data to measure them on"
            )
        return (*((NO_ACCURACY,) if self.evaluate is None else ()), *((untrained,) if self.finetune is None else ()))

    def _predict(self, session: Session, batch: int, seen: list[int]) -> Callable[..., Any]:
        """A function that is called as the network is, with any number of samples, and returns what the network would.

        `seen` gets the number of samples of each call.
        """
        with evaluating(self.model), torch.no_grad():
            like = self.model(*self.example)

        def predict(*inputs: Any) -> Any:
            given = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], tuple | list) else inputs
            arrays = [torch.as_tensor(one).detach().cpu().numpy() for one in given]
            if len(arrays) != len(session.inputs) or not all(len(one) for one in arrays):
                raise ConfigError(
                    f"predict got {len(arrays)} inputs; the network takes {len(session.inputs)}, samples first"
                )
            seen.append(len(arrays[0]))
            feeds = {
                spec.name: array.astype(spec.dtype, copy=False)
                for spec, array in zip(session.inputs, arrays, strict=True)
            }
            return filled(like, iter([torch.from_numpy(one) for one in _in_batches(session, feeds, batch)]))

        return predict

    def _deviation(self, session: Session, engine: Engine) -> float:
        """The largest error of an output over the file's own, relative to its largest value, on the first samples."""
        source = engine.path.with_name("float.onnx")
        original = as_written(source if source.is_file() else engine.path.with_name("model.onnx"))
        inputs = self.batches[0].inputs if self.batches else self.example
        arrays = [tensor.numpy()[: len(self.example[0])] for tensor in inputs]
        arrays = [
            np.resize(one, spec.shape).astype(spec.dtype) for one, spec in zip(arrays, session.inputs, strict=True)
        ]
        feeds = {spec.name: array for spec, array in zip(session.inputs, arrays, strict=True)}
        ours, wanted = session.run(feeds), original.run(None, feeds)
        pairs = zip((ours[one.name] for one in original.get_outputs()), wanted, strict=True)
        return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)) for a, b in pairs)


class GuestTask(Task):
    """The task that stages of a run see; its samples are those of the batches."""

    def __init__(self, guest: Guest) -> None:
        self.guest, self.metric = guest, guest.metric
        with evaluating(guest.model), torch.no_grad():
            made, _ = outputs(guest.model(*guest.example))
        self.input_names = _names("input", len(guest.example))
        self.output_names = _names("output", len(made))
        self._inputs = guest.example
        if guest.batches:
            self._inputs = tuple(torch.cat(parts) for parts in zip(*(one.inputs for one in guest.batches), strict=True))

    def size(self, split: str) -> int:  # noqa: ARG002
        return len(self._inputs[0])

    def samples(self, split: str, chosen: NDArray[np.int64], preprocessing: Any = None) -> Batch:  # noqa: ARG002
        return Batch(tuple(tensor[torch.from_numpy(chosen)] for tensor in self._inputs), None)

    def loss(self, outputs: Tensors, batch: Batch) -> Tensor:  # noqa: ARG002
        raise ConfigError("a program's own training does not go through the task")

    def metrics(self, results: Iterable[tuple[Arrays, Batch]]) -> Mapping[str, float]:  # noqa: ARG002
        raise ConfigError("a program's own evaluation does not go through the task")

    def digest(self) -> str:
        return ""


def first_batches(data: Any, example: Sequence[Tensor]) -> tuple[Batch, ...]:
    """The first `BATCHES` of a DataLoader or another iterable, which is read once.

    An item is ``(inputs, target)`` with a tensor or a tuple of tensors for inputs, or the inputs alone, a bare tensor. Raises
    `ConfigError` for anything else, `DataError` where nothing comes.
    """
    if data is None:
        return ()
    wanted = "a DataLoader, or another iterable of (inputs, target)"
    try:
        iterator: Iterator[Any] = iter(data)
    except TypeError:
        raise ConfigError(f"data is {_shown(data)}; expected {wanted}") from None
    found = tuple(_batch(item, number, example, wanted) for number, item in enumerate(islice(iterator, BATCHES)))
    if not found:
        raise DataError("data gave no batch: it is empty, or an iterator that was read to its end before; "
                        "pass a DataLoader or a list")  # fmt: skip
    return found


def _batch(item: Any, number: int, example: Sequence[Tensor], wanted: str) -> Batch:
    pair = (item, None) if isinstance(item, Tensor) else item
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ConfigError(f"batch {number} of data is {_shown(item)}; expected {wanted}")
    inputs = (pair[0],) if isinstance(pair[0], Tensor) else pair[0]
    if not isinstance(inputs, tuple | list) or not all(isinstance(one, Tensor) and one.dim() for one in inputs):
        raise ConfigError(
            f"the inputs of batch {number} of data are {_shown(pair[0])}; expected a tensor or a tuple of tensors"
        )
    shapes, others = ([tuple(one.shape[1:]) for one in tensors] for tensors in (inputs, example))
    if shapes != others:
        raise ConfigError(
            f"the inputs of batch {number} of data have the shapes {shapes} after the first axis, those of example {others}"
        )
    if not all(bool(torch.isfinite(one).all()) for one in inputs if one.is_floating_point()):
        raise DataError(f"the inputs of batch {number} of data hold NaN or infinity")
    return Batch(tuple(one.detach().cpu() for one in inputs), pair[1])


def _in_batches(session: Session, feeds: Arrays, batch: int) -> list[NDArray[Any]]:
    """The outputs, in order, over all samples: the engine takes exactly `batch` of them at a time."""
    total = len(next(iter(feeds.values())))
    parts: list[list[NDArray[Any]]] = []
    for start in range(0, total, batch):
        piece = {name: padded(array[start : start + batch], batch) for name, array in feeds.items()}
        found = session.run(piece)
        parts.append([found[spec.name][: total - start] for spec in session.outputs])
    return [np.concatenate(one) for one in zip(*parts, strict=True)]


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return None
    return float(value)


def _shown(value: Any) -> str:
    return "None" if value is None else f"{value!r:.40} ({type(value).__name__})"


def _names(kind: str, count: int) -> tuple[str, ...]:
    return (kind,) if count == 1 else tuple(f"{kind}_{index}" for index in range(count))
