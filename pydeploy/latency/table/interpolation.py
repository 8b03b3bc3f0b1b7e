"""What is known of layers' latencies, and what lies strictly between known widths; nothing outside them."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydeploy.errors import MissingTiming
from pydeploy.graph import OpKey
from pydeploy.timing.records import Target

Family = tuple[str, OpKey]
"""Keys that differ only in one width: the name of that width, and the key with the width set to 0."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """One layer's latency. `n` samples in `sets` sample sets; `spread` is (p90 - p10) / median within a set."""

    latency_us: float
    n: int
    sets: int
    spread: float
    interpolated: bool = False
    p10_us: float = 0.0
    p90_us: float = 0.0
    interval: float = 0.0
    """Half the width of the median's 95 % confidence interval, relative; of one set where there is only one."""
    disturbed: bool = False
    """Nothing but disturbed sample sets are known."""

    def scaled(self, factor: float) -> Lookup:
        """As on a computer on which everything takes `factor` times as long."""
        return replace(self, latency_us=self.latency_us * factor, p10_us=self.p10_us * factor,
                       p90_us=self.p90_us * factor)  # fmt: skip


Point = tuple[int, Lookup]
"""A measured width, and what a layer costs there."""


class Known:
    """Measured latencies by key, ordered so that neighbours are found. Nothing in it changes."""

    def __init__(self, measured: Mapping[OpKey, Lookup], target: Target, remedy: str) -> None:
        """`remedy` is the command that measures what is missing."""
        self._measured = measured
        self._target, self._remedy = target, remedy
        self._families: dict[Family, list[Point]] = defaultdict(list)
        cins: dict[OpKey, set[int]] = defaultdict(set)
        for key, lookup in measured.items():
            for family, x in _axes(key):
                self._families[family].append((x, lookup))
            cins[_plane(key)].add(key.cin)
        for points in self._families.values():
            points.sort(key=lambda point: point[0])
        self._cins = {plane: sorted(found) for plane, found in cins.items()}

    def items(self) -> Iterable[tuple[OpKey, Lookup]]:
        """Everything that was measured."""
        return self._measured.items()

    def replaced(self, values: Mapping[OpKey, Lookup]) -> Known:
        """The same with other values for some keys, or further keys."""
        return Known({**self._measured, **values}, self._target, self._remedy)

    def lookup(self, key: OpKey) -> Lookup:
        """Measured, or interpolated strictly between measured widths; otherwise `MissingTiming`."""
        found = self.find(key)
        if found is None:
            raise MissingTiming(
                f"no timing for {key} on '{self._target}' ({self.neighbours(key)}); run: {self._remedy}"
            )
        return found

    def find(self, key: OpKey) -> Lookup | None:
        """Measured, or interpolated between measured widths: along one width where possible, else along both."""
        return self.near(key) or self._within(key)

    def near(self, key: OpKey) -> Lookup | None:
        """Measured, or linear between two measured output or input widths, whichever are closer."""
        measured = self._measured.get(key)
        if measured is not None:
            return measured
        pairs = [(x, pair) for family, x in _axes(key) if (pair := _around(self._families.get(family, []), x))]
        if not pairs:
            return None
        x, pair = min(pairs, key=lambda found: found[1][1][0] - found[1][0][0])
        return _mixed(*pair, x)

    def _within(self, key: OpKey) -> Lookup | None:
        """Linear between the nearest input widths at which this output width is known or interpolated."""
        cins = self._cins.get(_plane(key), [])
        at = bisect_left(cins, key.cin)
        below, above = (
            next(((cin, row) for cin in side if (row := self._row(key, cin)) is not None), None)
            for side in (reversed(cins[:at]), iter(cins[at:]))
        )
        return None if below is None or above is None else _mixed(below, above, key.cin)

    def _row(self, key: OpKey, cin: int) -> Lookup | None:
        other = replace(key, cin=cin)
        pair = _around(self._families.get(("cout", replace(other, cout=0)), []), key.cout)
        return self._measured.get(other) or (None if pair is None else _mixed(*pair, key.cout))

    def neighbours(self, key: OpKey) -> str:
        """The measured widths of layers that differ from `key` in one width only, in words."""
        texts = []
        for (axis, *_), points in ((family, self._families.get(family, [])) for family, _ in _axes(key)):
            if points:
                texts.append(f"measured {axis}: {', '.join(str(x) for x, _ in points)}")
        return "; ".join(texts) or "no layer of this kind, size and tail is measured"


def _axes(key: OpKey) -> Iterator[tuple[Family, int]]:
    """The families of `key` and its place in each; a depthwise layer's widths all move together."""
    if key.groups > 1 and key.groups == key.cin and key.cout % key.cin == 0:
        yield ("channels", replace(key, cin=0, cout=key.cout // key.cin, groups=0)), key.cin
        return
    yield ("cout", replace(key, cout=0)), key.cout
    yield ("cin", replace(key, cin=0)), key.cin


def _plane(key: OpKey) -> OpKey:
    return replace(key, cin=0, cout=0)


def _around(points: Sequence[Point], x: int) -> tuple[Point, Point] | None:
    """The measured points next to `x`, which lies strictly between them."""
    at = bisect_left(points, x, key=lambda point: point[0])
    return (points[at - 1], points[at]) if 0 < at < len(points) else None


def _mixed(below: Point, above: Point, x: int) -> Lookup:
    """Linear interpolation at `x`, flagged."""
    (low, one), (high, other) = below, above
    value = one.latency_us + (x - low) / (high - low) * (other.latency_us - one.latency_us)
    return Lookup(
        value, min(one.n, other.n), min(one.sets, other.sets), max(one.spread, other.spread), interpolated=True
    )
