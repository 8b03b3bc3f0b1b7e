"""Constant-channel absorption: what a removed channel was on average goes into the layers that read it.

A removed channel whose batch norm has ``gamma = 0`` is a constant, ``activation(beta)``; others have a mean over data.
Held at it instead of at zero, the channel adds ``mean * sum of its kernel`` to every output of a layer that reads it, which
the layer's bias or the mean of the batch norm right after it can take. Exact for a constant channel where the layer does
not pad it with zeros; at padded borders a (usual, small) approximation. Ye et al., ICLR 2018 (arXiv 1802.00124).

Means are measured where they are needed, at the inputs of the layers, so activations, pools, residual adds and depthwise
convolutions between the removed channel and its reader need no rules of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pydeploy import _core
from pydeploy.errors import DataError
from pydeploy.graph import Graph
from pydeploy.prune.forward import LAYERS, Inputs, arguments, hooks, named, norms_after, run_evaluating
from pydeploy.prune.surgery.kept_entries import Kept
from pydeploy.prune.surgery.tensors import as_floats, from_floats


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """Mean of each input channel of one layer, shape ``(channels,)``, and the tensor that can take its share.

    `sink` is a ``state_dict`` name, a bias or a running mean; '' where the layer has neither, so its removed inputs are
    silenced.
    """

    mean: NDArray[np.float64]
    sink: str


Means = Mapping[str, LayerInputs]
"""By layer name; layers that read no prunable channel are not named."""


def channel_means(model: nn.Module, graph: Graph, batches: Iterable[Tensor | Inputs]) -> Means:
    """Mean of every input channel of the layers that read prunable channels, over all batches and positions.

    Each batch holds the forward's arguments. One batch of anything is enough where the channels to remove are constant.
    The model is run in eval mode and left as it was. Raises `DataError` without batches or for values that are not finite.
    """
    layers = _readers(model, graph)
    totals: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()

    def note(name: str, value: Tensor) -> None:
        axis = value.dim() - 1 if isinstance(layers[name], nn.Linear) else value.dim() - layers[name].weight.dim() + 1
        sums = value.detach().double().sum([d for d in range(value.dim()) if d != axis])
        totals[name] = totals[name] + sums if name in totals else sums
        counts[name] += value.numel() // value.shape[axis]

    sinks: dict[str, str] | None = None
    for batch in batches:
        inputs = arguments(batch)
        sinks = _sinks(model, layers, inputs) if sinks is None else sinks
        with hooks(layers, before=note):
            run_evaluating(model, inputs)
    if sinks is None:
        raise DataError("channel means need at least one batch of inputs; got none")
    means = {name: (totals[name] / counts[name]).cpu().numpy() for name in totals}
    for name, mean in means.items():
        if not np.isfinite(mean).all():
            raise DataError(f"layer '{name}' reads NaN or infinite values; check the weights and the batches")
    return {name: LayerInputs(mean, sinks[name]) for name, mean in means.items()}


def _readers(model: nn.Module, graph: Graph) -> dict[str, Any]:
    """Convolutions and linear layers whose input channels the graph may cut."""
    tensors = model.state_dict(keep_vars=True)
    read = {id(tensors[piece.param]) for group in graph.prunable for piece in group.slices
            if piece.dim == 1 and piece.param in tensors}  # fmt: skip
    return {name: layer for name, layer in named(model, LAYERS).items()
            if id(layer.weight) in read and not getattr(layer, "transposed", False)}  # fmt: skip


def _sinks(model: nn.Module, layers: Mapping[str, Any], inputs: Inputs) -> dict[str, str]:
    norms = norms_after(model, inputs)
    tensors = model.state_dict(keep_vars=True)
    owners = Counter(id(tensor) for tensor in tensors.values())
    names = {layer: f"{layer}.bias" if module.bias is not None else f"{norms[layer]}.running_mean" if layer in norms else ""
             for layer, module in layers.items()}  # fmt: skip
    return {layer: sink if sink in tensors and owners[id(tensors[sink])] == 1 else "" for layer, sink in names.items()}


def shifted(model: nn.Module, tensors: Mapping[str, Tensor], kept: Kept, new: Mapping[str, Tensor], means: Means,
            threads: int) -> dict[str, Tensor]:  # fmt: skip
    """The sinks of all layers that lose inputs, cut like `new` and moved by what the removed channels added."""
    names = {id(tensor): name for name, tensor in reversed(list(tensors.items()))}
    result: dict[str, Tensor] = {}
    for layer, inputs in means.items():
        module: Any = model.get_submodule(layer)
        entries = kept.get(names[id(module.weight)], [None, None])[1]
        if entries is None or not inputs.sink:
            continue
        groups = getattr(module, "groups", 1)
        removed = inputs.mean.reshape(groups, -1).copy()
        removed[:, entries] = 0
        shift = _core.input_shift(as_floats(module.weight), removed.ravel(), groups, threads)
        result[inputs.sink] = _moved(inputs.sink, tensors, kept, new, shift)
    return result


def _moved(sink: str, tensors: Mapping[str, Tensor], kept: Kept, new: Mapping[str, Tensor],
           shift: NDArray[np.float64]) -> Tensor:  # fmt: skip
    """What a batch norm subtracts grows less, a bias more."""
    rows = kept.get(sink, [None])[0]
    change = -shift if sink.endswith(".running_mean") else shift
    old = new.get(sink, tensors[sink])
    with torch.no_grad():
        values = old.detach().double() + from_floats(change if rows is None else change[rows], old.double())
    moved = values.to(old.dtype)
    return nn.Parameter(moved, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else moved
