"""What ``FILE.py:NAME`` and ``PACKAGE.MODULE:NAME`` name: a user's own function or class, wherever one is asked for.

Errors of that code become one sentence with its file and line. What it prints goes to stderr, because stdout holds results.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from pydeploy.errors import ConfigError, DataError, DeployError, nearest
from pydeploy.guests.folders import PREFIX, Folder, folder_of

_FOLDERS: dict[Path, Folder] = {}


def find(spec: str, what: str) -> Callable[..., Any]:
    """The function or class that ``FILE.py:NAME`` or ``PACKAGE.MODULE:NAME`` names; NAME may have dots.

    A module is looked for in the current folder, then among the installed packages. `what` says what is expected, such as
    "a function that returns a model". Raises `DataError` where there is no such file, `ConfigError` where there is no such
    module or name, or the code cannot be run.
    """
    home, _, name = spec.rpartition(":")
    module = _file(Path(home), what) if home.endswith(".py") else _module(home)
    found: Any = module
    for part in name.split("."):
        owner, found = found, getattr(found, part, None)
        if not callable(found):
            names = [n for n in vars(owner) if not n.startswith("_") and callable(getattr(owner, n))]
            raise ConfigError(f"{home} has no function '{name}'{nearest(part, names)}; expected {what}")
    return found  # type: ignore[no-any-return]


def choose(name: str, known: Mapping[str, Any], kind: str, entry_points: str) -> Any:
    """``known[name]``, what an installed package registers as `name` in the group `entry_points`, or what ``FILE.py:NAME`` names.

    `kind` says what is chosen in errors, which are as those of `find`, with the nearest known name for an unknown one.
    """
    if name in known:
        return known[name]
    if ":" in name:
        return find(name, f"a {kind}")
    points = metadata.entry_points(group=entry_points)
    if name in points.names:
        with _guest(None, f"{kind} '{name}' of an installed package cannot be loaded"):
            return points[name].load()
    raise ConfigError(f"unknown {kind} '{name}'{nearest(name, [*known, *points.names])}; or your own, as FILE.py:NAME")


def file_of(name: str) -> Path | None:
    """The file that a name ``FILE.py:NAME`` names."""
    home = name.rpartition(":")[0]
    return Path(home) if home.endswith(".py") else None


def call(spec: str, function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """What `function`, found as `spec`, returns for the arguments `given`; `ConfigError` where they do not fit or it fails."""
    _check_arguments(spec, function, given)
    with _guest(folder_of(function), f"{spec} cannot be built with {dict(given)}"):
        return function(**given)


def _check_arguments(spec: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # compiled code without a signature
        return
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in by_name]
    if positional := [p.name for p in parameters if p.kind == p.POSITIONAL_ONLY and p.default is p.empty]:
        raise ConfigError(
            f"{spec} takes {', '.join(positional)} by position only; write a function that needs no arguments"
        )
    if missing := [p.name for p in by_name if p.default is p.empty and p.name not in given]:
        raise ConfigError(f"{spec} needs {', '.join(missing)}: give {' '.join(f'-o {name}=VALUE' for name in missing)}")
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return
    for key in given:
        if key not in names:
            raise ConfigError(f"{spec} has no argument '{key}'" + (nearest(key, names) if names else "; it takes none"))


def _file(path: Path, what: str) -> ModuleType:
    """The module of a file, run beside its neighbours; one of an importable package is imported by its own name."""
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {kind}; expected a Python file with {what}")
    file = path.resolve()
    root = file.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    parts = file.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if len(parts) > 1 and _is_at(parts[0], root / parts[0]):
        with _guest(None, f"{path} cannot be run"):
            return importlib.import_module(name)
    folder = _folder(root)
    with _guest(folder, f"{path} cannot be run"):
        return folder.load(file)


def is_module(name: str) -> bool:
    """Whether PACKAGE of the module PACKAGE.MODULE lies in the current folder or is installed."""
    top = name.partition(".")[0]
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    return _here(top) is not None or importlib.util.find_spec(top) is not None


def _here(top: str) -> str | None:
    """Full name of a module or package in the current folder; None where the environment's is meant."""
    return None if _is_at(top, Path.cwd() / top) else _folder(Path.cwd()).home_of(top)


def _module(name: str) -> ModuleType:
    """The module of that name; in the current folder, as for ``python -m``, or of an installed package."""
    top, dot, rest = name.partition(".")
    home = _here(top)
    with _guest(_folder(Path.cwd()) if home else None, f"module {name} cannot be imported"):
        return importlib.import_module((home or top) + dot + rest)


def _folder(path: Path) -> Folder:
    """The folder's modules as they were run before; run anew where a text has changed."""
    if path not in _FOLDERS or _FOLDERS[path].changed():
        _FOLDERS[path] = Folder(path)
    importlib.invalidate_caches()
    return _FOLDERS[path]


def _is_at(top: str, place: Path) -> bool:
    """Whether the environment's package `top` is the one at `place`."""
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module without a specification
        return False
    return spec is not None and place in (Path(p).resolve() for p in spec.submodule_search_locations or ())


@contextmanager
def _guest(folder: Folder | None, failing: str) -> Iterator[None]:
    """Run a user's code: its folder's modules by plain names, its output on stderr, its errors as one sentence."""
    try:
        with redirect_stdout(sys.stderr), nullcontext() if folder is None else folder.visible():
            yield
    except DeployError:
        raise
    except SystemExit:
        raise ConfigError(
            f"{failing}: it ends the program (sys.exit); put what runs as a script under: if __name__ == '__main__':"
        ) from None
    except Exception as error:  # users' code may raise anything
        raise ConfigError(f"{failing}: {told(error, folder)}") from None


def told(error: BaseException, folder: Folder | None = None) -> str:
    """An error of a user's code in one line: its kind, its text, and the last line of that code that it came from."""
    text = re.sub(rf"{PREFIX}\d+\.", "", " ".join(str(error).split()))[:300]
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    own = [frame for frame in frames if folder is not None and _is_in(folder.path, frame.filename)]
    place = f" ({(own or frames)[-1].filename}, line {(own or frames)[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or Path(filename).parent == Path(__file__).parent


def _is_in(folder: Path, filename: str) -> bool:
    path = Path(filename)
    return folder in path.parents and "site-packages" not in path.parts
