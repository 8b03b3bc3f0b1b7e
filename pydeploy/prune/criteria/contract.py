"""What a criterion is: a function that says in its signature what it needs, and by keyword-only arguments what can be set.

Its other parameters are names of `NEEDS`; one with the default None is given where there is what it takes. With ``group`` it is
called for each group and returns the scores of its channels, shape ``(width,)``, or None where it cannot judge the group; with
``groups`` it is called once and returns ``{group: scores}``, without those that it cannot judge. Higher = keep.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydeploy.errors import ConfigError, nearest
from pydeploy.guests.arguments import typed

NEEDS: Mapping[str, str] = {
    "group": "weights of one group (Members): what makes its channels, what reads them, their batch norms",
    "groups": "weights of all groups, {name: Members}",
    "graph": "the graph that `trace` found",
    "generator": "a seeded NumPy generator",
    "norm_after": "a function that gives the batch norm that alone follows a layer, or None",
    "activations": "batches: each iteration is one (Seen), with the maps of each group's channels",
    "gradients": "labelled batches: each iteration is one batch, whose gradients the members then have",
    "learning": "labelled batches: runs a few steps of training on a copy, each seen as `activations` shows it",
    "gated_losses": "labelled batches: each iteration is a function of {group: factor of each channel} that gives the loss",
}
"""What a criterion may ask for, by the names of its parameters."""
WORDS = {"group": "weights", "groups": "weights", "activations": "batches", "gradients": "labelled batches",
         "learning": "labelled batches", "gated_losses": "labelled batches"}  # fmt: skip
LABELLED = ("gradients", "learning", "gated_losses")
"""Needs that take batches and a loss."""


@dataclass(frozen=True)
class Criterion:
    """A criterion with what is known of it. Raises `ConfigError` where its signature asks for what there is not."""

    name: str
    function: Callable[..., Any]
    scope: Literal["local", "global"] = "local"
    """Whether scores compare within a group only, or between groups as well."""
    judges: str = ""
    """What a group must have to be judged ('' = nothing), as in "a batch norm"."""
    source: str = ""

    def __post_init__(self) -> None:
        for need in self.needs:
            if need not in NEEDS:
                raise ConfigError(
                    f"criterion '{self.name}' asks for '{need}', which there is not{nearest(need, NEEDS)}; "
                    "an option is a keyword-only argument with a default"
                )
        for option in _parameters(self.function):
            if option.kind == option.KEYWORD_ONLY and option.default is option.empty:
                raise ConfigError(f"option '{option.name}' of criterion '{self.name}' needs a default")
        if not {"group", "groups", "activations"} & {*self.needs}:
            raise ConfigError(
                f"criterion '{self.name}' must take 'group', 'groups' or 'activations', what is to be scored"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(p.name for p in _parameters(self.function) if p.kind != p.KEYWORD_ONLY)

    @property
    def takes(self) -> tuple[str, ...]:
        """What it is given, in words."""
        return tuple(dict.fromkeys(WORDS[need] for need in self._required if need in WORDS))

    @property
    def _required(self) -> list[str]:
        return [p.name for p in _parameters(self.function) if p.kind != p.KEYWORD_ONLY and p.default is p.empty]

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(p.name for p in _parameters(self.function) if p.kind == p.KEYWORD_ONLY)

    @property
    def batches(self) -> str:
        """The batches that it needs: "labelled batches", "batches" or ''."""
        if any(need in LABELLED for need in self._required):
            return "labelled batches"
        return "batches" if "activations" in self._required else ""

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options `given`, checked against the signature. Raises `ConfigError`."""
        for key in given:
            if key not in self.options:
                raise ConfigError(
                    f"criterion '{self.name}': no option '{key}'{nearest(key, [*self.options, 'fallback'])}"
                )
        return typed(f"criterion '{self.name}'", self.function, given)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise ConfigError(f"{function!r} does not say what it takes; a criterion is a Python function") from None
