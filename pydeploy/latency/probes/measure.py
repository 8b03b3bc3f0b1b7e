"""Fill a latency table: probe networks at planned widths are built, timed in turns, and read layer by layer.

* Each probe is timed between two runs of the dense network (`pydeploy.timing.reference`): what counts is its time in units of
  the dense network's, taken while the computer runs at the table's level of speed.
* Probes run in chunks, all engines of a chunk open at once. Each finished probe is written in one transaction: a run
  that is killed loses the chunk in hand and nothing else; the next run skips what is there.
* Two processes may fill one table; they take turns, chunk by chunk, as two at once would disturb each other.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from pydeploy.backends.base import Backend, Engine, Feeds, Session
from pydeploy.backends.device import conditions
from pydeploy.errors import DataError
from pydeploy.graph import Graph, OpKey, Widths
from pydeploy.latency.probes.cut_onnx import resize
from pydeploy.latency.probes.design import Grid, grid, op_keys, probe_plans
from pydeploy.latency.probes.quantized import int8_transform, needs_pairs
from pydeploy.latency.table import store
from pydeploy.latency.table.table import Table, provenance
from pydeploy.profiling import agreement
from pydeploy.profiling.profile import attribute, paddings, random_feeds
from pydeploy.timing.records import Padding, Timing
from pydeploy.timing.reference import Kept, Pace, StopRule, take_turns, time_in_turns, timing_of
from pydeploy.timing.rounds import Watch, unwatched

CHUNK = 16
"""Most engines open at once."""
LAYER_ROUNDS = 5
"""A runtime's profiler may need a fresh session for each round, so layers get fewer rounds."""
PRECISION = 0.02
"""Rounds go on until half the width of a median's 95 % confidence interval is below this share of it."""
MOST = 3
"""At most this many times the asked rounds."""
PATIENCE_S = 20.0
"""After the asked rounds, how long a chunk waits for the computer to come back to the table's level of speed."""

LEVELS = 2
"""How often probes that were measured at another level than the last one are measured again, the first time included."""
AGAIN = 1
"""How often networks that other load disturbed are measured again."""

Transform = Callable[[onnx.ModelProto], onnx.ModelProto]


@dataclass(frozen=True, slots=True)
class MeasureReport:
    """What `measure` did: probes timed now, found in the table already, and networks of which it has no calm measurement."""

    measured: int
    skipped: int
    disturbed: int
    seconds: float
    missing: tuple[OpKey, ...]
    """Layers on the grid that the table can neither look up nor interpolate (after `limit`, or in concats)."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A network to measure; `name` is unique and stable: graph, widths and repetition."""

    name: str
    widths: Widths


@dataclass(frozen=True)
class Lab:
    """What stays the same from probe to probe. Obtained from `opened`."""

    graph: Graph
    model: onnx.ModelProto
    backend: Backend
    rounds: int
    runs: int
    transform: Transform | None
    folder: Path
    watch: Watch
    pace: Pace

    @property
    def stop(self) -> StopRule:
        return StopRule(self.rounds, MOST * self.rounds, PRECISION, PATIENCE_S)


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
    progress: Callable[[int, int], None] | None = None,
    announce: Callable[[float], None] | None = None,
) -> MeasureReport:
    """Measure every pair of `widths` (by default `design.grid`) that meets in a layer of `graph`, inside networks.

    `path` is the dense ONNX model that `graph` describes; `transform` is applied to each cut model before it is built
    (for int8, a float model is quantized without being asked). `plans` replaces the planned probes. Each probe gets at
    least `rounds` rounds of `runs` runs, more until its median is known to `PRECISION` (at most `MOST` times as many),
    and its layers `LAYER_ROUNDS`. There are at most `limit` probes; those that the table holds are skipped, or measured
    once more with ``resume=False``. Networks of `graph` that other load disturbed, in an earlier call too, are measured
    once more if the computer comes to rest within `PATIENCE_S`. `progress` is told (done, total) probes, and `announce`
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
                    announce=told) as lab:  # fmt: skip
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
        if loud and lab.pace.rests(lab.watch, table.reference_us(lab.graph), PATIENCE_S):
            yield True, _pending(lab.graph, loud, table, resume=False)


@contextmanager
def opened(
    graph: Graph, path: Path, backend: Backend, table: Table, *, rounds: int, runs: int,
    transform: Transform | None = None, workdir: Path | str | None = None,
    announce: Callable[[float, float, float], None] | None = None,
) -> Iterator[Lab]:  # fmt: skip
    """The dense network is built and opened as the reference, and its level found, for as long as the block lasts.

    `announce` is told the seconds that building the dense network, a round, and reading its layers once took.
    """
    model = load_model(path)
    with tempfile.TemporaryDirectory(prefix="probes-", dir=workdir) as folder, ExitStack() as stack:
        here = Path(folder)
        if transform is None and needs_pairs(backend) and not _quantized(model):
            transform = int8_transform(path, backend.int8_style, here, backend.threads)
        measured = backend.target().measured
        lab = Lab(
            graph, model, backend, rounds, runs, transform, here, Watch() if measured else unwatched(), Pace.still()
        )
        start = time.monotonic()
        with store.turn(table.path):
            session = stack.enter_context(backend.open(build(lab, Probe("reference", graph.widths))))
            built = time.monotonic()
            feeds = random_feeds(session.inputs)
            timer = partial(session.time, feeds)
            if measured:
                lab = replace(lab, pace=Pace.survey(timer, table.reference_us(graph), PATIENCE_S))
            if announce is not None:
                timed = time.monotonic()
                session.time(feeds, runs)
                ran = time.monotonic()
                session.layers(feeds, runs)
                announce(built - start, ran - timed, time.monotonic() - ran)
        yield lab


def _announce(
    announce: Callable[[float], None], graph: Graph, probes: Sequence[Probe], build_s: float, round_s: float, layers_s: float
) -> None:  # fmt: skip
    share = sum(graph.macs(probe.widths) for probe in probes) / len(probes) / max(1, graph.macs())
    each = build_s + 8 * (round_s * (1 + share)) + LAYER_ROUNDS * layers_s * share
    announce(each * len(probes))


def minutes(seconds: float) -> str:
    """What `announce` is told, in words for the user."""
    return f"the latency table takes about {max(1, round(seconds / 60))} minutes of the device"


def load_model(path: Path) -> onnx.ModelProto:
    """The ONNX model in `path`; raises `DataError` where there is none."""
    try:
        return onnx.load(path, format="protobuf")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except Exception as error:  # protobuf's parse errors share no base with the file system's
        raise DataError(f"{path} is not a readable ONNX file ({error}); export the model again") from None


def _quantized(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


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


def build(lab: Lab, probe: Probe) -> Engine:
    """The probe's engine, with weights drawn from the probe's name."""
    engine = lab.folder / f"{probe.name}.engine"
    source = lab.folder / f"{probe.name}.onnx"
    generator = np.random.default_rng(int(hashlib.sha256(probe.name.encode()).hexdigest()[:16], 16))
    model = resize(lab.model, lab.graph, probe.widths, generator)
    onnx.save(model if lab.transform is None else lab.transform(model), source)
    # The dense network stands for all: what a runtime computes wrongly depends on the layers, not on their widths.
    make = partial(agreement.build, lab.backend) if probe.name == "reference" else lab.backend.build
    built = make(source, engine)
    source.unlink()
    return built


@contextmanager
def sessions(lab: Lab, engines: Mapping[str, Engine]) -> Iterator[dict[str, tuple[Session, Feeds]]]:
    """All engines open and warmed up, each with feeds; the files are removed afterwards."""
    with ExitStack() as stack:
        found: dict[str, tuple[Session, Feeds]] = {}
        for name, engine in engines.items():
            session = stack.enter_context(lab.backend.open(engine))
            found[name] = session, random_feeds(session.inputs)
            session.time(found[name][1], 3)
        yield found
    for engine in engines.values():
        for file in lab.folder.glob(f"{engine.path.stem}.*"):
            file.unlink()


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


def within(whole: Timing, layers: Mapping[str, Timing]) -> Mapping[str, Timing]:
    """`layers`; where they were read away from the level, only as shares of what the `whole` network takes.

    What others do to a computer slows the reference and a small network down by different factors.
    """
    total_us = sum(timing.median_us for timing in layers.values())
    if total_us <= 0 or not any(timing.disturbed for timing in layers.values()):
        return layers
    return {op: timing.scaled(whole.median_us / total_us) for op, timing in layers.items()}


def timed(lab: Lab, running: Mapping[str, tuple[Session, Feeds]]) -> dict[str, Timing]:
    """Whole networks in turns; where the level did not come back for most of them, once more at what prevails."""
    timers = {name: partial(session.time, feeds) for name, (session, feeds) in running.items()}

    def turns() -> dict[str, Timing]:
        return time_in_turns(timers, lab.pace, runs=lab.runs, stop=lab.stop, watch=lab.watch)

    found = turns()
    if 2 * sum(timing.disturbed for timing in found.values()) > len(found) and not lab.pace.at_level:
        lab.pace.adopt_level()
        found = turns()
    return found


def layer_timings(
    lab: Lab, running: Mapping[str, tuple[Session, Feeds]], told: dict[str, Mapping[str, Padding]] | None = None
) -> dict[str, dict[str, Timing]]:
    """Per probe, per operator. An operator that the runtime merged into another one takes no time of its own.

    `told` gets what the runtime tells of padded channels, per probe and operator.
    """
    ops = [op.name for op in lab.graph.ops]
    count = 2 * lab.runs

    def turn(name: str, session: Session, feeds: Feeds) -> Callable[[], dict[str, NDArray[np.float64]]]:
        def once() -> dict[str, NDArray[np.float64]]:
            layers = session.layers(feeds, count)
            if told is not None:
                told[name] = paddings(layers, ops)
            return attribute(layers, ops)

        return once

    rounds = min(LAYER_ROUNDS, lab.rounds)
    stop = StopRule(rounds, 2 * rounds, PRECISION, PATIENCE_S)
    kept = take_turns({name: turn(name, *pair) for name, pair in running.items()}, lab.pace, stop, watch=lab.watch)
    nothing = np.zeros(count)
    return {
        name: {op: timing_of(Kept(tuple(value.get(op, nothing) for value in one.values), one.factors, one.disturbed,
                                  one.rejected)) for op in ["", *ops]}
        for name, one in kept.items()
    }  # fmt: skip


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
