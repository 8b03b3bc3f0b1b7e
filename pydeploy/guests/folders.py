"""Users' own Python files, run as their authors run them and kept apart from everything else.

A file imports its neighbours, and its package relatively, as if its folder (for a package: the folder that the package lies in)
came first on ``sys.path``. But ``sys.path`` stays as it is, and all modules from there lie in `sys.modules` under a prefix that
only this folder has. So files of equal names, and neighbours of equal names, never meet; imports inside functions work at any
later time; and whatever looks up the module of a class (dataclasses, type hints, sources) finds it.

How: an ``import`` statement calls the ``__import__`` among the builtins of its module, and modules of such a folder get one that
tries the folder first. ``importlib.import_module("neighbour")`` is answered as well, within `Folder.visible`.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PREFIX = "pydeploy_guest_"


class Folder:
    """A folder whose modules are imported as ``<prefix>.<name>``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.prefix = f"{PREFIX}{len(_FINDER.folders)}"
        self.texts: dict[str, tuple[int, int]] = {}
        self.builtins: dict[str, Any] = {**vars(builtins), "__import__": self._import}
        package = ModuleType(self.prefix)
        package.__path__ = [str(path)]
        sys.modules[self.prefix] = package
        _FINDER.folders[self.prefix] = self

    def load(self, file: Path) -> ModuleType:
        """The module of a file in this folder or in one of its packages, run once; errors of its code come through."""
        package = ".".join((self.prefix, *file.relative_to(self.path).parent.parts))
        importlib.import_module(package)
        if file.stem == "__init__":
            return sys.modules[package]
        name = f"{package}.{file.stem.replace('.', '_')}"
        if name not in sys.modules:
            loader = _GuestLoader(name, str(file), self)
            module = importlib.util.module_from_spec(ModuleSpec(name, loader, origin=str(file)))
            module.__file__ = str(file)
            sys.modules[name] = module
            try:
                loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        return sys.modules[name]

    def changed(self) -> bool:
        """Whether a text that was run from here is another one now."""
        return any(_stamp(path) != stamp for path, stamp in self.texts.items())

    @contextmanager
    def visible(self) -> Iterator[None]:
        """Within, anybody imports the folder's modules by their plain names; afterwards nothing of that is left."""
        _FINDER.visible.append(self)
        try:
            yield
        finally:
            _FINDER.visible.pop()
            for name in [name for name in sys.modules if not name.startswith(PREFIX) and _is_guest(name)]:
                del sys.modules[name]

    def home_of(self, top: str, importer: str = "") -> str | None:
        """Full name of the module that ``import top`` means in the package `importer`; None for one of the environment.

        The folder comes first, as for a script. What neither it nor the environment has as a module may also be a folder
        without ``__init__.py``, or lie beside the importer inside a package.
        """
        if top in sys.builtin_module_names or (top in sys.stdlib_module_names and top in sys.modules):
            return None
        own = importlib.util.find_spec(f"{self.prefix}.{top}")
        if own is not None and own.origin is not None:
            return own.name
        if not _is_guest(top) and (top in sys.modules or importlib.util.find_spec(top) is not None):
            return None
        beside = importlib.util.find_spec(f"{importer}.{top}") if importer.startswith(PREFIX) else None
        found = beside or own
        return None if found is None else found.name

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002 (its name in builtins.__import__)
        locals: Mapping[str, object] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        top, dot, rest = name.partition(".")
        home = None if level else self.home_of(top, str((globals or {}).get("__package__") or ""))
        if home is None:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        if fromlist:
            return builtins.__import__(home + dot + rest, globals, locals, fromlist)
        importlib.import_module(home + dot + rest)
        return sys.modules[home]


def folder_of(thing: object) -> Folder | None:
    """The folder that a function or class of a guest comes from."""
    return _FINDER.folders.get(str(getattr(thing, "__module__", "")).partition(".")[0])


def _stamp(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _is_guest(name: str) -> bool:
    return getattr(sys.modules.get(name), "__name__", "").startswith(PREFIX)


class _GuestLoader(SourceFileLoader):
    """Runs a text with the folder's ``__import__``; keeps no bytecode, so that what runs is always the text as it is."""

    def __init__(self, name: str, path: str, folder: Folder) -> None:
        super().__init__(name, path)
        self.folder = folder

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        self.folder.texts[path] = _stamp(path)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = self.folder.builtins
        super().exec_module(module)


class _Alias(Loader):
    """A guest's module under its plain name."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, _spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has put the alias's there


class _Finder(MetaPathFinder):
    """Finds modules of guests' folders by their full names, and those of the visible folder by their plain ones."""

    def __init__(self) -> None:
        self.folders: dict[str, Folder] = {}
        self.visible: list[Folder] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top, dot, rest = fullname.partition(".")
        if top in self.folders:
            found = PathFinder.find_spec(fullname, path, target)
            if found is not None and isinstance(found.loader, SourceFileLoader):
                found.loader = _GuestLoader(fullname, found.loader.path, self.folders[top])
            return found
        home = self._plain(top) if self.visible else None
        return None if home is None else ModuleSpec(fullname, _Alias(importlib.import_module(home + dot + rest)))

    def _plain(self, top: str) -> str | None:
        if top in sys.modules:
            return sys.modules[top].__name__ if _is_guest(top) else None
        folder = self.visible.pop()  # home_of asks for what would be found without it
        try:
            return folder.home_of(top)
        finally:
            self.visible.append(folder)


_FINDER = _Finder()
sys.meta_path.insert(0, _FINDER)
