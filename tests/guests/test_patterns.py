"""Names and patterns of layers: the same meaning wherever layers are named."""

from __future__ import annotations

from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st

from pydeploy.guests.patterns import matches, meant, unknown

names = st.text("ab.[]*?1", min_size=1, max_size=6)


@given(names, names)
def test_a_pattern_means_itself_and_what_a_shell_says(name: str, pattern: str) -> None:
    assert matches(name, pattern) == (name == pattern or fnmatchcase(name, pattern))
    assert matches(name, name)
    assert matches(name, "*")


@given(st.lists(names, max_size=5), st.lists(names, max_size=3))
def test_what_is_meant_is_the_union_over_the_patterns(known: list[str], patterns: list[str]) -> None:
    found = [{name for name in known if matches(name, pattern)} for pattern in patterns]
    assert meant(patterns, known) == set().union(*found)
    empty = [pattern for pattern, one in zip(patterns, found, strict=True) if not one]
    assert unknown(patterns, known) == (empty[0] if empty else None)
