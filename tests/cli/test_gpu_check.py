"""The acceptance test for GPUs, tried on the fake one: it passes where promises are kept and says which one is broken."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pydeploy.cli import gpu_check
from pydeploy.cli.app import app
from pydeploy.cli.gpu_check import CHECKS, Check, check_all, checked, promises
from pydeploy.cli.gpu_check.promises import Broken
from pydeploy.data.manifest import load_manifest
from pydeploy.errors import ConfigError, DataError
from pydeploy.report import Report
from pydeploy.run.config import Config, load, parse
from pydeploy.tasks.metric import Metric
from pydeploy.timing.records import Profile, Target, Timing, Turn
from quiet import Quiet
from trt_bench import machine
from trt_surface import RTX_VERSIONS, VERSIONS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def settings(backend: str = "tensorrt") -> Config:
    data = {
        "task": {"data": "synthetic", "options": {"data_settings": {"size": 12, "train_size": 512, "test_size": 128}}},
        "model": {"name": "resnet8", "options": {"width": 32}},
        "train": {"epochs": 1, "batch_size": 64, "lr": 0.1, "warmup_epochs": 0, "amp": "off"},
        "target": {"backend": backend, "precision": "fp16", "batch": 16},
        "table": {"points": 2, "align": 16, "rounds": 1, "runs": 3},
        "prune": {"criterion": "l1", "budget": 0.8},
        "finetune": {"epochs": 1, "batch_size": 64, "lr": 0.05, "warmup_epochs": 0, "amp": "off"},
        "quantize": {"observer": "minmax", "calibration": "calib/smoke.yaml"},
    }
    return parse(data, "test")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["10.3.0", VERSIONS[-1], RTX_VERSIONS[-1]])
def test_everything_is_checked(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = machine(monkeypatch, version, tmp_path)
    world.numeric = True
    graphs = sys.modules.pop("cuda.bindings.driver")  # PyTorch, which trains here, wants the real one
    for module in ("cuda", "cuda_python"):
        monkeypatch.setattr(f"pydeploy.backends.tensorrt.{module}.load_graphs", lambda: graphs)
    complete = {"GPU": "an A100", "bindings": "TensorRT", "NVML": "missing: pip install nvidia-ml-py"}
    config = settings("tensorrt-rtx" if world.surface.rtx else "tensorrt")
    checks = check_all(config, tmp_path / "out", Quiet(), parts=complete, unseen_plans=2)
    judged = {check.name: check for check in checks}
    accuracy = {name for name in judged if "point" in name}  # one epoch on synthetic pictures promises nothing
    assert {
        name: check.detail for name, check in judged.items() if check.passed is False and name not in accuracy
    } == {}
    assert {"GPU and packages", "the whole job runs", *CHECKS} == set(judged)
    assert {name for name, check in judged.items() if check.passed is None} == (
        {name for name in CHECKS if name.startswith("int8 ")} if version.startswith(("11", "rtx")) else set()
    ), "calibrators are gone in 11"
    saved = json.loads((tmp_path / "out" / "gpu-check.json").read_text())
    assert [row["name"] for row in saved["checks"]] == list(judged)
    assert saved["engines"]["quantized"][0]["tactic"] == "sm80_xmma_fprop"
    assert saved["target"]["device"] == "NVIDIA A100-SXM4-40GB"
    assert world.memory == {}


def test_without_a_gpu_it_says_what_is_missing(tmp_path: Path) -> None:
    parts = {"GPU": "missing: no NVIDIA driver", "pycuda": "missing: pip install pycuda"}
    (check,) = check_all(settings(), tmp_path, Quiet(), parts=parts)
    assert check.passed is False
    assert "no NVIDIA driver" in check.detail
    assert "pip install pycuda" in check.detail
    assert json.loads((tmp_path / "gpu-check.json").read_text())["machine"]["pycuda"].startswith("missing")


def test_the_verb_prints_a_table_and_keeps_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydeploy.backends.tensorrt.backend.checkup", lambda: {"GPU": "missing: no NVIDIA driver"})
    config = str(Path(__file__).parents[2] / "configs" / "fashion_mnist_resnet20_tensorrt.yaml")
    done = CliRunner().invoke(app, ["gpu-check", "--out", str(tmp_path), "--config", config])
    assert done.exit_code == 1
    assert done.output.splitlines() == ["FAIL  GPU and packages  GPU: missing: no NVIDIA driver",
                                        f"0 of 1 kept; for a bug report attach {tmp_path / 'gpu-check.json'}"]  # fmt: skip
    done = CliRunner().invoke(app, ["gpu-check", "--out", str(tmp_path), "--config", config, "--json"])
    (check,) = json.loads(done.stdout)
    assert (done.exit_code, check["name"], check["passed"]) == (1, "GPU and packages", False)


def test_it_needs_no_checkout_and_no_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config comes with the package; where its pictures cannot be had, the job gets synthetic ones and says so."""
    monkeypatch.chdir(tmp_path)
    config = load("fashion_mnist_resnet20_tensorrt", ["target.backend=tensorrt-rtx"])
    given: list[Config] = []

    def job(config: Config, _out: Path, _console: Any) -> Report:
        given.append(config)
        raise DataError("seen enough")

    def nowhere() -> Path:
        raise DataError("Fashion-MNIST is not here")

    monkeypatch.setattr(gpu_check, "find_fashion_mnist", nowhere)
    console, parts = Quiet(), {"GPU": "an RTX 4090", "bindings": "TensorRT for RTX"}
    check_all(config, tmp_path / "a", console, parts=parts, job=job)
    assert "synthetic pictures instead: Fashion-MNIST is not here" in console.lines
    monkeypatch.setattr(gpu_check, "find_fashion_mnist", lambda: tmp_path)
    check_all(config, tmp_path / "b", Quiet(), parts=parts, job=job)
    synthetic, real = given
    assert real == config
    assert synthetic.target == config.target
    assert synthetic.task.data == "synthetic"
    assert synthetic.quantize is not None
    assert load_manifest(synthetic.quantize.calibration).source == "synthetic"
    assert (synthetic.train, synthetic.prune) == (config.train, config.prune)


def test_it_is_for_nvidia_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"for tensorrt and tensorrt-rtx, got target\.backend=null"):
        check_all(settings("null"), tmp_path, Quiet())


def test_what_was_found_before_a_crash_is_on_disk(tmp_path: Path) -> None:
    """A driver may take the whole process down: the file holds every check that was finished."""

    def dies(*_: object) -> Report:
        assert json.loads((tmp_path / "gpu-check.json").read_text())["checks"][0]["passed"] is True
        raise SystemExit(139)

    with pytest.raises(SystemExit):
        check_all(settings(), tmp_path, Quiet(), parts={"GPU": "an A100", "bindings": "TensorRT"}, job=dies)
    assert len(json.loads((tmp_path / "gpu-check.json").read_text())["checks"]) == 1


def test_a_broken_promise_and_a_crash_are_told_apart() -> None:
    def broken() -> str:
        raise Broken("took 3 us")

    def crashed() -> str:
        raise KeyError("x")

    assert checked("a", broken) == Check("a", passed=False, detail="took 3 us")
    found = checked("b", crashed)
    assert found.passed is False
    assert found.detail.startswith("KeyError: 'x'\nTraceback")
    assert checked("c", lambda: None).passed is None


# ---------------------------------------------------------------- each judgement, at its limit


def kept(promise: Callable[..., str], *numbers: Any, **named: Any) -> bool | None:
    return checked("x", lambda: promise(*numbers, **named)).passed


@pytest.mark.parametrize("met", [True, False])
def test_the_budget_must_be_met(met: bool) -> None:
    assert kept(promises.budget, met, 100.0, 99.0, 200.0) is met


@pytest.mark.parametrize(("after", "points", "passed"), [(0.8905, 1.0, True), (0.8895, 1.0, False),
                                                         (0.8955, 0.5, True), (0.8945, 0.5, False)])  # fmt: skip
def test_accuracy_may_fall_by_so_many_points(after: float, points: float, passed: bool) -> None:
    assert kept(promises.kept, Metric("accuracy"), 0.9, after, points, "dense, pruned") is passed


@pytest.mark.parametrize(("error", "passed"), [(0.09, True), (-0.09, True), (0.11, False), (-0.11, False)])
def test_the_last_prediction_may_be_off_by_a_tenth(error: float, passed: bool) -> None:
    assert kept(promises.prediction, error) is passed


@pytest.mark.parametrize(("measured", "passed"), [(104.0, True), (106.0, False)])
def test_the_table_may_be_off_by_a_twentieth(measured: float, passed: bool) -> None:
    assert kept(promises.table, [100.0] * 3, [measured] * 3) is passed


@pytest.mark.parametrize(("errors", "passed"), [({"fp32": 0.0, "fp16": 0.019}, True), ({"fp32": 0.0, "fp16": 0.021}, False),
                                                ({"int8": 0.14}, True), ({"int8": 0.16}, False)])  # fmt: skip
def test_outputs_may_differ_by_what_rounding_explains(errors: dict[str, float], passed: bool) -> None:
    assert kept(promises.outputs, errors) is passed


@pytest.mark.parametrize(("dtypes", "needed", "passed"), [(("float32", "float16"), True, True),
                                                          (("float32", "int8"), True, False),
                                                          (("float32",), False, True)])  # fmt: skip
def test_an_fp16_engine_must_hold_fp16_layers(dtypes: tuple[str, ...], needed: bool, passed: bool) -> None:
    layers = [{"inputs": [{"dtype": dtype}], "padding": (8, 8)} for dtype in dtypes]
    assert kept(promises.formats, "pruned", "float16", layers, needed=needed) is passed


@pytest.mark.parametrize(
    ("layer_us", "ops", "passed"), [(10.4, 10, True), (10.6, 10, False), (9.4, 10, False), (10.0, 12, False)]
)
def test_layers_must_be_the_models_and_add_up(layer_us: float, ops: int, passed: bool) -> None:
    timing = Timing(9, layer_us, layer_us, layer_us)
    found = Profile(
        Target("x", "null", "1", "fp16", 4, 1), Timing(9, 100.0, 100.0, 100.0), {f"op{i}": timing for i in range(10)}
    )
    assert kept(promises.layers, [f"op{i}" for i in range(ops)], found) is passed


@pytest.mark.parametrize(("unstable", "cuda_graph"), [(0.0, 1.0), (1.0, 1.0), (0.0, 0.0)])
def test_clocks_must_be_steady_and_graphs_work(unstable: float, cuda_graph: float) -> None:
    expected = (unstable, cuda_graph) == (0.0, 1.0)
    assert kept(promises.steady, {"unstable": unstable, "cuda_graph": cuda_graph}) is expected


@pytest.mark.parametrize(("second", "passed"), [(104.0, True), (106.0, False), (94.0, False)])
def test_two_builds_must_agree_in_turns(second: float, passed: bool) -> None:
    """Every second round three times as slow for both; the medians over all runs lie."""
    pace = [1.0, 3.0] * 5
    turns = [tuple(Turn(us * slow) for slow in pace) for us in (second, 100.0)]
    first, other = (Timing(10, us, us, us, turns=one) for us, one in zip((second, 300.0), turns, strict=True))
    assert kept(promises.rebuild, first, other, [1.0, 1.0]) is passed


@pytest.mark.parametrize(("rows", "passed"), [(4, True), (1, False)])
def test_a_dynamic_batch_must_give_the_targets_rows(rows: int, passed: bool) -> None:
    assert kept(promises.rows, {"logits": [rows, 10]}, 4) is passed


@pytest.mark.parametrize(
    ("dtype", "off", "passed"), [("int8", 0.14, True), ("int8", 0.16, False), ("float16", 0.0, False)]
)
def test_implicit_int8_must_be_int8_and_right(dtype: str, off: float, passed: bool) -> None:
    assert kept(promises.implicit_int8, [[dtype]], off) is passed


@pytest.mark.parametrize(
    ("part", "passed"), [("NVML", True), ("pycuda", False), ("CUDA graphs", False), ("bindings", False)]
)
def test_all_parts_but_nvml_are_needed(part: str, passed: bool) -> None:
    parts = {"GPU": "A100", "bindings": "TensorRT", "pycuda": "2024.1", "CUDA graphs": "there", "NVML": "there"}
    assert kept(promises.packages, {**parts, part: "missing: pip install it"}) is passed
