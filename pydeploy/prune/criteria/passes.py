"""Batches as criteria see them: replayable, and run through the model once for all groups."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pydeploy.errors import DataError
from pydeploy.graph import Graph
from pydeploy.prune.criteria.members import Groups
from pydeploy.prune.forward import arguments, norms_after
from pydeploy.prune.sparsity.dmcp.gates import Gates

Loss = Callable[[Any, Any], Tensor]
Batch = tuple[Any, Any]
"""``(the forward's arguments, target)``; a single tensor may stand for itself."""


class Batches:
    """Batches that can be iterated again; those of an iterator are kept on the way. Raises `DataError` where there are none."""

    def __init__(self, data: Iterable[Batch]) -> None:
        self._data = data
        self._once = iter(data) if isinstance(data, Iterator) else None
        self._seen: list[Batch] = []

    def __iter__(self) -> Iterator[Batch]:
        some = False
        for batch in self._data if self._once is None else self._kept():
            some = True
            yield batch
        if not some:
            raise DataError("scoring got no batches; pass at least one")

    def _kept(self) -> Iterator[Batch]:
        assert self._once is not None
        yield from self._seen
        for batch in self._once:
            self._seen.append(batch)
            yield batch


class NormAfter:
    """The batch norm that alone follows a layer, or None. Found when first asked for, by one run on a batch or an example."""

    def __init__(self, model: nn.Module, graph: Graph, batches: Batches | None) -> None:
        self._model, self._graph, self._batches = model, graph, batches
        self._found: dict[int, Any] | None = None

    def __call__(self, layer: nn.Module) -> Any:
        if self._found is None:
            with torch.no_grad():
                pairs = norms_after(self._model, self._example())
            modules = dict(self._model.named_modules())
            self._found = {id(modules[name]): modules[norm] for name, norm in pairs.items()}
        return self._found.get(id(layer))

    def _example(self) -> tuple[Any, ...]:
        if self._batches is not None:
            return arguments(next(iter(self._batches))[0])
        first = next((p for p in self._model.parameters() if p.is_floating_point()), torch.zeros(()))
        return tuple(torch.zeros(shape, dtype=first.dtype, device=first.device) for shape in self._graph.inputs)


class Gradients:
    """One run forward and backward a batch. Within an iteration each member's tensor has the gradient of that batch alone."""

    def __init__(self, model: nn.Module, groups: Groups, batches: Batches, loss: Loss) -> None:
        self._model, self._groups, self._batches, self._loss = model, groups, batches, loss

    def __iter__(self) -> Iterator[Batch]:
        for number, (inputs, target) in enumerate(self._batches):
            with parametrize.cached():
                _watch(member.tensor for group in self._groups.values() for member in group)
                value = loss_of(self._model, self._loss, inputs, target, number)
                value.backward()  # type: ignore[no-untyped-call]
                yield inputs, target


class GatedLosses:
    """Each iteration is one batch: a function from factors, ``{group: (width,)}``, to the loss of the network with each channel
    multiplied by its own where it is read. Weights get no gradients. `groups` are those that can be multiplied.
    """

    def __init__(self, model: nn.Module, graph: Graph, batches: Batches, loss: Loss) -> None:
        self.model, self._batches, self._loss = model, batches, loss
        self._gates = Gates(model, graph)

    @property
    def groups(self) -> Collection[str]:
        return self._gates.groups.keys()

    def __iter__(self) -> Iterator[Callable[[Mapping[str, Tensor]], Tensor]]:
        for number, (inputs, target) in enumerate(self._batches):

            def at(
                factors: Mapping[str, Tensor], inputs: Any = inputs, target: Any = target, number: int = number
            ) -> Tensor:
                network = self._gates.run(self.model, factors, frozen=True)
                return loss_of(network, self._loss, inputs, target, number)

            yield at


def loss_of(model: Callable[..., Any], loss: Loss, inputs: Any, target: Any, batch: int) -> Tensor:
    """The loss of one batch, or a `DataError` that says what is wrong with it."""
    given = arguments(inputs)
    with _told(given, batch):
        value: Any = loss(model(*given), target)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"the loss must be one number that depends on the model's outputs; it gave {found}")
    if not bool(torch.isfinite(value)):
        raise DataError(
            f"the loss is {float(value.detach())} on batch {batch} while scoring: NaN in the weights or the data"
        )
    return value


def ran(model: nn.Module, given: tuple[Any, ...], batch: int) -> Any:
    """The model's output, or a `DataError` that says on which batch it fails."""
    with _told(given, batch):
        return model(*given)


@contextmanager
def _told(given: tuple[Any, ...], batch: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        shapes = [list(t.shape) for t in given if isinstance(t, Tensor)]
        raise DataError(
            f"the model or the loss fails on batch {batch} with inputs {shapes}: {type(error).__name__}: {error}"
        ) from error


def _watch(tensors: Iterable[Tensor]) -> None:
    """Gradients of these from zero: of parameters, of buffers that layers use as weights, and of computed weights."""
    for tensor in tensors:
        if tensor.is_leaf:
            tensor.grad = None
            tensor.requires_grad_()
        else:
            tensor.retain_grad()
