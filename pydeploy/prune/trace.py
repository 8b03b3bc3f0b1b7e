"""`trace`: run the model once and find which channels can be removed, and which layers cost time.

The operators are recorded by a dispatch mode while the model really runs, so anything that runs can be traced. An
operator without a rule freezes the channels that it touches and says so in ``graph.frozen``; it never guesses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pydeploy.errors import TraceError
from pydeploy.graph import Graph
from pydeploy.prune.assemble import RawOp, assemble
from pydeploy.prune.layout import Atoms, Labels, unlabelled
from pydeploy.prune.rules import RULES, Unknown

_HIDDEN = frozenset({"empty", "detach", "alias", "t", "view", "_unsafe_view", "reshape", "permute", "transpose", "unsqueeze",
                     "squeeze", "expand", "native_batch_norm", "_native_batch_norm_legit_no_training", "dropout",
                     "native_dropout", "lift_fresh", "clone", "contiguous", "_to_copy"})  # fmt: skip
"""Operators that an engine folds away, so they do not appear in a layer's tail."""


@dataclass(frozen=True, slots=True)
class ParamView:
    """A parameter, possibly transposed or with axes of length 1 inserted: parameter dim of each axis."""

    name: str
    dims: tuple[int | None, ...]


@dataclass
class Tracer:
    """What is known while the model runs: layout of every tensor, names of parameters, recorded layers."""

    names: dict[int, str]
    atoms: Atoms = field(default_factory=Atoms)
    ops: list[RawOp] = field(default_factory=list)
    layouts: dict[int, Labels] = field(default_factory=dict)
    views: dict[int, ParamView] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)
    """Keeps every tensor of the run alive, because layouts are found by object identity."""
    stack: list[str] = field(default_factory=list)

    def labels(self, tensor: Any) -> Labels:
        known = self.layouts.get(id(tensor))
        return unlabelled(tensor.dim()) if known is None else known

    def param_name(self, tensor: Tensor) -> str | None:
        view = self.param_view(tensor)
        return view.name if view is not None and view.dims == tuple(range(tensor.dim())) else None

    def param_view(self, tensor: Tensor) -> ParamView | None:
        name = self.names.get(id(tensor))
        return ParamView(name, tuple(range(tensor.dim()))) if name is not None else self.views.get(id(tensor))

    def record(self, kind: str, weight: str, incoming: Labels | None, outgoing: Labels, size: Sequence[int],
               cin: int, **facts: Any) -> None:  # fmt: skip
        """Note a layer; `size` is the output's (height, width), `cin` counts input channels that are no atoms, too."""
        self.ops.append(RawOp(kind, weight, incoming, outgoing, int(cin), int(size[0]), int(size[1]), facts))

    def step(self, op: str, args: Sequence[Any], out: Any) -> None:
        """Move layouts through one operator."""
        count = len(self.ops)
        try:
            rule = RULES.get(op)
            if rule is None:
                raise Unknown("no rule for this operator")
            if not self._view_of_param(op, args, out):
                first = out[0] if isinstance(out, tuple | list) else out
                self.layouts[id(first)] = rule(self, args, out)
        except (Unknown, ValueError, IndexError, TypeError) as error:
            self._give_up(op, args, out, str(error))
        self.alive += [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if len(self.ops) == count and self.ops and op not in _HIDDEN:
            self.ops[-1].tail.append(op)

    def _view_of_param(self, op: str, args: Sequence[Any], out: Any) -> bool:
        """Follow a parameter through the views that layers take of it (``weight.t()``, ``gamma[:, None, None]``)."""
        view = self.param_view(args[0]) if args and isinstance(args[0], Tensor) else None
        if view is None or not isinstance(out, Tensor):
            return False
        if op == "t":
            dims: tuple[int | None, ...] = view.dims[::-1]
        elif op == "unsqueeze":
            at = args[1] % out.dim()
            dims = (*view.dims[:at], None, *view.dims[at:])
        elif op in ("view", "reshape") and [s for s in args[0].shape if s > 1] == [s for s in out.shape if s > 1]:
            real = iter(d for d, size in zip(view.dims, args[0].shape, strict=True) if size > 1)
            dims = tuple(next(real) if size > 1 else None for size in out.shape)
        elif op in ("detach", "alias"):
            dims = view.dims
        else:
            return False
        self.views[id(out)] = ParamView(view.name, dims)
        return True

    def _give_up(self, op: str, args: Sequence[Any], out: Any, why: str) -> None:
        """Freeze every channel that went in; what came out carries none."""
        reason = f"{op} at {(self.stack[-1] if self.stack else '') or 'the model'}: {why}"
        for leaf in tree_leaves(list(args)):
            if isinstance(leaf, Tensor):
                self.atoms.freeze(self.labels(leaf), reason)
                self._freeze_param(leaf, reason)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.layouts.pop(id(leaf), None)

    def _freeze_param(self, tensor: Tensor, why: str) -> None:
        """A parameter used in an unknown way: whatever channels lie in it now or later must stay."""
        view = self.param_view(tensor)
        if view is None:
            return
        for dim in {d for d in view.dims if d is not None}:
            size = tensor.shape[view.dims.index(dim)]
            atoms = self.atoms.fresh(size)
            self.atoms.freeze(atoms, why)
            self.atoms.place(view.name, dim, atoms)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    def __init__(self, tracer: Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracer = tracer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        schema = func._schema.arguments
        given = {**dict(zip((a.name for a in schema), args, strict=False)), **(kwargs or {})}
        positional = [given.get(a.name, a.default_value) for a in schema]
        self.tracer.step(name[:-1] if name.endswith("_") and not name.startswith("__") else name, positional, out)
        return out


def trace(model: nn.Module, example: Tensor | tuple[Tensor, ...], *, min_width: int = 1) -> Graph:
    """Groups of channels that can be removed, and the layers that cost time, of `model` run on `example`.

    `example` is a tensor or a tuple of the forward's arguments (batch 1 is enough). The model is run once in eval
    mode without gradients and left as it was. Raises `TraceError` when its forward fails or it has meta tensors.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    tracer = Tracer(_names(model))
    output = _run(model, inputs, tracer)
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            tracer.atoms.freeze(tracer.labels(leaf), "model output")
    shapes = {name: tuple(t.shape) for name, t in model.state_dict(keep_vars=True).items()}
    learnable = sum(p.numel() for p in model.parameters())
    return assemble(tracer.atoms, tracer.ops, shapes, learnable, tuple(tuple(t.shape) for t in inputs), min_width)


def _names(model: nn.Module) -> dict[int, str]:
    """First ``state_dict`` name of every parameter and buffer, by object identity (tied weights share one)."""
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            if tensor.is_meta:
                raise TraceError(f"'{name}' is a meta tensor without values; load the model's weights first")
            names.setdefault(id(tensor), name)
    return names


def _run(model: nn.Module, inputs: tuple[Tensor, ...], tracer: Tracer) -> Any:
    with _evaluating(model), _module_paths(model, tracer.stack), torch.no_grad(), _Recorder(tracer):
        try:
            return model(*inputs)
        except Exception as error:
            shapes = [list(t.shape) for t in inputs]
            raise TraceError(f"the model fails on inputs of shape {shapes}: {type(error).__name__}: {error}") from error


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; each module's own mode restored after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _module_paths(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep `stack` at the path of the module that runs, for error and freeze texts."""
    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(_Enter(stack, path)))
        handles.append(module.register_forward_hook(_Leave(stack), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        stack.clear()


@dataclass(frozen=True)
class _Enter:
    stack: list[str]
    path: str

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        self.stack.append(self.path)


@dataclass(frozen=True)
class _Leave:
    stack: list[str]

    def __call__(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self.stack:
            self.stack.pop()
