"""Masks inside weights: single kernels, patterns inside the kernels, N:M runs of input channels.

A mask changes no shape. Channels are cut first (`apply`), the small model is masked, fine-tuned with the mask in place
(`masked`), and the mask is folded into the weights for export (`unmasked`; `pydeploy.export` does it itself). A runtime
executes the *dense* MACs unless it has kernels for the pattern, such as TensorRT's sparse tensor cores for 2:4, so both
counts are reported (`count`).

A mask is a bool tensor of the weight's shape, True = kept. Sources: kernels and patterns as in PatDNN (Niu et al.,
ASPLOS 2020), N:M along input channels as NVIDIA's sparse tensor cores want it (Mishra et al., arXiv 2104.08378).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pydeploy import _core
from pydeploy.errors import ConfigError, Mismatch
from pydeploy.graph import Graph
from pydeploy.prune.surgery.copying import copied
from pydeploy.prune.surgery.tensors import as_floats

Masks = Mapping[str, Tensor]
"""Mask of each masked weight, by ``state_dict`` name."""


def kernel_mask(weight: Tensor, ratio: float) -> Tensor:
    """Without the ``floor(ratio * O * I)`` kernels ``weight[o, i]`` of the smallest L1 norm; equal ones: the last go."""
    if not 0 <= ratio < 1:
        raise ConfigError(f"the ratio of kernels to remove must lie in 0 <= ratio < 1, not {ratio}")
    norms = np.abs(_kernels(weight)).sum(axis=1, dtype=np.float64)
    order = np.argsort(-norms, kind="stable")
    kept = np.ones(len(norms), dtype=np.bool_)
    kept[order[len(norms) - int(ratio * len(norms)) :]] = False
    return torch.from_numpy(kept).reshape(weight.shape[:2] + (1,) * (weight.dim() - 2)).expand(weight.shape).clone()


def inner_mask(weight: Tensor, keep: int) -> Tensor:
    """The `keep` largest magnitudes of every kernel, at most 64 of a kernel of at most 64 entries."""
    kernels = _kernels(weight)
    area = kernels.shape[1]
    if not 1 <= keep <= area <= 64:
        raise ConfigError(f"expected 1 <= keep <= kernel size <= 64, got keep = {keep} for kernels of {area} entries")
    return _mask(_core.keep_largest(kernels, keep, area, 1), weight)


def n_m_mask(weight: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """The `n` largest magnitudes in every run of `m` consecutive input channels, at each output and kernel position."""
    if not 1 <= n <= m <= 64:
        raise ConfigError(f"N:M sparsity needs 1 <= n <= m <= 64, not {n}:{m}")
    return _mask(_core.keep_largest(as_floats(weight), n, m, 1), weight)


def pattern_mask(weight: Tensor, keep: int = 4, patterns: int = 8) -> Tensor:
    """Every kernel restricted to one of few patterns: the centre and ``keep - 1`` others.

    A kernel's natural pattern is its centre and its largest other magnitudes; the `patterns` most frequent ones form the
    library, and each kernel takes the one that keeps most of its squared norm.
    """
    kernels = _kernels(weight)
    area = kernels.shape[1]
    if not (2 <= keep < area <= 62) or patterns < 1:
        raise ConfigError(f"patterns need kernels of 3 to 62 entries, 2 <= keep < entries and patterns >= 1; got kernels "
                          f"of {area}, keep = {keep}, patterns = {patterns}")  # fmt: skip
    others = kernels.copy()
    others[:, area // 2] = np.inf
    natural = _core.keep_largest(others, keep, area, 1).astype(np.bool_)
    codes, counts = np.unique(natural @ (1 << np.arange(area, dtype=np.int64)), return_counts=True)
    library = codes[np.argsort(-counts, kind="stable")[:patterns]]
    shapes = (library[:, None] >> np.arange(area) & 1).astype(np.float64)  # (patterns, area)
    best = np.argmax(kernels.astype(np.float64) ** 2 @ shapes.T, axis=1)
    return _mask(shapes[best], weight)


def _kernels(weight: Tensor) -> NDArray[Any]:
    """Shape ``(O * I, kernel entries)``."""
    if weight.dim() < 3:
        raise ConfigError(f"a weight of shape {list(weight.shape)} has no kernels; use N:M for linear layers")
    return as_floats(weight).reshape(weight.shape[0] * weight.shape[1], -1)


def _mask(values: NDArray[Any], weight: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.bool_)).reshape(weight.shape)


class Mask(nn.Module):
    """A parametrization that zeroes what the mask removes, in the forward pass and so in the gradient."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask: Tensor
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def masked(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of `model` whose named weights stay masked while it trains. Raises `Mismatch` for a mask that fits none."""
    tensors = model.state_dict(keep_vars=True)
    result = copied(model, {})
    for name, mask in masks.items():
        if name not in tensors or tensors[name].shape != mask.shape or mask.dtype != torch.bool:
            found = f"has shape {list(tensors[name].shape)}" if name in tensors else "does not exist in the model"
            raise Mismatch(
                f"the mask of '{name}' is {mask.dtype}{list(mask.shape)}, the weight {found}; expected bool of its shape"
            )
        path, _, leaf = name.rpartition(".")
        module = result.get_submodule(path)
        if parametrize.is_parametrized(model.get_submodule(path)):
            raise Mismatch(f"'{path}' is parametrized already; mask plain weights, all masks of a module at once")
        parametrize.register_parametrization(module, leaf, Mask(mask.to(tensors[name].device)))
    return result


def unmasked(model: nn.Module) -> nn.Module:
    """A copy of `model` with plain weights into which the masks are multiplied; modules parametrized otherwise stay."""
    result = copied(model, {})
    for module in list(result.modules()):
        parts = dict(getattr(module, "parametrizations", {}))
        if not parts or not all(
            isinstance(part, Mask) for parametrization in parts.values() for part in parametrization
        ):
            continue
        # Not torch's remove_parametrizations: it edits the class, which the copy shares with the original.
        values = {leaf: nn.Parameter(getattr(module, leaf).detach(), parametrization.original.requires_grad)
                  for leaf, parametrization in parts.items()}  # fmt: skip
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module._modules["parametrizations"]
        for leaf, value in values.items():
            module.register_parameter(leaf, value)
    return result


@dataclass(frozen=True, slots=True)
class Count:
    """Cost of a model: what a dense runtime executes and stores, and how much of it is not zero."""

    dense_macs: int
    effective_macs: int
    params: int
    nonzero_params: int


def count(model: nn.Module, graph: Graph) -> Count:
    """MACs at the graph's input shape, dense and with zero weights left out, and parameters, all and not zero.

    Masks count as zeros. `graph` is the trace of `model` before it was masked; raises `Mismatch` for another one.
    """
    plain = unmasked(model)
    tensors = plain.state_dict()
    dense = effective = 0
    for op in graph.ops:
        weight = tensors.get(op.weight)
        if weight is None or tuple(weight.shape) != graph.params[op.weight]:
            found = "has none" if weight is None else f"has {list(weight.shape)}"
            raise Mismatch(f"the graph has '{op.weight}' with shape {list(graph.params[op.weight])}, the model {found}; "
                           "count with the graph of this model")  # fmt: skip
        macs = op.macs(graph.widths)
        dense += macs
        effective += macs * int(torch.count_nonzero(weight)) // weight.numel()
    values = list(plain.parameters())
    return Count(dense, effective, sum(p.numel() for p in values), sum(int(torch.count_nonzero(p)) for p in values))
