"""The command line as a user meets it: every verb, wrong options, errors without tracebacks, a kill and a resume."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pydeploy.cli import main

ROOT = Path(__file__).parents[2]
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
    for most, code in ((1000, 0), (0.001, 1)):
        asked = pydeploy("compare", work / "dense.engine", work / "small.engine", "--feeds", 1, "--max-ratio", most)
        assert (asked.returncode, "in turns" in asked.stdout) == (code, True), asked.stderr
    fails(pydeploy("compare", work / "dense.engine", work / "small.engine", "--max-ratio", 0), "above 0")


def test_compare_takes_its_inputs_from_a_manifest(work: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8))
    (tmp_path / "set.yaml").write_text(
        "source: ./images.npy\ncount: 3\npreprocessing: {mean: [0.5, 0.5, 0.5], std: [0.3, 0.3, 0.3]}\n"
    )
    found = pydeploy("compare", work / "dense.engine", work / "small.engine", "--data", tmp_path / "set.yaml", "--json")
    assert json.loads(found.stdout)["feeds"] == 3, found.stderr


def test_weights_that_fit_in_part_are_taken_on_request(work: Path, tmp_path: Path) -> None:
    import torch

    from pydeploy.models.named import named

    state = named("pydeploy:resnet8", {"width": 32}).state_dict()
    torch.save({name: tensor for name, tensor in state.items() if not name.startswith("fc")}, tmp_path / "part.pth")
    asked = ("trace", "pydeploy:resnet8", *SHAPE, "--weights", tmp_path / "part.pth")
    fails(pydeploy(*asked), "--no-strict")
    done = pydeploy(*asked, "--no-strict")
    assert done.returncode == 0
    assert "2 missing: fc.weight, fc.bias" in done.stderr
    fails(pydeploy("trace", "pydeploy:resnet8", *SHAPE, "--no-strict"), "goes with --weights")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_verbs(shell: str) -> None:
    """As a shell asks: typer's own protocol, through environment variables."""
    asked = {**ENVIRONMENT, "_PYDEPLOY_COMPLETE": f"complete_{shell}", "COMP_WORDS": "pydeploy comp", "COMP_CWORD": "1",
             "_TYPER_COMPLETE_ARGS": "pydeploy comp", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}  # fmt: skip
    program = "import sys; sys.argv = ['pydeploy']; from pydeploy.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], env=asked, capture_output=True, text=True, check=False)
    assert "compare" in done.stdout, done.stderr


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
    fails(pydeploy("quantize", tmp_path / "ort.onnx", "--ranges", ranges, "--out", tmp_path / "x"), "already quantized")
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
    assert "32 samples, observer mse" in done.stdout
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


def test_half_looks_for_overflows_on_samples(work: Path, tmp_path: Path) -> None:
    """From a manifest alone; of a float file, and of one with Q/DQ."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8))
    data, ranges, int8 = tmp_path / "set.yaml", tmp_path / "ranges.json", tmp_path / "int8.onnx"
    data.write_text("source: images.npy\ncount: 16\npreprocessing: {mean: [0.5, 0.5, 0.5], std: [0.3, 0.3, 0.3]}\n")
    assert pydeploy("calibrate", work / "dense.onnx", "--data", data, "--out", ranges).returncode == 0
    done = pydeploy("quantize", work / "dense.onnx", "--ranges", ranges, "--style", "tensorrt", "--out", int8)
    assert done.returncode == 0, done.stderr
    for source in (work / "dense.onnx", int8):
        done = pydeploy("half", source, "--data", data, "--out", tmp_path / "half.onnx")
        assert "0 float32; 16 samples checked for overflow" in done.stdout, done.stdout + done.stderr
    data.write_text(data.read_text().replace("0.3", "1.0e-6"))
    done = pydeploy("half", work / "dense.onnx", "--data", data, "--out", tmp_path / "half.onnx", "--json")
    assert "float16 ends at 65504" in json.loads(done.stdout)["kept"]["conv1"], done.stderr
    config = tmp_path / "config.yaml"
    config.write_text("model: {name: resnet8}\nprune: {budget: 0.5}\n")
    fails(pydeploy("half", int8, "--config", config, "--out", tmp_path / "half.onnx"), "names no calibration samples")


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
    fails(pydeploy("prune", "pydeploy:resnet8", *shape, "--out", tmp_path / "x"), "--budget with --target")
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
    done = pydeploy("run", "configs/smoke.yaml", "--out", out, "--resume", "--fail-if-missed")
    assert done.returncode == 0, done.stderr
    assert "--set model.options.width=32: as before" in done.stderr
    assert f"ship: {out / 'deploy' / 'model.engine'} with {out / 'deploy' / 'preprocessing.json'}" in done.stdout
    assert "NOT measured" in done.stdout
    assert f"report: {out / 'report.html'}" in done.stdout
    shown = pydeploy("report", out)
    assert "Budget" in shown.stdout
    missed = pydeploy(
        "run", "configs/smoke.yaml", "--out", out, "--resume", "--set", "prune.budget=0.01", "--fail-if-missed"
    )
    assert missed.returncode == 1
    assert "--set prune.budget: was" not in missed.stderr  # it came from the config before
    assert "was not met" in missed.stderr


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


USERS_CODE = {
    "syntax": ("def net(:\n", "SyntaxError"),
    "raises": ("raise ValueError('no weights')\n", "ValueError: no weights"),
    "lacks": ("import a_missing_package\n", "No module named 'a_missing_package'"),
    "fails": ("def net():\n    return {}['x']\n", "KeyError: 'x' ("),
    "no model": ("def net():\n    return 3\n", "returns int; expected a PyTorch module"),
    "no function": ("net = 3\n", "has no function 'net'"),
}


@pytest.mark.parametrize("case", USERS_CODE)
def test_what_is_wrong_with_a_users_model_is_one_line(case: str, tmp_path: Path) -> None:
    code, text = USERS_CODE[case]
    (tmp_path / "mine.py").write_text(code)
    fails(pydeploy("trace", f"{tmp_path / 'mine.py'}:net", "--input", "1x3x16x16"), text)


def test_values_that_make_no_sense(work: Path, tmp_path: Path) -> None:
    trace, out = ("trace", "pydeploy:resnet8"), ("--out", tmp_path / "x")
    fails(pydeploy(*trace, *SHAPE, "-o", "width=[1"), "value is not YAML")
    fails(pydeploy(*trace, "--input", "99999999x3x999999x999999"), "cannot be made")
    fails(pydeploy("export", "pydeploy:resnet8", *SHAPE, *out, "--batch", 0), "--batch")
    fails(
        pydeploy("build", work / "dense.onnx", "--target", "onnxruntime:fp32", *out, "--threads", 100_000), "--threads"
    )
    fails(pydeploy("prune", "pydeploy:resnet8", *SHAPE, *out, "--ratio", 0.5, "--align", 0), "--align")
    for budget in ("nan", "-5", "0", "inf"):
        done = pydeploy("prune", "pydeploy:resnet8", *SHAPE, *out, "--table", work / "t.sqlite", "--budget-us", budget)
        assert done.returncode == (0 if budget == "inf" else 2), done.stderr
        (tmp_path / "x").unlink(missing_ok=True)
    for ratio in ("nan", "1.5", "-1"):
        fails(pydeploy("prune", "pydeploy:resnet8", *SHAPE, *out, "--ratio", ratio), "ratio")
    (tmp_path / "net.json").write_text("[1, 2]")  # JSON is a form of ONNX, but not one that is asked for
    for verb in (("build", "--target", "onnxruntime:fp32", *out), ("half", *out), ("lint",)):
        fails(pydeploy(verb[0], tmp_path / "net.json", *verb[1:]), "net.json")
    probes = ("table", "probes", "--graph", work / "graph.json", "--out", tmp_path / "probes")
    (tmp_path / "net.onnx").write_bytes((work / "dense.onnx").read_bytes()[:5000])
    fails(pydeploy(*probes, tmp_path / "net.onnx"), "net.onnx is not a readable ONNX file")
    fails(pydeploy(*probes, tmp_path / "none.onnx"), "none.onnx does not exist")
    fails(pydeploy(*probes, work / "small.onnx"), "take the graph of this very model")
    assert not (tmp_path / "probes").exists(), "nothing is copied that a board could not measure"
    (tmp_path / "empty.json").write_text("{}")
    fails(
        pydeploy("quantize", work / "dense.onnx", "--ranges", tmp_path / "empty.json", *out), "empty.json: not a ranges"
    )
    fails(pydeploy(*probes[:3], tmp_path / "empty.json", *out, work / "dense.onnx"), "empty.json: not a graph file")
    (tmp_path / "empty.onnx").write_bytes(b"")
    fails(pydeploy("trtexec-command", tmp_path / "empty.onnx", "--trt", "10.3"), "holds no layers")
    facts = json.loads((work / "dense.engine.json").read_text())
    (tmp_path / "e.engine").write_bytes((work / "dense.engine").read_bytes())
    (tmp_path / "e.engine.json").write_text(json.dumps({**facts, "target": {**facts["target"], "facts": [1]}}))
    fails(pydeploy("profile", tmp_path / "e.engine"), "not a target record")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk: what is larger cannot be written (in this process)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_nothing(work: Path, tmp_path: Path) -> None:
    """Every verb that writes: one sentence, the file of before unharmed, nothing half-written beside it."""
    names = {
        "graph.json",
        "dense.onnx",
        "small.safetensors",
        "dense.engine",
        "dense.engine.json",
        "half.onnx",
        "t.json",
    }
    model = ("pydeploy:resnet8", *SHAPE)
    onnx, engine = tmp_path / "dense.onnx", tmp_path / "dense.engine"
    commands = [
        ("trace", *model, "--out", tmp_path / "graph.json"),
        ("export", *model, "--out", onnx),
        ("prune", *model, "--ratio", 0.25, "--out", tmp_path / "small.safetensors"),
        ("build", onnx, "--target", "onnxruntime:fp32", "--out", engine, "--threads", 1),
        ("half", onnx, "--out", tmp_path / "half.onnx"),
        ("table", "export", "--db", work / "t.sqlite", "--out", tmp_path / "t.json"),
    ]
    for command in commands:
        assert pydeploy(*command).returncode == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == names
    for command in commands:
        with files_of_at_most(4096):
            done = pydeploy(*command)
        fails(done, "error: ")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before, command
    compared = pydeploy("profile", engine, "--onnx", onnx, "--rounds", 1, "--runs", 1)
    assert compared.returncode == 0, compared.stderr


def test_a_table_survives_a_full_disk(work: Path, tmp_path: Path) -> None:
    command = ("table", "measure", work / "dense.onnx", "--graph", work / "graph.json", "--target", "null:fp32", "--db",
               tmp_path / "t.sqlite", "--points", 2, "--align", 16, "--rounds", 1, "--runs", 2)  # fmt: skip
    assert pydeploy(*command, "--limit", 2).returncode == 0
    before = pydeploy("table", "show", "--db", tmp_path / "t.sqlite", "--json").stdout
    with files_of_at_most((tmp_path / "t.sqlite").stat().st_size):
        fails(pydeploy(*command), "error: ")
    assert pydeploy("table", "show", "--db", tmp_path / "t.sqlite", "--json").stdout == before
    done = pydeploy(*command)
    assert "2 kept" in done.stdout, done.stderr


def test_a_result_that_cannot_be_printed_is_one_line(work: Path) -> None:
    command = [sys.executable, "-m", "pydeploy", "table", "show", "--db", str(work / "t.sqlite")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device\n"


def test_an_unwritable_place_is_one_line(work: Path, tmp_path: Path) -> None:
    """A file stands where a folder is wanted, or a folder where a file is wanted (permissions do not stop root)."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    table = ("table", "measure", work / "dense.onnx", "--graph", work / "graph.json", "--target", "null:fp32", "--db")
    build = ("build", work / "dense.onnx", "--target", "null:fp32", "--out")
    runs: list[tuple[object, ...]] = [("run", "configs/smoke.yaml", "--out"), ("train", "configs/smoke.yaml", "--out"),
            ("table", "probes", "pydeploy:resnet8", *SHAPE, "--out"), ("gpu-check", "--out")]  # fmt: skip
    for command in (table, build):
        fails(pydeploy(*command, tmp_path / "file" / "x"), "file")
        fails(pydeploy(*command, tmp_path / "folder"), "folder")
    for command in runs:
        fails(pydeploy(*command, tmp_path / "file"), "file")
    assert (tmp_path / "file").read_text() == "x"
    assert not list((tmp_path / "folder").iterdir())


def test_prune_measures_engines_until_the_budget_is_met(tmp_path: Path) -> None:
    model = ("pydeploy:resnet8", "--input", "1x3x32x32", "--out", tmp_path / "small.safetensors")
    target = ("--target", "null:fp32")
    done = pydeploy("prune", *model, *target, "--budget", 0.7)
    assert done.returncode == 0, done.stderr
    used = re.search(r"measured (\d+) us \(([\d.]+)% of the budget of (\d+) us\)", done.stdout)
    assert used is not None, done.stdout
    assert int(used[1]) <= int(used[3])
    assert 60 < float(used[2]) <= 100
    assert (tmp_path / "small.safetensors").is_file()
    assert Path(done.stdout.splitlines()[-1].partition(":")[0]).is_file()
    fails(pydeploy("prune", *model, "--budget", 0.7), "--target is missing")
    fails(pydeploy("prune", *model, *target), "--budget is missing")
    fails(pydeploy("prune", *model, *target, "--budget", 0.7, "--ratio", 0.5), "give one of --budget")
    fails(pydeploy("prune", *model, *target, "--budget", 0), "expected a share")
    fails(pydeploy("prune", *model, "--target", "nul", "--budget", 0.5), "unknown backend 'nul'")
