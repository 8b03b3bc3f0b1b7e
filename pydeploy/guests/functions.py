"""What a function that a program hands over depends on, as far as it can be told: a hash that changes with it.

* Its bytecode and constants, its defaults, what it closes over, and the globals that it reads.
* Functions and classes of the program's own are followed in the same way; those of installed packages count by name and version.
* Numbers, text, paths, containers, arrays and tensors count by their values; objects by their class and attributes, those of
  installed packages without private attributes.
* What has no values to tell (generators, open files, locks, random generators) counts by its type alone.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from pydeploy.guests.contents import SHARED

PLAIN = (int, float, complex, bool, str, bytes, type(None), PurePath)
"""Kinds that are told by what they print."""


def digest(value: Any) -> str:
    """SHA-256 of `value`, often a function, and of all that it leads to."""
    found = hashlib.sha256()
    for part in _Walk().parts(value):
        found.update(part)
        found.update(b"\0")
    return found.hexdigest()


class _Walk:
    """Goes through values depth first; what was met before is told by its number."""

    def __init__(self) -> None:
        self.met: dict[int, int] = {}
        self.held: list[Any] = []
        """Objects that have a number: as long as they live, no other one gets their id."""

    def parts(self, value: Any) -> Iterator[bytes]:
        """Bytes that are the same for equal values."""
        if isinstance(value, PLAIN):
            yield f"{type(value).__name__} {value!r}".encode()
            return
        if id(value) in self.met:
            yield f"again {self.met[id(value)]}".encode()
            return
        self.met[id(value)] = len(self.met)
        self.held.append(value)
        yield f"{type(value).__module__}.{type(value).__qualname__}".encode()
        for part in self._inside(value):
            yield from part if isinstance(part, types.GeneratorType) else (part,)
        yield b"end"

    def _inside(self, value: Any) -> Iterator[Any]:
        if isinstance(value, types.CodeType):
            yield from self._code(value)
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.MethodType):
            yield from map(self.parts, (value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            yield from map(self.parts, (value.func, value.args, value.keywords))
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, types.ModuleType):
            yield _module(value)
        elif (array := _array(value)) is not None:
            yield array
        elif isinstance(value, Mapping):
            for key, item in value.items():
                yield from map(self.parts, (key, item))
        elif isinstance(value, list | tuple):
            yield from map(self.parts, value)
        elif isinstance(value, set | frozenset):
            yield from sorted(digest(item).encode() for item in value)
        else:
            yield from self._object(value)

    def _code(self, code: types.CodeType) -> Iterator[Any]:
        yield code.co_code
        yield from map(self.parts, (code.co_consts, code.co_names, code.co_varnames, code.co_freevars))

    def _function(self, function: types.FunctionType) -> Iterator[Any]:
        if not _own(function.__module__):
            yield _named(function)
            return
        yield self.parts(function.__code__)
        yield self.parts((function.__defaults__, function.__kwdefaults__))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            yield name.encode()
            try:
                yield self.parts(cell.cell_contents)
            except ValueError:  # not bound yet
                yield b"empty"
        for name in sorted(_globals(function.__code__) & function.__globals__.keys()):
            yield name.encode()
            yield self.parts(function.__globals__[name])

    def _class(self, kind: type) -> Iterator[Any]:
        yield f"{kind.__module__}.{kind.__qualname__}".encode()
        if not _own(kind.__module__):
            yield _named(kind)
            return
        for name, item in sorted(vars(kind).items()):
            inner = item.__func__ if isinstance(item, staticmethod | classmethod) else item
            inner = inner.fget if isinstance(inner, property) else inner
            if isinstance(inner, (types.FunctionType, *PLAIN)) and name not in (
                "__module__",
                "__doc__",
                "__firstlineno__",
            ):
                yield name.encode()
                yield self.parts(inner)
        yield from map(self.parts, kind.__bases__)

    def _object(self, value: Any) -> Iterator[Any]:
        yield self.parts(type(value))
        attributes = getattr(value, "__dict__", {})
        every = (
            _own(type(value).__module__) or "_parameters" in attributes
        )  # a network's tensors lie in private attributes
        for name, item in sorted(attributes.items()):
            if every or not name.startswith("_"):
                yield name.encode()
                yield self.parts(item)


def _globals(code: types.CodeType) -> set[str]:
    """Names of the globals that code and the functions inside of it read."""
    found = {str(one.argval) for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _globals(constant)
    return found


def _array(value: Any) -> bytes | None:
    """Type, shape and values of a NumPy array or a tensor."""
    if hasattr(value, "detach") and hasattr(value, "untyped_storage"):
        import torch

        head = f"{value.dtype} {tuple(value.shape)} {value.requires_grad} "
        try:
            plain = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        except (RuntimeError, NotImplementedError, TypeError):  # sparse, or without memory
            return head.encode()
        return head.encode() + hashlib.sha256(plain.tobytes()).digest()
    if hasattr(value, "__array_interface__") and hasattr(value, "tobytes"):
        return f"{value.dtype} {value.shape} ".encode() + hashlib.sha256(value.tobytes()).digest()
    return None


def _module(module: types.ModuleType) -> bytes:
    """A module of the program's own by its text, another one by name and version."""
    if _own(module.__name__) and (file := getattr(module, "__file__", None)):
        return hashlib.sha256(Path(file).read_bytes()).digest()
    return _named(module)


def _named(what: Any) -> bytes:
    module = getattr(what, "__module__", None) or getattr(what, "__name__", "")
    package = sys.modules.get(str(module).partition(".")[0])
    return f"{module}.{getattr(what, '__qualname__', '')} {getattr(package, '__version__', '')}".encode()


@functools.cache
def _own(module: str | None) -> bool:
    """Whether a module is the program's own, not the standard library's, an installed package's or pydeploy's."""
    top = (module or "").partition(".")[0]
    if top in ("pydeploy", "builtins") or top in sys.stdlib_module_names - {"__main__"}:
        return False
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if file is None:
        return top == "__main__"
    inside = Path(file).resolve()
    return not SHARED & set(inside.parts) and Path(sysconfig.get_path("stdlib")) not in inside.parents
