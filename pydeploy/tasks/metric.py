"""What a task is judged by: numbers with a name, a unit and the direction that is better; and tables that explain them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """The number that says how well a network does its task."""

    name: str
    """As people write it: accuracy, mIoU, PSNR."""
    unit: str = "%"
    """``%`` for a share in [0, 1], which is shown in percent and compared in points; else what the number counts (dB, px)."""
    better: Literal["higher", "lower"] = "higher"
    seed_spread: float | None = None
    """How far apart two trainings come out that differ in their seed alone, in points or in the unit; None where unknown."""
    counted: bool = True
    """Of a share: whether it counts test samples (k of n right), so that an interval follows from their number; not so a mean
    over classes or thresholds, such as mIoU and AP.
    """

    @property
    def share(self) -> bool:
        """Whether values lie in [0, 1]."""
        return self.unit == "%"

    def lost(self, reference: float, value: float) -> float:
        """How much worse `value` is than `reference`, in points or in the unit; negative where it is better.

        Rounded, so that 0.94 - 0.93 is exactly one point.
        """
        difference = reference - value if self.better == "higher" else value - reference
        return round(difference * self.scale, 6)

    @property
    def scale(self) -> float:
        """What values are multiplied with to be shown, and differences to be told in points or in the unit."""
        return 100.0 if self.share else 1.0

    @property
    def title(self) -> str:
        """The name at the start of a sentence."""
        return self.name[:1].upper() + self.name[1:]

    @property
    def label(self) -> str:
        """Name and unit: ``accuracy, %``."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def change_label(self) -> str:
        """What `signed` is: ``change, points``."""
        return f"change, {'points' if self.share else self.unit}" if self.unit else "change"

    def number(self, value: float) -> str:
        """The value without its unit: ``91.25``."""
        return f"{100 * value:.2f}" if self.share else f"{value:.4g}"

    def signed(self, reference: float, value: float) -> str:
        """The way from `reference` to `value` without its unit: ``-0.31``."""
        difference = 0.0 + round(self.scale * (value - reference), 6)  # no -0.0
        return f"{difference:+.2f}" if self.share else f"{difference:+.3g}"

    def text(self, value: float) -> str:
        """``91.25 %``, ``31.2 dB``."""
        return f"{self.number(value)} {self.unit}".rstrip()

    def change(self, reference: float, value: float) -> str:
        """The way from `reference` to `value`: ``-0.31 points``, ``+0.2 dB``."""
        return f"{self.signed(reference, value)} {'points' if self.share else self.unit}".rstrip()

    def amount(self, difference: float) -> str:
        """A difference in words: ``1 point``, ``0.5 points``, ``0.2 dB``."""
        unit = ("point" if difference == 1 else "points") if self.share else self.unit
        return f"{difference:g} {unit}".rstrip()


@dataclass(frozen=True, slots=True)
class MetricTable:
    """Numbers that explain a metric, one name a row: the values of each class, a confusion matrix.

    A value is None where it is undefined, such as the IoU of a class that is nowhere; NaN and infinity count as undefined.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # reports are read strictly

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    """``values[row][column]``."""
    units: tuple[str, ...] = ()
    """Of each column: ``%`` for shares in [0, 1], '' for counts; without any, all columns are counts."""
    kind: Literal["values", "confusion"] = "values"
    """``confusion``: rows are the true classes, columns the predicted ones."""

    def __post_init__(self) -> None:
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            raise ValueError(f"a table of {len(self.rows)} rows and {len(self.columns)} columns has other values")
        if self.units and len(self.units) != len(self.columns):
            raise ValueError(f"{len(self.units)} units for {len(self.columns)} columns")

    @classmethod
    def of(cls, rows: Sequence[str], columns: Mapping[str, tuple[str, Sequence[float]]]) -> MetricTable:
        """From ``{column: (unit, one value a row)}``."""
        values = [[_defined(value) for value in column] for _, column in columns.values()]
        units = tuple(unit for unit, _ in columns.values())
        return cls(tuple(rows), tuple(columns), tuple(zip(*values, strict=True)), units)

    @classmethod
    def confusion(cls, names: Sequence[str], counts: Sequence[Sequence[float]]) -> MetricTable:
        """From ``counts[true class][predicted class]``, such as an int64 array ``(classes, classes)``."""
        values = tuple(tuple(_defined(value) for value in row) for row in counts)
        return cls(tuple(names), tuple(names), values, kind="confusion")


def _defined(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
