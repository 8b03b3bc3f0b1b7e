"""What a task is judged by: numbers with a name, a unit and the direction that is better."""

from __future__ import annotations

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
