"""How long an engine takes, as a whole and layer by layer, measured on the running network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.base import Backend, Conditioned, Engine, Feeds, LayerTime, TensorSpec
from pydeploy.timing.records import Padding, Profile, Target, Timing
from pydeploy.timing.rounds import TURN_US, Load, Rounds, Samples, Timer, Watch, interleave, quiet_rounds, unwatched

OnRound = Callable[[int, int, Load], None]


def random_feeds(inputs: Sequence[TensorSpec], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Arrays that fit `inputs`: standard normal where floating, otherwise zeros and ones. Equal for equal seeds."""
    random = np.random.default_rng(seed)
    feeds: dict[str, NDArray[Any]] = {}
    for spec in inputs:
        floating = np.issubdtype(np.dtype(spec.dtype), np.floating)
        values = random.standard_normal(spec.shape) if floating else random.integers(0, 2, spec.shape)
        feeds[spec.name] = np.asarray(values, dtype=spec.dtype)
    return feeds


def profile(
    backend: Backend,
    engine: Engine,
    ops: Sequence[str] | None = None,
    *,
    feeds: Feeds | None = None,
    rounds: int = 10,
    runs: int = 20,
    on_round: OnRound | None = None,
) -> Profile:
    """The engine's latency and the times of its layers, each from `rounds` rounds of `runs` runs.

    Layers are named by the model's operators in `ops` (see `attribute`), or by their ONNX nodes without `ops`.
    Both are measured with other load watched for; `Timing.disturbed` says when it could not be avoided. Layers are as
    the runtime reads them; `pydeploy.timing.overhead.net` takes off what reading adds.
    """
    target = backend.target()
    watch = Watch() if target.measured else unwatched()
    with backend.open(engine) as session:
        feeds = random_feeds(session.inputs) if feeds is None else feeds
        timers: dict[str, Timer] = {"": partial(session.time, feeds)}
        whole = interleave(timers, rounds=rounds, runs=runs, watch=watch, on_round=on_round)[""]
        facts = session.condition() if isinstance(session, Conditioned) else {}
        inside = quiet_rounds(partial(session.layers, feeds, runs), rounds=rounds, retries=rounds, watch=watch)
    disturbed = whole.disturbed or facts.get("unstable", 0.0) > 0
    return _of_rounds(target, replace(whole.timing, disturbed=disturbed), inside, ops, {**whole.condition, **facts})


def profile_layers(
    backend: Backend, engine: Engine, whole: Timing, ops: Sequence[str], *, rounds: int = 10, runs: int = 20
) -> Profile:
    """The profile of an engine whose latency `whole` was measured already: only its layers are timed, as in `profile`."""
    target = backend.target()
    with backend.open(engine) as session:
        once = partial(session.layers, random_feeds(session.inputs), runs)
        watch = Watch() if target.measured else unwatched()
        inside = quiet_rounds(once, rounds=rounds, retries=rounds, watch=watch)
    return _of_rounds(target, whole, inside, ops, inside.condition)


def _of_rounds(
    target: Target, whole: Timing, inside: Rounds[Sequence[LayerTime]], ops: Sequence[str] | None,
    condition: Mapping[str, float],
) -> Profile:  # fmt: skip
    first = inside.results[0]
    ran = [replace(layer, samples_us=np.array([float(layer.samples_us.any())])) for layer in first]
    counted = named_layers(ran, ops)
    samples = _joined([named_layers(layers, ops) for layers in inside.results])
    layers = {name: Timing.of(values, disturbed=inside.disturbed) for name, values in samples.items()}
    parts = {name: int(count[0]) for name, count in counted.items()}
    return Profile(target, whole, layers, condition, paddings(first, ops), parts)


def time_engines(
    engines: Mapping[str, tuple[Backend, Engine]],
    *,
    feeds: Mapping[str, Feeds] | None = None,
    rounds: int = 10,
    runs: int = 20,
    retries: int | None = None,
    patience_s: float = math.inf,
    on_round: OnRound | None = None,
) -> dict[str, Samples]:
    """Whole-network samples of several engines, taken in turns, so that they may be compared with each other (`ratio`).

    `feeds` gives each engine's inputs by the engine's name here; random ones by default. A turn has at least `runs` runs;
    `retries` and `patience_s` bound what is measured again because of other load, as in `interleave`.
    """
    with ExitStack() as stack:
        timers: dict[str, Timer] = {}
        for name, (backend, engine) in engines.items():
            session = stack.enter_context(backend.open(engine))
            chosen = random_feeds(session.inputs) if feeds is None else feeds[name]
            timers[name] = partial(session.time, chosen)
        measured = any(backend.target().measured for backend, _ in engines.values())
        watch = Watch() if measured else unwatched()
        turn_us = TURN_US if measured and len(engines) > 1 else 0.0
        return interleave(timers, rounds=rounds, runs=runs, turn_us=turn_us, retries=retries, patience_s=patience_s,
                          watch=watch, on_round=on_round)  # fmt: skip


def named_layers(layers: Sequence[LayerTime], ops: Sequence[str] | None) -> dict[str, NDArray[np.float64]]:
    """Time by operator (see `attribute`); without `ops` by the first ONNX node that a layer came from, if any."""
    return _by_name(layers) if ops is None else attribute(layers, ops)


def attribute(layers: Sequence[LayerTime], ops: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Time of each operator of the model, in execution order: ``{op: samples_us}``.

    A layer counts to the first of `ops` among its nodes; one without (a layout conversion, a pool, an activation
    that was not fused) to the operator before it, or to '' when there is none. Layers of one operator are summed
    run by run. An operator that the runtime merged into another one is absent.
    """
    known = frozenset(ops)
    found: dict[str, NDArray[np.float64]] = {}
    current = ""
    for layer in layers:
        current = next((node for node in layer.nodes if node in known), current)
        found[current] = found[current] + layer.samples_us if current in found else layer.samples_us
    return found


def paddings(layers: Sequence[LayerTime], ops: Sequence[str] | None = None) -> dict[str, Padding]:
    """Channel multiples of each operator in `ops` (by ONNX node without), where the runtime tells its layer's formats."""
    known = None if ops is None else frozenset(ops)
    found: dict[str, Padding] = {}
    for layer in layers:
        names = [node for node in layer.nodes if known is None or node in known]
        if names and any(layer.padding):
            found.setdefault(names[0], layer.padding)
    return found


def _by_name(layers: Sequence[LayerTime]) -> dict[str, NDArray[np.float64]]:
    """By the first node of the model that a layer came from; what the runtime inserted by the runtime's own name."""
    found: dict[str, NDArray[np.float64]] = {}
    for layer in layers:
        name = layer.nodes[0] if layer.nodes else layer.name
        found[name] = found[name] + layer.samples_us if name in found else layer.samples_us
    return found


def _joined(rounds: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    """Samples of all rounds; a layer that a runtime lists in some of them only has fewer."""
    names = dict.fromkeys(name for layers in rounds for name in layers)
    return {name: np.concatenate([layers[name] for layers in rounds if name in layers]) for name in names}
