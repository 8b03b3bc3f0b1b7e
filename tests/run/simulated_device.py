"""A measured device with a clock of its own: the analytic backend on a computer that others use at times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from pydeploy.backends.base import BACKENDS, Engine, LayerTime
from pydeploy.backends.null import Null, NullSession
from pydeploy.timing.records import Target
from pydeploy.timing.rounds import Load

DENSE_US = 400.0
"""About what the dense network of these tests takes."""


@dataclass
class Device:
    """While `busy` says so, a network of cost c takes ``1 + 2 (DENSE_US / c) ** unfair`` times as long.

    So with `unfair` above 0 small networks suffer more and seem to miss budgets that they meet, and below 0 they seem to meet
    budgets that they miss. Others are `seen` to have half of the cores then, or the computer is slower for no reason to be
    seen.
    """

    busy: Callable[[float], bool] = lambda _s: False
    unfair: float = 1.0
    seen: bool = True
    now_s: float = 0.0
    others_s: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def run(self, cost_us: float, n: int) -> np.ndarray:
        slow = self.busy(self.now_s)
        factor = 1 + 2 * (DENSE_US / cost_us) ** self.unfair if slow else 1.0
        taken_us = cost_us * factor * np.exp(self.rng.normal(0, 0.005, n))
        self.now_s += float(taken_us.sum()) / 1e6
        self.others_s += float(taken_us.sum()) / 2e6 if slow and self.seen else 0.0
        return taken_us

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.others_s += seconds / 2 if self.busy(self.now_s) and self.seen else 0.0
        self.now_s += seconds


class Watching:
    """What a `Watch` sees of a device."""

    best_us = 1.0

    def __init__(self, device: Device) -> None:
        self.device, self.began = device, (0.0, 0.0)

    def start(self) -> None:
        self.began = (self.device.now_s, self.device.others_s)

    def stop(self) -> Load:
        wall, others = self.device.now_s - self.began[0], self.device.others_s - self.began[1]
        return Load(others / wall if wall > 0 else 0.0, 1.0, 1.0)


class Busy(Null):
    """The analytic backend, taken for a measured one, on `device`."""

    device = Device()

    def target(self) -> Target:
        return replace(super().target(), measured=True)

    @contextmanager
    def open(self, engine: Engine) -> Iterator[Any]:
        with super().open(engine) as session:
            yield _Session(session, self.device)


class _Session:
    def __init__(self, session: NullSession, device: Device) -> None:
        self.inputs, self.outputs, self.run = session.inputs, session.outputs, session.run
        self._session, self._device = session, device

    def time(self, feeds: Any, n: int) -> np.ndarray:
        return self._device.run(float(self._session.time(feeds, 1)[0]), n)

    def layers(self, feeds: Any, n: int) -> Sequence[LayerTime]:
        found = self._session.layers(feeds, n)
        cost_us = float(self._session.time(feeds, 1)[0])
        factors = self._device.run(cost_us, n) / cost_us
        return [LayerTime(layer.name, layer.nodes, layer.samples_us * factors) for layer in found]


def install(patch: pytest.MonkeyPatch, device: Device) -> Device:
    """All measuring happens on `device` and by its clock, with the patience of a real run."""
    patch.setattr(Busy, "device", device)
    patch.setitem(BACKENDS, "null", "simulated_device:Busy")
    for module in ("profiling.engines", "profiling.profile", "latency.probes.lab"):
        patch.setattr(f"pydeploy.{module}.Watch", lambda: Watching(device))
    for module in ("timing.reference", "timing.rounds", "planning.closed_loop"):
        patch.setattr(f"pydeploy.{module}.time", device)
    patient = {"timing.reference.SURVEY_S": 3.0, "latency.probes.lab.PATIENCE_S": 20.0, "latency.probes.measure.AGAIN": 1,
               "profiling.engines.PATIENCE_S": 15.0, "profiling.engines.TRIES": 2, "planning.closed_loop.RETURN_S": 120.0}  # fmt: skip
    for name, value in patient.items():
        patch.setattr(f"pydeploy.{name}", value)
    return device
