"""For pytest: the fixture `engine_benchmark`, which times an engine so that runs of different days can be compared.

It rides on pytest-benchmark, whose options save, compare and fail. What they compare is corrected for the machine's speed:

* every engine is timed in turns with a reference engine; one sample is a round's ratio, as a time at the reference's speed;
* the reference's time is saved in ``extra_info``. Where a run is compared with a saved one, the saved times are scaled by
  how much slower or faster the reference is now;
* with ``--benchmark-compare-fail``, rounds go on until both ratios' intervals tell on which side of the limit they are. An
  engine fails only if it is slower beyond both intervals; where they hold the limit, the test is skipped: it cannot tell;
* a saved run of another device, runtime version, precision, batch, number of threads or reference is refused by name.

Loaded by every pytest where pydeploy is installed, so whatever is heavy is imported by the fixture only.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pydeploy.backends.base import Backend, Engine
    from pydeploy.timing.ratio import Ratio
    from pydeploy.timing.records import Target

FIXTURE = "engine_benchmark"
log = logging.getLogger(__name__)
KEY = "pydeploy"
"""Where ``extra_info`` holds what a comparison needs."""
TIMES = ("min", "max", "mean", "stddev", "median", "iqr", "q1", "q3", "ld15iqr", "hd15iqr", "total")
RATES = ("ops",)


class _Clock:
    """What pytest-benchmark reads instead of a clock: it stands still while engines run, and moves by what was measured."""

    now_s = 0.0

    def pydeploy_in_turns(self) -> float:
        return self.now_s


_clock = _Clock()
_saved: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()
_references: pytest.StashKey[tuple[ExitStack, dict[str, Engine]]] = pytest.StashKey()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_compare_machine_info(config: pytest.Config, compared_benchmark: dict[str, Any]) -> None:
    """Keep the saved run that pytest-benchmark is going to compare with."""
    config.stash.setdefault(_saved, []).append(compared_benchmark)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FIXTURE in getattr(item, "fixturenames", ()) and item.config.pluginmanager.has_plugin("benchmark"):
            asked = item.get_closest_marker("benchmark")
            options = {**(asked.kwargs if asked else {}), "timer": _clock.pydeploy_in_turns}
            item.add_marker(pytest.mark.benchmark(**options), append=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if FIXTURE in getattr(item, "fixturenames", ()) and not item.config.pluginmanager.has_plugin("benchmark"):
        pytest.fail(
            "the fixture 'engine_benchmark' needs pytest-benchmark: pip install pytest-benchmark", pytrace=False
        )


def pytest_unconfigure(config: pytest.Config) -> None:
    if _references in config.stash:
        config.stash[_references][0].close()


@pytest.fixture
def engine_benchmark(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., Ratio]:
    """``engine_benchmark(ENGINE, reference=None)`` times an engine file in turns with a reference, for pytest-benchmark.

    `reference` is another engine file; without one it is a small network that pydeploy makes, built as the engine is.
    Returns the `Ratio` of the two latencies. With ``--benchmark-disable`` one round is measured.
    """

    def measure(engine: str | Path, reference: str | Path | None = None) -> Ratio:
        __tracebackhide__ = True
        from pydeploy.errors import DeployError

        try:
            return _measure(request, benchmark, Path(engine), reference)
        except DeployError as error:
            pytest.fail(str(error), pytrace=False)

    return measure


def _measure(request: pytest.FixtureRequest, benchmark: Any, path: Path, reference: str | Path | None) -> Ratio:
    from pydeploy.backends.base import Engine, reopen
    from pydeploy.profiling.beside import measure_beside

    engine = Engine.load(path)
    backend = reopen(engine.target)
    if reference is None:
        other, yardstick = backend, _yardstick(request.config, backend)
    else:
        yardstick = Engine.load(Path(reference))
        other = reopen(yardstick.target)
    saved = [(stored, _require(stored, where, backend.target(), yardstick)) for stored, where in _compared(request)]
    if benchmark.disabled:
        return measure_beside((backend, engine), (other, yardstick), rounds=1, patience_s=0).ratio
    limit = _limit(request.config) if saved else None

    def told(now: Ratio) -> bool:
        return limit is not None and all(now.over(then).tells(limit) for _, then in saved)

    found = measure_beside((backend, engine), (other, yardstick), enough=None if limit is None else told)
    benchmark.extra_info[KEY] = {
        "engine": path.name,
        "target": backend.target().to_json(),
        "reference": {"name": yardstick.path.name, "onnx_sha256": yardstick.onnx_sha256, "us": found.reference_us},
        "ratio": found.ratio.to_json(),
    }
    if limit is None and not found.known:
        log.warning("%s: other load hides how fast it is: %s times the reference", path, found.ratio)
    rounds_us = iter(found.rounds_us)

    def one_round() -> None:
        _clock.now_s += next(rounds_us) * 1e-6

    benchmark.pedantic(one_round, rounds=len(found.rounds_us), iterations=1)
    for stored, then in saved:
        change = found.ratio.over(then)
        # What pytest-benchmark compares: the saved times at today's speed and, against a limit, as long as they may have been.
        doubt = 1.0 if limit is None or change.low is None else change.value / change.low
        scale(stored["stats"], found.reference_us / stored["extra_info"][KEY]["reference"]["us"] * doubt)
        if limit is not None and not change.tells(limit):
            pytest.skip(_cannot_tell(path, change, then, limit))
    return found.ratio


def _cannot_tell(path: Path, change: Ratio, then: Ratio, limit: float) -> str:
    """What was found, and what to do."""
    remedy = "free the machine and run it again, allow more, or compare with the other engine itself (reference=...)"
    if not then.known(limit):
        remedy = f"the saved run was too disturbed ({then}): save it again on a quiet machine"
    return f"cannot tell whether {path} became {limit - 1:.0%} slower: {change} times the saved run; {remedy}"


def _limit(config: pytest.Config) -> float | None:
    """The smallest ratio of medians that ``--benchmark-compare-fail`` refuses; None without one in percent."""
    checks = config.getoption("benchmark_compare_fail", None) or ()
    percents = [check.threshold for check in checks if check.field == "median" and "Percentage" in type(check).__name__]
    return 1 + min(percents) / 100 if percents else None


def _yardstick(config: pytest.Config, backend: Backend) -> Engine:
    """The small network's engine for this backend; built once a session, in a folder that goes with it."""
    from pydeploy.latency import yardstick

    if _references not in config.stash:
        config.stash[_references] = ExitStack(), {}
    stack, built = config.stash[_references]
    name = backend.target().fingerprint
    if name not in built:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pydeploy-"))
        built[name] = yardstick.build(backend, Path(folder))
    return built[name]


def _compared(request: pytest.FixtureRequest) -> Iterator[tuple[dict[str, Any], str]]:
    """Saved results of the running test that are going to be compared with it, each with a name for its run."""
    for run in request.config.stash.get(_saved, []):
        for stored in run["benchmarks"]:
            if stored["fullname"] == request.node.nodeid:
                yield stored, f"the saved run of {run.get('datetime', 'an unknown time')}"


def _require(stored: Mapping[str, Any], where: str, target: Target, reference: Engine) -> Ratio:
    """The ratio of a saved result; raises `Mismatch` unless it can be compared with one of `target` beside `reference`."""
    from pydeploy.errors import DataError, Mismatch
    from pydeploy.timing.ratio import Ratio
    from pydeploy.timing.records import Target

    again = "save a new one with --benchmark-autosave"
    try:
        facts = stored["extra_info"][KEY]
        then, used = Target.from_json(facts["target"]), facts["reference"]
        name, made_from, _ = used["name"], used["onnx_sha256"], float(used["us"])
        ratio = Ratio.from_json(facts["ratio"])
    except (KeyError, TypeError, ValueError, DataError):
        raise Mismatch(f"{where} holds no engine's latency for this test; {again}") from None
    then.require(target, where)
    if made_from != reference.onnx_sha256:
        raise Mismatch(f"{where} was timed beside another reference ({name}, now {reference.path.name}); {again}")
    return ratio


def scale(stats: dict[str, Any], factor: float) -> None:
    """Make every time of pytest-benchmark's `stats` `factor` times as long, in place."""
    for names, by in ((TIMES, factor), (RATES, 1 / factor)):
        stats.update({name: stats[name] * by for name in names if isinstance(stats.get(name), int | float)})
    if isinstance(stats.get("data"), list):
        stats["data"] = [value * factor for value in stats["data"]]
