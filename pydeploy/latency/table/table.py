"""`Table`: what each layer costs on one target, measured inside networks; and what a plan will cost.

* A value is measured, or interpolated strictly between measured widths and flagged so, or `MissingTiming`. Nothing is
  extrapolated and nothing defaults to zero.
* A layer's latency is the median over its sample sets' medians; sets taken under other load count only where there
  are no others.
* Each network's layers are scaled to add up to what it took, less an offset per graph (`latency.fit`).
* Reading sees the file as it was at opening or at this object's last write, so one search sees one table.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from statistics import mean, median

from pydeploy.errors import MissingTiming
from pydeploy.graph import Graph, OpKey, Widths
from pydeploy.latency.table import exchange, fit, store
from pydeploy.latency.table.fit import Line
from pydeploy.latency.table.interpolation import Known, Lookup
from pydeploy.latency.table.store import Network, Padded, Provenance, Sample
from pydeploy.timing.records import Padding, Profile, Target, Timing, median_interval
from pydeploy.version import __version__


def provenance(source: str, probe: str, reference_us: float = 0.0) -> Provenance:
    """The provenance of something measured now by this version: 'probe' or 'engine', and an id of the network."""
    return Provenance(
        source, probe, datetime.now(timezone.utc).isoformat(timespec="seconds"), __version__, reference_us
    )


class Table:
    """The latency table in one file; obtained from `Table.open`."""

    def __init__(
        self,
        path: Path,
        target: Target,
        corrections: Mapping[OpKey, Lookup] | None = None,
        offsets: Mapping[str, float] | None = None,
    ) -> None:
        self.path = path
        self.target = target
        self._corrections = dict(corrections or {})
        self._offsets = dict(offsets or {})
        self._overheads: dict[str, float] = {}
        self._read: _Read | None = None

    @classmethod
    def open(cls, path: str | Path, target: Target | None = None) -> Table:
        """The table at `path`, made when missing and `target` is given.

        Raises `Mismatch`, naming the differing fact, when the file belongs to another target than `target`, and
        `DataError` when it is missing, damaged, or no latency table.
        """
        path = Path(path)
        if target is not None and not path.exists():
            store.create(path, target)
        stored = store.read_target(path)
        if target is not None:
            stored.require(target, f"the latency table {path}")
        return cls(path, stored)

    @property
    def _now(self) -> _Read:
        if self._read is None:
            self._read = _read(self.path, self._corrections)
            self._overheads.clear()
        return self._read

    def _append(
        self, samples: Sequence[Sample], networks: Sequence[Network] = (), padded: Sequence[Padded] = ()
    ) -> None:
        store.append(self.path, samples, networks, padded)
        self._read = None

    # What was measured

    def add(self, timings: Iterable[tuple[OpKey, Timing]], made: Provenance) -> None:
        """Append sample sets in one transaction."""
        self._append([Sample(key, timing, made) for key, timing in timings])

    def add_network(
        self, graph: Graph, widths: Widths, whole: Timing, layers: Mapping[str, Timing], made: Provenance,
        padding: Mapping[str, Padding] | None = None,
    ) -> None:  # fmt: skip
        """Append one network and all its layers (by operator name, per run) in one transaction."""
        full = {**graph.widths, **widths}
        timed = [(op, layers[op.name]) for op in graph.ops]
        samples = [Sample(op.key(full), timing, made) for op, timing in timed]
        total = sum(timing.median_us for timing in layers.values())
        kept = json.dumps({group.name: full[group.name] for group in graph.prunable}, sort_keys=True)
        told = padding or {}
        padded = [Padded(op.key(full), told[op.name], made.probe) for op in graph.ops if op.name in told]
        self._append(samples, [Network(graph.fingerprint, kept, total, whole, made)], padded)

    def rows(self) -> Sequence[Sample]:
        """All sample sets, oldest first."""
        return tuple(self._now.samples)

    def networks(self, graph: Graph | None = None) -> Sequence[Network]:
        """All probe networks (of `graph`), oldest first."""
        return tuple(n for n in self._now.networks if graph is None or n.graph == graph.fingerprint)

    def disturbed(self, graph: Graph) -> tuple[Network, ...]:
        """Probe networks of `graph` of which there is no measurement but under other load; the newest of each."""
        newest = {network.widths: network for network in self.networks(graph)}
        calm = {network.widths for network in self.networks(graph) if not network.whole.disturbed}
        return tuple(network for widths, network in newest.items() if widths not in calm)

    def padding(self) -> Mapping[OpKey, Padding]:
        """The channel multiples that each layer read and wrote in most networks, where the runtime told them."""
        counts = Counter((row.key, row.padding) for row in store.read_padding(self.path))
        return {key: padding for (key, padding), _ in reversed(counts.most_common())}

    def reference_us(self, graph: Graph) -> float | None:
        """The dense network's time that the rows of `graph` are scaled to, if any were; the newest where it changed."""
        levels = [
            n.provenance.reference_us
            for n in self.networks(graph)
            if n.provenance.reference_us and not n.whole.disturbed
        ]
        return levels[-1] if levels else None

    def note(self, name: str) -> str:
        """A fact kept in the file, '' where there is none: 'input' is the shapes of the model it was made for."""
        return store.note(self.path, name)

    def set_note(self, name: str, value: str) -> None:
        """Keep a fact in the file."""
        store.set_note(self.path, name, value)

    @property
    def conditions(self) -> list[dict[str, str]]:
        """Date, affinity and clocks of each time that somebody measured into this file; for the record only."""
        found: list[dict[str, str]] = json.loads(self.note("conditions") or "[]")
        return found

    def add_conditions(self, found: Mapping[str, str]) -> None:
        """Record the conditions of a measurement that begins now."""
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.set_note("conditions", json.dumps([*self.conditions, {"date": date, **found}]))

    def probes(self) -> set[str]:
        """Ids of all probes in the file at this moment, those of other processes included."""
        return store.probes(self.path)

    def to_csv(self, path: str | Path) -> None:
        """Write all sample sets as CSV (networks are only in the JSON form)."""
        exchange.to_csv(Path(path), self.target, self._now.samples)

    def to_json(self, path: str | Path) -> None:
        """Write the whole table, target included, as JSON."""
        padded = store.read_padding(self.path)
        exchange.to_json(Path(path), self.target, self._now.samples, self._now.networks, padded)

    def import_file(self, path: str | Path) -> int:
        """Add the rows of an exported CSV or JSON file of the same target that are not here yet; says how many."""
        return self._add_new(*exchange.read(Path(path), self.target))

    def merge(self, other: Table) -> int:
        """Add the rows of another table of the same target that are not here yet; says how many. Else `Mismatch`."""
        self.target.require(other.target, f"the latency table {other.path}")
        return self._add_new(other.rows(), other.networks(), store.read_padding(other.path))

    def _add_new(self, samples: Sequence[Sample], networks: Sequence[Network], padded: Sequence[Padded]) -> int:
        known = {*self._now.samples, *self._now.networks}
        told = set(store.read_padding(self.path))
        new_samples = [sample for sample in samples if sample not in known]
        new_networks = [network for network in networks if network not in known]
        self._append(new_samples, new_networks, [row for row in padded if row not in told])
        return len(new_samples) + len(new_networks)

    # What a layer costs

    def lookup(self, key: OpKey) -> Lookup:
        """Measured, or interpolated strictly between measured widths; otherwise `MissingTiming`."""
        found = self._now.known.find(key)
        if found is None:
            neighbours = self._now.known.neighbours(key)
            raise MissingTiming(f"no timing for {key} on '{self.target}' ({neighbours}); run: {self._command}")
        return found

    def latency_us(self, key: OpKey) -> float:
        """Latency of one layer; see `lookup`."""
        return self.lookup(key).latency_us

    @property
    def _command(self) -> str:
        target = self.target
        return f"pydeploy table measure MODEL --target {target.backend}:{target.precision} --db {self.path}"

    # What a network costs

    def predict_us(self, graph: Graph, widths: Widths) -> float:
        """Predicted latency of the whole network at `widths` (groups not named stay dense)."""
        return self.layers_us(graph, widths) + self.overhead_us(graph)

    def slope(self, graph: Graph) -> float:
        """By how much a network gets slower for each microsecond that its layers' counters rise."""
        line = self._now.lines.get(graph.fingerprint)
        return 1.0 if line is None else line.slope

    def layers_us(self, graph: Graph, widths: Widths) -> float:
        """Sum of all layers at `widths`, without the overhead."""
        full = {**graph.widths, **widths}
        return sum(self.latency_us(op.key(full)) for op in graph.ops)

    def overhead_us(self, graph: Graph) -> float:
        """What this graph's networks cost beyond the sum of their layers (negative where profiling slows layers)."""
        if graph.fingerprint in self._offsets:
            return self._offsets[graph.fingerprint]
        if graph.fingerprint not in self._overheads:
            probes = self.networks(graph)
            if not probes:
                raise MissingTiming(
                    f"{self.path} holds no network of graph {graph.fingerprint}, so what it costs beyond its layers "
                    f"is unknown; run: {self._command}"
                )
            self._overheads[graph.fingerprint] = fit.offset(
                [
                    (self.layers_us(graph, json.loads(probe.widths)), probe.whole.median_us)
                    for probe in fit.calm(probes)
                ],
                1.0,
            )
        return self._overheads[graph.fingerprint]

    def widths(self, graph: Graph) -> dict[str, tuple[int, ...]]:
        """Widths offered to every prunable group, ascending, dense included.

        Layers that read two groups have a timing (measured or interpolated) for every pair of them; widths without
        are left out, fewest first. For a concat the solver may still meet a sum outside what was measured.
        """
        found: dict[str, set[int]] = {group.name: {group.width} for group in graph.prunable}
        for probe in self.networks(graph):
            for name, width in json.loads(probe.widths).items():
                found[name].add(width)
        self.layers_us(graph, {})  # without the dense network there is nothing to compare with
        while gaps := self._gaps(graph, found):
            name, width = max(gaps, key=lambda gap: (gaps[gap], gap))
            found[name].discard(width)
        return {name: tuple(sorted(values)) for name, values in found.items()}

    def _gaps(self, graph: Graph, found: Mapping[str, set[int]]) -> Counter[tuple[str, int]]:
        """How many unanswered pairs each (group, width) is in; dense widths are never blamed."""
        dense = graph.widths
        gaps: Counter[tuple[str, int]] = Counter()
        for op in graph.ops:
            scope = [name for name in op.scope if name in found]
            for values in product(*(found[name] for name in scope)) if len(scope) <= 2 else ():
                chosen = dict(zip(scope, values, strict=True))
                if self._now.known.near(op.key({**dense, **chosen})) is None:
                    gaps.update(pair for pair in chosen.items() if pair[1] != dense[pair[0]])
        return gaps

    def corrected(self, graph: Graph, widths: Widths, profile: Profile) -> Table:
        """A view of this table in which the plan `widths` costs what `profile` measured; the file is untouched.

        Each layer's measured value, scaled as the table's own networks are, replaces its key's value, so other plans
        that share the key profit; what then remains between the whole network and the sum becomes the graph's offset.
        """
        self.target.require(profile.target, "the profile")
        full = {**graph.widths, **widths}
        counted_us = sum(timing.median_us for timing in profile.layers.values())
        line = Line(self.slope(graph), self.overhead_us(graph))
        factor = line.factor(counted_us, profile.whole.median_us)
        measured: dict[OpKey, list[Timing]] = defaultdict(list)
        for op in graph.ops:
            if op.name in profile.layers:
                measured[op.key(full)].append(profile.layers[op.name].scaled(factor))
        corrections = self._corrections | {key: _engine_value(timings) for key, timings in measured.items()}
        beyond = profile.whole.median_us - Table(self.path, self.target, corrections).layers_us(graph, widths)
        return Table(self.path, self.target, corrections, {**self._offsets, graph.fingerprint: beyond})

    def at_speed(self, graph: Graph, dense: Profile) -> Table:
        """A view of this table on a computer that now runs at another speed; the file is untouched.

        `dense` is what the dense network takes now. Layers of different kinds and sizes do not slow down alike: each is
        scaled by what the dense network's layers of its kind and size show, any other as the network as a whole.
        """
        self.target.require(dense.target, "the profile")
        overall = dense.whole.median_us / self.predict_us(graph, {})
        now = self.corrected(graph, {}, dense)
        sums: dict[OpKey, tuple[float, float]] = {}
        for op in graph.ops:
            key = op.key(graph.widths)
            before, after = sums.get(_kind(key), (0.0, 0.0))
            sums[_kind(key)] = before + self.latency_us(key), after + now.latency_us(key)
        factors = {kind: after / before for kind, (before, after) in sums.items() if before > 0}
        scaled = {key: one.scaled(factors.get(_kind(key), overall)) for key, one in self._now.known.items()}
        return Table(self.path, self.target, scaled, {**self._offsets, graph.fingerprint: now.overhead_us(graph)})


def _kind(key: OpKey) -> OpKey:
    """The key without its widths."""
    return replace(key, cin=0, cout=0, groups=min(key.groups, 2))


@dataclass(frozen=True)
class _Read:
    """The file's rows and what follows from them."""

    samples: Sequence[Sample]
    networks: Sequence[Network]
    known: Known
    lines: Mapping[str, Line]
    """By graph fingerprint."""


def _read(path: Path, corrections: dict[OpKey, Lookup]) -> _Read:
    samples, networks = store.read(path)
    sets: dict[OpKey, list[Timing]] = defaultdict(list)
    lines = fit.lines(samples, networks)
    factors = fit.factors(networks, lines)
    for sample in samples:
        sets[sample.key].append(sample.timing.scaled(factors.get(sample.provenance.probe, 1.0)))
    known = {key: _summary(timings) for key, timings in sets.items()} | corrections
    return _Read(samples, networks, Known(known), lines)


def _summary(timings: Sequence[Timing]) -> Lookup:
    calm = [timing for timing in timings if not timing.disturbed]
    used = calm or timings
    spread, p10, p90 = (median(getattr(t, name) for t in used) for name in ("spread", "p10_us", "p90_us"))
    medians = [t.median_us for t in used]
    interval = median_interval(medians) if len(used) > 2 else median(t.interval for t in used)
    return Lookup(median(medians), sum(t.n for t in used), len(used), spread, p10_us=p10, p90_us=p90,
                  interval=interval, disturbed=not calm)  # fmt: skip


def _engine_value(timings: Sequence[Timing]) -> Lookup:
    # The mean, not the median: layers that share a key must add up to what they took together.
    return replace(_summary(timings), latency_us=mean(t.median_us for t in timings))
