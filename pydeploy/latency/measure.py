"""Fill a latency table: probe networks at planned widths are built, timed in turns, and read layer by layer.

* Probes run in chunks, all engines of a chunk open at once: many short rounds in turns reach all of them alike, and
  a round that other load disturbed is repeated.
* Each finished probe is written in one transaction. A run that is killed loses the chunk in hand and nothing else;
  the next run skips what is there. Two processes may fill one table.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from pydeploy.backends.base import Backend, Engine, Feeds, Session
from pydeploy.clock import Watch, interleave, quiet_rounds, unwatched
from pydeploy.errors import DataError, MissingTiming
from pydeploy.graph import Graph, OpKey, Widths
from pydeploy.latency.design import Grid, grid, op_keys, probe_plans
from pydeploy.latency.probe import resize
from pydeploy.latency.table import Table, origin
from pydeploy.profile import attribute, random_feeds
from pydeploy.timing import Timing

CHUNK = 16
"""Most engines open at once; fewer where a round over all of them would take longer than `ROUND_S`."""
ROUND_S = 1.0
LAYER_ROUNDS = 5
"""A runtime's profiler may need a fresh session for each round, so layers get fewer and longer rounds."""

Transform = Callable[[onnx.ModelProto], onnx.ModelProto]


@dataclass(frozen=True, slots=True)
class MeasureReport:
    """What `measure` did: probes timed now, found in the table already, and flagged as disturbed."""

    measured: int
    skipped: int
    disturbed: int
    seconds: float
    missing: tuple[OpKey, ...]
    """Layers on the grid that the table can neither look up nor interpolate (after `limit`, or in concats)."""


@dataclass(frozen=True, slots=True)
class _Probe:
    name: str
    """Unique and stable: graph, widths and repetition."""
    widths: Widths


@dataclass(frozen=True)
class _Lab:
    """What stays the same from probe to probe."""

    graph: Graph
    model: onnx.ModelProto
    backend: Backend
    table: Table
    rounds: int
    runs: int
    transform: Transform | None
    folder: Path
    watch: Watch

    @property
    def layer_runs(self) -> int:
        return max(1, -(-self.rounds * self.runs // LAYER_ROUNDS))


def measure(
    graph: Graph,
    path: Path | str,
    backend: Backend,
    table: Table,
    *,
    widths: Grid | None = None,
    rounds: int = 10,
    runs: int = 10,
    limit: int | None = None,
    resume: bool = True,
    workdir: Path | str | None = None,
    transform: Transform | None = None,
    progress: Callable[[int, int], None] | None = None,
    announce: Callable[[float], None] | None = None,
) -> MeasureReport:
    """Measure every pair of `widths` (by default `design.grid`) that meets in a layer of `graph`, inside networks.

    `path` is the dense ONNX model that `graph` describes; `transform` is applied to each cut model before it is built
    (quantisation, for instance). Each probe gets `rounds` rounds of `runs` runs, its layers as many. There are at most
    `limit` probes; those that the table holds are skipped, or measured once more with ``resume=False``. `progress` is
    told (done, total) probes, and `announce` the seconds to expect on a quiet machine, once the first probe is built
    (repeating disturbed rounds can add half as much again).
    Raises `Mismatch` when the table belongs to another target or the model to another graph.
    """
    began = time.monotonic()
    target = backend.target()
    table.target.require(target, f"the latency table {table.path}")
    chosen = grid(graph) if widths is None else widths
    plans = probe_plans(graph, chosen, limit)
    probes = _pending(graph, plans, table, resume=resume)
    skipped, done, disturbed = len(plans) - len(probes), len(plans) - len(probes), 0
    watch = Watch() if target.measured else unwatched()
    model = _load(Path(path))
    with tempfile.TemporaryDirectory(prefix="probes-", dir=workdir) as folder:
        lab = _Lab(graph, model, backend, table, rounds, runs, transform, Path(folder), watch)
        size = _survey(lab, probes, announce) if probes else 1
        while probes:
            finished = table.probes()
            chunk, probes = probes[:size], probes[size:]
            mine = [probe for probe in chunk if probe.name not in finished]
            disturbed += _run(lab, mine) if mine else 0
            done += len(chunk)
            if progress is not None:
                progress(done, len(plans))
    return MeasureReport(done - skipped, skipped, disturbed, time.monotonic() - began, _missing(graph, chosen, table))


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's parse errors share no base with the file system's
        raise DataError(f"{path} is not a readable ONNX file ({error}); export the model again") from None


def _pending(graph: Graph, plans: Sequence[Widths], table: Table, *, resume: bool) -> list[_Probe]:
    """Probes to measure; the first plan (dense) first, the others shuffled so that drift favours no width."""
    finished = table.probes()
    probes = []
    for plan in plans:
        name = probe_name(graph, plan, 0)
        if not resume:
            name = next(name for i in range(len(finished) + 1) if (name := probe_name(graph, plan, i)) not in finished)
        probes.append(_Probe(name, plan))
    rest = probes[1:]
    random.Random(0).shuffle(rest)  # noqa: S311 (an order, not a secret)
    return [probe for probe in [*probes[:1], *rest] if probe.name not in finished]


def probe_name(graph: Graph, widths: Widths, repetition: int) -> str:
    """The id under which a probe's rows are stored."""
    text = json.dumps(dict(widths), sort_keys=True)
    return f"{graph.fingerprint}-{hashlib.sha256(text.encode()).hexdigest()[:12]}-{repetition}"


def _survey(lab: _Lab, probes: Sequence[_Probe], announce: Callable[[float], None] | None) -> int:
    """Build and time the first probe once: announces the seconds to expect, returns how many fit in a chunk."""
    start = time.monotonic()
    engine = _build(lab, probes[0])
    with lab.backend.open(engine) as session:
        feeds = random_feeds(session.inputs)
        session.time(feeds, 2)
        opened = time.monotonic()
        session.time(feeds, lab.runs)
        timed = time.monotonic()
        session.layers(feeds, lab.layer_runs)
        layered = time.monotonic()
    running_s = lab.rounds * (timed - opened) + LAYER_ROUNDS * (layered - timed)
    first = max(1, lab.graph.macs(probes[0].widths))
    share = sum(lab.graph.macs(probe.widths) for probe in probes) / first
    if announce is not None:
        announce((opened - start) * len(probes) + running_s * share)
    return int(np.clip(ROUND_S / max(timed - opened, 1e-6), 2, CHUNK))


def _build(lab: _Lab, probe: _Probe) -> Engine:
    """The probe's engine, with weights drawn from the probe's name."""
    engine = lab.folder / f"{probe.name}.engine"
    if engine.exists():
        return Engine.load(engine)
    source = lab.folder / f"{probe.name}.onnx"
    generator = np.random.default_rng(int(hashlib.sha256(probe.name.encode()).hexdigest()[:16], 16))
    model = resize(lab.model, lab.graph, probe.widths, generator)
    onnx.save(model if lab.transform is None else lab.transform(model), source)
    return lab.backend.build(source, engine)


def _run(lab: _Lab, chunk: Sequence[_Probe]) -> int:
    """Time all probes of a chunk in turns and store them; returns how many were disturbed."""
    engines = [_build(lab, probe) for probe in chunk]
    with ExitStack() as stack:
        opened = [stack.enter_context(lab.backend.open(engine)) for engine in engines]
        sessions = {probe.name: session for probe, session in zip(chunk, opened, strict=True)}
        feeds = {name: random_feeds(session.inputs) for name, session in sessions.items()}
        timers = {name: partial(session.time, feeds[name]) for name, session in sessions.items()}
        wholes = interleave(timers, rounds=lab.rounds, runs=lab.runs, retries=lab.rounds // 2, watch=lab.watch)
        layers = _layer_timings(lab, sessions, feeds)
    for probe in chunk:
        whole, made = wholes[probe.name].timing, origin("probe", probe.name)
        lab.table.add_network(lab.graph, probe.widths, whole, layers[probe.name], made)
    for leftover in lab.folder.iterdir():
        if leftover.is_file():
            leftover.unlink()
    return sum(wholes[probe.name].disturbed for probe in chunk)


def _layer_timings(
    lab: _Lab, sessions: Mapping[str, Session], feeds: Mapping[str, Feeds]
) -> dict[str, dict[str, Timing]]:
    """Per probe, per operator. An operator that the runtime merged into another one takes no time of its own."""
    ops = [op.name for op in lab.graph.ops]

    def one_round() -> dict[str, dict[str, NDArray[np.float64]]]:
        return {name: attribute(session.layers(feeds[name], lab.layer_runs), ops) for name, session in sessions.items()}

    kept = quiet_rounds(one_round, rounds=LAYER_ROUNDS, retries=LAYER_ROUNDS // 2, watch=lab.watch)
    nothing = np.zeros(lab.layer_runs)
    result: dict[str, dict[str, Timing]] = {}
    for name in sessions:
        found = {op: [r[name].get(op, nothing) for r in kept.results] for op in ["", *ops]}
        result[name] = {op: Timing.of(np.concatenate(us), disturbed=kept.disturbed) for op, us in found.items()}
    return result


def _missing(graph: Graph, chosen: Grid, table: Table) -> tuple[OpKey, ...]:
    def answered(key: OpKey) -> bool:
        try:
            table.lookup(key)
        except MissingTiming:
            return False
        return True

    wanted = set().union(*(op_keys(graph, op, chosen) for op in graph.ops))
    return tuple(sorted(key for key in wanted if not answered(key)))
