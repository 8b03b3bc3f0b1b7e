"""A network whose channels are multiplied by factors where they are read, without a change to the network itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from pydeploy.graph import Graph, Group, Slice


class Gates:
    """The tensors to multiply for each group of `graph`, a trace of `model`: what reads its channels, as `gradient.gate` has it.

    With factors of 0 and 1 the network computes what the cut one does. Groups whose tensors are computed (parametrized) have no
    gate and are not in `groups`.
    """

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self.model = model
        plain = {
            *dict(model.named_parameters(remove_duplicate=False)),
            *dict(model.named_buffers(remove_duplicate=False)),
        }
        found = {group.name: _gate(group) for group in graph.prunable}
        self.groups: Mapping[str, list[Slice]] = {name: pieces for name, pieces in found.items()
                                                  if pieces and all(piece.param in plain for piece in pieces)}  # fmt: skip

    def run(self, network: nn.Module, factors: Mapping[str, Tensor], *, frozen: bool = False) -> Any:
        """A function like `network`, which is the model or wraps it, at these factors; `frozen` weights get no gradients."""
        tensors = dict(self.model.named_parameters(remove_duplicate=False)) | dict(
            self.model.named_buffers(remove_duplicate=False)
        )
        changed: dict[str, Tensor] = {}
        for name, factor in factors.items():
            for piece in self.groups[name]:
                tensor = changed.get(piece.param)
                if tensor is None:
                    tensor = tensors[piece.param].detach() if frozen else tensors[piece.param]
                changed[piece.param] = tensor * _along(piece, factor, tensor)
        prefix = "" if network is self.model else "module."
        given = {f"{prefix}{name}": tensor for name, tensor in changed.items()}
        return lambda *inputs: functional_call(network, given, inputs)


def _gate(group: Group) -> list[Slice]:
    by_role = {role: [piece for piece in group.slices if role in piece.roles]
               for role in ("input", "scale", "shift", "filter", "bias")}  # fmt: skip
    return by_role["input"] or [*by_role["scale"], *by_role["shift"]] or [*by_role["filter"], *by_role["bias"]]


def _along(piece: Slice, factor: Tensor, tensor: Tensor) -> Tensor:
    """What each entry along the dim is multiplied by, shaped to fit `tensor`."""
    entries = torch.from_numpy(piece.entries(np.arange(len(factor), dtype=np.int64))).to(tensor.device)
    values = factor.to(tensor.device, tensor.dtype).repeat_interleave(piece.repeat)
    whole = tensor.new_ones(tensor.shape[piece.dim]).index_put((entries,), values)
    return whole.view([-1 if axis == piece.dim else 1 for axis in range(tensor.dim())])


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch norms normalize by the batch inside, and their running statistics stay those of the dense network."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
