"""Names of layers and nodes as users give them: the name itself, or a pattern as in a shell (``*``, ``?``, ``[abc]``)."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` means `name`; a name that holds ``[`` means itself as well."""
    return name == pattern or fnmatchcase(name, pattern)


def meant(patterns: Iterable[str], names: Iterable[str]) -> frozenset[str]:
    """The `names` that any of the `patterns` means."""
    asked = tuple(patterns)
    return frozenset(name for name in names if any(matches(name, pattern) for pattern in asked))


def unknown(patterns: Iterable[str], names: Iterable[str]) -> str | None:
    """The first of the `patterns` that means none of the `names`."""
    known = tuple(names)
    return next((one for one in patterns if not any(matches(name, one) for name in known)), None)
