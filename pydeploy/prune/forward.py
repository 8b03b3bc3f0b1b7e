"""What one run of the model shows about its layers: which batch norm alone follows a layer, and what its inputs are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pydeploy.errors import TraceError

Inputs = tuple[Tensor, ...]
LAYERS = (_ConvNd, nn.Linear)


def arguments(example: Tensor | Inputs) -> Inputs:
    return (example,) if isinstance(example, Tensor) else tuple(example)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, see `in_mode`."""
    with in_mode(model, training=False):
        yield


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """One mode inside; every module's own mode after, and its tensors where its class does more than switch modes, as some
    that merge weights do.
    """
    modes = [(module, module.training) for module in model.modules()]
    switched = any(own is not training for _, own in modes)
    special = [pair for pair in modes if type(pair[0]).train is not nn.Module.train] if switched else []
    tensors = {id(t): t for module, _ in special for t in (*module.parameters(), *module.buffers()) if not t.is_meta}
    before = [(t, t.detach().clone()) for t in tensors.values()]
    if switched:
        model.train(training)
    try:
        yield
    finally:
        for module, own in special:
            module.train(own)
        for module, own in modes:
            if module.training is not own:
                module.training = own
        for tensor, values in before:
            if not torch.equal(tensor, values):
                tensor.data.copy_(values)


def run_evaluating(model: nn.Module, inputs: Inputs) -> Any:
    """The model's output on `inputs` in eval mode, without gradients; modes are restored. Raises `TraceError`."""
    try:
        with evaluating(model), torch.no_grad():
            return model(*inputs)
    except Exception as error:
        shapes = [list(t.shape) for t in inputs]
        raise TraceError(f"the model fails on inputs of shape {shapes}: {type(error).__name__}: {error}") from error


@contextmanager
def hooks(modules: Mapping[str, nn.Module], *, before: Callable[[str, Tensor], None] | None = None,
          after: Callable[[str, Tensor], None] | None = None) -> Iterator[None]:  # fmt: skip
    """Call ``before(name, input)`` and ``after(name, output)`` whenever one of `modules` runs inside the block."""
    handles: list[Any] = []
    for name, module in modules.items():
        if before is not None:
            handles.append(module.register_forward_pre_hook(lambda _m, args, n=name: before(n, args[0])))
        if after is not None:
            handles.append(module.register_forward_hook(lambda _m, _args, out, n=name: after(n, out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def named(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


class _Uses(TorchDispatchMode):
    """Counts how often operators read each tensor in `watched`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watched: dict[int, Tensor] = {}  # holds the tensors, so that an id stays theirs
        self.count: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note((args, kwargs))
        return func(*args, **(kwargs or {}))

    def note(self, values: Any) -> None:
        self.count.update(id(leaf) for leaf in tree_leaves(values) if id(leaf) in self.watched)


def norms_after(model: nn.Module, example: Tensor | Inputs) -> dict[str, str]:
    """``{layer: batch norm}`` where the layer runs once and its output goes into that batch norm and nowhere else."""
    layers, batch_norms = named(model, LAYERS), named(model, (_BatchNorm,))
    calls: Counter[str] = Counter()
    made: dict[int, str] = {}
    follows: dict[str, str] = {}
    uses = _Uses()

    def after_layer(name: str, output: Tensor) -> None:
        calls[name] += 1
        made[id(output)] = name
        uses.watched[id(output)] = output

    def before_norm(name: str, value: Tensor) -> None:
        calls[name] += 1
        if id(value) in made:
            follows[made[id(value)]] = name

    with hooks(layers, after=after_layer), hooks(batch_norms, before=before_norm), uses:
        uses.note(run_evaluating(model, arguments(example)))
    outputs = {layer: tensor for tensor, layer in made.items()}
    return {layer: norm for layer, norm in follows.items()
            if calls[layer] == calls[norm] == uses.count[outputs[layer]] == 1
            and getattr(batch_norms[norm], "running_mean", None) is not None}  # fmt: skip
