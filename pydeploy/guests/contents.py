"""The contents of users' code: a hash that changes with the file that is named, and with every file of its own that it imports."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from pydeploy.errors import DataError
from pydeploy.guests import resolve

SHARED = {"site-packages", "dist-packages"}
"""Folders that hold other people's packages too."""
BY_TEXT = {"importlib", "__import__", "runpy"}
"""Names that only code uses that imports modules by computed names."""


def digest(spec: str) -> str:
    """SHA-256 of the texts behind ``FILE.py:NAME`` or ``PACKAGE.MODULE:NAME``; the same wherever the folder lies."""
    root, file = resolve.place_of(spec.rpartition(":")[0])
    found = hashlib.sha256()
    for path in files(root, file):
        try:
            text = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        found.update(f"{path.relative_to(root).as_posix()} {len(text)}\n".encode() + text)
    return found.hexdigest()


def files(root: Path, file: Path) -> list[Path]:
    """`file` and all files below `root` that it imports, directly or not, anywhere in their texts; sorted.

    A file that imports modules by computed names may read any of those beside it and below.
    """
    found: set[Path] = set()
    waiting, within = [file], _within(root, file)
    while waiting:
        path = waiting.pop()
        if path in found or not (path == within or within in path.parents):
            continue
        found.add(path)
        tree = _tree(path)
        waiting += _packages(root, path)
        waiting += [one for name in _imports(tree, root, path) for one in _found(root, path, name)]
        if any(isinstance(node, ast.Name) and node.id in BY_TEXT for node in ast.walk(tree)):
            waiting += [one for one in path.parent.rglob("*.py") if not SHARED & {*one.parts[len(root.parts) :]}]
    return sorted(found)


def _within(root: Path, file: Path) -> Path:
    """Where the files of a user's code lie: below `root`, but where many packages are installed, in its own package."""
    return root / file.relative_to(root).parts[0] if root.name in SHARED else root


def _tree(path: Path) -> ast.AST:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # what cannot be run imports nothing
        return ast.Module([], [])


def _packages(root: Path, path: Path) -> Iterator[Path]:
    """``__init__.py`` of the packages around a file."""
    for folder in path.relative_to(root).parents:
        if (init := root / folder / "__init__.py").is_file() and folder != Path():
            yield init


def _imports(tree: ast.AST, root: Path, path: Path) -> Iterator[str]:
    """Dotted names of everything that may be a module."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)
            yield base


def _found(root: Path, importer: Path, name: str) -> Iterator[Path]:
    """The files of a dotted name and of the packages that it goes through: below `root`, or beside the importer."""
    parts = [part for part in name.split(".") if part and part != "*"]
    for base in {root, importer.parent}:
        for count in range(1, len(parts) + 1):
            place = base.joinpath(*parts[:count])
            yield from (p for p in (place.with_name(f"{place.name}.py"), place / "__init__.py") if p.is_file())
