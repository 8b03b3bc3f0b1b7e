"""What a forward takes and returns, as named tensors: nested dicts, lists, tuples, dataclasses and plain objects."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

DEEPEST = 10
"""Containers within containers are opened so far; what refers to itself ends there."""

LEAVES = (Tensor, nn.Module, type, str, bytes, torch.SymInt, torch.SymFloat, torch.SymBool)

Leaf = tuple[str, Any]
"""(where it lies, joined by dots; a tensor or anything else without parts)."""


def flat(tree: Any, name: str = "", depth: int = DEEPEST) -> Iterator[Leaf]:
    """Leaves of `tree` by name: ``{"out": a, "pyramid": [b]}`` has ``out`` and ``pyramid.0``."""
    parts = _parts(tree) if depth else None
    if parts is None:
        yield name, tree
        return
    for key, part in parts.items():
        yield from flat(part, f"{name}.{key}" if name else str(key), depth - 1)


def filled(tree: Any, tensors: Iterator[Tensor], depth: int = DEEPEST) -> Any:
    """`tree` with its tensors replaced in order; the containers are new ones of the same kinds."""
    if isinstance(tree, Tensor):
        return next(tensors)
    parts = _parts(tree) if depth else None
    if parts is None:
        return tree
    new = {key: filled(part, tensors, depth - 1) for key, part in parts.items()}
    if isinstance(tree, Mapping):
        made: Any = copy.copy(tree)
        made.update(new)
        return made
    if isinstance(tree, tuple):
        return tree._make(new.values()) if hasattr(tree, "_make") else type(tree)(new.values())
    if isinstance(tree, list):
        return type(tree)(new.values())
    made = copy.copy(tree)
    for key, part in new.items():
        object.__setattr__(made, key, part)
    return made


def _parts(tree: Any) -> Mapping[Any, Any] | None:
    """Parts of a container by key, or None for a leaf."""
    if isinstance(tree, LEAVES):
        return None
    if isinstance(tree, Mapping):
        return dict(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_asdict"):
        return dict(tree._asdict())
    if isinstance(tree, list | tuple):
        return dict(enumerate(tree))
    if dataclasses.is_dataclass(tree):
        return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    own = getattr(tree, "__dict__", None)
    return (
        dict(own) if own and any(isinstance(part, Tensor | Mapping | list | tuple) for part in own.values()) else None
    )


@dataclass(frozen=True)
class Arguments:
    """Arguments of a forward: positional ones and ones by keyword, their tensors in order and those tensors' names."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(leaf for _, leaf in flat([self.args, dict(self.kwargs)]) if isinstance(leaf, Tensor))

    def with_tensors(self, tensors: Sequence[Tensor]) -> Arguments:
        """The same arguments, everything but the tensors kept."""
        args, kwargs = filled((self.args, dict(self.kwargs)), iter(tensors))
        return Arguments(args, kwargs)

    def names(self, forward: Any) -> tuple[str, ...]:
        """``input`` for a single tensor; else the forward's own names of its arguments (``x``, ``boxes.0``)."""
        if len(self.tensors) == 1:
            return ("input",)
        by_tensor = {id(leaf): name for name, leaf in flat(_bound(forward, self)) if isinstance(leaf, Tensor)}
        return tuple(by_tensor[id(tensor)] for tensor in self.tensors)


def _bound(forward: Any, given: Arguments) -> dict[str, Any]:
    """Arguments by the forward's names, or by number where it has none."""
    try:
        signature = inspect.signature(forward)
        bound = dict(signature.bind(*given.args, **given.kwargs).arguments)
    except (TypeError, ValueError):
        return {**{f"input.{i}": arg for i, arg in enumerate(given.args)}, **given.kwargs}
    further = [name for name, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD and name in bound]
    return bound | {key: value for name in further for key, value in bound.pop(name).items()}


def arguments(forward: Any, example: Any, kwargs: Mapping[str, Any] | None = None) -> Arguments:
    """A tensor stands for itself, a tuple or list for the positional arguments, a dict for arguments by name where `forward` has
    arguments of these names.
    """
    if isinstance(example, Mapping) and not kwargs and _takes(forward, example):
        return Arguments((), example)
    positional = tuple(example) if isinstance(example, tuple | list) else (example,)
    return Arguments(positional, dict(kwargs or {}))


def _takes(forward: Any, names: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(forward).bind(**names)
    except (TypeError, ValueError):
        return False
    return True


def outputs(tree: Any) -> tuple[dict[str, Tensor], list[Leaf]]:
    """Tensors of a forward's result by name (``output`` when it is one), and its leaves that are no tensors."""
    if isinstance(tree, Tensor):
        return {"output": tree}, []
    leaves = list(flat(tree, "" if isinstance(tree, Mapping) else "output"))
    return ({name: leaf for name, leaf in leaves if isinstance(leaf, Tensor)},
            [(name, leaf) for name, leaf in leaves if not isinstance(leaf, Tensor)])  # fmt: skip
