"""Fill a latency table: probe networks at planned widths are built, timed in turns, and read layer by layer.

* Probes run in chunks, all engines of a chunk open at once. Each finished probe is written in one transaction: a run
  that is killed loses the chunk in hand and nothing else; the next run skips what is there.
* Two processes may fill one table; they take turns, chunk by chunk, as two at once would disturb each other.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydeploy.backends.base import Backend
from pydeploy.backends.device import conditions
from pydeploy.graph import Graph, OpKey, Widths
from pydeploy.latency.probes.design import Grid, grid, op_keys, probe_plans
from pydeploy.latency.probes.lab import (
    CHUNK,
    LAYER_ROUNDS,
    Lab,
    Probe,
    Transform,
    build,
    layer_timings,
    opened,
    sessions,
    timed,
    within,
)
from pydeploy.latency.table import store
from pydeploy.latency.table.table import Table, provenance
from pydeploy.timing.records import Padding

LEVELS = 2
"""How often probes that were measured at another level than the last one are measured again, the first time included."""
AGAIN = 1
"""How often networks that other load disturbed are measured again."""


@dataclass(frozen=True, slots=True)
class MeasureReport:
    """What `measure` did: probes timed now, found in the table already, and networks of which it has no calm measurement."""

    measured: int
    skipped: int
    disturbed: int
    seconds: float
    missing: tuple[OpKey, ...]
    """Layers on the grid that the table can neither look up nor interpolate (after `limit`, or in concats)."""


def measure(
    graph: Graph,
    path: Path | str,
    backend: Backend,
    table: Table,
    *,
    widths: Grid | None = None,
    plans: Sequence[Widths] | None = None,
    rounds: int = 6,
    runs: int = 5,
    limit: int | None = None,
    resume: bool = True,
    workdir: Path | str | None = None,
    transform: Transform | None = None,
    engines: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    announce: Callable[[float], None] | None = None,
) -> MeasureReport:
    """Measure every pair of `widths` (by default `design.grid`) that meets in a layer of `graph`, inside networks.

    `path` is the dense ONNX model that `graph` describes; `transform` is applied to each cut model before it is built
    (for int8, a float model is quantized without being asked), `engines` is a folder with engines that were built ahead.
    `plans` replaces the planned probes. Each probe gets at
    least `rounds` rounds of `runs` runs, more until its median is known to `lab.PRECISION` (at most `lab.MOST` times as many),
    and its layers `lab.LAYER_ROUNDS`. There are at most `limit` probes; those that the table holds are skipped, or measured
    once more with ``resume=False``. Networks of `graph` that other load disturbed, in an earlier call too, are measured
    once more if the computer comes to rest within `lab.PATIENCE_S`. `progress` is told (done, total) probes, and `announce`
    the seconds to expect on a quiet machine, once the dense network is built.
    Raises `Mismatch` when the table belongs to another target or the model to another graph.
    """
    began = time.monotonic()
    table.target.require(backend.target(), f"the latency table {table.path}")
    chosen = grid(graph) if widths is None else widths
    wanted = probe_plans(graph, chosen, limit) if plans is None else list(plans)[:limit]
    probes = _pending(graph, wanted, table, resume=resume)
    skipped, total = len(wanted) - len(probes), len(wanted)
    if probes or table.disturbed(graph):
        told = None if announce is None or not probes else partial(_announce, announce, graph, probes)
        with opened(graph, Path(path), backend, table, rounds=rounds, runs=runs, transform=transform, workdir=workdir,
                    engines=engines, announce=told) as lab:  # fmt: skip
            if table.target.measured:
                table.add_conditions(conditions())
            for more, asked in _asked(lab, table, probes):
                total += len(asked) if more else 0
                for _ in _chunks(lab, table, asked):
                    if progress is not None:
                        progress(total - len(_left(table, asked)), total)
    disturbed, seconds = len(table.disturbed(graph)), time.monotonic() - began
    return MeasureReport(total - skipped, skipped, disturbed, seconds, _missing(graph, chosen, table))


def _asked(lab: Lab, table: Table, probes: Sequence[Probe]) -> Iterator[tuple[bool, Sequence[Probe]]]:
    """`probes`; then, as further ones, those of another level and those that other load disturbed, each once more."""
    yield False, probes
    for _ in range(LEVELS - 1):
        if other := _flag_other_level(lab, table):
            yield True, _pending(lab.graph, other, table, resume=False)
    for _ in range(AGAIN):
        loud = [network.widths for network in table.disturbed(lab.graph)]
        if loud and lab.pace.rests(lab.watch, table.reference_us(lab.graph), lab.stop.patience_s):
            yield True, _pending(lab.graph, loud, table, resume=False)


def _announce(
    announce: Callable[[float], None], graph: Graph, probes: Sequence[Probe], build_s: float, round_s: float, layers_s: float
) -> None:  # fmt: skip
    share = sum(graph.macs(probe.widths) for probe in probes) / len(probes) / max(1, graph.macs())
    each = build_s + 8 * (round_s * (1 + share)) + LAYER_ROUNDS * layers_s * share
    announce(each * len(probes))


def minutes(seconds: float) -> str:
    """What `announce` is told, in words for the user."""
    return f"the latency table takes about {max(1, round(seconds / 60))} minutes of the device"


def _pending(graph: Graph, plans: Sequence[Widths], table: Table, *, resume: bool) -> list[Probe]:
    """Probes to measure; the first plan (dense) first, the others shuffled so that drift favours no width."""
    finished = table.probes()
    probes = []
    for plan in plans:
        name = probe_name(graph, plan, 0)
        if not resume:
            name = next(name for i in range(len(finished) + 1) if (name := probe_name(graph, plan, i)) not in finished)
        probes.append(Probe(name, plan))
    rest = probes[1:]
    random.Random(0).shuffle(rest)  # noqa: S311 (an order, not a secret)
    return [probe for probe in [*probes[:1], *rest] if probe.name not in finished]


def probe_name(graph: Graph, widths: Widths, repetition: int) -> str:
    """The id under which a probe's rows are stored."""
    text = json.dumps(dict(widths), sort_keys=True)
    return f"{graph.fingerprint}-{hashlib.sha256(text.encode()).hexdigest()[:12]}-{repetition}"


def _left(table: Table, probes: Sequence[Probe]) -> list[Probe]:
    finished = table.probes()
    return [probe for probe in probes if probe.name not in finished]


def _chunks(lab: Lab, table: Table, probes: Sequence[Probe]) -> Iterator[None]:
    """Measure what no process has measured yet, a chunk at a time, each in this process's turn."""
    left = list(probes)
    while left:
        with store.turn(table.path):
            left = _left(table, left)
            chunk, left = left[:CHUNK], left[CHUNK:]
            if chunk:
                _run(lab, table, chunk)
        yield


def _run(lab: Lab, table: Table, chunk: Sequence[Probe]) -> None:
    """Time all probes of a chunk in turns and store them."""
    with sessions(lab, {probe.name: build(lab, probe) for probe in chunk}) as running:
        wholes = timed(lab, running)
        told: dict[str, Mapping[str, Padding]] = {}
        layers = layer_timings(lab, running, told)
    for probe in chunk:
        made = provenance("probe", probe.name, lab.pace.level_us)
        inside = within(wholes[probe.name], layers[probe.name])
        table.add_network(lab.graph, probe.widths, wholes[probe.name], inside, made, told[probe.name])


def _flag_other_level(lab: Lab, table: Table) -> list[Widths]:
    """Flag probes that were measured at another level than the last one; returns their widths."""
    newest = {network.plan: network for network in table.networks(lab.graph)}
    other = [network for network in newest.values()
             if network.provenance.reference_us and not lab.pace.near(network.provenance.reference_us)]  # fmt: skip
    store.flag(table.path, [network.provenance.probe for network in other])
    return [network.widths for network in other]


def _missing(graph: Graph, chosen: Grid, table: Table) -> tuple[OpKey, ...]:
    wanted = set().union(*(op_keys(graph, op, chosen) for op in graph.ops))
    return tuple(sorted(key for key in wanted if table.layers.find(key) is None))
