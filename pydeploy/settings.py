"""Settings: frozen records whose numbers and names are checked when they are made, from Python or from a config."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo

from pydeploy.errors import ConfigError, DeployError, nearest
from pydeploy.files import joined
from pydeploy.guests.names import Names


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("should be a number, not yes or no")
    return value


Whole = Annotated[int, BeforeValidator(_no_truth_value)]
Number = Annotated[float, BeforeValidator(_no_truth_value)]
Share = Annotated[Number, Field(gt=0, le=1)]
Positive = Annotated[Whole, Field(ge=1)]


def name_in(kind: str, registry: str) -> AfterValidator:
    """Refuses a name that is not in the mapping ``module:attribute``, which is imported when the first name is checked."""

    def check(name: str) -> str:
        module, _, attribute = registry.partition(":")
        known: Mapping[str, Any] = getattr(importlib.import_module(module), attribute)
        if name not in known:
            raise ValueError(f"unknown {kind} '{name}'{nearest(name, known)}")
        return name

    return AfterValidator(check)


@dataclass(frozen=True)
class _Open:
    """Checks a name of an open kind."""

    names: str

    @property
    def kind(self) -> Names[Any]:
        return _names(self.names)

    def __call__(self, name: str, info: ValidationInfo) -> str:
        try:
            return self.kind.check(placed(self.names, name, info))
        except DeployError as error:
            raise ValueError(str(error)) from None


def placed(names: str, name: str, info: ValidationInfo) -> str:
    """`name`, of the `Names` at ``module:attribute``, as it is understood from the current folder."""
    return _names(names).placed(name, folder_of(info))


def _names(place: str) -> Names[Any]:
    module, _, attribute = place.partition(":")
    found: Names[Any] = getattr(importlib.import_module(module), attribute)
    return found


def open_name(names: str) -> AfterValidator:
    """Refuses what the `pydeploy.guests.names.Names` at ``module:attribute`` do not know and what is no user's code.

    ``FILE.py:NAME`` is relative to the folder of the config.
    """
    return AfterValidator(_Open(names))


def _placed(path: Path, info: ValidationInfo) -> Path:
    place = joined(folder_of(info), path)
    # A plain word may be the name of a file that comes with pydeploy.
    return path if len(path.parts) == 1 and not path.suffix and not place.exists() else place


def folder_of(info: ValidationInfo) -> Path:
    """What paths of a config are relative to; the current folder for settings that are made in Python."""
    return Path((info.context or {}).get("folder", ""))


Place = Annotated[Path, AfterValidator(_placed)]
"""A path; in a config, relative to the folder of the config."""


class Settings(BaseModel):
    """A section of a config. Raises `ConfigError` naming each wrong key; `model_copy(update=...)` does not check."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise ConfigError("\n".join(sentences(error, type(self)))) from None

    # So pydantic does not call it for a section inside a larger one, whose errors name the whole path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def sentences(error: ValidationError, of: type[Settings]) -> list[str]:
    """The problems that were found in the settings `of`, in words, with the nearest known key for an unknown one."""
    return [_sentence(item, of) for item in error.errors()]


def _sentence(item: Any, of: type[Settings]) -> str:
    where = [str(part) for part in item["loc"]]
    name = ".".join(where)
    if item["type"] == "extra_forbidden":
        return f"unknown key '{name}'{nearest(where[-1], keys(of, where[:-1]))}{_elsewhere(where, of)}"
    if item["type"] == "missing":
        return f"key '{name}' is required"
    text = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    given = item.get("input")
    shown = "" if isinstance(given, dict) or item["type"] == "value_error" else f", got {given!r}"
    if item["type"] == "literal_error" and isinstance(given, str):
        hint = nearest(given, re.findall("'(.*?)'", item["ctx"]["expected"]))
        shown += hint if "did you mean" in hint else ""  # all names are told anyway
    return f"'{name}': {text}{shown}" if name else text


def _elsewhere(where: list[str], of: type[Settings]) -> str:
    """The sections that have a key that another one lacks."""
    homes = [section for section in of.model_fields if section != where[0] and where[-1] in keys(of, [section])]
    if len(where) != 2 or not homes:
        return ""
    named = " and ".join(f"'{home}'" for home in homes)
    return (
        f"; sections {named} have a key of this name" if len(homes) > 1 else f"; section {named} has a key of this name"
    )


def section_of(annotation: Any) -> type[Settings] | None:
    """The section that a field holds; None where it is a value."""
    choices = [annotation, *getattr(annotation, "__args__", ())]
    return next((choice for choice in choices if isinstance(choice, type) and issubclass(choice, Settings)), None)


def keys(of: type[Settings], path: Iterable[str]) -> list[str]:
    """Keys of the section at this path; none where it is a value."""
    section: type[Settings] | None = of
    for part in path:
        section = section_of(section.model_fields[part].annotation) if section else None
    return list(section.model_fields) if section else []


def leaves(of: Settings, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted name, as JSON; a section that may be missing has an entry of its own, true or null."""
    found: dict[str, Any] = {}
    data = of.model_dump(mode="json")
    for name in type(of).model_fields:
        value = getattr(of, name)
        if isinstance(value, Settings):
            found |= {f"{prefix}{name}": True} if _optional(type(of), name) else {}
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = data[name]
    return found


def open_names(of: Settings, prefix: str = "") -> dict[str, Names[Any]]:
    """The kind of each setting, by its dotted name, that may name users' code."""
    found: dict[str, Names[Any]] = {}
    for name, field in type(of).model_fields.items():
        value = getattr(of, name)
        if isinstance(value, Settings):
            found |= open_names(value, f"{prefix}{name}.")
        found |= {f"{prefix}{name}": check.kind for check in _checks(field) if isinstance(check, _Open)}
    return found


def from_here(of: type[Settings], key: str, value: Any) -> Any:
    """A value for a setting by its dotted name; a path or FILE.py:NAME in it is relative to the current folder."""
    *sections, last = key.split(".")
    if not isinstance(value, str) or last not in keys(of, sections):
        return value
    section = of
    for name in sections:
        section = section_of(section.model_fields[name].annotation) or section
    for check in _checks(section.model_fields[last]):
        if check is _placed:
            return str(Path(value).absolute())
        if isinstance(check, _Open):
            return check.kind.placed(value, Path.cwd().absolute())
    return value


def _checks(field: FieldInfo) -> list[Any]:
    """The functions that check a field's values."""
    inner = [one for choice in get_args(field.annotation) for one in getattr(choice, "__metadata__", ())]
    return [getattr(one, "func", None) for one in (*field.metadata, *inner)]


def defaults(of: type[Settings], prefix: str = "") -> dict[str, Any]:
    """What `leaves` are where nothing is given; required settings are left out."""
    found: dict[str, Any] = {}
    for name, field in of.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            given = field.get_default(call_default_factory=True) is not None
            found |= {f"{prefix}{name}": given or None} if _optional(of, name) else {}
            found |= defaults(section, f"{prefix}{name}.")
        elif not field.is_required():
            found[f"{prefix}{name}"] = field.get_default(call_default_factory=True)
    return found


def _optional(of: type[Settings], name: str) -> bool:
    return type(None) in getattr(of.model_fields[name].annotation, "__args__", ())
