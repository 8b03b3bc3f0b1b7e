"""What a run ends with: an engine that five lines of Python run, and only the files that are asked for."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pydeploy.backends.base import Engine, open_engine
from pydeploy.data.deployment import Deployment
from pydeploy.errors import ConfigError, DataError
from pydeploy.report import Report, render
from pydeploy.run.overrides import keep, remembered
from pydeploy.run.pipeline import run
from quiet import Quiet
from test_pipeline import settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for ONNX Runtime would be disturbed by whatever runs beside; the analytic backend runs the same file."""
    out = tmp_path_factory.mktemp("shipped") / "out"
    run(settings(), out, Quiet(), command="pydeploy run", overrides={"finetune.epochs": 1})
    return out


def copied(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "copy"))


def lines_of(markdown: str) -> str:
    """The indented block that imports pydeploy."""
    blocks = re.findall(r"(?m)(?:^ {4}.*\n|^\n)+", markdown)
    return next("\n".join(line[4:] for line in one.splitlines()) for one in blocks if "import pydeploy" in one)


@pytest.mark.parametrize("place", ["report.md", "deploy/README.md"])
def test_the_lines_that_are_shown_run(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """In an empty folder with a picture, as a reader would paste them; their result is what the shipped file computes."""
    shutil.copytree(done, tmp_path / "out")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12), np.uint8)).save(
        tmp_path / "out" / "picture.png"
    )
    monkeypatch.chdir(tmp_path / "out")
    code = lines_of((done / place).read_text()).replace(done.as_posix(), ".")
    assert len([line for line in code.splitlines() if line.strip()]) == 5
    space: dict[str, Any] = {}
    with redirect_stdout(StringIO()) as shown:
        exec(code, space)
    way = Deployment.load("deploy/preprocessing.json")
    with open_engine(Path("deploy/model.engine")) as engine:
        expected = engine.run(way.feeds(["picture.png"]))
    assert tuple(expected) == way.outputs
    assert str(expected) == shown.getvalue().strip()
    pixels = np.asarray(Image.open("picture.png"), np.float64)[None, None] / 255
    sample = (pixels - way.preprocessing.mean[0]) / way.preprocessing.std[0]
    np.testing.assert_allclose(way.feeds(["picture.png"])[way.input], sample, atol=1e-5)


def test_the_folder_holds_the_recommended_engine(done: Path) -> None:
    report = Report.load(done / "report.json")
    folders = {"dense": "04_dense", "pruned": "08_pruned"}
    source = done / folders[report.recommendation.model]
    for name in ("model.engine", "model.engine.json", "model.onnx", "preprocessing.json"):
        assert (done / "deploy" / name).read_bytes() == (source / name).read_bytes()
    Engine.load(done / "deploy" / "model.engine").require_onnx(done / "deploy" / "model.onnx")
    for name in ("report.md", "report.html"):
        assert "What to ship" in (done / name).read_text()


def test_an_older_report_tells_nothing_of_a_folder(done: Path, tmp_path: Path) -> None:
    data = json.loads((done / "report.json").read_text())
    del data["shipped"]
    markdown, page = render(Report.from_json(data), tmp_path)
    assert "What to ship" not in markdown.read_text() + page.read_text()


def test_a_picture_that_cannot_be_read_is_named(done: Path, tmp_path: Path) -> None:
    way = Deployment.load(done / "deploy" / "preprocessing.json")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad\.png: damaged"):
        way.feeds([tmp_path / "bad.png"])


def test_a_slimmed_run_keeps_results_and_is_finished(done: Path, tmp_path: Path) -> None:
    out, console = copied(done, tmp_path), Quiet()
    before = Report.load(out / "report.json")
    run(settings(), out, console, resume=True, slim=True)
    assert "MB of files deleted" in console.lines[-1]
    left = {
        str(path.relative_to(out)) for path in out.rglob("*") if path.suffix in (".engine", ".onnx", ".safetensors")
    }
    assert left == {
        "deploy/model.engine",
        "deploy/model.onnx",
        "01_train/model.safetensors",
        "07_finetune/model.safetensors",
    }
    console = Quiet()
    run(settings(), out, console, resume=True, slim=True)
    assert sum("finished earlier" in line for line in console.lines) == 9
    after = Report.load(out / "report.json")
    assert (before.models, before.rounds, before.layers) == (after.models, after.rounds, after.layers)
    with open_engine(out / "deploy" / "model.engine") as engine:
        assert engine.inputs


def test_a_slimmed_run_is_not_gone_on_with_but_lends_its_training(done: Path, tmp_path: Path) -> None:
    out = copied(done, tmp_path)
    run(settings(), out, Quiet(), resume=True, slim=True)
    table = {"points": 2, "align": 16, "rounds": 1, "runs": 4}
    with pytest.raises(ConfigError, match=r"05_table.*--slim.*table\.runs was 3, is 4.*--reuse"):
        run(settings(table=table), out, Quiet(), resume=True)
    console = Quiet()
    run(settings(table=table), tmp_path / "new", console, reuse=out)
    kept = [line.split(":")[0] for line in console.lines if "finished earlier" in line]
    assert kept == ["01_train", "02_graph", "03_scores"]


def test_a_damaged_file_of_a_slimmed_run_is_still_damage(done: Path, tmp_path: Path) -> None:
    out = copied(done, tmp_path)
    run(settings(), out, Quiet(), resume=True, slim=True)
    weights = out / "07_finetune" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match=r"07_finetune.*model\.safetensors is missing or was changed"):
        run(settings(), out, Quiet(), resume=True)


def test_what_set_changed_is_remembered_and_a_change_of_it_is_named(done: Path, tmp_path: Path) -> None:
    assert json.loads((done / "set.json").read_text()) == {"finetune.epochs": 1}
    said: list[str] = []
    keep(tmp_path, {"a.b": 1, "c": [1, 2]})
    assert remembered(tmp_path, {"a.b": 2, "d": None}, said.append) == {"a.b": 2, "c": [1, 2], "d": None}
    assert said == ["--set a.b: was 1, is 2", "--set c=[1, 2]: as before"]
    assert remembered(tmp_path / "new", {"d": 1}, said.append) == {"d": 1}
    (tmp_path / "set.json").write_text("[1]")
    with pytest.raises(DataError, match=r"set\.json must hold"):
        remembered(tmp_path, {}, said.append)


def test_names_of_this_machine_do_not_matter(done: Path) -> None:
    """The lines of the report are relative to the run directory, which may be moved."""
    assert os.fspath(done) not in (done / "report.md").read_text()
