"""Two latencies are divided round by round: on simulated cores that others use at times, the true ratio comes out."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydeploy.cli.compare_verbs import verdict, within
from pydeploy.errors import DataError
from pydeploy.profiling.beside import LOADINGS
from pydeploy.timing.ratio import CONFIDENCE, LEAST, Ratio, of_rounds, ratio
from pydeploy.timing.records import Timing, Turn
from pydeploy.timing.rounds import TURN_US, Samples, interleave, runs_of, unwatched
from simulated_core import Core, Noticed, bursts

SEEDS = range(5)


def sliced(rng: np.random.Generator, seed: int) -> tuple[Core, tuple]:
    """Another process has the core about as long as this one, a few milliseconds each in turn."""
    return Core(rng.uniform(2000, 6000), rng.uniform(2000, 6000), seed=seed), (lambda _s: 1.0, lambda _s: 1.0)


def common(rng: np.random.Generator, seed: int) -> tuple[Core, tuple]:
    """Both engines are slowed down in the same bursts of 20 ms to 5 s."""
    slow = bursts(seed, rng.uniform(0.2, 0.8), rng.uniform(2, 6), float(np.exp(rng.uniform(-4, 1.6))))
    return Core(slowdown=slow, seed=seed), (lambda _s: 1.0, lambda _s: 1.0)


def independent(rng: np.random.Generator, seed: int) -> tuple[Core, tuple]:
    """Each engine has slow bursts of its own."""
    shape = rng.uniform(0.1, 0.4), rng.uniform(2, 6), float(np.exp(rng.uniform(-4, 0.7)))
    return Core(seed=seed), (bursts(seed, *shape), bursts(seed + 1000, *shape))


def measured(core: Core, slow: tuple, dense_us: float, share: float, rounds: int = 40) -> dict[str, Samples]:
    """Both engines in turns, all rounds noticed as disturbed."""
    timers = {"dense": core.engine(dense_us, slow[0]), "plan": core.engine(share * dense_us, slow[1])}
    return interleave(timers, rounds=rounds, retries=0, turn_us=TURN_US, watch=Noticed())


def until(enough: Callable[[Ratio], bool], core: Core, slow: tuple, share: float) -> Ratio:
    """As `measure_beside` does it: sixty rounds, and twenty more until there are enough, 240 at most."""
    turns: dict[str, list[Turn]] = {"dense": [], "plan": []}
    for count in range(1, 13):
        for name, samples in measured(core, slow, 2000.0, share, rounds=20).items():
            turns[name] += samples.turns
        found = of_rounds([one.us / other.us for one, other in zip(turns["plan"], turns["dense"], strict=True)])
        if count >= LOADINGS and enough(found):
            break
    return found


def test_a_regression_is_told_from_two_runs_on_a_core_that_others_want_as_well() -> None:
    """The engine of the saved run never fails, one that is 10 % slower never passes; few runs leave it open."""
    limit, told = 1.05, {1.0: 0, 1.1: 0}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        then = until(lambda found: found.high / found.low < 1.03, *sliced(rng, seed), 5.0)
        for slower in told:
            now = until(lambda found: found.over(then).tells(limit), *sliced(rng, seed + 100), 5.0 * slower)  # noqa: B023
            change = now.over(then)
            assert not change.tells(limit) or (change.low > limit) == (slower > limit), (seed, slower, change)
            told[slower] += change.tells(limit)
    assert min(told.values()) >= 18, told


def test_one_ratio_over_another_allows_what_both_allow() -> None:
    change = Ratio(1.1, 1.0, 1.2, 20).over(Ratio(1.0, 0.9, 1.25, 12))
    assert (change.value, change.low, change.high) == pytest.approx((1.1, 0.8, 1.2 / 0.9))
    assert not change.tells(1.05)
    assert change.tells(1.34)
    assert Ratio(1.1).over(Ratio(1.0)).low is None
    assert Ratio.from_json(change.to_json()) == change
    with pytest.raises(DataError, match="measure it again"):
        Ratio.from_json({"value": "x"})


@pytest.mark.parametrize("kind", [sliced, common, independent])
def test_the_true_ratio_comes_out_of_a_busy_core(kind: Callable[..., tuple[Core, tuple]]) -> None:
    errors = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        share, dense_us = rng.uniform(0.1, 0.9), float(np.exp(rng.uniform(6.2, 9)))
        found = measured(*kind(rng, seed), dense_us, share)
        taken = ratio(found["plan"].timing, found["dense"].timing)
        assert taken.disturbed
        assert taken.low is not None
        assert taken.high is not None
        assert 0.98 * taken.low <= share <= 1.02 * taken.high
        errors.append(abs(taken.value / share - 1))
        pooled = abs(found["plan"].timing.median_us / found["dense"].timing.median_us / share - 1)
        assert pooled < 0.1 or errors[-1] < pooled / 5
    assert np.median(errors) < 0.02
    assert max(errors) < 0.15


@pytest.mark.parametrize("seed", SEEDS)
def test_medians_of_all_samples_lie_where_the_ratio_does_not(seed: int) -> None:
    """The small network mostly fits into a slice, the large one hardly ever does."""
    core, slow = Core(3000, 3000, seed=seed), (lambda _s: 1.0, lambda _s: 1.0)
    found = measured(core, slow, 2600.0, 0.15)
    small, large = found["plan"].timing, found["dense"].timing
    by_rounds = np.median([np.median(one) / np.median(other) for one, other in
                           zip(found["plan"].rounds_us, found["dense"].rounds_us, strict=True)])  # fmt: skip
    assert small.median_us / large.median_us < 0.6 * 0.15
    assert by_rounds < 0.6 * 0.15
    assert ratio(small, large).value == pytest.approx(0.15, rel=0.05)


def test_turns_of_equal_length_are_nearer_to_the_truth_than_turns_of_equal_runs() -> None:
    errors: dict[float, list[float]] = {0.0: [], TURN_US: []}
    for turn_us, seed in itertools.product(errors, range(8)):
        core = Core(4000, 4000, seed=seed)
        timers = {"dense": core.engine(1900.0), "plan": core.engine(60.0)}
        found = interleave(timers, rounds=10, retries=0, turn_us=turn_us, watch=Noticed())
        errors[turn_us].append(abs(ratio(found["plan"].timing, found["dense"].timing).value / (60 / 1900) - 1))
    assert np.median(errors[TURN_US]) < 0.06
    assert np.median(errors[0.0]) > 0.3


def test_quiet_rounds_count_alone_where_there_are_enough() -> None:
    """The large network takes three times as long in the noticed rounds, the small one as long as before."""
    rounds = itertools.count()

    def large(n: int) -> np.ndarray:
        return np.full(n, 3000.0 if next(rounds) in (2, 3, 5, 8) else 1000.0)  # the first call warms up

    timers = {"small": lambda n: np.full(n, 500.0), "large": large}
    found = interleave(timers, rounds=8, retries=0, watch=Noticed(lambda n: n in (2, 3, 5, 8)))
    taken = ratio(found["small"].timing, found["large"].timing)
    assert not found["small"].timing.turns[1].calm
    assert taken.disturbed  # four quiet rounds are too few, so all count
    assert taken.rounds == 8
    rounds = itertools.count()
    found = interleave(timers, rounds=8, retries=4, watch=Noticed(lambda n: n in (2, 3, 5, 8)))
    taken = ratio(found["small"].timing, found["large"].timing)
    assert (taken.value, taken.low, taken.high, taken.rounds, taken.disturbed) == (0.5, 0.5, 0.5, 8, False)


@given(st.integers(1, 13))
def test_the_interval_holds_the_median_as_often_as_it_says(count: int) -> None:
    """By all ways in which `count` values can lie below and above their median."""
    below = np.array([sum(signs) for signs in itertools.product((0, 1), repeat=count)])
    found = of_rounds([float(i + 1) for i in range(count)])

    def held(rank: int) -> float:
        """How often the rank-th least lies below the median and the rank-th largest above."""
        return float(np.mean((below >= rank) & (count - below >= rank)))

    if found.low is None or found.high is None:
        assert count < LEAST
        assert held(1) < CONFIDENCE
        return
    rank = int(found.low)
    assert found.high == count + 1 - rank
    assert held(rank) >= CONFIDENCE
    assert held(rank + 1) < CONFIDENCE


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.floats(0.1, 10))
def test_ratios_scale_and_turn_round(values: list[float], factor: float) -> None:
    one = of_rounds(values)
    assert one.value == pytest.approx(float(np.median(values)))
    assert one.scaled(factor).value == pytest.approx(one.value * factor)
    assert (one.low is None) == (len(values) < LEAST)
    if one.low is not None and one.high is not None:
        assert one.low <= one.value <= one.high
        assert one.below(1.01 * one.high)
        assert not one.below(one.high)


@given(st.floats(0.1, 10), st.floats(0, 0.5), st.floats(0.1, 10), st.booleans())
def test_a_script_gets_an_answer_unless_other_load_leaves_it_open(
    value: float, off: float, most: float, disturbed: bool
) -> None:
    one = Ratio(value, value * (1 - off), value * (1 + off), 20, disturbed)
    if disturbed and value * (1 - off) <= most <= value * (1 + off):
        with pytest.raises(DataError, match="other load"):
            within(one, most)
    else:
        assert within(one, most) == (value <= most)


def test_what_was_not_timed_in_turns_has_no_interval_and_other_measurements_are_refused() -> None:
    one, other = Timing.of([2.0]), Timing.of([4.0])
    assert ratio(one, other) == Ratio(0.5)
    assert not ratio(one, other).below(1.0)
    assert "no interval" in str(ratio(one, other))
    few = [Timing(1, us, us, us, turns=(Turn(us),) * n) for us, n in ((2.0, 3), (4.0, 3), (4.0, 5))]
    assert ratio(few[0], few[1]).value == 0.5
    assert "3 rounds, too few" in str(ratio(few[0], few[1]))
    with pytest.raises(DataError, match="3 and 5 rounds"):
        ratio(few[0], few[2])


def test_turns_survive_scaling_and_files() -> None:
    timing = Timing(2, 3.0, 1.0, 5.0, turns=(Turn(3.0), Turn(4.0, calm=False)))
    assert Timing.from_json(timing.to_json()) == timing
    assert timing.scaled(2.0).turns == (Turn(6.0), Turn(8.0, calm=False))


def test_the_number_of_runs_fills_a_turn() -> None:
    assert runs_of(np.full(5, 1000.0), 20, TURN_US) == 50
    assert runs_of(np.full(5, 1e6), 20, TURN_US) == 20
    assert runs_of(np.zeros(5), 20, TURN_US) == 1000
    assert runs_of(np.full(5, 1000.0), 20, 0.0) == 20
    assert runs_of(np.full(5, 1.0), 5000, TURN_US) == 5000


def test_the_last_line_of_compare_says_that_it_was_disturbed() -> None:
    def both(noticed: Callable[[int], bool]) -> str:
        timers = {"a": lambda n: np.full(n, 200.0), "b": lambda n: np.full(n, 100.0)}
        watch = Noticed(noticed)
        found = {name: s.timing for name, s in interleave(timers, rounds=10, retries=2, watch=watch).items()}
        return verdict(ratio(found["b"], found["a"]), found["b"])

    quiet = "other takes 0.500 of the reference's time (95 % interval 0.500 to 0.500, 10 rounds, in turns)"
    assert both(lambda _n: False) == quiet
    busy = both(lambda _n: True)
    assert busy.startswith("DISTURBED: other load was noticed in 12 of 12 rounds; other takes 0.500")
    assert "\n" not in busy
    assert "95 % interval" in busy


def test_analytic_engines_are_exact() -> None:
    timers = {"a": lambda n: np.full(n, 200.0), "b": lambda n: np.full(n, 100.0)}
    found = interleave(timers, rounds=7, watch=unwatched())
    assert ratio(found["b"].timing, found["a"].timing) == Ratio(0.5, 0.5, 0.5, 7)
