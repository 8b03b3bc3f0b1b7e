"""The acceptance test for GPUs, tried on the fake one: it passes where promises are kept and says which one is broken."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from onnx_nets import residual
from pydeploy.cli import gpu_check
from pydeploy.cli.app import app
from pydeploy.cli.gpu_check import CHECKS, Broken, Check, check_all
from pydeploy.run.artefacts import Artefacts
from pydeploy.run.config import Config, parse
from pydeploy.timing.records import Target, Timing, Turn
from quiet import Quiet
from trt_bench import machine
from trt_surface import VERSIONS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def settings() -> Config:
    data = {
        "task": {"data": "synthetic", "options": {"data_settings": {"size": 12, "train_size": 512, "test_size": 128}}},
        "model": {"name": "resnet8", "options": {"width": 32}},
        "train": {"epochs": 1, "batch_size": 64, "lr": 0.1, "warmup_epochs": 0, "amp": "off"},
        "target": {"backend": "tensorrt", "precision": "fp16", "batch": 16},
        "table": {"points": 2, "align": 16, "rounds": 1, "runs": 3},
        "prune": {"criterion": "l1", "budget": 0.8},
        "finetune": {"epochs": 1, "batch_size": 64, "lr": 0.05, "warmup_epochs": 0, "amp": "off"},
        "quantize": {"observer": "minmax", "calibration": "calib/smoke.yaml"},
    }
    return parse(data, "test")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["10.3.0", VERSIONS[-1]])
def test_everything_is_checked(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = machine(monkeypatch, version, tmp_path)
    world.numeric = True
    graphs = sys.modules.pop("cuda.bindings.driver")  # PyTorch, which trains here, wants the real one
    monkeypatch.setattr("pydeploy.backends.tensorrt.cuda.load_graphs", lambda: graphs)
    complete = {"GPU": "an A100", "bindings": "TensorRT", "NVML": "missing: pip install nvidia-ml-py"}
    monkeypatch.setattr(gpu_check, "checkup", lambda: complete)
    monkeypatch.setattr(gpu_check, "UNSEEN_PLANS", 2)
    checks = check_all(settings(), tmp_path / "out", Quiet())
    judged = {check.name: check for check in checks}
    accuracy = {name for name in judged if "point" in name}  # one epoch on synthetic pictures promises nothing
    assert {
        name: check.detail for name, check in judged.items() if check.passed is False and name not in accuracy
    } == {}
    assert {"GPU and packages", "the whole job runs", *CHECKS} == set(judged)
    assert {name for name, check in judged.items() if check.passed is None} == (
        {name for name in CHECKS if name.startswith("int8 ")} if version.startswith("11") else set()
    ), "calibrators are gone in 11"
    saved = json.loads((tmp_path / "out" / "gpu-check.json").read_text())
    assert [row["name"] for row in saved["checks"]] == list(judged)
    assert saved["engines"]["quantized"][0]["tactic"] == "sm80_xmma_fprop"
    assert saved["target"]["device"] == "NVIDIA A100-SXM4-40GB"
    assert world.memory == {}


def test_without_a_gpu_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gpu_check, "checkup", lambda: {"GPU": "missing: no NVIDIA driver", "pycuda": "missing: pip install pycuda"}
    )
    (check,) = check_all(settings(), tmp_path, Quiet())
    assert check.passed is False
    assert "no NVIDIA driver" in check.detail
    assert "pip install pycuda" in check.detail
    assert json.loads((tmp_path / "gpu-check.json").read_text())["machine"]["pycuda"].startswith("missing")


def test_the_verb_prints_a_table_and_keeps_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "checkup", lambda: {"GPU": "missing: no NVIDIA driver"})
    config = str(Path(__file__).parent.parent / "configs" / "fashion_mnist_resnet20_tensorrt.yaml")
    done = CliRunner().invoke(app, ["gpu-check", "--out", str(tmp_path), "--config", config])
    assert done.exit_code == 1
    assert done.output.splitlines() == ["FAIL  GPU and packages  GPU: missing: no NVIDIA driver",
                                        f"0 of 1 kept; for a bug report attach {tmp_path / 'gpu-check.json'}"]  # fmt: skip


def test_what_was_found_before_a_crash_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver may take the whole process down: the file holds every check that was finished."""
    monkeypatch.setattr(gpu_check, "checkup", lambda: {"GPU": "an A100", "bindings": "TensorRT"})

    def dies(*_: object) -> str:
        assert json.loads((tmp_path / "gpu-check.json").read_text())["checks"][0]["passed"] is True
        raise SystemExit(139)

    monkeypatch.setattr(gpu_check, "_run", dies)
    with pytest.raises(SystemExit):
        check_all(settings(), tmp_path, Quiet())
    assert len(json.loads((tmp_path / "gpu-check.json").read_text())["checks"]) == 1


def test_a_broken_promise_and_a_crash_are_told_apart() -> None:
    def broken() -> str:
        raise Broken("took 3 us")

    def crashed() -> str:
        raise KeyError("x")

    assert gpu_check._check("a", broken) == Check("a", passed=False, detail="took 3 us")
    found = gpu_check._check("b", crashed)
    assert found.passed is False
    assert found.detail.startswith("KeyError: 'x'\nTraceback")
    assert gpu_check._check("c", lambda: None).passed is None


# ---------------------------------------------------------------- each judgement, at its limit


def bench(tmp_path: Path, **report: Any) -> Any:
    """A finished run, as far as the checks look at it."""
    backend = SimpleNamespace(
        precision="fp16", batch=4, build=lambda source, out: SimpleNamespace(path=out), target=dict
    )
    return SimpleNamespace(report=SimpleNamespace(**report), backend=backend, folder=tmp_path, at=Artefacts(tmp_path),
                           config=None, facts={}, opened=lambda name: (backend, name))  # fmt: skip


def judged(check: Any, *arguments: Any) -> bool | None:
    return gpu_check._check("x", lambda: check(*arguments)).passed


def accuracies(**values: float | None) -> SimpleNamespace:
    latency = SimpleNamespace(median=100.0)
    return SimpleNamespace(**{k: v and SimpleNamespace(accuracy=v, latency_us=latency) for k, v in values.items()})


@pytest.mark.parametrize("met", [True, False])
def test_the_budget_must_be_met(met: bool, tmp_path: Path) -> None:
    assert (
        judged(
            gpu_check._budget, bench(tmp_path, met=met, models=accuracies(pruned=0.9), budget_us=99.0, dense_us=200.0)
        )
        is met
    )


@pytest.mark.parametrize(("pruned", "passed"), [(0.8905, True), (0.8895, False)])
def test_pruning_may_cost_one_point(pruned: float, passed: bool, tmp_path: Path) -> None:
    assert judged(gpu_check._accuracy, bench(tmp_path, models=accuracies(dense=0.9, pruned=pruned))) is passed


@pytest.mark.parametrize(("int8", "passed"), [(0.8955, True), (0.8945, False), (None, None)])
def test_int8_may_cost_half_a_point(int8: float | None, passed: bool | None, tmp_path: Path) -> None:
    assert judged(gpu_check._int8_accuracy, bench(tmp_path, models=accuracies(pruned=0.9, quantized=int8))) is passed


@pytest.mark.parametrize(("error", "passed"), [(0.09, True), (-0.09, True), (0.11, False), (-0.11, False)])
def test_the_last_prediction_may_be_off_by_a_tenth(error: float, passed: bool, tmp_path: Path) -> None:
    rounds = [SimpleNamespace(error=0.5), SimpleNamespace(error=error)]
    assert judged(gpu_check._prediction, bench(tmp_path, rounds=rounds)) is passed


@pytest.mark.parametrize(("measured", "passed"), [(104.0, True), (106.0, False)])
def test_the_table_may_be_off_by_a_twentieth(
    measured: float, passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = SimpleNamespace(widths=lambda graph: {"a": (8, 16)}, predict_us=lambda graph, plan: 100.0)
    monkeypatch.setattr(gpu_check, "Graph", SimpleNamespace(load=lambda path: "graph"))
    monkeypatch.setattr(gpu_check, "Table", SimpleNamespace(open=lambda path, target: table))
    monkeypatch.setattr(gpu_check, "onnx", SimpleNamespace(load=lambda path: "model", save=lambda model, path: None))
    monkeypatch.setattr(gpu_check, "resize", lambda *_: "model")
    monkeypatch.setattr(gpu_check, "_median_us", lambda backend, engine: measured)
    assert judged(gpu_check._table_error, bench(tmp_path)) is passed


@pytest.mark.parametrize(("error", "passed"), [(0.019, True), (0.021, False)])
def test_fp16_outputs_may_differ_by_a_fiftieth(
    error: float, passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path)
    made.backend.target = lambda: Target("x", "null", "1", "fp16", 4, 1)
    made.at.pruned.mkdir()
    (made.at.pruned / "model.onnx").touch()
    monkeypatch.setattr(
        gpu_check, "reopen", lambda target: SimpleNamespace(batch=4, precision=target.precision, mine=True)
    )
    off = {"fp32": 0.0, "fp16": error}

    def answers(backend: Any, source: Path, out: Path) -> dict[str, np.ndarray]:
        return {"logits": np.ones(4) * (1 + off[backend.precision] * hasattr(backend, "mine"))}

    monkeypatch.setattr(gpu_check, "_answers", answers)
    assert judged(gpu_check._outputs, made) is passed


def layers(*dtypes: str) -> list[dict[str, Any]]:
    return [{"inputs": [{"dtype": dtype}], "padding": (8, 8)} for dtype in dtypes]


@pytest.mark.parametrize(("dtypes", "passed"), [(("float32", "float16"), True), (("float32", "int8"), False)])
def test_an_fp16_engine_must_hold_fp16_layers(
    dtypes: tuple[str, ...], passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path)
    made.at.pruned.mkdir()
    (made.at.pruned / "model.engine").touch()
    monkeypatch.setattr(gpu_check, "_describe", lambda bench, name: layers(*dtypes))
    assert judged(gpu_check._formats, made) is passed


@pytest.mark.parametrize(
    ("layer_us", "ops", "passed"), [(10.4, 10, True), (10.6, 10, False), (9.4, 10, False), (10.0, 12, False)]
)
def test_layers_must_be_the_models_and_add_up(
    layer_us: float, ops: int, passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = Timing(9, layer_us, layer_us, layer_us)
    found = SimpleNamespace(layers={f"op{i}": timing for i in range(10)}, whole=Timing(9, 100.0, 100.0, 100.0))
    graph = SimpleNamespace(ops=[SimpleNamespace(name=f"op{i}") for i in range(ops)])
    monkeypatch.setattr(gpu_check, "Graph", SimpleNamespace(load=lambda path: graph))
    monkeypatch.setattr(gpu_check, "profile", lambda *_, **__: found)
    assert judged(gpu_check._layers, bench(tmp_path)) is passed


@pytest.mark.parametrize(("unstable", "cuda_graph"), [(0.0, 1.0), (1.0, 1.0), (0.0, 0.0)])
def test_clocks_must_be_steady_and_graphs_work(
    unstable: float, cuda_graph: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    condition = {"unstable": unstable, "cuda_graph": cuda_graph}
    monkeypatch.setattr(gpu_check, "profile", lambda *_, **__: SimpleNamespace(condition=condition))
    assert judged(gpu_check._steady, bench(tmp_path)) is ((unstable, cuda_graph) == (0.0, 1.0))


@pytest.mark.parametrize(("second", "passed"), [(104.0, True), (106.0, False), (94.0, False)])
def test_two_builds_must_agree(second: float, passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_turns(engines: dict[str, Any]) -> dict[str, SimpleNamespace]:
        """Both engines, every second round three times as slow for both."""
        pace = [1.0, 3.0] * 5
        turns = [tuple(Turn(us * slow) for slow in pace) for us in (second, 100.0)]
        return {name: SimpleNamespace(timing=Timing(10, us, us, us, turns=one))
                for name, us, one in zip(engines, (second, 300.0), turns, strict=True)}  # fmt: skip

    monkeypatch.setattr(gpu_check, "time_engines", in_turns)
    monkeypatch.setattr(gpu_check, "read_json", lambda path: {"seconds": 1.0})
    assert judged(gpu_check._rebuild, bench(tmp_path)) is passed


@pytest.mark.parametrize(("rows", "passed"), [(4, True), (1, False)])
def test_a_dynamic_batch_must_give_the_targets_rows(
    rows: int, passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path)
    made.at.pruned.mkdir()
    residual(made.at.pruned / "model.onnx")
    monkeypatch.setattr(gpu_check, "_answers", lambda *_: {"logits": np.zeros((rows, 10))})
    assert judged(gpu_check._dynamic, made) is passed


@pytest.mark.parametrize(
    ("dtype", "off", "passed"), [("int8", 0.14, True), ("int8", 0.16, False), ("float16", 0.0, False)]
)
def test_implicit_int8_must_be_int8_and_right(
    dtype: str, off: float, passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def opening(engine: Any) -> Iterator[Any]:
        info = SimpleNamespace(inputs=[SimpleNamespace(dtype=dtype)])
        yield SimpleNamespace(describe=lambda: [info], run=lambda feeds: {"logits": np.ones(4) * engine})

    batch = SimpleNamespace(inputs=[torch.zeros(1)])
    task = SimpleNamespace(eval_batches=lambda size: [batch], input_names=["image"])
    monkeypatch.setattr(gpu_check.stages, "open_task", lambda config: task)
    other = SimpleNamespace(build=lambda source, out: 1.0, open=opening)
    monkeypatch.setattr(gpu_check, "open_backend", lambda *_, **__: other)
    mine = SimpleNamespace(batch=1, open=opening)
    assert judged(gpu_check._implicit_int8, bench(tmp_path), mine, 1.0 + off) is passed


@pytest.mark.parametrize(
    ("part", "passed"), [("NVML", True), ("pycuda", False), ("CUDA graphs", False), ("bindings", False)]
)
def test_all_parts_but_nvml_are_needed(part: str, passed: bool) -> None:
    parts = {"GPU": "A100", "bindings": "TensorRT", "pycuda": "2024.1", "CUDA graphs": "there", "NVML": "there"}
    assert judged(gpu_check._packages, {**parts, part: "missing: pip install it"}) is passed
