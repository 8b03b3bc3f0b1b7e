"""The fixture `engine_benchmark`, in pytest sessions of their own, on engines whose latencies are computed."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from onnx_nets import Net
from pydeploy.backends.base import open_backend
from pydeploy.cli.pytest_plugin import scale
from pydeploy.latency import yardstick

pytest_plugins = "pytester"

TEST = "def test_latency(engine_benchmark):\n    engine_benchmark('model.engine')\n"
STRICT = ("-p", "no:benchmark", "-W", "error", "-W", "ignore:Module already imported so cannot be rewritten")
"""Without pytest-benchmark; an editable install alone is warned of, because Python imports it before pytest."""
LIMIT = ("--benchmark-compare", "--benchmark-compare-fail=median:5%")


def put_engine(folder: Path, layers: int, name: str = "model", **backend: Any) -> None:
    net = Net()
    value = net.relu(net.conv("stem", "image", 3, 64, 3))
    for index in range(layers):
        value = net.relu(net.conv(f"conv{index}", value, 64, 64, 3))
    net.head("fc", value, 64, 10)
    source = net.save(folder / f"{name}.onnx", batch=backend.get("batch", 1), size=28, classes=10)
    open_backend("null", **backend).build(source, folder / f"{name}.engine")


@pytest.fixture
def saved(pytester: pytest.Pytester) -> Path:
    """The file of a saved run of ten layers."""
    pytester.makepyfile(test_speed=TEST)
    put_engine(pytester.path, 10)
    session(pytester, "--benchmark-autosave").assert_outcomes(passed=1)
    return next((pytester.path / ".benchmarks").rglob("*.json"))


def session(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)


def inside(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    """A session in this process."""
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)


def edited(saved: Path, change: Any) -> None:
    data = json.loads(saved.read_text())
    change(data["benchmarks"][0])
    saved.write_text(json.dumps(data))


def on_machine(slower: float) -> Any:
    """What the same run would have been on a machine that takes `slower` times as long for everything."""

    def change(bench: dict[str, Any]) -> None:
        scale(bench["stats"], slower)
        bench["extra_info"]["pydeploy"]["reference"]["us"] *= slower

    return change


def known_to(share: float) -> Any:
    """What the same run would have been had its ratio been known to `share` on both sides."""

    def change(bench: dict[str, Any]) -> None:
        ratio = bench["extra_info"]["pydeploy"]["ratio"]
        ratio.update(low=ratio["value"] * (1 - share), high=ratio["value"] * (1 + share), disturbed=True)

    return change


def test_what_the_saved_run_leaves_open_is_neither_passed_nor_failed(
    pytester: pytest.Pytester, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pydeploy.profiling.beside.PATIENCE_S", 0.0)  # in this process, which sessions are run in
    put_engine(pytester.path, 11)
    edited(saved, known_to(0.02))
    assert inside(pytester, *LIMIT).ret != 0  # 1.09 over at most 1.02
    edited(saved, known_to(0.06))
    found = inside(pytester, "-rs", *LIMIT)
    found.assert_outcomes(skipped=1)
    found.stdout.fnmatch_lines(
        ["*cannot tell whether model.engine became 5% slower: 1.0*save it again on a quiet machine*"]
    )
    assert inside(pytester).ret == 0  # without a limit there is nothing to tell


@pytest.mark.parametrize("slower", [0.5, 1.0, 1.7])
def test_what_counts_is_the_engine_not_the_machine(pytester: pytest.Pytester, saved: Path, slower: float) -> None:
    edited(saved, on_machine(slower))
    assert session(pytester, *LIMIT).ret == 0
    put_engine(pytester.path, 11)  # ten per cent more work
    found = session(pytester, *LIMIT)
    assert found.ret != 0
    found.stderr.fnmatch_lines(["*Performance has regressed*"])
    put_engine(pytester.path, 9)
    assert session(pytester, *LIMIT).ret == 0


def test_what_is_saved_tells_engine_target_reference_and_ratio(saved: Path) -> None:
    bench = json.loads(saved.read_text())["benchmarks"][0]
    facts = bench["extra_info"]["pydeploy"]
    assert facts["engine"] == "model.engine"
    assert (facts["target"]["threads"], facts["target"]["device"]) == (1, "analytic")
    expected = facts["reference"]["us"] * facts["ratio"]["value"] * 1e-6
    assert bench["stats"]["median"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("fact", "value"), [("device", "another processor"), ("threads", 8), ("backend_version", "0.9"),
                                             ("precision", "int8"), ("batch", 16), ("facts", {"driver": "550"})])  # fmt: skip
def test_a_run_of_another_target_is_refused_by_name(
    pytester: pytest.Pytester, saved: Path, fact: str, value: Any
) -> None:
    edited(saved, lambda bench: bench["extra_info"]["pydeploy"]["target"].update({fact: value}))
    found = session(pytester, *LIMIT)
    found.assert_outcomes(failed=1)
    name, text = next(iter(value.items())) if isinstance(value, dict) else (fact, value)
    found.stdout.fnmatch_lines([f"*belongs to another target*{name}: *{text}*"])


def test_a_run_beside_another_reference_or_of_another_kind_is_refused(pytester: pytest.Pytester, saved: Path) -> None:
    edited(saved, lambda bench: bench["extra_info"]["pydeploy"]["reference"].update(onnx_sha256="0"))
    session(pytester, *LIMIT).stdout.fnmatch_lines(["*another reference (yardstick.engine, now yardstick.engine)*"])
    edited(saved, lambda bench: bench.update(extra_info={}))
    session(pytester, *LIMIT).stdout.fnmatch_lines(["*holds no engine's latency for this test*autosave*"])


def test_a_reference_of_ones_own(pytester: pytest.Pytester) -> None:
    put_engine(pytester.path, 10)
    put_engine(pytester.path, 20, "dense")
    pytester.makepyfile("def test_it(engine_benchmark):\n    found = engine_benchmark('model.engine', 'dense.engine')\n"
                        "    assert 0.48 < found.value < 0.56\n")  # fmt: skip
    session(pytester).assert_outcomes(passed=1)
    session(pytester, "--benchmark-disable").assert_outcomes(passed=1)


def test_marks_and_options_of_pytest_benchmark_work(pytester: pytest.Pytester) -> None:
    put_engine(pytester.path, 2)
    pytester.makepyfile(f"import pytest\n@pytest.mark.benchmark(group='engines')\n{TEST}\ndef test_other(): pass\n")
    found = session(pytester, "--benchmark-only", "--strict-markers")
    found.assert_outcomes(passed=1, skipped=1)
    found.stdout.fnmatch_lines(["*engines*"])


def test_an_engine_that_is_missing_is_one_sentence(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TEST)
    found = session(pytester)
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*model.engine.json does not exist*"])
    assert not {"Traceback", "pytest_plugin.py"} & set(found.stdout.str().replace(":", " ").split())


def test_without_pytest_benchmark_the_fixture_says_what_to_install(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(f"{TEST}\ndef test_other(): pass\n")
    found = session(pytester, "--strict-markers", *STRICT)
    found.assert_outcomes(errors=1, passed=1)
    found.stdout.fnmatch_lines(["*needs pytest-benchmark: pip install pytest-benchmark*"])


def test_whoever_does_not_use_it_loads_nothing_heavy(pytester: pytest.Pytester) -> None:
    heavy = ["numpy", "onnx", "onnxruntime", "torch", "typer", "pydantic", "pydeploy.backends.base", "pydeploy.cli.app"]
    pytester.makepyfile(f"import sys\n\ndef test_it():\n    assert 'pydeploy.cli.pytest_plugin' in sys.modules\n"
                        f"    assert not [name for name in {heavy} if name in sys.modules]\n")  # fmt: skip
    session(pytester, *STRICT).assert_outcomes(passed=1)


def test_scaled_stats_are_those_of_scaled_samples() -> None:
    stats = pytest.importorskip("pytest_benchmark.stats")
    samples = [1.0, 1.5, 1.1, 0.9, 4.0, 1.2, 1.3]
    one, other = stats.Stats(), stats.Stats()
    for value in samples:
        one.update(value)
        other.update(value * 1.25)
    found, expected = dict(one.as_dict()), other.as_dict()
    scale(found, 1.25)
    for name, value in expected.items():
        assert found[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-9)), name
    assert found["median"] == pytest.approx(1.25 * statistics.median(samples))


def test_the_yardstick_is_the_same_everywhere(tmp_path: Path) -> None:
    assert yardstick.network().SerializeToString() == yardstick.network().SerializeToString()
    for precision in ("fp32", "int8"):
        backend = open_backend("onnxruntime", precision=precision, threads=1)
        one, other = (yardstick.build(backend, tmp_path / name) for name in ("one", "other"))
        assert one.onnx_sha256 == other.onnx_sha256
