"""A recording of one run of a model: every ATen operator that ran, what it read and what it made.

* Recording is done by a dispatch mode while the model's own Python code runs, so whatever runs can be recorded.
* Activations are meta tensors (shapes without values) where the model allows it, so nothing is computed. Operators on
  constants and parameters alone really run. A model that needs values to run is recorded on real tensors.
* In-place operators make a new `Value` of the same tensor, so the tape reads like a program without assignments.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pydeploy.errors import TraceError
from pydeploy.prune.forward import evaluating
from pydeploy.prune.structure.shapes import run_meta
from pydeploy.prune.surgery.attention_heads import by_heads
from pydeploy.prune.surgery.copying import Memo, copied


@dataclass(eq=False, slots=True)
class Value:
    """A tensor of the run: its shape, the parameter that it is ('' = none) and the value whose memory it shares."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    param: str = ""
    base: Value | None = None
    shared: bool = False
    """Some view of this memory exists."""

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
    def location(self) -> str:
        return f"{self.op} at {self.path or 'the model'}"


@dataclass
class Tape:
    """All calls of one run, the values that came in and those that came out."""

    calls: list[Call] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    """Shapes of the example's tensors."""
    real: bool = False
    """The model ran with values."""


class _NeedsValues(Exception):
    """The model reads the contents of a tensor, so shapes alone do not run it."""


@dataclass(frozen=True)
class _Schema:
    name: str
    arguments: tuple[str, ...]
    defaults: tuple[Any, ...]
    written: tuple[int, ...]
    view: bool


@lru_cache(maxsize=4096)
def schema_of(func: Any) -> _Schema:
    schema = func._schema
    name = schema.name.split("::")[-1]
    aliases = [a.alias_info for a in schema.arguments]
    written = tuple(i for i, alias in enumerate(aliases) if alias is not None and alias.is_write)
    view = not written and any(r.alias_info is not None for r in schema.returns)
    return _Schema(name[:-1] if name.endswith("_") and not name.startswith("__") else name,
                   tuple(a.name for a in schema.arguments), tuple(a.default_value for a in schema.arguments), written, view)  # fmt: skip


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """Writes a `Tape`; `tensors` are the model's own by ``state_dict`` name (tied ones share the first name)."""

    def __init__(self, tensors: Mapping[str, Tensor], *, real: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.real = real
        self.params = {id(tensor): name for name, tensor in reversed(list(tensors.items()))}
        self.owners = {tensor.untyped_storage().data_ptr(): (name, tensor) for name, tensor in tensors.items()}
        self.tape = Tape(real=real)
        self.where = Where()
        self.known: dict[int, tuple[Tensor, Value]] = {}
        """Values of tensors that the run did not make: parameters, constants, inputs."""

    def value(self, tensor: Tensor) -> Value:
        made = getattr(tensor, _MARK, None)
        if made is not None:
            return made  # type: ignore[no-any-return]
        known = self.known.get(id(tensor))
        if known is None:
            value = Value(tuple(tensor.shape), tensor.dtype, self.params.get(id(tensor), ""))
            known = self.known[id(tensor)] = (tensor, value)
        return known[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = schema_of(func)
        given = {**dict(zip(schema.arguments, args, strict=False)), **kwargs}
        ordered = [given.get(name, default) for name, default in zip(schema.arguments, schema.defaults, strict=True)]
        noted = [mapped(arg, self.value) for arg in ordered]
        written = [noted[i] for i in schema.written if isinstance(noted[i], Value)]
        if written:
            self._check_writes([ordered[i] for i in schema.written])
        out = func(*args, **kwargs) if self.real else self._run(func, schema, args, kwargs)
        self._note(schema, noted, written, out)
        return out

    def _run(self, func: Any, schema: _Schema, args: Any, kwargs: Any) -> Any:
        if not one_device(args, kwargs):
            if any(isinstance(args[i], Tensor) and not args[i].is_meta for i in schema.written if i < len(args)):
                raise _NeedsValues
            args, kwargs = mapped(args, to_meta), mapped(kwargs, to_meta)
        return run_meta(func, args, kwargs)

    def _check_writes(self, targets: Sequence[Tensor]) -> None:
        for target in targets:
            owner = None if target.is_meta else self.owners.get(target.untyped_storage().data_ptr())
            if owner is not None and isinstance(owner[1], nn.Parameter):
                raise TraceError(
                    f"the forward changes parameter '{owner[0]}' (at {self.where.path or 'the model'}); "
                    "a model that changes its weights while it runs has no fixed structure to prune"
                )

    def _note(self, schema: _Schema, noted: list[Any], written: list[Value], out: Any) -> None:
        results = [leaf for leaf in flat(out) if isinstance(leaf, Tensor)]
        base = next((v for v in noted if isinstance(v, Value)), None) if schema.view else None
        outs = []
        for tensor in results:
            value = Value(tuple(tensor.shape), tensor.dtype)
            if base is not None:
                value.base = base.base or base
                value.base.shared = value.shared = True
            elif written:
                value.base, value.shared = written[0].base or written[0], written[0].shared
            if id(tensor) in self.known:
                self.known[id(tensor)] = (tensor, value)
            else:
                setattr(tensor, _MARK, value)
            outs.append(value)
        path, site = self.where.next()
        self.tape.calls.append(Call(schema.name, noted, outs, path, site, written, None if results else out))


_PLAIN = frozenset((int, float, bool, str, type(None)))
_LOG = logging.getLogger(__name__)
_MARK = "_pydeploy_value"


def to_meta(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def one_device(args: Any, kwargs: Any) -> bool:
    """Whether all tensors in the arguments are on the meta device, or none is."""
    kinds = {leaf.is_meta for leaf in flat(args) if isinstance(leaf, Tensor)}
    kinds |= {leaf.is_meta for leaf in flat(list(kwargs.values())) if isinstance(leaf, Tensor)} if kwargs else set()
    return len(kinds) < 2


def flat(tree: Any) -> Iterator[Any]:
    """Leaves of nested lists and tuples (operators know no other containers)."""
    if isinstance(tree, list | tuple):
        for item in tree:
            yield from flat(item)
    else:
        yield tree


def mapped(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    kind = type(tree)
    if kind is list or kind is tuple:
        return [mapped(item, change) if type(item) not in _PLAIN else item for item in tree]
    if kind is dict:
        return {key: mapped(item, change) for key, item in tree.items()}
    return tree


class Where:
    """Which module runs, kept up to date by module hooks."""

    def __init__(self) -> None:
        self.stack: list[list[Any]] = [["", "", 0]]

    @property
    def path(self) -> str:
        return str(self.stack[-1][0])

    def next(self) -> tuple[str, Site]:
        frame = self.stack[-1]
        frame[2] += 1
        return frame[0], (frame[1], frame[2])

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        names = {id(module): (path, _kind(path, module)) for path, module in model.named_modules()}

        def enter(module: nn.Module, _args: Any) -> None:
            self.stack.append([*names.get(id(module), (self.path, "")), 0])

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            if len(self.stack) > 1:
                self.stack.pop()

        handles = (
            hooks.register_module_forward_pre_hook(enter),
            hooks.register_module_forward_hook(leave, always_call=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _kind(path: str, module: nn.Module) -> str:
    """PyTorch's own layers are used all over: what is learnt about one of them says nothing of the next."""
    cls = type(module)
    return path if cls.__module__.startswith("torch.nn") else f"{cls.__module__}.{cls.__qualname__}"


def record(model: nn.Module, inputs: tuple[Any, ...], tensors: Mapping[str, Tensor]) -> tuple[Tape, nn.Module]:
    """Run `model` once, in eval mode and without gradients, and write down every operator.

    What runs is a copy around the same parameters, returned with whatever the run left in it: forwards keep caches and
    counters. Raises `TraceError` when the forward fails on real tensors too, or changes a parameter.
    """
    buffers = [(t, t.detach().clone()) for t in tensors.values() if not isinstance(t, nn.Parameter)]
    twin = _twin(model, tensors)
    try:
        return _recorded(twin, tree_map(_meta_input, inputs), Recorder(tensors, real=False)), twin
    except TraceError:
        raise
    except Exception:
        _LOG.debug("the model does not run without values", exc_info=True)
    finally:
        _restore(buffers)
    twin = _twin(model, tensors)
    try:
        return _recorded(twin, tree_map(_own_input, inputs), Recorder(tensors, real=True)), twin
    except TraceError:
        raise
    except Exception as error:
        shapes = [list(t.shape) for t in tree_leaves(inputs) if isinstance(t, Tensor)]
        raise TraceError(f"the model fails on inputs of shape {shapes}: {type(error).__name__}: {error}") from error
    finally:
        _restore(buffers)


def _twin(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    try:
        return copied(model, Memo({id(t): t for t in tensors.values()}))
    except Exception as error:
        raise TraceError(f"the model cannot be copied, so it cannot be cut: {type(error).__name__}: {error}") from error


def _restore(buffers: Sequence[tuple[Tensor, Tensor]]) -> None:
    for tensor, before in buffers:
        if not torch.equal(tensor, before):
            tensor.data.copy_(before)


def _meta_input(leaf: Any) -> Any:
    return to_meta(leaf) if isinstance(leaf, Tensor) else leaf


def _own_input(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def run(model: nn.Module, inputs: tuple[Any, ...], mode: TorchDispatchMode, where: Where | None = None) -> Any:
    """Run `model` under `mode`, keeping track of `where` it is; returns the model's output."""
    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        stack.enter_context(by_heads(model))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # fused attention is one opaque operator
        if where is not None:
            stack.enter_context(where.following(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(mode)
        return model(*inputs)


def _recorded(model: nn.Module, inputs: tuple[Any, ...], recorder: Recorder) -> Tape:
    output = run(model, inputs, recorder, recorder.where)
    recorder.tape.outputs = [recorder.value(leaf) for leaf in leaves(output)]
    recorder.tape.shapes = [tuple(leaf.shape) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return recorder.tape


def leaves(tree: Any, depth: int = 8) -> Iterator[Tensor]:
    """All tensors in an output: in lists, dicts, dataclasses and other objects' attributes."""
    if isinstance(tree, Tensor):
        yield tree
    elif depth and isinstance(tree, Mapping):
        for item in tree.values():
            yield from leaves(item, depth - 1)
    elif depth and isinstance(tree, list | tuple | set | frozenset):
        for item in tree:
            yield from leaves(item, depth - 1)
    elif depth and hasattr(tree, "__dict__") and not isinstance(tree, type | nn.Module):
        yield from leaves(vars(tree), depth - 1)
    elif depth and hasattr(tree, "__slots__"):
        yield from leaves([getattr(tree, name, None) for name in tree.__slots__], depth - 1)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and PyTorch's plain transformer layers inside; everything as before after."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
