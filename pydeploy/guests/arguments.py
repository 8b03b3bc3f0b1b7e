"""The arguments of functions that are named in a config or a command: checked before the functions are called."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydeploy.errors import ConfigError, nearest


def check_names(what: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` that calls the function `what` where it lacks one of the settings `given`, or needs further ones."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # compiled code without a signature
        return
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in by_name]
    if positional := [p.name for p in parameters if p.kind == p.POSITIONAL_ONLY and p.default is p.empty]:
        raise ConfigError(
            f"{what} takes {', '.join(positional)} by position only; write a function that needs no arguments"
        )
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        for key in given:
            if key not in names:
                raise ConfigError(f"{what}: no setting '{key}'" + (nearest(key, names) if names else "; it takes none"))
    if missing := [p.name for p in by_name if p.default is p.empty and p.name not in given]:
        raise ConfigError(f"{what} needs {', '.join(missing)}: give {'it' if len(missing) == 1 else 'them'} as options")


def typed(what: str, function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` in the types that the function's annotations name, strictly: text is no number, and neither is yes or no.

    Lists may stand for tuples, whole numbers for floats. Raises `ConfigError` that names the setting whose value does not fit.
    """
    hints = get_type_hints(function, include_extras=True)
    return {key: _typed(value, hints.get(key, Any), f"'{key}' of {what}") for key, value in given.items()}


def _typed(value: Any, hint: Any, what: str) -> Any:
    if hint is Any:
        return value
    from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError  # 40 ms, for who gives options

    try:
        return TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except PydanticSchemaGenerationError:  # a class of the factory's own: not for us to judge
        return value
    except TypeError:
        raise ConfigError(f"setting {what} must be text, a number, a list or a mapping, got {value!r}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"setting {what}: {f'{place}: ' if place else ''}{first['msg'].removeprefix('Input ')}, got {first['input']!r}"
        ) from None
