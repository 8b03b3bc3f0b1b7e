"""Statistics of batch norms, measured again: those of a cut network are the dense one's, whose channels saw other inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pydeploy.errors import DataError
from pydeploy.prune.forward import Inputs, arguments, in_mode
from pydeploy.prune.surgery.copying import copied


def recalibrate(model: nn.Module, batches: Iterable[Tensor | Inputs]) -> nn.Module:
    """A copy of `model` whose batch norms have the mean of the statistics of `batches`, each with equal weight.

    Each batch holds the forward's arguments; a few hundred samples suffice. Everything else stays: weights, dropout off, and
    the statistics of batch norms that none of the batches reaches. Raises `DataError` without batches, for a batch on which
    the model fails, and for statistics that are not finite.
    """
    small = copied(model, {})
    norms = {name: module for name, module in small.named_modules()
             if isinstance(module, _BatchNorm) and module.running_mean is not None}  # fmt: skip
    with torch.no_grad(), in_mode(small, training=False), _measuring(list(norms.values())):
        number = -1
        for number, batch in enumerate(batches):
            given = arguments(batch)
            try:
                small(*given)
            except Exception as error:  # whatever a model raises
                shapes = [list(t.shape) for t in given]
                raise DataError(
                    f"the model fails on batch {number} with inputs {shapes}: {type(error).__name__}: {error}"
                ) from error
        if number < 0:
            raise DataError("batch norms are recalibrated on batches of inputs; got none")
    for name, norm in norms.items():
        if not all(bool(torch.isfinite(t).all()) for t in (norm.running_mean, norm.running_var) if t is not None):
            raise DataError(f"batch norm '{name}' sees NaN or infinity; check the weights and the batches")
    return small


def has_statistics(model: nn.Module) -> bool:
    """Whether any batch norm normalizes by statistics of its own, which a cut makes wrong."""
    return any(isinstance(module, _BatchNorm) and module.running_mean is not None for module in model.modules())


@contextmanager
def _measuring(norms: list[_BatchNorm]) -> Iterator[None]:
    """Batch norms average the statistics of what they see; those that see nothing keep their own."""
    before = [(norm, norm.momentum, [(t, t.clone()) for t in _statistics(norm)]) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's word for the mean over all batches
        norm.training = True
    try:
        yield
    finally:
        for norm, momentum, statistics in before:
            unseen = norm.num_batches_tracked is not None and not int(norm.num_batches_tracked)
            for tensor, values in statistics if unseen else statistics[2:]:
                tensor.copy_(values)
            norm.momentum = momentum


def _statistics(norm: _BatchNorm) -> list[Tensor]:
    found = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    return [tensor for tensor in found if tensor is not None]
