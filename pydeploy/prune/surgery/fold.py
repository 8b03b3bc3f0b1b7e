"""Batch norms folded into the layers before them: a network for inference, or for fine-tuning without batch statistics."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pydeploy import _core
from pydeploy.errors import DataError
from pydeploy.prune.forward import Inputs, norms_after
from pydeploy.prune.surgery.copying import copied
from pydeploy.prune.surgery.tensors import as_floats, from_floats


def fold(model: nn.Module, example: Tensor | Inputs) -> nn.Module:
    """A copy of `model` that computes the same in eval mode with every batch norm that alone follows a layer folded in.

    The layer gets a bias, the batch norm becomes an identity. `example` holds the forward's arguments; the model is run
    once to see what follows what. A batch norm after something else, or after a layer whose output is also used
    elsewhere, or after a grouped transposed convolution, stays. Raises `DataError` for a batch norm whose variance is not positive.
    """
    pairs = {
        layer: norm for layer, norm in norms_after(model, example).items() if _foldable(model.get_submodule(layer))
    }
    small = copied(model, _memo(model, pairs))
    for layer, norm in pairs.items():
        try:
            _fold(small.get_submodule(layer), model.get_submodule(layer), model.get_submodule(norm))
        except ValueError as error:
            raise DataError(f"batch norm '{norm}' cannot be folded into '{layer}': {error}") from None
        parent, _, leaf = norm.rpartition(".")
        setattr(small.get_submodule(parent), leaf, nn.Identity())
    return small


def _foldable(layer: Any) -> bool:
    plain = isinstance(layer._parameters.get("weight"), nn.Parameter)  # not one that a parametrization computes
    return plain and not (getattr(layer, "transposed", False) and layer.groups > 1)


def _memo(model: nn.Module, pairs: dict[str, str]) -> dict[int, Any]:
    """Weights that are replaced right after are not copied."""
    return {id(weight): weight for layer in pairs for weight in [model.get_submodule(layer)._parameters.get("weight")]
            if weight is not None}  # fmt: skip


def _fold(target: nn.Module, layer: Any, norm: Any) -> None:
    outer = layer.weight.shape[0] if getattr(layer, "transposed", False) else 1
    gamma, beta, before = (None if t is None else as_floats(t) for t in (norm.weight, norm.bias, layer.bias))
    mean, variance = as_floats(norm.running_mean), as_floats(norm.running_var)
    weight, bias = _core.fold_batch_norm(as_floats(layer.weight), before, gamma, beta, mean, variance, norm.eps, outer)
    flag = layer.weight.requires_grad
    target.weight = nn.Parameter(from_floats(weight, layer.weight), requires_grad=flag)
    target.bias = nn.Parameter(from_floats(bias, layer.weight), requires_grad=flag)
