"""What objects of Python refer to: the part of a model that lies outside of its modules' tables.

Hooks and functions kept as attributes see other objects through closures, default arguments, `functools.partial`, bound
methods and weak references. A copy of a model whose functions still see the original is no copy: it would write into the
original and read from it.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, type, range, slice, types.ModuleType, types.CodeType,
                   type(Ellipsis), type(NotImplemented), torch.dtype, torch.device, torch.memory_format, torch.layout,
                   torch.Size, torch.finfo, torch.iinfo})  # fmt: skip
"""Kinds of which a copy is the original."""
CACHED: type = type(functools.lru_cache(len))
BOUND = (types.BuiltinFunctionType, types.MethodWrapperType)
"""Methods written in C; ``__self__`` is what they belong to."""
CALLS = (types.FunctionType, types.MethodType, functools.partial, CACHED, weakref.ref, *BOUND)
"""Kinds that refer to other objects without being containers."""
HOOKS = frozenset(name for name in vars(nn.Module()) if name.endswith("hooks"))
_CONTAINERS = (list, tuple, set, frozenset, deque)
_DEPTH = 6


def content(cell: types.CellType) -> list[Any]:
    """What a cell of a closure holds, if anything."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def seen(call: Any) -> list[Any]:
    """What a function, method, partial or weak reference sees, its globals not counted."""
    if isinstance(call, types.FunctionType):
        kept = [*(call.__defaults__ or ()), *(call.__kwdefaults__ or {}).values(), *vars(call).values()]
        return [*(call.__closure__ or ()), *kept]
    if isinstance(call, types.MethodType):
        return [call.__func__, call.__self__]
    if isinstance(call, functools.partial):
        return [call.func, *call.args, *call.keywords.values()]
    if isinstance(call, CACHED):
        return list(vars(call).values())  # __wrapped__ is one of them
    if isinstance(call, weakref.ref):
        return [call()]
    owner = getattr(call, "__self__", None)
    return [] if owner is None or isinstance(owner, types.ModuleType) else [owner]


def parts(value: Any) -> list[Any]:
    """What lies in a container, a module or another object."""
    if type(value) in ATOMS or isinstance(value, type | Tensor):
        return []
    if isinstance(value, types.CellType):
        return content(value)
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, _CONTAINERS):
        return list(value)
    return [*getattr(value, "__dict__", {}).values(), *(item for item in slots(value).values())]


def slots(value: Any) -> dict[str, Any]:
    """The values of an object's ``__slots__``."""
    named = [name for base in type(value).__mro__ for name in _names(base.__dict__.get("__slots__", ()))]
    return {name: getattr(value, name) for name in named if hasattr(value, name)}


def _names(declared: Any) -> list[str]:
    names = [declared] if isinstance(declared, str) else list(declared)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


class Survey:
    """Which objects that functions in a model see belong to the model, and which to somebody outside.

    A container that a single hook writes is somebody's log: it stays one and the same for the original and the copy. What
    two different functions share, what a function that is no hook uses, and what holds a part of the model, belongs to the
    model. What methods of classes see cannot be copied, because classes are not.
    """

    def __init__(self, model: nn.Module) -> None:
        self.members: dict[int, Any] = {}
        """Parts of the model by `id`."""
        self.functions: list[tuple[Any, str]] = []
        """Functions kept in the model, and the name of the place."""
        self._users: dict[int, set[Any]] = {}
        self._touching: set[int] = set()
        self._public = {id(item) for kind in {type(m) for m in model.modules()} for item in methods_see(kind)}
        self._collect(model)
        for function, place in self.functions:
            own = place.rpartition(".")[2] not in HOOKS
            for item in seen(function):
                self._visit(item, None if own else _code(function), _DEPTH)

    def shared(self, value: Any) -> bool:
        """Whether the copy's functions see the same `value` as the original's."""
        key = id(value)
        if key in self.members:
            return False
        users = self._users.get(key, set())
        return key in self._public or (key not in self._touching and None not in users and len(users) < 2)

    def _collect(self, model: nn.Module) -> None:
        """Everything that attributes reach, and the functions on the way."""
        pending: list[tuple[Any, str]] = [(model, "")]
        while pending:
            value, place = pending.pop()
            if isinstance(value, CALLS):
                self.functions.append((value, place))
            elif id(value) not in self.members and type(value) not in ATOMS:
                self.members[id(value)] = value
                if isinstance(value, nn.Module):
                    tables = [(item, f"{place}.{name}") for name, item in vars(value).items() if name != "_modules"]
                    pending += [
                        *tables,
                        *((m, f"{place}.{name}") for name, m in value._modules.items() if m is not None),
                    ]
                else:
                    pending += [(item, place) for item in parts(value)]

    def _visit(self, value: Any, user: Any, depth: int) -> bool:
        """Note `user` at everything that `value` reaches; whether a part of the model is there."""
        if id(value) in self.members:
            return True
        if type(value) in ATOMS or isinstance(value, type):
            return False
        users = self._users.setdefault(id(value), set())
        if user in users or not depth:
            return id(value) in self._touching
        users.add(user)
        inner = seen(value) if isinstance(value, CALLS) else parts(value) if _plain(value) else []
        touching = [self._visit(item, user, depth - 1) for item in inner]
        if any(touching):
            self._touching.add(id(value))
        return id(value) in self._touching


def _code(function: Any) -> Any:
    """What tells one function from another: hooks made in a loop are one."""
    while isinstance(function, (functools.partial, types.MethodType)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    return getattr(function, "__code__", id(function))


def _plain(value: Any) -> bool:
    """Containers, and objects of classes that are written in Python by somebody else than torch."""
    return isinstance(value, (dict, types.CellType, *_CONTAINERS)) or (
        hasattr(value, "__dict__") and type(value).__module__.split(".")[0] not in ("torch", "numpy", "logging")
    )


def is_library(kind: type) -> bool:
    return kind.__module__.split(".")[0] in ("torch", "builtins")


def methods(kind: type) -> Iterator[types.FunctionType]:
    """All functions in the bodies of a class and its bases, torch's left out."""
    for base in kind.__mro__:
        if is_library(base):
            continue
        for item in vars(base).values():
            inner = getattr(item, "__func__", None) or getattr(item, "fget", None) or getattr(item, "func", item)
            if isinstance(inner, types.FunctionType):
                yield inner


def methods_see(kind: type) -> Iterator[Any]:
    """What the methods of a class see through closures, default arguments and global names, and its own attributes."""
    pending = [*(item for base in kind.__mro__ if not is_library(base) for item in vars(base).values())]
    for method in methods(kind):
        pending += [*seen(method), *named_globals(method).values()]
    known: set[int] = set()
    while pending:
        value = pending.pop()
        if isinstance(value, (dict, types.CellType, *_CONTAINERS)) and id(value) not in known:
            known.add(id(value))
            yield value
            pending += parts(value)


def named_globals(function: types.FunctionType) -> dict[str, Any]:
    """Values of the global names in a function's code (and of attributes that happen to be called like one)."""
    return {name: function.__globals__[name] for name in names_in(function.__code__) if name in function.__globals__}


@functools.lru_cache(maxsize=4096)
def names_in(code: types.CodeType) -> tuple[str, ...]:
    inner = [name for item in code.co_consts if isinstance(item, types.CodeType) for name in names_in(item)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))
