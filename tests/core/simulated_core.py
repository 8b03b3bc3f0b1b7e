"""A core with a synthetic clock that others use at times: what engines of known cost take on it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pydeploy.timing.rounds import Load

Slowdown = Callable[[float], float]
"""How many times as long everything takes at a moment (in seconds)."""


@dataclass
class Core:
    """Runs engines one after the other, each run needing its cost in microseconds of the core's own time.

    `own_us` and `other_us`: how long on average this process and another one have the core in turn (0 = never another);
    each stretch varies between half and one and a half of that. `slowdown` stretches everything besides.
    """

    own_us: float = 4000.0
    other_us: float = 0.0
    slowdown: Slowdown = lambda _s: 1.0
    noise: float = 0.01
    seed: int = 0
    now_us: float = 0.0
    left_us: float = 0.0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def run(self, cost_us: float) -> float:
        """Wall time of one run."""
        began_us = self.now_us
        todo_us = cost_us * self.slowdown(self.now_us / 1e6)
        while self.other_us and todo_us > self.left_us:
            todo_us -= self.left_us
            self.now_us += self.left_us + self.other_us * self.rng.uniform(0.5, 1.5)
            self.left_us = self.own_us * self.rng.uniform(0.5, 1.5)
        self.left_us -= todo_us
        self.now_us += todo_us
        return self.now_us - began_us

    def engine(self, cost_us: float, slowdown: Slowdown = lambda _s: 1.0) -> Callable[[int], np.ndarray]:
        """A timer; `slowdown` meets this engine alone."""

        def timer(n: int) -> np.ndarray:
            costs = (cost_us * np.exp(self.rng.normal(0, self.noise, n))).tolist()
            return np.array([self.run(cost * slowdown(self.now_us / 1e6)) for cost in costs])

        return timer


def bursts(seed: int, duty: float, factor: float, mean_s: float) -> Slowdown:
    """Everything takes `factor` times as long in stretches of about `mean_s` that make up the share `duty` of all time."""
    rng = np.random.default_rng(seed)
    edges, slow = [0.0], [False]
    while edges[-1] < 600.0:
        slow.append(not slow[-1])
        edges.append(edges[-1] + rng.exponential(2 * mean_s * (duty if slow[-2] else 1 - duty)))
    return lambda at_s: factor if slow[bisect_right(edges, at_s) - 1] else 1.0


class Noticed:
    """A watch that notices other load in every round, or in those that `noticed` names."""

    def __init__(self, noticed: Callable[[int], bool] = lambda _round: True) -> None:
        self.noticed, self.round, self.best_us = noticed, 0, 100.0

    def start(self) -> None:
        self.round += 1

    def stop(self) -> Load:
        return Load(0.5 if self.noticed(self.round) else 0.0, 100.0, 100.0)
