"""`Predictions`: what networks of one graph take on one target, by what was measured of their layers.

* A value is measured, or interpolated strictly between measured widths, or `MissingTiming`. Nothing is extrapolated.
* A network takes the sum of its layers and an offset that all networks of the graph share (`latency.table.fit`).
* Predictions never change: a measured engine corrects them by making new ones, and the file that they were read from
  stays as it is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from statistics import mean, median

from pydeploy.graph import Graph, OpKey, Widths
from pydeploy.latency.table import fit
from pydeploy.latency.table.fit import Line
from pydeploy.latency.table.interpolation import Known, Lookup
from pydeploy.latency.table.store import Network
from pydeploy.timing.ratio import of_limit
from pydeploy.timing.records import Profile, Target, Timing, median_interval


@dataclass(frozen=True)
class Predictions:
    """Latencies of layers and of whole networks. Obtained from `Table.predictions`."""

    target: Target
    graph: Graph
    layers: Known
    overhead_us: float
    """What networks cost beyond the sum of their layers; negative where layers overlap or profiling slows them."""
    slope: float
    """By how much a network gets slower for each microsecond that its layers' counters rise."""
    grid: Mapping[str, frozenset[int]]
    """The widths that each prunable group had in measured networks."""

    @classmethod
    def fitted(
        cls, target: Target, graph: Graph, layers: Known, networks: Sequence[Network], slope: float
    ) -> Predictions:
        """The offset and the grid of `networks`, at least one, of `graph`."""
        calm = fit.calm(networks)
        sums = [sum(layers.lookup(key).latency_us for key in graph.keys(one.widths)) for one in calm]
        overhead_us = fit.offset(zip(sums, (one.whole.median_us for one in calm), strict=True), 1.0)
        grid = {group.name: frozenset(one.widths[group.name] for one in networks) for group in graph.prunable}
        return cls(target, graph, layers, overhead_us, slope, grid)

    def latency_us(self, key: OpKey) -> float:
        """Latency of one layer; `MissingTiming` where it is neither measured nor between measured widths."""
        return self.layers.lookup(key).latency_us

    def layers_us(self, widths: Widths) -> float:
        """Sum of all layers at `widths`, without the overhead."""
        return sum(self.latency_us(key) for key in self.graph.keys(widths))

    def predict_us(self, widths: Widths) -> float:
        """Predicted latency of the whole network at `widths` (groups not named stay dense)."""
        return self.layers_us(widths) + self.overhead_us

    @cached_property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """Widths offered to every prunable group, ascending, dense included.

        Layers that read two groups have a timing (measured or interpolated) for every pair of them; widths without
        are left out, fewest first. For a concat the solver may still meet a sum outside what was measured.
        """
        dense = self.graph.widths
        found = {name: {dense[name], *measured} for name, measured in self.grid.items()}
        self.layers_us({})  # without the dense network there is nothing to compare with
        while gaps := self._gaps(found):
            name, width = max(gaps, key=lambda gap: (gaps[gap], gap))
            found[name].discard(width)
        return {name: tuple(sorted(values)) for name, values in found.items()}

    def _gaps(self, found: Mapping[str, set[int]]) -> Counter[tuple[str, int]]:
        """How many unanswered pairs each (group, width) is in; dense widths are never blamed."""
        dense = self.graph.widths
        gaps: Counter[tuple[str, int]] = Counter()
        for op in self.graph.ops:
            scope = [name for name in op.scope if name in found]
            for values in product(*(found[name] for name in scope)) if len(scope) <= 2 else ():
                chosen = dict(zip(scope, values, strict=True))
                if self.layers.near(op.key(self.graph.at(chosen))) is None:
                    gaps.update(pair for pair in chosen.items() if pair[1] != dense[pair[0]])
        return gaps

    def corrected(self, widths: Widths, profile: Profile) -> Predictions:
        """Predictions in which the plan `widths` costs what `profile` measured.

        Each layer's measured value, scaled as the table's own networks are, replaces its key's value, so other plans
        that share the key profit; what then remains between the whole network and the sum becomes the overhead.
        """
        self.target.require(profile.target, "the profile")
        counted_us = sum(timing.median_us for timing in profile.layers.values())
        factor = Line(self.slope, self.overhead_us).factor(counted_us, profile.whole.median_us)
        measured: dict[OpKey, list[Timing]] = defaultdict(list)
        for op, key in zip(self.graph.ops, self.graph.keys(widths), strict=True):
            if op.name in profile.layers:
                measured[key].append(profile.layers[op.name].scaled(factor))
        layers = self.layers.replaced({key: _of_engine(timings) for key, timings in measured.items()})
        found = replace(self, layers=layers)
        return replace(found, overhead_us=profile.whole.median_us - found.layers_us(widths))

    def at_speed(self, dense: Profile) -> Predictions:
        """Predictions for a computer that now runs at another speed than while the table was measured.

        `dense` is what the dense network takes now. Layers of different kinds and sizes do not slow down alike: each is
        scaled by what the dense network's layers of its kind and size show, any other as the network as a whole.
        """
        overall = of_limit(dense.whole, self.predict_us({})).value
        now = self.corrected({}, dense)
        sums: dict[OpKey, tuple[float, float]] = {}
        for key in self.graph.keys({}):
            before, after = sums.get(_kind(key), (0.0, 0.0))
            sums[_kind(key)] = before + self.latency_us(key), after + now.latency_us(key)
        factors = {kind: after / before for kind, (before, after) in sums.items() if before > 0}
        scaled = {key: one.scaled(factors.get(_kind(key), overall)) for key, one in self.layers.items()}
        return replace(now, layers=self.layers.replaced(scaled))


def summary(timings: Sequence[Timing]) -> Lookup:
    """One layer's sample sets as one; sets taken under other load count only where there are no others."""
    calm = [timing for timing in timings if not timing.disturbed]
    used = calm or timings
    spread, p10, p90 = (median(getattr(t, name) for t in used) for name in ("spread", "p10_us", "p90_us"))
    medians = [t.median_us for t in used]
    interval = median_interval(medians) if len(used) > 2 else median(t.interval for t in used)
    return Lookup(median(medians), sum(t.n for t in used), len(used), spread, p10_us=p10, p90_us=p90,
                  interval=interval, disturbed=not calm)  # fmt: skip


def _of_engine(timings: Sequence[Timing]) -> Lookup:
    # The mean, not the median: layers that share a key must add up to what they took together.
    return replace(summary(timings), latency_us=mean(t.median_us for t in timings))


def _kind(key: OpKey) -> OpKey:
    """The key without its widths."""
    return replace(key, cin=0, cout=0, groups=min(key.groups, 2))
