"""What ``FILE.py:NAME`` and ``PACKAGE.MODULE:NAME`` name: a user's own function or class, wherever one is asked for.

Errors of that code become one sentence with its file and line. What it prints goes to stderr, because stdout holds results.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydeploy.errors import ConfigError, DataError, DeployError, nearest
from pydeploy.guests.arguments import check_names, typed
from pydeploy.guests.folders import PREFIX, Folder, folder_of

Made = TypeVar("Made")
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


def call(spec: str, function: Callable[..., Made], given: Mapping[str, Any], *, own: bool = False) -> Made:
    """What `function`, called `spec` in errors, returns for the arguments `given`; `ConfigError` where they do not fit.

    Errors of users' code become a `ConfigError`. A function of pydeploy's `own` has annotations that its settings have to
    follow, and its errors come through.
    """
    check_names(spec, function, given)
    if own:
        return function(**typed(spec, function, given))
    with guest(folder_of(function), f"{spec} cannot be built with {dict(given)}"):
        return function(**given)


def _file(path: Path, what: str) -> ModuleType:
    """The module of a file, run beside its neighbours; one of an importable package is imported by its own name."""
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {kind}; expected a Python file with {what}")
    root, file = _root_of(path)
    parts = file.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if len(parts) > 1 and _is_at(parts[0], root / parts[0]):
        with guest(None, f"{path} cannot be run"):
            return importlib.import_module(name)
    folder = _folder(root)
    with guest(folder, f"{path} cannot be run"):
        return folder.load(file)


def _root_of(path: Path) -> tuple[Path, Path]:
    """The folder that a file's imports start from (for a package: the one that the package lies in), and the file."""
    file = path.resolve()
    root = file.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    return root, file


def file_of(module: str, root: Path) -> Path | None:
    """The file of a module below `root`; None where there is none."""
    place = root.joinpath(*module.split("."))
    choices = (place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((path for path in choices if path.is_file()), None)


def place_of(home: str) -> tuple[Path, Path]:
    """The folder that the imports of ``FILE.py`` or ``PACKAGE.MODULE`` start from, and its file, without running it."""
    if home.endswith(".py"):
        return _root_of(Path(home))
    if (found := file_of(home, Path.cwd())) is not None:
        return _root_of(found)
    try:
        spec = importlib.util.find_spec(home)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(f"the code of module {home} cannot be found")
    file = Path(spec.origin).resolve()
    up = len(home.split(".")) - (file.stem != "__init__")
    return file.parents[up], file


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
    with guest(_folder(Path.cwd()) if home else None, f"module {name} cannot be imported"):
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
def guest(folder: Folder | None, failing: str) -> Iterator[None]:
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
