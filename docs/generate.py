"""The reference, written from the code: commands, config keys, Python. mkdocs calls `on_files` while it builds the site."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import pydeploy
from pydeploy.cli.app import app
from pydeploy.run.config import Config


def pages() -> dict[str, str]:
    """The generated pages, by their place in docs/."""
    return {"reference/cli.md": commands(), "reference/config.md": config_keys(), "reference/api.md": python()}


def on_files(files: Any, config: Any) -> Any:
    """Mkdocs' hook: the generated pages join those that are written by hand."""
    from mkdocs.structure.files import File

    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    return files


def commands() -> str:
    """Every verb with its arguments and options, as ``--help`` has them."""
    found = [
        "# Commands",
        "",
        "Every verb prints this with `--help`. Exit codes: 0 done, 1 a check found something, 2 bad input.",
    ]
    for name, verb in _verbs(typer.main.get_command(app), ""):
        about = inspect.cleandoc(verb.help or "").split("Example: ")
        found += ["", f"## pydeploy {name}", "", about[0].strip()]
        found += ["", *(f"    {line}" for line in about[1].strip().splitlines())] if len(about) > 1 else []
        rows = [_parameter(one) for one in verb.params if not getattr(one, "hidden", False)]
        found += ["", "| argument | default | meaning |", "|---|---|---|", *rows] if rows else []
    return "\n".join(found) + "\n"


def _verbs(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
    for word, one in getattr(command, "commands", {}).items():
        yield from _verbs(one, f"{name} {word}".strip())


def _parameter(one: Any) -> str:
    names = (
        [*one.opts, *one.secondary_opts] if one.param_type_name == "option" else [str(one.metavar or one.name).upper()]
    )
    default = (
        "required"
        if one.required
        else ""
        if one.default in (None, False, (), []) or callable(one.default)
        else f"`{one.default}`"
    )
    return f"| {_cell(' '.join(f'`{name}`' for name in names))} | {_cell(default)} | {_cell(getattr(one, 'help', None) or '')} |"


def config_keys() -> str:
    """Every key of a config with its type, limits and default."""
    found = [
        "# Config keys",
        "",
        "A config is a YAML file. `--set section.key=value` overrides one key. Paths are relative to the config.",
    ]
    sections = {name: _section(field) for name, field in Config.model_fields.items()}
    alone = {name: Config.model_fields[name] for name, section in sections.items() if section is None}
    found += ["", *_keys(Config, alone)]
    for name, section in sections.items():
        if section is not None:
            found += [
                "",
                f"## {name}",
                "",
                inspect.cleandoc(section.__doc__ or ""),
                "",
                *_keys(section, section.model_fields),
            ]
            for key, inner in _inner(section):
                found += [
                    "",
                    f"### {name}.{key}",
                    "",
                    inspect.cleandoc(inner.__doc__ or ""),
                    "",
                    *_keys(inner, inner.model_fields),
                ]
    return "\n".join(found) + "\n"


def _inner(section: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for key, field in section.model_fields.items():
        if (inner := _section(field)) is not None:
            yield key, inner


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _keys(section: type[BaseModel], fields: Mapping[str, FieldInfo]) -> list[str]:
    schema = section.model_json_schema()["properties"]
    said = _attribute_docs(section)
    rows = [f"| `{name}` | {_cell(_kind(field, schema[name]))} | {_cell(_default(field))} | {_cell(said.get(name, ''))} |"
            for name, field in fields.items() if _section(field) is None]  # fmt: skip
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows] if rows else []


def _default(field: FieldInfo) -> str:
    value = ... if field.is_required() else field.get_default(call_default_factory=True)
    return "required" if value is ... else "" if value in (None, "") else f"`{value}`"


LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def _kind(field: FieldInfo, schema: Mapping[str, Any]) -> str:
    """The type in words, with what values may be."""
    inner = [
        *field.metadata,
        *(one for kind in getattr(field.annotation, "__args__", ()) for one in getattr(kind, "__metadata__", ())),
    ]
    inner += [one for info in inner if isinstance(info, FieldInfo) for one in info.metadata]
    limits = [f"{word} {getattr(one, key):g}" for key, word in LIMITS.items() for one in inner if hasattr(one, key)]
    return ", ".join([_type(schema), *dict.fromkeys(limits)])


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    words = {"integer": "whole number", "object": "mapping", "string": "text", "boolean": "true or false"}
    kind = words.get(schema.get("type", ""), schema.get("type", "any"))
    return f"list of {_type(schema.get('items', {}))}s" if kind == "array" else kind


def _attribute_docs(section: type) -> dict[str, str]:
    """The strings below attributes, of a class and what it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        if issubclass(cls, BaseModel) and cls is not BaseModel:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
            assert isinstance(body, ast.ClassDef)
            for one, after in zip(body.body, body.body[1:], strict=False):
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(after, ast.Expr):
                    found[one.target.id] = inspect.cleandoc(str(ast.literal_eval(after.value)))
    return found


def python() -> str:
    """The public names, for mkdocstrings to fill in."""
    found = ["# Python", "", "`import pydeploy as pd`. All of these are loaded when first used."]
    homes: dict[str, str] = vars(pydeploy)["_HOMES"]
    for name in pydeploy.__all__:
        if not name.startswith("__"):
            found += ["", f"## pd.{name}", "", f"::: {homes[name]}.{name}"]
    return "\n".join(found) + "\n"


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")


if __name__ == "__main__":
    for place, text in pages().items():
        sys.stdout.write(f"==== {place}\n{text}\n")
