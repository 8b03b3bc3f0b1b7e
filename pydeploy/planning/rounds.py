"""What the rounds of a search measured, and the budget that they are measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pydeploy.errors import DataError
from pydeploy.files import read_json, write_json
from pydeploy.plan import Plan
from pydeploy.planning.next_plans import Tried
from pydeploy.timing.ratio import Ratio, of_limit, ratio
from pydeploy.timing.records import Profile, Timing

HEADROOM, ROUNDS = 0.015, 3
"""How far below the budget the solver aims (a share of it), and how many rounds there are at most."""


@dataclass(frozen=True)
class Budget:
    """An absolute latency, or a share of the dense engine's latency; exactly one of the two.

    Computers run faster in one minute than in another. A share is therefore taken of the dense engine measured in turns
    with the plan, and the table is read relative to its own dense network.
    """

    share: float | None = None
    absolute_us: float | None = None

    def of(self, dense_us: float) -> float:
        """The budget in microseconds where the dense network takes `dense_us`."""
        return self.absolute_us if self.absolute_us is not None else (self.share or 1.0) * dense_us

    def used(self, plan: Timing, dense: Timing) -> Ratio:
        """The share of the budget that a plan takes that was timed in turns with the dense engine."""
        if self.absolute_us is None:
            return ratio(plan, dense).scaled(1 / (self.share or 1.0))
        return of_limit(plan, self.absolute_us)

    def __str__(self) -> str:
        """As the user asked for it."""
        return f"{100 * self.share:.4g} % of the dense engine's latency" if self.share else f"{self.absolute_us:.6g} us"


@dataclass(frozen=True)
class RoundResult:
    """One plan, cut, built and measured in its round and in every later one; `name` is that of its folder.

    `taken` is what each round measured, as shares of the budget; their median, of the rounds that nothing disturbed where
    there are any, is what the plan takes (`measured_us`, now that the budget is `limit_us`), and the profile is scaled to
    it. `speed` is how long the dense engine took in the last round of measuring over what the table says of it (1 for an
    absolute budget); `predicted_us` is the table's prediction at that speed.
    """

    number: int
    name: str
    plan: Plan
    predicted_us: float
    limit_us: float
    speed: float
    taken: tuple[Ratio, ...]
    profile: Profile

    @property
    def readings(self) -> tuple[float, ...]:
        """Shares of the budget, by round."""
        return tuple(one.value for one in self.taken)

    @property
    def disturbed(self) -> bool:
        """Whether other load was noticed in every round, so that nothing is proven."""
        return all(one.disturbed for one in self.taken)

    @property
    def measured_us(self) -> float:
        return self.tried.measured * self.limit_us

    @property
    def met(self) -> bool:
        return self.tried.met

    @property
    def tried(self) -> Tried:
        return Tried(self.predicted_us / self.limit_us, typical(self.taken))


def typical(taken: Sequence[Ratio]) -> float:
    """The median over the rounds that nothing disturbed; over all where there are none."""
    return median([one.value for one in taken if not one.disturbed] or [one.value for one in taken])


def read_rounds(here: Path) -> list[RoundResult]:
    """The plans of a search's finished rounds, in order, each with what all rounds measured."""
    numbered = sorted(here.glob("round*.json"), key=lambda path: int(path.stem.removeprefix("round")))
    return list({result.name: result for path in numbered for result in _read_round(path)}.values())


def write_round(path: Path, results: Sequence[RoundResult]) -> None:
    plans = [{"number": one.number, "name": one.name, "plan": one.plan.to_json(), "predicted_us": one.predicted_us,
              "limit_us": one.limit_us, "speed": one.speed, "taken": [taken.to_json() for taken in one.taken],
              "profile": one.profile.to_json()} for one in results]  # fmt: skip
    write_json(path, {"plans": plans})


def _read_round(path: Path) -> list[RoundResult]:
    data = read_json(path)
    try:
        return [RoundResult(one["number"], one["name"], Plan.from_json(one["plan"]), one["predicted_us"], one["limit_us"],
                            one["speed"], _taken(one), Profile.from_json(one["profile"]))
                for one in data["plans"]]  # fmt: skip
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not a finished round ({error!r}); delete it and run again with --resume") from None


def _taken(one: Mapping[str, Any]) -> tuple[Ratio, ...]:
    """What the rounds measured; runs of earlier versions kept no more than the values."""
    return tuple(Ratio(**taken) for taken in one.get("taken") or [{"value": value} for value in one["readings"]])
