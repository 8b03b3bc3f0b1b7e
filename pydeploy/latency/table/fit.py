"""How a network's time is shared among its layers: the line from the sum of their counters to the whole network.

* A runtime's counters may tell too little or too much of each layer, and layers are read at another moment than their
  network is timed: each network's layers are scaled to add up to what it took, less an offset.
* The offset is the one with which networks agree best on what the layers that they share cost. The line through their
  sums alone would not do: what counters leave out depends on how a network mixes its layers, and that on its size.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from statistics import median

import numpy as np
from numpy.typing import NDArray

from pydeploy.latency.table.store import Network, Sample

FEW = 9
"""Fewer networks of a graph than this do not tell a slope."""
BELIEVABLE = 1.5
"""A slope beyond this factor is taken for a mistake, and so is a network that lies as far from its graph's line."""


@dataclass(frozen=True, slots=True)
class Line:
    """A network takes about ``slope * layers_us + offset_us``."""

    slope: float
    offset_us: float

    def factor(self, layers_us: float, whole_us: float) -> float:
        """What scales a network's layers so that they and the offset add up to `whole_us`."""
        found = (whole_us - self.offset_us) / layers_us if layers_us > 0 else self.slope
        return found if self.slope / BELIEVABLE < found < self.slope * BELIEVABLE else self.slope


def lines(samples: Sequence[Sample], networks: Sequence[Network]) -> dict[str, Line]:
    """By graph fingerprint; disturbed networks count only where there are no others."""
    return {graph: _line(samples, calm([n for n in networks if n.graph == graph]))
            for graph in {network.graph for network in networks}}  # fmt: skip


def factors(networks: Sequence[Network], found: Mapping[str, Line]) -> dict[str, float]:
    """By probe: what scales its layers."""
    return {n.provenance.probe: found[n.graph].factor(n.layers_us, n.whole.median_us) for n in networks}


def offset(points: Iterable[tuple[float, float]], slope: float) -> float:
    """What networks take beyond ``slope * layers``, from their (layers, whole): the least sum of relative errors.

    So large networks, whose noise may be as large as a small network, do not decide about it.
    """
    points = list(points)
    return _weighted_median([whole - slope * layers for layers, whole in points], [1 / whole for _, whole in points])


def calm(networks: Sequence[Network]) -> Sequence[Network]:
    """Those that nothing disturbed; all of them where there are none."""
    return [network for network in networks if not network.whole.disturbed] or networks


def _line(samples: Sequence[Sample], networks: Sequence[Network]) -> Line:
    points = [(network.layers_us, network.whole.median_us) for network in networks]
    slope = _slope(points)
    straight = Line(slope, offset(points, slope))
    agreed_us = _agreed(samples, networks) if len(points) >= FEW and min(points)[0] > 0 else None
    if agreed_us is None:
        return straight
    agreed = Line(median((whole - agreed_us) / layers for layers, whole in points), agreed_us)
    return agreed if 1 / BELIEVABLE < agreed.slope < BELIEVABLE else straight


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Median slope over all pairs of networks (Theil 1950, Sen 1968), which outliers do not move.

    Pairs of nearly equal sums say nothing; 1 where there are few networks or the slope is not believable.
    """
    if len(points) < FEW:
        return 1.0
    widest = 0.1 * max(x for x, _ in points)
    pairs = [(one, other) for one, other in combinations(points, 2) if abs(one[0] - other[0]) > widest]
    slope = median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs) if pairs else 1.0
    return slope if 1 / BELIEVABLE < slope < BELIEVABLE else 1.0


def _agreed(samples: Sequence[Sample], networks: Sequence[Network]) -> float | None:
    """The offset with which each network's shared layers come nearest to what the other networks say of them.

    With offset o, a layer that was read as u in a network of w with sum l costs ``u / l * (w - o)``. Summed over a
    network's layers, the difference to the other networks' mean is linear in o, so the offset that levels these
    differences out is a slope, and found as one: the median over pairs of networks, far ones counting more.
    None where no two networks share a layer, or all alike.
    """
    index = {network.provenance.probe: i for i, network in enumerate(networks)}
    whole = np.array([network.whole.median_us for network in networks])
    layers = np.array([network.layers_us for network in networks])
    mine = [sample for sample in samples if sample.provenance.probe in index]
    where = np.array([index[sample.provenance.probe] for sample in mine], dtype=np.intp)
    numbers = {key: i for i, key in enumerate({sample.key for sample in mine})}
    key = np.array([numbers[sample.key] for sample in mine], dtype=np.intp)
    share = np.array([sample.timing.median_us for sample in mine]) / layers[where]
    fixed, taken = (_surprise(values, key, where, len(networks)) / whole for values in (share * whole[where], share))
    pairs = [(one, other) for one, other in combinations(range(len(networks)), 2) if taken[one] != taken[other]]
    if not pairs:
        return None
    slopes = [(fixed[one] - fixed[other]) / (taken[one] - taken[other]) for one, other in pairs]
    return _weighted_median(slopes, [abs(taken[one] - taken[other]) for one, other in pairs])


def _surprise(
    values: NDArray[np.float64], key: NDArray[np.intp], where: NDArray[np.intp], count: int
) -> NDArray[np.float64]:
    """Per network, the sum over its samples of the mean of the same key in other networks less the own value."""
    _, held = np.unique(key * count + where, return_inverse=True)  # one number per key and network
    others = np.bincount(key)[key] - np.bincount(held)[held]
    rest = np.bincount(key, values)[key] - np.bincount(held, values)[held]
    found = np.where(others > 0, rest / np.maximum(others, 1) - values, 0.0)
    return np.asarray(np.bincount(where, found, count), dtype=np.float64)


def _weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    ordered = sorted(zip(values, weights, strict=True))
    reached = list(accumulate(weight for _, weight in ordered))
    return float(ordered[bisect_left(reached, reached[-1] / 2)][0])
