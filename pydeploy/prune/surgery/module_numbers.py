"""Setting the numbers that modules keep of their widths, and telling files which these are.

`pydeploy.prune.structure.width_numbers` finds them; here they are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pydeploy.graph import Extent, Widths

FOLLOWING = "_pydeploy_numbers"
"""Attribute of a cut module that names its numbers, so that files can hold them."""


def set_numbers(small: nn.Module, numbers: Mapping[str, Sequence[Extent]], widths: Widths) -> None:
    """Set the numbers that modules of the cut model keep of their widths to what these are."""
    for place, extents in numbers.items():
        put(small, place, [extent.at(widths) for extent in extents])


def put(model: nn.Module, place: str, values: Sequence[int]) -> None:
    """Set ``module.attribute``, an integer or a list or tuple of them."""
    path, _, name = place.rpartition(".")
    module = model.get_submodule(path)
    before = getattr(module, name)
    setattr(module, name, values[0] if isinstance(before, int) else type(before)(values))
    setattr(module, FOLLOWING, tuple(dict.fromkeys((*getattr(module, FOLLOWING, ()), name))))


def has_number(model: nn.Module, place: str, count: int) -> bool:
    """Whether ``module.attribute`` is an integer, or a list or tuple of `count` of them."""
    path, _, name = place.rpartition(".")
    module = dict(model.named_modules()).get(path)
    return module is not None and len(listed(vars(module).get(name))) == count


def kept_numbers(model: nn.Module) -> dict[str, list[int]]:
    """What `put` set in a cut model: ``{module.attribute: values}``."""
    return {f"{path}.{name}".lstrip("."): listed(getattr(module, name))
            for path, module in model.named_modules() for name in getattr(module, FOLLOWING, ())}  # fmt: skip


def listed(value: Any) -> list[int]:
    """An integer, or a list or tuple of integers, as a list; empty for anything else."""
    items = [value] if type(value) is int else list(value) if type(value) in (tuple, list) else []
    return items if all(type(item) is int for item in items) else []
