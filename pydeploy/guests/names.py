"""What a setting may name: a thing of pydeploy's own, one that an installed package registers, or one of a user's own code."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydeploy.errors import ConfigError, DeployError, nearest
from pydeploy.files import joined
from pydeploy.guests import contents, resolve

Thing = TypeVar("Thing")
OWN_CODE = "FILE.py:NAME or PACKAGE.MODULE:NAME"


@dataclass(frozen=True)
class Names(Generic[Thing]):
    """Everything of one `kind` that a setting may name; `expected` says in errors what a user's own code should be."""

    kind: str
    expected: str
    known: Mapping[str, Thing | str]
    """pydeploy's own things by name; a text is ``module:attribute``, imported when it is asked for."""
    group: str
    """Entry points with which installed packages add names."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)

    def __contains__(self, name: object) -> bool:
        return name in self.known

    def __getitem__(self, name: str) -> Thing:
        return self.find(name)

    def find(self, name: str) -> Thing:
        """The thing of that name: one of `known`, an entry point of `group`, or what FILE.py:NAME or PACKAGE.MODULE:NAME names.

        Raises `ConfigError` with the nearest known name where there is none, and where users' code cannot be run.
        """
        if name in self.known:
            found = self.known[name]
            return _imported(found) if isinstance(found, str) else found
        entry = self.registered().get(name)
        if entry is None and not name.rpartition(":")[0]:
            raise ConfigError(f"unknown {self.kind} '{name}'{nearest(name, self.all())}; or {OWN_CODE}")
        if entry is None:
            return resolve.find(name, self.expected)  # type: ignore[return-value]
        try:
            return resolve.find(entry.value, self.expected)  # type: ignore[return-value]
        except DeployError as error:
            raise ConfigError(f"{self.kind} '{name}' of an installed package cannot be loaded: {error}") from None

    def check(self, name: str) -> str:
        """`name`; raises as `find` does."""
        self.find(name)
        return name

    def placed(self, name: str, folder: Path) -> str:
        """`name` as it is understood from the current folder, where it was written in a file that lies in `folder`.

        FILE.py is relative to `folder`, and a module is looked for there first. Other names stay as they are.
        """
        home, _, attribute = name.rpartition(":")
        if name in self.known or not home:
            return name
        if home.endswith(".py"):
            return f"{joined(folder, Path(home))}:{attribute}"
        found = resolve.file_of(home, folder) if folder.resolve() != Path.cwd() else None
        return name if found is None else f"{found}:{attribute}"

    def all(self) -> list[str]:
        """Every name but those of users' own code."""
        return [*self.known, *sorted(set(self.registered()) - set(self.known))]

    def registered(self) -> dict[str, EntryPoint]:
        """What installed packages add."""
        return {entry.name: entry for entry in entry_points(group=self.group)}

    def stamp(self, name: str) -> Any:
        """What a result that depends on `name` depends on: the name, or the contents of code that is not pydeploy's."""
        if name in self.known:
            return name
        entry = self.registered().get(name)
        spec = name if entry is None else entry.value
        return {"name": spec.rpartition(":")[2], "sha256": contents.digest(spec)}


def _imported(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
