"""Where to write the names of points so that they hide neither each other nor the points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydeploy.report.drawing import FONT_PX, text_width


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-parallel rectangle in drawing units."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Area shared with `other`."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def outside(self, frame: Box) -> float:
        """How far this box sticks out of `frame`, summed over the four sides."""
        sides = (frame.left - self.left, self.right - frame.right, frame.top - self.top, self.bottom - frame.bottom)
        return sum(max(side, 0.0) for side in sides)


@dataclass(frozen=True, slots=True)
class Label:
    """A placed text: its box, its side of the point, and whether it is far enough away to need a leader line."""

    words: str
    box: Box
    anchor: str
    """Which end of the text is fixed (start, middle, end), so that a wider font grows away from the point."""
    distant: bool

    @property
    def x(self) -> float:
        middle = (self.box.left + self.box.right) / 2
        return {"start": self.box.left + 2, "middle": middle, "end": self.box.right - 2}[self.anchor]

    @property
    def baseline(self) -> float:
        return self.box.bottom - 4


_AROUND = ((1, 0), (0, -1), (0, 1), (-1, 0), (1, -1), (1, 1), (-1, -1), (-1, 1))
_GAPS = (9.0, 20.0, 34.0, 52.0, 72.0)


def place(points: Sequence[tuple[float, float, str]], obstacles: Sequence[Box], frame: Box) -> list[Label]:
    """One label for each ``(x, y, words)``, in the same order; earlier points choose first.

    Greedy over positions around each point: least covered area of `obstacles`, of all points and of the labels
    already placed, then nearest. Labels stay inside `frame` as long as any position does.
    """
    marks = [Box(x - 8, y - 8, x + 8, y + 8) for x, y, _ in points]
    placed: list[Label] = []
    for x, y, words in points:
        taken = [*marks, *obstacles, *(label.box for label in placed)]
        options = [_at(x, y, words, dx, dy, gap) for gap in _GAPS for dx, dy in _AROUND]
        costs = [_cost(label.box, rank, taken, frame) for rank, label in enumerate(options)]
        placed.append(options[costs.index(min(costs))])
    return placed


def _cost(box: Box, rank: int, taken: Sequence[Box], frame: Box) -> tuple[float, float]:
    """What to minimize: first how far the text is cut off, then what it covers and how far off (`rank`) it is."""
    return round(box.outside(frame), 6), 10 * sum(box.overlap(other) for other in taken) + rank


def _at(x: float, y: float, words: str, dx: int, dy: int, gap: float) -> Label:
    width, height = text_width(words) + 4, FONT_PX + 4
    # Beside the point the gap is horizontal, above and below it vertical; on the diagonals a little of both.
    left = x - width / 2 if dx == 0 else x + gap if dx > 0 else x - gap - width
    if dx and dy:
        left -= dx * gap / 2
    top = y - height / 2 if dy == 0 else y + gap if dy > 0 else y - gap - height
    anchor = ("middle", "start", "end")[dx]
    return Label(words, Box(left, top, left + width, top + height), anchor, gap > _GAPS[0])
