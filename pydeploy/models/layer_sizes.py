"""What a network is made of: layers with their outputs, parameters, multiply-accumulates and sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pydeploy.prune.forward import evaluating
from pydeploy.prune.structure.trace import trace

FLOAT_BYTES, SCALE_BYTES = 4, 4


@dataclass(frozen=True, slots=True)
class LayerSize:
    """One module with parameters of its own."""

    name: str
    kind: str
    """Class of the module."""
    output: tuple[int, ...]
    """Shape of its output at batch size 1; of the last call where there are several. Empty where the forward never calls it."""
    params: int
    """Entries of its parameters; of one that several modules share, at the first of them."""
    macs: int
    """Multiply-accumulates over all its calls (convolutions, linear layers, their transposes)."""
    fp32_bytes: int
    int8_bytes: int
    """Weights of layers that count multiply-accumulates at a byte an entry and a scale of four a channel; the rest as in fp32."""


def layer_sizes(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[LayerSize, ...]:
    """Every module of `model` that has parameters, in order. Raises `TraceError` where the model does not run on `example`."""
    graph = trace(model, example)
    macs: Counter[str] = Counter()
    for op in graph.ops:
        macs[op.weight.rpartition(".")[0]] += op.macs(graph.widths)
    weights = {op.weight for op in graph.ops}
    shapes, seen, found = _shapes(model, example), set[int](), []
    for name, module in model.named_modules():
        own = [
            (f"{name}.{key}" if name else key, p)
            for key, p in module.named_parameters(recurse=False)
            if id(p) not in seen
        ]
        if not own:
            continue
        seen.update(id(parameter) for _, parameter in own)
        params = sum(parameter.numel() for _, parameter in own)
        int8 = sum(
            p.numel() + SCALE_BYTES * p.shape[0] if key in weights else FLOAT_BYTES * p.numel() for key, p in own
        )
        found.append(LayerSize(name or "(the model)", type(module).__name__, shapes.get(name, ()), params, macs[name],
                               FLOAT_BYTES * params, int8))  # fmt: skip
    return tuple(found)


def _shapes(model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: Any) -> None:
        first = next(_tensors(output), None)
        if first is not None:
            shapes[name] = tuple(first.shape)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            hook = module.register_forward_hook(lambda _m, _args, out, n=name: note(n, out))
            stack.callback(hook.remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        model(*(tensor.clone() for tensor in example))
    return shapes


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
