"""How far a table's predictions are from whole networks that it was not made from.

Random plans are built twice and measured in turns with the dense network, as the table's own probes were, and with some
of these probes: where those take longer or shorter than when the table was made, so does everything, and it is taken off.
Beside the error of the prediction stand, from the same run: the floor (the difference between the two builds), a table of
isolated layers, scaled so that it is right for the dense network, and a line over multiply-accumulates through the table's
networks.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.base import Backend
from pydeploy.errors import DataError
from pydeploy.graph import Graph, OpKey, Widths
from pydeploy.latency.check.isolated import isolated_us
from pydeploy.latency.probes.lab import CHUNK, Lab, Probe, Transform, build, opened, sessions, timed
from pydeploy.latency.probes.measure import probe_name
from pydeploy.latency.table import store
from pydeploy.latency.table.table import Table
from pydeploy.timing.ratio import of_limit
from pydeploy.timing.records import Timing
from pydeploy.timing.reference import TOLERANCE

TRIES = 1000
ANCHORS = 8
"""Networks of the table that are measured again. A build's luck moves one network by a percent or two, and a busy processor
slows large networks more than small ones: one network, the dense one above all, would not tell how fast the computer is."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of n predictions, and how well they rank."""

    median_error: float
    p95_error: float
    spearman: float
    n: int


@dataclass(frozen=True, slots=True)
class Pair:
    """One plan: what was predicted and what was measured, the mean of both builds; `interval` is the first build's."""

    widths: dict[str, int]
    predicted_us: float
    measured_us: float
    builds_us: tuple[float, float]
    interval: float
    disturbed: bool
    isolated_us: float | None
    macs: int


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    table: Errors
    floor: Errors
    """Of the second build as a prediction of the first."""
    isolated: Errors | None
    macs: Errors
    pairs: tuple[Pair, ...]
    dense_us: float
    isolated_dense_us: float | None
    """Sum of the dense network's isolated layers."""
    seconds: float
    isolated_layers: int = 0
    isolated_disturbed: int = 0
    """How many of the isolated layers were timed beside other load."""

    @property
    def disturbed(self) -> int:
        """Plans of which a build was measured under other load only, or at another speed than the table's networks."""
        return sum(pair.disturbed for pair in self.pairs)

    def to_json(self) -> dict[str, Any]:
        return {"schema": 1, **asdict(self.table), "disturbed": self.disturbed, "isolated_layers": self.isolated_layers,
                "isolated_disturbed": self.isolated_disturbed, "floor": asdict(self.floor), "macs": asdict(self.macs),
                "isolated": None if self.isolated is None else asdict(self.isolated), "dense_us": self.dense_us,
                "isolated_dense_us": self.isolated_dense_us, "seconds": self.seconds,
                "pairs": [asdict(pair) for pair in self.pairs]}  # fmt: skip


def errors(predicted: Sequence[float], measured: Sequence[float]) -> Errors:
    """Errors relative to `measured`."""
    one, other = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    relative = np.abs(one - other) / other
    return Errors(float(np.median(relative)), float(np.percentile(relative, 95)), spearman(one, other), len(other))


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Correlation of the ranks, equal values sharing their mean rank (Spearman 1904); NaN where all values are equal."""
    first, second = _ranks(one), _ranks(other)
    if len(one) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2.0)[inverse], dtype=np.float64)


def random_plans(graph: Graph, table: Table, count: int, seed: int) -> list[dict[str, int]]:
    """`count` different plans of the widths that the table offers that the table was not made from."""
    widths = table.widths(graph)
    known = {network.provenance.probe.rpartition("-")[0] for network in table.networks(graph)}
    rng = random.Random(seed)  # noqa: S311 (a sample, not a secret)
    found: dict[str, dict[str, int]] = {}
    for _ in range(TRIES * count):
        plan = {name: rng.choice(values) for name, values in widths.items()}
        name = probe_name(graph, plan, 0).rpartition("-")[0]
        if name not in known:
            found[name] = plan
        if len(found) == count:
            return list(found.values())
    raise DataError(
        f"{table.path} holds all but {len(found)} plans of its widths, {count} were asked for: "
        "verify fewer plans, or measure more widths"
    )


def verify(
    graph: Graph,
    path: Path | str,
    backend: Backend,
    table: Table,
    *,
    plans: int = 30,
    seed: int = 0,
    isolated: bool = True,
    rounds: int = 12,
    runs: int = 5,
    transform: Transform | None = None,
    workdir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Build `plans` random plans twice, measure them, and compare with what `table` predicts.

    Raises `Mismatch` for a table of another target, `MissingTiming` for one that lacks layers of the model.
    """
    began = time.monotonic()
    table.target.require(backend.target(), f"the latency table {table.path}")
    chosen = random_plans(graph, table, plans, seed)
    predicted = [table.predictions(graph).predict_us(plan) for plan in chosen]
    with (
        opened(
            graph, Path(path), backend, table, rounds=rounds, runs=runs, transform=transform, workdir=workdir
        ) as lab,
        store.turn(table.path),
    ):
        times = _measure(lab, chosen, _anchors(graph, table, seed), table.reference_us(graph), progress)
        none = None, frozenset[OpKey]()
        lone, loud = isolated_us(graph, [{}, *chosen], backend, lab.folder, lab.pace, lab.watch) if isolated else none
    alone = [None if lone is None else _sum(graph, plan, lone) for plan in [{}, *chosen]]
    pairs = tuple(
        Pair(plan, us, (first.median_us + second.median_us) / 2, (first.median_us, second.median_us), first.interval,
             first.disturbed or second.disturbed, lonely, graph.macs(plan))
        for plan, us, (first, second), lonely in zip(chosen, predicted, times, alone[1:], strict=True)
    )  # fmt: skip
    found = judged(graph, table, pairs, alone[0], time.monotonic() - began)
    return replace(found, isolated_layers=len(lone or ()), isolated_disturbed=len(loud))


def judged(
    graph: Graph, table: Table, pairs: Sequence[Pair], isolated_dense_us: float | None, seconds: float
) -> Verification:
    """The errors over `pairs`; `isolated_dense_us` is the sum of the dense network's isolated layers, if they were timed."""
    measured, dense_us = [pair.measured_us for pair in pairs], table.predict_us(graph, {})
    lone = [(pair.isolated_us / isolated_dense_us * dense_us, pair.measured_us)
            for pair in pairs if pair.isolated_us is not None and isolated_dense_us]  # fmt: skip
    return Verification(
        errors([pair.predicted_us for pair in pairs], measured),
        errors([pair.builds_us[1] for pair in pairs], [pair.builds_us[0] for pair in pairs]),
        errors(*zip(*lone, strict=True)) if lone else None,
        errors(_line_through(graph, table, [pair.macs for pair in pairs]), measured),
        tuple(pairs), dense_us, isolated_dense_us, seconds,
    )  # fmt: skip


def _line_through(graph: Graph, table: Table, macs: Sequence[int]) -> list[float]:
    """Latency by multiply-accumulates alone: the line that fits the table's own networks best."""
    networks = table.networks(graph)
    known = [float(graph.macs(network.widths)) for network in networks]
    slope, start = np.polyfit(known, [network.whole.median_us for network in networks], 1)
    return [float(start + slope * one) for one in macs]


def _sum(graph: Graph, plan: Widths, layers: Mapping[OpKey, float]) -> float:
    return sum(layers[key] for key in graph.keys(plan))


def _anchors(graph: Graph, table: Table, seed: int) -> list[tuple[dict[str, int], float]]:
    """Some of the networks that the table was made from, and what they took; the dense one is timed all the time."""
    level_us = table.reference_us(graph)
    known = {tuple(sorted(network.plan)): network.whole.median_us for network in table.networks(graph)
             if not network.whole.disturbed and network.provenance.reference_us == level_us}  # fmt: skip
    plans = [plan for plan in sorted(known) if graph.at(dict(plan)) != graph.widths]
    chosen = random.Random(seed).sample(plans, min(ANCHORS, len(plans)))  # noqa: S311 (a sample, not a secret)
    return [(dict(plan), known[plan]) for plan in chosen]


def _measure(
    lab: Lab, plans: Sequence[Widths], anchors: Sequence[tuple[Widths, float]], known_us: float | None,
    progress: Callable[[int, int], None] | None,
) -> list[tuple[Timing, Timing]]:  # fmt: skip
    """Both builds of every plan, timed in the same chunk of turns, as at the time when the table was made.

    `known_us` is what the dense network took then: it counts where the table holds no other network.
    """
    found: list[tuple[Timing, Timing]] = []
    size = (CHUNK - len(anchors)) // 2
    then = {f"anchor{i}": us for i, (_, us) in enumerate(anchors)}
    with sessions(
        lab, {name: build(lab, Probe(name, widths)) for name, (widths, _) in zip(then, anchors, strict=True)}
    ) as old:
        for start in range(0, len(plans), size):
            names = [f"verify{start + i}" for i in range(len(plans[start : start + size]))]
            engines = {f"{name}-{build_}": build(lab, Probe(f"{name}-{build_}", plan))
                       for name, plan in zip(names, plans[start : start + size], strict=True) for build_ in "ab"}  # fmt: skip
            with sessions(lab, engines) as running:
                timings = timed(lab, {**old, **running})
            dense = lab.pace.level_us / known_us if known_us else 1.0
            slowed = float(np.median([of_limit(timings[name], us).value for name, us in then.items()] or [dense]))
            found += [(_then(timings[f"{name}-a"], slowed), _then(timings[f"{name}-b"], slowed)) for name in names]
            if progress is not None:
                progress(len(found), len(plans))
    return found


def _then(timing: Timing, slowed: float) -> Timing:
    """What a network would have taken when the table was measured, now that networks take `slowed` times as long."""
    return replace(timing.scaled(1 / slowed), disturbed=timing.disturbed or abs(slowed - 1) > TOLERANCE)
