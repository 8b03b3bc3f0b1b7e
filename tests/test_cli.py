"""The command line as a user meets it: every verb, wrong options, errors without tracebacks, a kill and a resume."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pydeploy.cli import main

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "ignore"}
# torch's ONNX exporter warns about its own internals.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def pydeploy(*arguments: object) -> Done:
    """Run the command line in this process, where torch is loaded already."""
    out, errors, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(errors):
        patch.setattr(sys, "argv", ["pydeploy", *map(str, arguments)])
        patch.chdir(ROOT)
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
    return Done(code, out.getvalue(), errors.getvalue())


def start(*arguments: object) -> subprocess.Popen[str]:
    """The same in a process of its own, to be killed."""
    command = [sys.executable, "-m", "pydeploy", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def fails(done: Done, text: str) -> None:
    """Exit code 2, one clear error, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert text in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


SHAPE = ("--input", "1x3x16x16", "-o", "width=32")
VERBS = ["run", "train", "trace", "prune", "finetune", "export", "calibrate", "quantize", "half", "lint", "build", "profile",
         "compare", "report", "doctor", "table"]  # fmt: skip


def test_help_lists_every_verb() -> None:
    text = pydeploy("--help").stdout
    assert all(f"  {verb} " in text for verb in VERBS)


@pytest.mark.parametrize("verb", ["run", "prune", "profile", "table measure"])
def test_verbs_show_an_example(verb: str) -> None:
    assert "Example: pydeploy" in pydeploy(*verb.split(), "--help").stdout


def test_wrong_usage() -> None:
    fails(pydeploy("trac"), "Did you mean 'trace'")
    fails(pydeploy("run", "configs/smoke.yaml"), "--out")
    fails(pydeploy("trace", "pydeploy:resnet8", "--inptu", "1x3x8x8"), "No such option")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a user makes step by step: graph, table, cut model, ONNX, engine."""
    here = tmp_path_factory.mktemp("cli")
    model, shape = "pydeploy:resnet8", SHAPE
    steps = [
        ("trace", model, *shape, "--out", here / "graph.json"),
        ("export", model, *shape, "--out", here / "dense.onnx"),
        ("table", "measure", here / "dense.onnx", "--graph", here / "graph.json", "--target", "null:fp32", "--db", here / "t.sqlite",
         "--points", 2, "--align", 16, "--rounds", 1, "--runs", 2),
        ("prune", model, *shape, "--table", here / "t.sqlite", "--budget-us", 250, "--out", here / "small.safetensors",
         "--plan", here / "plan.json"),
        ("export", model, *shape, "--weights", here / "small.safetensors", "--out", here / "small.onnx"),
        ("build", here / "dense.onnx", "--target", "onnxruntime:fp32", "--out", here / "dense.engine", "--threads", 1),
        ("build", here / "small.onnx", "--target", "onnxruntime:fp32", "--out", here / "small.engine", "--threads", 1),
    ]  # fmt: skip
    for step in steps:
        done = pydeploy(*step)
        assert done.returncode == 0, f"{step}\n{done.stderr}"
    return here


def test_trace_prints_a_table_and_json(work: Path) -> None:
    done = pydeploy("trace", "pydeploy:resnet8", *SHAPE)
    assert "6 of 7 groups prunable" in done.stdout
    assert "model output" in done.stdout
    data = json.loads(pydeploy("trace", "pydeploy:resnet8", *SHAPE, "--json").stdout)
    assert data == json.loads((work / "graph.json").read_text())
    cut = pydeploy("trace", "pydeploy:resnet8", *SHAPE, "--weights", work / "small.safetensors", "--json")
    widths = {g["name"]: g["width"] for g in json.loads(cut.stdout)["groups"]}
    plan = json.loads((work / "plan.json").read_text())["kept"]
    assert all(widths[name] == len(kept) for name, kept in plan.items())


def test_profile_and_compare(work: Path) -> None:
    data = json.loads(pydeploy("profile", work / "dense.engine", "--rounds", 2, "--runs", 5, "--json").stdout)
    assert data["target"]["backend"] == "onnxruntime"
    assert data["whole"]["n"] == 10
    assert any("stage1.0.conv1" in name for name in data["layers"])
    same = json.loads(pydeploy("compare", work / "dense.engine", work / "dense.engine", "--feeds", 2, "--json").stdout)
    assert same["outputs"][0]["max_abs"] == 0
    assert set(same["latency"]) == {"reference", "other"}


def test_compare_says_where_engines_part(work: Path) -> None:
    dense, small, options = work / "dense.engine", work / "small.engine", ("--feeds", 1, "--layers")
    inside = json.loads(pydeploy("compare", dense, dense, *options, "--json").stdout)
    assert inside["first_divergence"] is None
    assert [row["layer"] for row in inside["layers"]][-1] == "fc"
    shown = pydeploy("compare", dense, small, *options, "--tolerance", 0.1)
    assert "first layer that differs by more than 0.1: " in shown.stdout, shown.stderr
    fails(pydeploy("compare", dense, small, *options, "--onnx", work / "dense.onnx"), "give --onnx twice")
    swapped = ("--onnx", work / "small.onnx", "--onnx", work / "dense.onnx")
    fails(pydeploy("compare", dense, small, *options, *swapped), "was not built from")


def test_table_show_export_import(work: Path) -> None:
    assert "NOT measured" in pydeploy("table", "show", "--db", work / "t.sqlite", "--layer", "conv3x3").stdout
    assert pydeploy("table", "export", "--db", work / "t.sqlite", "--out", work / "t.json").returncode == 0
    assert "sample sets added" in pydeploy("table", "import", work / "t.json", "--db", work / "copy.sqlite").stdout
    both = [
        json.loads(pydeploy("table", "show", "--db", work / name, "--json").stdout)
        for name in ("t.sqlite", "copy.sqlite")
    ]
    assert both[0] == both[1]
    again = pydeploy("table", "measure", work / "dense.onnx", "--graph", work / "graph.json", "--target", "null:fp32",
                     "--db", work / "t.sqlite", "--points", 2, "--align", 16)  # fmt: skip
    assert "0 networks measured" in again.stdout


def test_quantize_and_lint(work: Path, tmp_path: Path) -> None:
    import quant_nets
    from pydeploy.quant.calibrate import calibrate

    model, ranges = work / "dense.onnx", tmp_path / "ranges.json"
    calibrate(model, quant_nets.random_feeds(model, count=4)).save(ranges)
    for style in ("tensorrt", "null"):
        done = pydeploy("quantize", model, "--ranges", ranges, "--style", style, "--out", tmp_path / f"{style}.onnx")
        assert "layers int8, 0 in float\nchecked: no findings" in done.stdout, done.stderr
    assert (tmp_path / "null.onnx").read_bytes() == (tmp_path / "tensorrt.onnx").read_bytes()
    assert pydeploy("lint", tmp_path / "tensorrt.onnx").returncode == 0
    data = json.loads(pydeploy("quantize", model, "--ranges", ranges, "--out", tmp_path / "ort.onnx", "--float-ends", "first",
                               "--json").stdout)  # fmt: skip
    assert data["skipped"] == {"conv1": "first layer with weights, kept in float by policy"}
    done = pydeploy("lint", tmp_path / "ort.onnx")
    assert done.returncode == 1
    assert "TensorRT takes int8" in done.stdout
    fails(pydeploy("quantize", tmp_path / "ort.onnx", "--ranges", ranges, "--out", tmp_path / "x"), "already quantised")
    fails(
        pydeploy("quantize", work / "small.onnx", "--ranges", ranges, "--out", tmp_path / "x"),
        "calibrated on another file",
    )
    fails(
        pydeploy("quantize", model, "--ranges", ranges, "--style", "onxruntime", "--out", tmp_path / "x"),
        "did you mean",
    )


def test_calibrate(work: Path, tmp_path: Path) -> None:
    model, out, cache = work / "dense.onnx", tmp_path / "ranges.json", tmp_path / "trt.cache"
    data = tmp_path / "set.yaml"
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (40, 20, 24, 3), np.uint8))
    data.write_text(
        "source: images.npy\ncount: 32\npreprocessing: {mean: [0.5, 0.5, 0.5], std: [0.3, 0.3, 0.3], resize: 18, crop: 16}\n"
    )
    command = ("calibrate", model, "--data", data, "--out", out, "--threads", 1)
    done = pydeploy(*command)
    assert done.returncode == 0, done.stderr
    assert "32 samples, observer entropy" in done.stdout
    done = pydeploy(*command, "--observer", "minmax", "--cache", cache, "--tensorrt", "10.3.0")
    assert done.returncode == 0, done.stderr
    assert cache.read_text().startswith("TRT-100300-EntropyCalibration2\n")
    assert json.loads(out.read_text())["observer"] == "minmax"
    before = out.read_bytes()
    fails(pydeploy(*command, "--observer", "entropi"), "did you mean 'entropy'")
    fails(pydeploy(*command, "--cache", cache, "--tensorrt", "11.0"), "reads no calibration cache")
    fails(pydeploy("calibrate", tmp_path / "no.onnx", "--data", data, "--out", out), "does not exist")
    fails(pydeploy("calibrate", model, "--data", tmp_path / "no.yaml", "--out", out), "does not exist")
    data.write_text(data.read_text() + "sha256: " + "a" * 64 + "\n")
    fails(pydeploy(*command), "the data or their preprocessing changed")
    data.write_text("source: synthetic\ncount: 8\n")
    fails(pydeploy(*command), "give samples of this type and shape")
    assert out.read_bytes() == before


def test_half(work: Path, tmp_path: Path) -> None:
    done = pydeploy("half", work / "dense.onnx", "--out", tmp_path / "half.onnx", "--keep", "fc")
    assert "overflow checked on weights only" in done.stdout, done.stderr
    assert "kept by name" in done.stdout
    data = json.loads(
        pydeploy("half", work / "dense.onnx", "--out", tmp_path / "b.onnx", "--dtype", "bfloat16", "--json").stdout
    )
    assert data["kept"] == {}
    fails(
        pydeploy("half", work / "dense.onnx", "--out", tmp_path / "x", "--dtype", "fp16"), "unknown half-precision type"
    )


def test_doctor() -> None:
    found = json.loads(pydeploy("doctor", "--json").stdout)
    assert found["backend"]["onnxruntime"].startswith("ready: fp32")
    assert found["compiled part"].startswith("present")


def test_bad_input(work: Path, tmp_path: Path) -> None:
    shape = SHAPE
    fails(pydeploy("trace", "resnet8", *shape), "a model is given as")
    fails(pydeploy("trace", "pydeploy:resnet9", *shape), "did you mean 'resnet8'")
    fails(pydeploy("trace", "pydeploy:resnet8", "--input", "1x3xAx16"), "numbers joined by 'x'")
    fails(pydeploy("trace", "pydeploy:resnet8", "--input", "1x5x16x16"), "the model fails on inputs of shape")
    fails(pydeploy("trace", "none.py:make", *shape), "does not exist")
    fails(
        pydeploy("prune", "pydeploy:resnet8", *shape, "--ratio", 0.5, "--criterion", "l3", "--out", tmp_path / "x"),
        "unknown criterion",
    )
    fails(pydeploy("prune", "pydeploy:resnet8", *shape, "--out", tmp_path / "x"), "either --budget-us")
    fails(pydeploy("prune", "pydeploy:resnet8", *shape, "--table", work / "t.sqlite", "--budget-us", 1, "--out", tmp_path / "x"),
          "below the smallest plan")  # fmt: skip
    fails(pydeploy("profile", work / "graph.json"), "does not exist")
    fails(pydeploy("profile", work / "dense.engine", "--onnx", work / "small.onnx"), "was not built from")
    fails(pydeploy("compare", work / "dense.engine", tmp_path / "none.engine"), "does not exist")
    fails(
        pydeploy("build", work / "dense.onnx", "--target", "onnxrt", "--out", tmp_path / "x"),
        "did you mean 'onnxruntime'",
    )
    fails(pydeploy("build", work / "dense.onnx", "--target", "onnxruntime:int8", "--out", tmp_path / "x"), "Q/DQ")
    fails(pydeploy("build", work / "t.sqlite", "--target", "onnxruntime:fp32", "--out", tmp_path / "x"), "t.sqlite")
    fails(pydeploy("export", "pydeploy:resnet8", *shape, "--out", "/proc/none/x.onnx"), "cannot write")
    fails(
        pydeploy(
            "export", "pydeploy:resnet20", *shape, "--weights", work / "small.safetensors", "--out", tmp_path / "x"
        ),
        "architecture",
    )
    fails(pydeploy("report", tmp_path), "report.json does not exist")
    assert not list(tmp_path.iterdir())


def test_a_corrupt_or_foreign_table_is_refused(work: Path, tmp_path: Path) -> None:
    shape = (*SHAPE, "--budget-us", 250, "--out", tmp_path / "x")
    (tmp_path / "bad.sqlite").write_bytes((work / "t.sqlite").read_bytes()[:3000])
    fails(pydeploy("prune", "pydeploy:resnet8", *shape, "--table", tmp_path / "bad.sqlite"), "bad.sqlite")
    done = pydeploy(
        "table",
        "measure",
        work / "dense.onnx",
        "--graph",
        work / "graph.json",
        "--target",
        "null:bf16",
        "--db",
        work / "t.sqlite",
    )
    fails(done, "precision: 'fp32' against 'bf16'")


TINY = ["--set", "target.backend=null", "--set", "quantize=null", "--set", "train.amp=off", "--set", "finetune.amp=off",
        "--set", "task.options.data_settings={size: 12, classes: 4, train_size: 256, test_size: 64}",
        "--set", "model.options.width=32", "--set", "table.points=2", "--set", "table.align=16"]  # fmt: skip


def test_a_killed_run_resumes(tmp_path: Path) -> None:
    """kill -9 while it trains; then --resume finishes, and without --resume nothing is overwritten."""
    out = tmp_path / "run"
    victim = start("run", "configs/smoke.yaml", "--out", out, *TINY)
    deadline = time.monotonic() + 120
    while not (out / "01_train" / "checkpoint.safetensors").exists() and not (out / "02_graph").exists():
        assert time.monotonic() < deadline
        assert victim.poll() is None, victim.communicate()[1]
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    fails(pydeploy("run", "configs/smoke.yaml", "--out", out, *TINY), "already holds a run: pass --resume")
    done = pydeploy("run", "configs/smoke.yaml", "--out", out, *TINY, "--resume")
    assert done.returncode == 0, done.stderr
    assert "NOT measured" in done.stdout
    assert f"report: {out / 'report.html'}" in done.stdout
    shown = pydeploy("report", out)
    assert "Budget" in shown.stdout


def test_interrupting_a_run_is_one_line(tmp_path: Path) -> None:
    victim = start("run", "configs/smoke.yaml", "--out", tmp_path / "run", *TINY)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "01_train").exists():
        assert time.monotonic() < deadline
        assert victim.poll() is None, victim.communicate()[1]
        time.sleep(0.02)
    victim.send_signal(signal.SIGINT)
    _, errors = victim.communicate(timeout=120)
    assert victim.returncode == 2
    assert "error: interrupted" in errors
    assert "Traceback" not in errors
