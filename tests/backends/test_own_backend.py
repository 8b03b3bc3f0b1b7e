"""A backend of a user's own is a target like any other, in verbs and configs, with nothing edited in pydeploy.

Oracle: the verbs' own results with ONNX Runtime, which the backend under test wraps; and for what it declares, files and reports.
"""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_nets import residual
from pydeploy.backends.base import (
    BACKENDS,
    PRECISIONS,
    Choice,
    backend_class,
    names,
    open_backend,
    parse_target,
    reopen,
)
from pydeploy.errors import BackendUnavailable, ConfigError, DataError, DeployError
from pydeploy.latency.probes.quantized import int8_transform
from pydeploy.latency.table.by_precision import other_target
from pydeploy.quant.styles import STYLES, style_for
from pydeploy.run.config import Config, parse
from pydeploy.run.job import open_job
from pydeploy.run.pipeline import stages_of
from pydeploy.run.stages.reduced_precision import half_backend
from quiet import Quiet
from test_cli import SHAPE, fails, pydeploy
from test_config_checks import WHOLE

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TEXT = '''
from contextlib import contextmanager
from dataclasses import replace
from pydeploy.backends.base import Backend
from pydeploy.backends.onnxruntime import OnnxRuntime
from pydeploy.errors import BackendUnavailable
from pydeploy.onnxfile.half import is_typed
from pydeploy.onnxfile.widen import widen
import onnx, tempfile
from pathlib import Path

class Mine(Backend):
    """ONNX Runtime, and fp16 by computing in float32."""

    takes_options = True
    int8_style = "openvino"
    beside_int8 = "fp16"
    halves = ("fp16",)

    def __init__(self, precision="fp32", batch=1, threads=0, options=""):
        if precision not in ("fp32", "fp16", "int8"):
            raise BackendUnavailable(f"no {precision} here")
        self.precision, self.batch, self.options = precision, batch, options
        self.runtime = OnnxRuntime("int8" if precision == "int8" else "fp32", batch, threads or 1)
        self.threads = self.runtime.threads

    @classmethod
    def align_at(cls, precision, options=""):
        return 12 if precision == "fp32" else 20

    @classmethod
    def checkup(cls):
        return {"cable": "missing: plug it in"}

    def target(self):
        facts = {"options": self.options} if self.options else {}
        return replace(self.runtime.target(), backend=self.name, precision=self.precision, facts=facts)

    def build(self, onnx_file, out):
        model = onnx.load(onnx_file)
        if is_typed(model):
            widen(model)
        with tempfile.TemporaryDirectory() as folder:
            onnx.save(model, Path(folder) / "net.onnx")
            built = self.runtime.build(Path(folder) / "net.onnx", Path(out))
        return replace(built, backend=self.name, target=self.target()).save()

    @contextmanager
    def open(self, engine):
        engine.require(self.target())
        with self.runtime.open(replace(engine, backend=self.runtime.name, target=self.runtime.target())) as session:
            yield session

class Wrong(Mine):
    def target(self):
        return replace(super().target(), backend="somewhere")

class NoBackend:
    pass

class Unfinished(Backend):
    pass

class Failing(Mine):
    def __init__(self, **given):
        raise RuntimeError("no board is connected")
'''


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(TEXT)
    return f"{tmp_path / 'mine.py'}:Mine"


def worked(*line: object) -> str:
    done = pydeploy(*line)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


def test_from_a_file_to_engines_of_every_precision(mine: str, tmp_path: Path) -> None:
    net = residual(tmp_path / "net.onnx")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), np.uint8))
    manifest = "source: images.npy\ncount: 32\npreprocessing: {mean: [0.5, 0.5, 0.5], std: [0.3, 0.3, 0.3]}\n"
    (tmp_path / "set.yaml").write_text(manifest)
    out = {name: tmp_path / f"{name}.engine" for name in ("fp32", "fp16", "int8", "theirs")}
    worked("calibrate", net, "--data", tmp_path / "set.yaml", "--out", tmp_path / "ranges.json", "--threads", 1)
    worked("quantize", net, "--ranges", tmp_path / "ranges.json", "--style", mine, "--out", tmp_path / "int8.onnx")
    worked("half", net, "--out", tmp_path / "fp16.onnx")
    worked("lint", tmp_path / "int8.onnx", "--style", mine)
    for precision, file in (("fp32", net), ("fp16", tmp_path / "fp16.onnx"), ("int8", tmp_path / "int8.onnx")):
        worked("build", file, "--target", f"{mine}:{precision}", "--out", out[precision])
    worked("build", net, "--target", "onnxruntime:fp32", "--threads", 1, "--out", out["theirs"])
    profile = json.loads(worked("profile", out["int8"], "--rounds", 1, "--runs", 2, "--json"))
    assert profile["target"]["backend"] == mine
    assert profile["layers"]
    for name, least in (("fp32", 1 - 1e-6), ("fp16", 0.999), ("int8", 0.9)):
        both = json.loads(worked("compare", out["theirs"], out[name], "--feeds", 1, "--json"))
        assert both["outputs"][0]["cosine"] >= least, name


def test_what_it_declares_decides(mine: str, tmp_path: Path) -> None:
    assert style_for(mine) == "openvino"
    dense = residual(tmp_path / "net.onnx")
    made = {style: int8_transform(dense, style, tmp_path)(onnx.load(dense)) for style in STYLES}
    assert style_for(mine) in made
    assert sum(made["openvino"] == other for other in made.values()) == 1
    int8 = open_backend(mine, precision="int8", threads=1)
    assert other_target(int8).precision == "fp16"
    assert reopen(other_target(int8)).precision == "fp16"
    assert int8.align == 20


def test_latency_table(mine: str, tmp_path: Path) -> None:
    quick = ("--points", 2, "--rounds", 1, "--runs", 1, "--limit", 2, "--db", tmp_path / "t.sqlite")
    worked("table", "measure", "pydeploy:resnet8", *SHAPE, "--target", f"{mine}:int8,cooled", *quick)
    shown = worked("table", "show", "--db", tmp_path / "t.sqlite")
    assert "cooled" in shown or "mine.py" in shown
    worked(
        "table",
        "probes",
        "pydeploy:resnet8",
        *SHAPE,
        "--target",
        f"{mine}:fp32",
        "--points",
        2,
        "--out",
        tmp_path / "p",
    )
    widths = json.loads((tmp_path / "p" / "probes.json").read_text())["widths"]
    assert all(width % 12 == 0 or width == max(row) or row[0] < 12 for row in widths.values() for width in row)
    assert any(12 in row or 24 in row for row in widths.values())


def config(backend: str, precision: str = "fp32") -> Config:
    data: dict[str, Any] = {**WHOLE, "target": {"backend": backend, "precision": precision, "threads": 1}}
    data["quantize"] = {**data["quantize"], "table": None}
    return parse(data, "test")


@pytest.mark.parametrize(("precision", "half"), [("fp32", "fp16"), ("int8", None)])
def test_a_config_names_it(mine: str, precision: str, half: str | None) -> None:
    job = open_job(config(mine, precision), Quiet())
    assert job.backend.target().backend == mine
    found = half_backend(job)
    assert (found.precision if found else None) == half
    assert ("half" in {stage.name.partition("_")[2] for stage in stages_of(job)}) == (half is not None)


def test_an_edited_backend_is_another_target_for_a_run(mine: str, tmp_path: Path) -> None:
    before = open_job(config(mine), Quiet()).values
    (tmp_path / "mine.py").write_text(TEXT + "\n# built otherwise now\n")
    after = open_job(config(mine), Quiet()).values
    assert {key for key in before if before[key] != after[key]} == {"target.code"}


def test_an_installed_package_registers_a_name(mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_pydeploy_backend.py").write_text(TEXT)
    monkeypatch.syspath_prepend(tmp_path)
    info = tmp_path / "own_pydeploy_backend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-pydeploy-backend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[pydeploy.backends]\nown = own_pydeploy_backend:Mine\nbroken = no_such_module_at_all:X\nonnxruntime = own_pydeploy_backend:Mine\n"
    )
    importlib.invalidate_caches()
    assert {"own", "broken"} < set(names())
    backend = open_backend("own", threads=1)
    assert backend.target().backend == "own"
    assert reopen(backend.target()).name == "own"
    assert backend_class("onnxruntime").__module__ == "pydeploy.backends.onnxruntime"
    with pytest.raises(BackendUnavailable, match="did you mean 'own'"):
        open_backend("owm")
    found = json.loads(worked("doctor", "--json"))
    assert found["backend"]["own"] == "ready: fp32, fp16, int8"
    assert found["own"] == {"cable": "missing: plug it in"}
    assert "no_such_module_at_all" in found["backend"]["broken"]


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("Wrong", ConfigError, "must state self.name"),
        ("NoBackend", ConfigError, "is no backend: expected a class that derives from"),
        ("Unfinished", ConfigError, "write its build, open, target"),
        ("Failing", ConfigError, "no board is connected"),
        ("Mien", ConfigError, "did you mean 'Mine'"),
        ("Path", ConfigError, "is no backend"),
    ],
)
def test_wrong_backends_are_one_sentence(mine: str, name: str, error: type[DeployError], text: str) -> None:
    with pytest.raises(error, match=text):
        open_backend(mine.replace(":Mine", f":{name}"))


def test_wrong_targets_are_one_sentence(mine: str, tmp_path: Path) -> None:
    net, out = residual(tmp_path / "net.onnx"), ("--out", tmp_path / "x.engine")
    fails(pydeploy("build", net, "--target", f"{tmp_path}/none.py:Mine:fp32", *out), "none.py does not exist")
    fails(
        pydeploy("build", net, "--target", "no_such_module:Mine:fp32", *out), "module no_such_module cannot be imported"
    )
    fails(pydeploy("build", net, "--target", "onnxruntim:fp32", *out), "did you mean 'onnxruntime'")
    fails(pydeploy("build", net, "--target", f"{mine}:bf16", *out), "no bf16 here")
    fails(pydeploy("build", net, "--target", "onnxruntime:fp32,quick", *out), "has no options")
    fails(
        pydeploy("lint", net, "--style", "openvin"), "unknown quantization style 'openvin' (did you mean 'openvino'?)"
    )
    with pytest.raises(DataError):
        backend_class("none.py:Mine")


@pytest.mark.parametrize("backend", [*BACKENDS, "a.py:B", "some/where/a.py:B.C", "p.q:R", "plain"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("options", ["", "sparse", "calibration=/a:int8,level=3", "x=fp16,y=a:b"])
def test_targets_are_read_as_they_are_written(backend: str, precision: str, options: str) -> None:
    text = f"{backend}:{precision},{options}" if options else f"{backend}:{precision}"
    assert parse_target(text) == Choice(backend, precision, options)
    assert parse_target(backend) == Choice(backend, "fp32", "")


def test_nobody_asks_for_a_backend_by_its_name() -> None:
    """Outside of pydeploy/backends a backend's name is never compared with, looked up by, or a prefix."""
    package, found = Path(__file__).parents[2] / "pydeploy", []
    known = {name for name in BACKENDS if name != "null"} | {"null"}
    for path in sorted(package.rglob("*.py")):
        if path.is_relative_to(package / "backends"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            asked: list[ast.expr] = []
            if isinstance(node, ast.Compare):
                asked = [node.left, *node.comparators]
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("startswith", "get")
            ):
                asked = list(node.args[:1])
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "hasattr")
            ):
                asked = []
                found += [f"{path.name}:{node.lineno}"] if "backend" in ast.unparse(node.args[0]) else []
            parts = [
                part
                for one in asked
                for part in ([one, *one.elts] if isinstance(one, ast.Tuple | ast.List | ast.Set) else [one])
            ]
            found += [
                f"{path.name}:{node.lineno}" for part in parts if isinstance(part, ast.Constant) and part.value in known
            ]
    assert not found
