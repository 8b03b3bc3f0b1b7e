"""`Table`: the file of what was measured on one target, layer by layer inside networks; `predictions` reads it.

* A layer's latency is the median over its sample sets' medians; sets taken under other load count only where there
  are no others.
* Each network's layers are scaled to add up to what it took, less an offset per graph (`latency.table.fit`).
* Reading sees the file as it was at opening or at this object's last write, so one search sees one table; the rows are
  read and fitted once.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from pydeploy.errors import MissingTiming
from pydeploy.graph import Graph, OpKey, Widths
from pydeploy.latency.table import exchange, fit, store
from pydeploy.latency.table.fit import Line
from pydeploy.latency.table.interpolation import Known, Lookup
from pydeploy.latency.table.predictions import Predictions, summary
from pydeploy.latency.table.store import Network, Padded, Provenance, Sample
from pydeploy.timing.records import Padding, Target, Timing
from pydeploy.version import __version__


def provenance(source: str, probe: str, reference_us: float = 0.0) -> Provenance:
    """The provenance of something measured now by this version: 'probe' or 'engine', and an id of the network."""
    return Provenance(
        source, probe, datetime.now(timezone.utc).isoformat(timespec="seconds"), __version__, reference_us
    )


@dataclass(frozen=True)
class _Rows:
    """The file's rows at one moment, and what follows from them."""

    samples: Sequence[Sample]
    networks: Sequence[Network]
    layers: Known
    lines: Mapping[str, Line]
    """By graph fingerprint."""
    predictions: dict[str, Predictions] = field(default_factory=dict)
    """Made so far, by graph fingerprint."""


class Table:
    """The latency table in one file; obtained from `Table.open`."""

    def __init__(self, path: Path, target: Target) -> None:
        self.path = path
        self.target = target
        self._read: _Rows | None = None

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
    def _now(self) -> _Rows:
        if self._read is None:
            self._read = _rows(self.path, self.target, self._command)
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
        keys, full, told = graph.keys(widths), graph.at(widths), padding or {}
        samples = [Sample(key, layers[op.name], made) for op, key in zip(graph.ops, keys, strict=True)]
        total = sum(timing.median_us for timing in layers.values())
        kept = {group.name: full[group.name] for group in graph.prunable}
        padded = [Padded(key, told[op.name], made.probe) for op, key in zip(graph.ops, keys, strict=True)
                  if op.name in told]  # fmt: skip
        self._append(samples, [Network(graph.fingerprint, kept, total, whole, made)], padded)

    def rows(self) -> Sequence[Sample]:
        """All sample sets, oldest first."""
        return tuple(self._now.samples)

    def networks(self, graph: Graph | None = None) -> Sequence[Network]:
        """All probe networks (of `graph`), oldest first."""
        return tuple(n for n in self._now.networks if graph is None or n.graph == graph.fingerprint)

    def disturbed(self, graph: Graph) -> tuple[Network, ...]:
        """Probe networks of `graph` of which there is no measurement but under other load; the newest of each."""
        newest = {network.plan: network for network in self.networks(graph)}
        calm = {network.plan for network in self.networks(graph) if not network.whole.disturbed}
        return tuple(network for plan, network in newest.items() if plan not in calm)

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
        known, told = set(self._now.samples), set(store.read_padding(self.path))
        held = {tuple(store.network_row(network).values()) for network in self._now.networks}
        new_samples = [sample for sample in samples if sample not in known]
        new_networks = [network for network in networks if tuple(store.network_row(network).values()) not in held]
        self._append(new_samples, new_networks, [row for row in padded if row not in told])
        return len(new_samples) + len(new_networks)

    # What layers and networks cost

    @property
    def layers(self) -> Known:
        """What is known of single layers, of whatever graph."""
        return self._now.layers

    def lookup(self, key: OpKey) -> Lookup:
        """Measured, or interpolated strictly between measured widths; otherwise `MissingTiming`."""
        return self.layers.lookup(key)

    def latency_us(self, key: OpKey) -> float:
        """Latency of one layer; see `lookup`."""
        return self.lookup(key).latency_us

    def predictions(self, graph: Graph) -> Predictions:
        """What networks of `graph` cost by the present rows. `MissingTiming` where none of it was measured."""
        rows = self._now
        if graph.fingerprint not in rows.predictions:
            networks = self.networks(graph)
            if not networks:
                raise MissingTiming(
                    f"{self.path} holds no network of graph {graph.fingerprint}, so what it costs beyond its layers "
                    f"is unknown; run: {self._command}"
                )
            slope = rows.lines[graph.fingerprint].slope
            rows.predictions[graph.fingerprint] = Predictions.fitted(self.target, graph, rows.layers, networks, slope)
        return rows.predictions[graph.fingerprint]

    def predict_us(self, graph: Graph, widths: Widths) -> float:
        """Predicted latency of the whole network at `widths` (groups not named stay dense)."""
        return self.predictions(graph).predict_us(widths)

    def widths(self, graph: Graph) -> dict[str, tuple[int, ...]]:
        """Widths offered to every prunable group, ascending, dense included (`Predictions.widths`)."""
        return self.predictions(graph).widths

    @property
    def _command(self) -> str:
        target = self.target
        return f"pydeploy table measure MODEL --target {target.backend}:{target.precision} --db {self.path}"


def _rows(path: Path, target: Target, command: str) -> _Rows:
    samples, networks = store.read(path)
    lines = fit.lines(samples, networks)
    factors = fit.factors(networks, lines)
    sets: dict[OpKey, list[Timing]] = defaultdict(list)
    for sample in samples:
        sets[sample.key].append(sample.timing.scaled(factors.get(sample.provenance.probe, 1.0)))
    known = Known({key: summary(timings) for key, timings in sets.items()}, target, command)
    return _Rows(samples, networks, known, lines)
