"""The acceptance test for GPUs, tried on the fake one: it passes where promises are kept and says which one is broken."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pydeploy.cli import gpu_check
from pydeploy.cli.app import app
from pydeploy.cli.gpu_check import CHECKS, Broken, Check, check_all
from pydeploy.config import Config, parse
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
