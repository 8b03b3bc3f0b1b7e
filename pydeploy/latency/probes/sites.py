"""One node of an ONNX file and what stays of its inputs; what follows for its outputs and constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Array = NDArray[Any]
Kept = Mapping[int, NDArray[np.bool_]]
"""Whether each entry of the dense tensor stays, along the axes where some go."""
ALL: Kept = {}


class Tangled(Exception):
    """What stays is no choice of entries along each axis."""


@dataclass(frozen=True, slots=True)
class Site:
    """One node of the dense file: shapes of inputs and outputs (None: unknown), constant inputs, attributes, what stays."""

    kind: str
    inputs: Sequence[Shape | None]
    outputs: Sequence[Shape | None]
    constants: Sequence[Array | None]
    kept: Sequence[Kept]
    """Of each input."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    wanted: Kept = field(default_factory=dict)
    """What is read of the first output, where only its readers can tell."""
    values: Sequence[Array | None] = ()
    """Contents of inputs: of constants, and of what is computed from shapes."""

    def constant(self, index: int) -> Array | None:
        return self.constants[index] if index < len(self.constants) else None

    def numbers(self, index: int, name: str) -> list[int] | None:
        """A list that is an input in new versions of an operator and was an attribute in old ones."""
        given = self.values[index] if index < len(self.values) else self.constant(index)
        found = self.attributes.get(name) if given is None else given.ravel().tolist()
        return None if found is None else [int(n) for n in ([found] if isinstance(found, int) else found)]

    @property
    def data(self) -> int:
        """The first input that is computed."""
        return next((i for i, constant in enumerate(self.constants) if constant is None), 0)


@dataclass(frozen=True, slots=True)
class Cut:
    """What stays of each output; constant inputs that change, and attributes."""

    kept: Sequence[Kept]
    constants: Mapping[int, Array] = field(default_factory=dict)
    attributes: Mapping[str, int | list[int]] = field(default_factory=dict)
    wanted: Mapping[int, Kept] = field(default_factory=dict)
    """What must stay of computed inputs that have no channels of their own, such as zeros of that size."""


def count(kept: Kept, axis: int, size: int) -> int:
    """How long an axis of `size` is after the cut."""
    return int(kept[axis].sum()) if axis in kept else size


def taken(array: Array, kept: Kept) -> Array:
    """The entries that stay; the array itself where all do."""
    for axis, which in kept.items():
        array = np.compress(which, array, axis=axis)
    return array
