"""Functions that are named in a config: their arguments are checked before they are called."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from pydeploy.errors import ConfigError, nearest

Made = TypeVar("Made")


def make(factory: Callable[..., Made], settings: Mapping[str, Any], what: str) -> Made:
    """``factory(**settings)``.

    Raises `ConfigError` that names `what` ("data set 'digits'") and the setting that `factory` does not have, that lacks or
    whose type is another than the annotated one. Lists may stand for tuples, whole numbers for floats.
    """
    parameters = inspect.signature(factory).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    for key in settings:
        if key not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise ConfigError(f"{what}: no setting '{key}'{nearest(key, parameters)}")
    for key, parameter in parameters.items():
        variable = parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        if key not in settings and parameter.default is inspect.Parameter.empty and not variable:
            raise ConfigError(f"{what}: setting '{key}' is required")
    return factory(**typed(what, factory, settings))


def typed(what: str, function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` in the types that the function's annotations name, strictly: text is no number, and neither is yes or no.

    Lists may stand for tuples, whole numbers for floats. Raises `ConfigError` that names the setting whose value does not fit.
    """
    hints = get_type_hints(function)
    return {key: _typed(value, hints.get(key, Any), f"'{key}' of {what}") for key, value in given.items()}


def _typed(value: Any, hint: Any, what: str) -> Any:
    """`value` as the annotated type `hint`, strictly: text is no number, and neither is yes or no."""
    if hint is Any:
        return value
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
