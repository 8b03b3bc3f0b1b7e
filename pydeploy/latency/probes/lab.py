"""Where probes are built, opened and timed: the dense network stands by as the reference of the computer's speed.

* Each probe is timed between two runs of the dense network (`pydeploy.timing.reference`): what counts is its time in units of
  the dense network's, taken while the computer runs at the table's level of speed.
* All engines of a chunk are open at once and take turns.
"""

from __future__ import annotations

import hashlib
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
from pydeploy.graph import Graph, Widths
from pydeploy.latency.probes.cut_onnx import resize
from pydeploy.latency.probes.quantized import int8_transform, needs_pairs
from pydeploy.latency.table import store
from pydeploy.latency.table.table import Table
from pydeploy.onnxfile.read import load_whole
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

Transform = Callable[[onnx.ModelProto], onnx.ModelProto]


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
    engines: Path | None = None
    """Folder with engines that were built elsewhere (`build_ahead`)."""

    @property
    def stop(self) -> StopRule:
        return StopRule(self.rounds, MOST * self.rounds, PRECISION, PATIENCE_S)


@contextmanager
def opened(
    graph: Graph, path: Path, backend: Backend, table: Table, *, rounds: int, runs: int,
    transform: Transform | None = None, workdir: Path | str | None = None, engines: Path | None = None,
    announce: Callable[[float, float, float], None] | None = None,
) -> Iterator[Lab]:  # fmt: skip
    """The dense network is built and opened as the reference, and its level found, for as long as the block lasts.

    `announce` is told the seconds that building the dense network, a round, and reading its layers once took.
    """
    model = load_whole(path)
    with tempfile.TemporaryDirectory(prefix="probes-", dir=workdir) as folder, ExitStack() as stack:
        here = Path(folder)
        transform = transform or _pairs(path, model, backend, here)
        measured = backend.target().measured
        watch = Watch() if measured else unwatched()
        lab = Lab(graph, model, backend, rounds, runs, transform, here, watch, Pace.still(), engines)
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


def _pairs(path: Path, model: onnx.ModelProto, backend: Backend, here: Path) -> Transform | None:
    """What makes int8 networks of float ones, where the backend needs that."""
    if not needs_pairs(backend) or _quantized(model):
        return None
    return int8_transform(path, backend.int8_style, here, backend.threads)


def build_ahead(graph: Graph, path: Path, backend: Backend, probes: Sequence[Probe], out: Path) -> None:
    """Engines of the dense network and of `probes` in the folder `out`, for a device that will only measure them."""
    model = load_whole(path)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="probes-") as folder:
        transform = _pairs(path, model, backend, Path(folder))
        lab = Lab(graph, model, backend, 0, 0, transform, out, unwatched(), Pace.still())
        for probe in (Probe("reference", graph.widths), *probes):
            build(lab, probe)


def _quantized(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def build(lab: Lab, probe: Probe) -> Engine:
    """The probe's engine, with weights drawn from the probe's name; the one built ahead where there is one."""
    if lab.engines is not None and (ready := lab.engines / f"{probe.name}.engine").is_file():
        return Engine.load(ready)
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
