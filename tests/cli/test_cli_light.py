"""The command line on a board without PyTorch, from ONNX files alone; ``make floors`` runs this with the lowest versions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnx_nets import residual
from report_factory import sample
from test_cli import VERBS, fails, pydeploy


@pytest.mark.parametrize("verb", [*VERBS, "table measure", "table show", "profile engine", "profile import"])
def test_every_verb_has_help(verb: str) -> None:
    done = pydeploy(*verb.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert f"pydeploy {verb}" in done.stdout


def test_usage() -> None:
    assert pydeploy("--version").stdout.startswith("pydeploy ")
    fails(pydeploy("lint"), "Missing argument")
    fails(pydeploy("lint", "a", "--styl", "b"), "No such option")
    fails(pydeploy("build", "a", "--out", "b"), "Missing option")
    fails(pydeploy("build", "a", "--out", "b", "--target", "null:fp32", "--batch", "0"), "--batch")
    assert json.loads(pydeploy("doctor", "--json").stdout)["backend"]["onnxruntime"].startswith("ready: fp32")


def test_from_a_file_to_an_engine(tmp_path: Path) -> None:
    """calibrate, quantize, lint, half, build, profile and compare; flags and repeated options have their effect."""
    net = residual(tmp_path / "net.onnx")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), np.uint8))
    manifest = "source: images.npy\ncount: 32\npreprocessing: {mean: [0.5, 0.5, 0.5], std: [0.3, 0.3, 0.3]}\n"
    (tmp_path / "set.yaml").write_text(manifest)
    for line in (("calibrate", net, "--data", tmp_path / "set.yaml", "--out", tmp_path / "ranges.json", "--threads", 1),
                 ("quantize", net, "--ranges", tmp_path / "ranges.json", "--out", tmp_path / "int8.onnx"),
                 ("half", net, "--out", tmp_path / "half.onnx", "--keep", "stem", "--keep", "fc"),
                 ("build", net, "--target", "onnxruntime:fp32", "--threads", 1, "--out", tmp_path / "a.engine"),
                 ("build", tmp_path / "int8.onnx", "--target", "onnxruntime:int8", "--out", tmp_path / "b.engine")):  # fmt: skip
        done = pydeploy(*line)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    found = json.loads(
        pydeploy("half", net, "--out", tmp_path / "half.onnx", "--keep", "stem", "--keep", "fc", "--json").stdout
    )
    assert set(found["kept"]) == {"stem", "fc"}
    profile = json.loads(pydeploy("profile", tmp_path / "a.engine", "--rounds", 1, "--runs", 2, "--json").stdout)
    assert profile["whole"]["n"] == 2
    both = pydeploy("compare", tmp_path / "a.engine", tmp_path / "b.engine", "--feeds", 1, "--json")
    assert json.loads(both.stdout)["outputs"][0]["cosine"] > 0.9, both.stderr


def test_reports_are_rendered_and_what_needs_torch_says_so(tmp_path: Path) -> None:
    sample().save(tmp_path / "report.json")
    done = pydeploy("report", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").exists()
    try:
        import torch  # noqa: F401
    except ImportError:
        fails(pydeploy("trace", "pydeploy:resnet8", "--input", "1x3x8x8"), "pip install 'pydeploy-hil[train]'")
