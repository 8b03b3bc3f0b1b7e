"""``pydeploy configs``: the configs that come with pydeploy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from pydeploy.cli.arguments import Json


def configs(
    names: Annotated[Optional[list[str]], typer.Argument(help="For --copy: which ones [default: all].")] = None,
    copy: Annotated[Optional[Path], typer.Option(help="Copy them, with what they need, into this folder.")] = None,
    json: Json = False,
) -> None:
    """List the configs that come with pydeploy, which every verb takes by name; or copy them to be changed.

    Example: pydeploy configs smoke --copy mine
    """
    from pydeploy.cli.console import show_json, show_table
    from pydeploy.data import shipped
    from pydeploy.errors import ConfigError

    if names and copy is None:
        raise ConfigError(f"say with --copy where to copy {', '.join(names)}; without names, all configs are listed")
    if copy is not None:
        made = shipped.copy(copy, names or [])
        if json:
            show_json([str(path) for path in made])
        else:
            sys.stdout.write("".join(f"{path}\n" for path in made))
        return
    found = {name: (shipped.summary(path), path) for name, path in shipped.shipped("configs").items()}
    if json:
        show_json({name: {"about": about, "path": str(path)} for name, (about, path) in found.items()})
    else:
        show_table(("config", "about"), [(name, about) for name, (about, _) in found.items()])
