"""Atomic writes and checked reads: a killed process or a full disk never leaves a half-written file."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydeploy.errors import ConfigError, DataError

Parsed = TypeVar("Parsed")


def check_writable(path: Path) -> None:
    """`DataError` where a file can certainly not be written: to be asked before long work."""
    if not path.name or path.is_dir():
        raise DataError(f"cannot write {path}: it is a folder; give the name of a file")
    above = next((folder for folder in path.parents if folder.exists()), Path())
    if not above.is_dir():
        raise DataError(f"cannot write {path}: {above} is not a folder; choose a writable folder")


def joined(folder: Path, path: Path) -> Path:
    """``folder / path`` without ``..`` where that is the same file."""
    place = folder / path
    short = Path(os.path.normpath(place))
    return short if short.exists() and place.exists() and short.samefile(place) else place


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that becomes `path` when the block ends without an error.

    Its name is chosen before the file exists, so that Ctrl-C at any moment leaves nothing behind.
    """
    check_writable(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
    remedy = "choose a writable folder with free space"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        remedy = "nothing was changed"
        yield partial
        _flush(partial)
        partial.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; {remedy}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(Path(path)) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; NaN becomes null, because JSON has no NaN."""
    write_text(path, json.dumps(_finite(data), indent=1) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def read_json(path: Path) -> Any:
    """Parsed JSON, or `DataError` saying what is wrong with the file."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON ({error}); it is truncated or another kind of file") from None


def parsed(path: Path, parse: Callable[[Any], Parsed]) -> Parsed:
    """What `parse` makes of the JSON in `path`; its `DataError` names the file."""
    data = read_json(path)
    try:
        return parse(data)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def read_yaml(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The mapping in a YAML file; `ConfigError` that calls the file `what`, and names the `remedy` where it is missing."""
    import yaml

    class Loader(yaml.SafeLoader):
        """A key that is given twice is an error: one of its values would have no effect."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            if twice := {key for key in keys if keys.count(key) > 1}:
                text = f"key '{min(twice)}' is given twice in one section"
                raise yaml.constructor.ConstructorError(problem=text, problem_mark=node.start_mark)
            return super().construct_mapping(node, deep)

    try:
        data = Loader(Path(path).read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        raise ConfigError(f"{what} {path} does not exist; {remedy}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{what} {path} is not readable YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{what} {path} must hold a mapping, got {type(data).__name__}")
    return data


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes; `DataError` where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()
