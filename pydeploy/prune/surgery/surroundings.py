"""What a run of a model's copy can change outside of that copy: the model itself, what its functions see, classes, globals,
random states. `Surroundings` remembers all of it and puts it back.
"""

from __future__ import annotations

import random
import sys
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as everywhere

from pydeploy.prune.surgery.references import (
    ATOMS,
    CACHED,
    CALLS,
    HOOKS,
    content,
    is_library,
    methods,
    named_globals,
    seen,
    slots,
)

_DEPTH = 5
_TABLES = frozenset(vars(nn.Module()))
_FOREIGN = frozenset({"torch", "numpy", *sys.stdlib_module_names}) - {"types", "argparse", "_thread", "collections"}


class Surroundings:
    """The state around the copies of `model`, as it was when this was made."""

    def __init__(self, model: nn.Module) -> None:
        self.own: dict[int, str] = {}
        """Parts of the model by `id`, and where they lie."""
        self._held: dict[int, tuple[Any, Any]] = {}
        """Objects by `id`, each with a shallow copy of what is in it."""
        self._names: list[tuple[dict[str, Any], dict[str, Any]]] = []
        """Globals of files and their values, of the names that functions use."""
        self._caches: list[tuple[Any, int]] = []
        self._random = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 (the user's)
        functions: list[tuple[Any, str]] = []
        for path, module in model.named_modules():
            self._keep(module, path, _DEPTH, functions)
        self._inside = len(self._held)
        self.leaks = list(self._around(model, functions))
        """How functions see parts of the model that a copy does not replace: ``hook 'keep' of 'a' by the name 'NET'``."""

    @property
    def advice(self) -> str:
        """What to do about a copy that uses the model itself."""
        who = self.leaks[0] if self.leaks else "one of its functions or hooks"
        return f"{who} refers to the model; let it use its arguments, the module's attributes or a closure"

    @property
    def foreign(self) -> dict[int, str]:
        """What a copy of the model must not use, by `id`: tensors and modules of the model itself, which some function sees."""
        if not self.leaks:
            return {}
        places = self.own.items()
        return {
            key: f"a copy of the model uses '{place or 'the model'}' of the model itself: {self.advice}"
            for key, place in places
        }

    def has(self, value: Any) -> bool:
        """Whether `value` is one of the objects outside of the model."""
        return id(value) in self._held and id(value) not in self.own

    def restore(self, *, model: bool = False) -> list[str]:
        """Put everything back, the model itself only if asked; the places in the model where tensors had changed."""
        changed = []
        for number, (item, held) in enumerate(self._held.values()):
            if number >= self._inside or model:
                new = _put(item, held)
                if number < self._inside and any(isinstance(leaf, Tensor) for leaf in new):
                    changed.append(self.own[id(item)])
        for table, named in self._names:
            table.update({name: value for name, value in named.items() if table.get(name) is not value})
        for cache, size in self._caches:
            if cache.cache_info().currsize != size:
                cache.cache_clear()
        torch.set_rng_state(self._random[0])
        np.random.set_state(self._random[1])  # noqa: NPY002
        random.setstate(self._random[2])
        return changed

    def _keep(self, value: Any, place: str, depth: int, functions: list[tuple[Any, str]]) -> None:
        """Remember `value` and what lies in it; collect functions."""
        pending = [(value, place, depth)]
        while pending:
            item, where, left = pending.pop()
            if isinstance(item, CALLS):
                functions.append((item, where))
            elif isinstance(item, Tensor):
                self.own[id(item)] = where
            elif left and id(item) not in self._held and (held := _contents(item)) is not None:
                self._held[id(item)] = item, held
                self.own[id(item)] = where
                pending += [(part, f"{where}.{name}".lstrip("."), left - 1) for name, part in _parts(item, held)]

    def _around(self, model: nn.Module, functions: list[tuple[Any, str]]) -> Iterator[str]:
        """Remember what functions see outside of the model; yields those that see the model in a way that is not copied."""
        kinds = {kind: None for module in model.modules() for kind in type(module).__mro__ if not is_library(kind)}
        tables = [
            getattr(everywhere, name)
            for name in vars(everywhere)
            if name.startswith("_global") and name.endswith("hooks")
        ]
        outside: list[tuple[Any, str]] = [(item, "a class, or a hook of all modules,") for item in (*kinds, *tables)]
        fixed = [(method, f"'{method.__qualname__}'") for kind in kinds for method in methods(kind)]
        kept = [(call, _described(call, place)) for call, place in functions]
        known: set[int] = set()
        pending = [(call, text, True) for call, text in fixed] + [(call, text, False) for call, text in kept]
        while pending:
            call, text, stays = pending.pop()
            if id(call) in known:
                continue
            known.add(id(call))
            if isinstance(call, CACHED):
                cache: Any = call
                self._caches.append((cache, cache.cache_info().currsize))
            found = [(item, "a closure", stays) for item in _opened(seen(call))]
            if isinstance(call, types.FunctionType):
                named = named_globals(call)
                self._names.append((call.__globals__, named))
                found += [(item, f"the name '{name}'", True) for name, item in named.items()]
            for item, how, fast in found:
                if isinstance(item, CALLS):
                    pending.append((item, text, fast))
                elif id(item) in self.own and fast and not isinstance(item, type):
                    yield f"{text} by {how}"
                else:
                    outside.append((item, f"{text} by {how}" if fast else ""))
        for item, text in outside:
            yield from self._remember(item, text)

    def _remember(self, value: Any, text: str) -> Iterator[str]:
        pending = [(value, _DEPTH)]
        while pending:
            item, left = pending.pop()
            if id(item) in self._held or not left or (held := _contents(item)) is None:
                continue
            self._held[id(item)] = item, held
            for _, part in _parts(item, held):
                if id(part) in self.own and isinstance(part, nn.Module):
                    if text:
                        yield text
                elif not isinstance(part, (Tensor, *CALLS)):
                    pending.append((part, left - 1))


def _described(call: Any, place: str) -> str:
    """A function of the model in words."""
    path, _, table = place.rpartition(".")
    if table not in HOOKS:
        path, _, table = path.rpartition(".")
    name = getattr(call, "__qualname__", None) or getattr(
        getattr(call, "func", None), "__qualname__", type(call).__name__
    )
    return f"hook '{name}' of '{path}'" if table in HOOKS else f"'{name}' at '{place}'"


def _opened(items: list[Any]) -> list[Any]:
    """Cells and what is in them."""
    return [*items, *(value for item in items if isinstance(item, types.CellType) for value in content(item))]


def _contents(item: Any) -> Any:
    """A shallow copy of what can change in `item`; None where nothing can, or where it is somebody else's."""
    if type(item) in ATOMS and not isinstance(item, type):
        return None
    if isinstance(item, nn.Module):
        return dict(vars(item))
    if isinstance(item, dict):
        return list(item.items())
    if isinstance(item, (list, deque)):
        return list(item)
    if isinstance(item, set):
        return set(item)
    if isinstance(item, (tuple, frozenset)):
        return tuple(item)
    if isinstance(item, types.CellType):
        return content(item)
    kind = item if isinstance(item, type) else type(item)
    if kind.__module__.split(".")[0] in _FOREIGN:
        return None
    if isinstance(item, type):
        return {name: value for name, value in vars(item).items() if not name.startswith("__")}
    return {**getattr(item, "__dict__", {}), **slots(item)}


def _parts(item: Any, held: Any) -> list[tuple[str, Any]]:
    """What lies in `item`, with names; a module's tables without hooks of torch's own that are empty."""
    if isinstance(item, nn.Module):
        found: list[tuple[str, Any]] = []
        for name, value in held.items():
            if type(value) in ATOMS or name in ("_modules", "_parameters"):
                continue
            if name not in _TABLES or (value and name != "_buffers"):
                found.append((name, value))
            elif value:
                lasting = held["_non_persistent_buffers_set"]
                found += [(key, tensor) for key, tensor in value.items() if key in lasting]
        return found
    if isinstance(item, type):
        return [(name, value) for name, value in held.items() if not isinstance(value, CALLS)]
    if isinstance(item, dict):
        return [(str(key), value) for key, value in held]
    return list(held.items()) if isinstance(held, dict) else [("", value) for value in held]


def _put(item: Any, held: Any) -> list[Any]:
    """Give `item` back what it held; what was there instead."""
    if isinstance(item, (tuple, frozenset)):
        return []
    now = _contents(item)
    if _same(now, held):
        return []
    if isinstance(item, dict):
        item.clear()
        item.update(held)
    elif isinstance(item, (list, set, deque)):
        item.clear()
        (item.update if isinstance(item, set) else item.extend)(held)
    elif isinstance(item, types.CellType):
        del item.cell_contents
        for value in held:
            item.cell_contents = value
    else:
        gone = [name for name in now if name not in held]
        for name in gone:
            delattr(item, name) if isinstance(item, type) else object.__delattr__(item, name)
        for name, value in held.items():
            if now.get(name) is not value:
                setattr(item, name, value) if isinstance(item, type) else object.__setattr__(item, name, value)
        return [value for name, value in now.items() if held.get(name) is not value]
    return [value for _, value in now] if isinstance(item, dict) else list(now)


def _same(now: Any, held: Any) -> bool:
    """Whether two shallow copies hold the same objects."""
    if isinstance(held, dict):
        return len(now) == len(held) and all(name in now and now[name] is value for name, value in held.items())
    if isinstance(held, list):
        return len(now) == len(held) and all(
            one is two
            or (type(one) is tuple and type(two) is tuple and len(one) == len(two) and all(map(_is, one, two)))
            for one, two in zip(now, held, strict=True)
        )
    return now == held if isinstance(held, set) else now is held


def _is(one: Any, two: Any) -> bool:
    return one is two
