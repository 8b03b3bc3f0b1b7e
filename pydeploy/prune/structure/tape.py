"""A recording of runs of a model: every ATen operator that ran, what it read and what it made.

In-place operators make a new `Value` of the same tensor, so the tape reads like a program without assignments. Mostly one run
is all: where a second one, on another batch or other data or in the state that the first left, takes another path, it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from pydeploy.prune.structure.operators import PLUMBING
from pydeploy.prune.structure.running import Example


@dataclass(eq=False, slots=True)
class Value:
    """A tensor of the run: its shape, the parameter that it is ('' = none) and the value whose memory it shares."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    param: str = ""
    base: Value | None = None
    shared: bool = False
    """Some view of this memory exists."""
    learnt: bool = False
    """A parameter, not a buffer."""
    data: bool = False
    """Computed from the model's inputs (known in runs with values)."""

    @property
    def rank(self) -> int:
        return len(self.shape)


Site = tuple[str, int]
"""Class of the module that runs and the number of the operator within its call: equal in all modules of one class."""


@dataclass(eq=False, slots=True)
class Call:
    """One operator: `args` in the order of its schema, tensors replaced by `Value`; `outs` are its tensor results."""

    op: str
    args: list[Any]
    outs: list[Value]
    path: str
    site: Site
    written: list[Value]
    """Values before an in-place operator changed them."""
    result: Any = None
    """A result that is no tensor: the number that an ``item()`` gave."""
    inputs: list[Value] = field(init=False)
    """The tensors in `args`, in order."""

    def __post_init__(self) -> None:
        self.inputs = [leaf for leaf in flat(self.args) if isinstance(leaf, Value)]

    @property
    def step(self) -> Step | None:
        """None for views and copies, which come and go with strides."""
        if self.op in PLUMBING:
            return None
        return self.op, self.path, tuple(value.param for value in self.inputs if value.learnt)

    @property
    def details(self) -> tuple[Any, ...]:
        """What it did: operator, module, parameters, sizes and numbers."""
        given = tuple((leaf.param, leaf.shape) if isinstance(leaf, Value) else str(leaf) for leaf in flat(self.args))
        return self.op, self.path, given, tuple(out.shape for out in self.outs)

    @property
    def location(self) -> str:
        return f"{self.op} at {self.path or 'the model'}"


@dataclass(frozen=True, slots=True)
class Run:
    """The calls ``begin:end`` of one run of the model on `example`."""

    example: Example
    begin: int
    end: int
    fresh: bool
    """On a fresh copy of the model; else in the state that the run before left."""
    training: bool = False
    """In training mode, see `training_paths`."""


@dataclass
class Tape:
    """All calls of all runs, and the values that came out of them."""

    calls: list[Call] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    deployed: set[Value] = field(default_factory=set)
    """Those of `outputs` that engines give."""
    outside: list[tuple[Value, str]] = field(default_factory=list)
    """Values that stay outside of the model from one run to the next, and where."""
    real: bool = False
    """The model ran with values."""
    branches: bool = False
    """It reads numbers that depend on its inputs."""
    untrained: str = ""
    """Why training mode, in which the forward may take another path, is not among the runs."""

    def details(self, number: int) -> list[tuple[Any, ...]]:
        """All that one run did, with sizes and numbers."""
        run = self.runs[number]
        return [call.details for call in self.calls[run.begin : run.end]]

    def unread(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Parameters that no run read; tied ones under their first name."""
        read = {value.param for call in self.calls for value in call.inputs}
        first = {
            id(tensor): name for name, tensor in reversed(list(tensors.items())) if isinstance(tensor, nn.Parameter)
        }
        return [name for name in reversed(first.values()) if name not in read]

    def drop(self) -> None:
        """Forget the last run."""
        del self.calls[self.runs.pop().begin :]

    def steps(self, number: int) -> list[Step]:
        """What identifies the path of one run."""
        run = self.runs[number]
        return [step for call in self.calls[run.begin : run.end] if (step := call.step) is not None]


Step = tuple[str, str, tuple[str, ...]]
"""An operator, the module that runs it, and the parameters that it reads."""


@dataclass(frozen=True)
class Schema:
    """What an operator takes, and which of it it writes."""

    name: str
    arguments: tuple[str, ...]
    defaults: tuple[Any, ...]
    written: tuple[int, ...]
    view: bool

    def ordered(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """All arguments, with defaults where none is given."""
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        return [given.get(name, default) for name, default in zip(self.arguments, self.defaults, strict=True)]


@lru_cache(maxsize=4096)
def schema_of(func: Any) -> Schema:
    schema = func._schema
    name = schema.name.split("::")[-1]
    aliases = [a.alias_info for a in schema.arguments]
    written = tuple(i for i, alias in enumerate(aliases) if alias is not None and alias.is_write)
    view = not written and any(r.alias_info is not None for r in schema.returns)
    return Schema(name[:-1] if name.endswith("_") and not name.startswith("__") else name,
                   tuple(a.name for a in schema.arguments), tuple(a.default_value for a in schema.arguments), written, view)  # fmt: skip


_PLAIN = frozenset((int, float, bool, str, type(None)))


def one_device(args: Any, kwargs: Any) -> bool:
    """Whether all tensors in the arguments are on the meta device, or none is."""
    leaves = flat(args) + flat(list(kwargs.values())) if kwargs else flat(args)
    kinds = {leaf.is_meta for leaf in leaves if type(leaf) not in _PLAIN and isinstance(leaf, Tensor)}
    return len(kinds) < 2


def flat(tree: Any) -> list[Any]:
    """Leaves of nested lists and tuples (operators know no other containers)."""
    if not isinstance(tree, list | tuple):
        return [tree]
    leaves: list[Any] = []
    for item in tree:
        if type(item) in _PLAIN:
            leaves.append(item)
        else:
            leaves += flat(item)
    return leaves


def mapped(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    kind = type(tree)
    if kind is list or kind is tuple:
        return [mapped(item, change) if type(item) not in _PLAIN else item for item in tree]
    if kind is dict:
        return {key: mapped(item, change) for key, item in tree.items()}
    return tree
