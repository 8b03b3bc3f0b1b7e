"""What is written: tensors in the order of the layers, and what a program needs to know of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Tensor:
    """One array. `scale` and `zero_point` are empty for what is not quantized; several run along `axis`."""

    name: str
    values: NDArray[Any]
    scale: tuple[float, ...] = ()
    zero_point: tuple[int, ...] = ()
    axis: int = 0

    def facts(self) -> dict[str, Any]:
        """As in the manifest, without its place in a file."""
        found: dict[str, Any] = {"name": self.name, "shape": list(self.values.shape), "dtype": self.values.dtype.name}
        if self.scale:
            found |= {"scale": list(self.scale), "zero_point": list(self.zero_point), "axis": self.axis}
        return found


@dataclass(frozen=True)
class Grid:
    """The integers of an activation: ``real = scale * (level - zero_point)``."""

    scale: float
    zero_point: int
    dtype: str
    """int8 or uint8."""


@dataclass(frozen=True)
class Layer:
    """One layer with weights, in execution order.

    Integer layers have `input`, and `output` where their sums are rounded to levels: then ``level = clamp(zero_point + sum *
    multiplier)`` between `low` and `high`, with the tensors ``NAME.multiplier`` and ``NAME.exponent`` (`fixed_point.times`).
    """

    name: str
    op: str
    tensors: Mapping[str, str]
    """By part (``weight``, ``bias``, ``multiplier``, ``exponent``): a tensor's name."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Strides, pads (top, left, bottom, right), dilations, kernel_shape, group; of Gemm transB."""
    input: Grid | None = None
    output: Grid | None = None
    low: int = 0
    high: int = 0


@dataclass(frozen=True)
class Weights:
    """All tensors in layer order, and the layers (none where only a state dict was at hand)."""

    tensors: tuple[Tensor, ...]
    layers: tuple[Layer, ...] = ()
