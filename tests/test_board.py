"""The board's side: a table from a folder of files alone, without PyTorch; and from trtexec where there is no Python API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import latency_nets
from pydeploy.backends.base import open_backend
from pydeploy.backends.tensorrt.options import Options
from pydeploy.errors import DataError
from pydeploy.latency.board import ProbeFolder, target_from
from pydeploy.latency.design import grid
from pydeploy.latency.measure import measure
from pydeploy.latency.table import Table
from trt_fake import World

NO_TORCH = (
    "import sys\n"
    "for name in ('torch', 'torchvision', 'accelerate', 'safetensors'): sys.modules[name] = None\n"
    "from pydeploy.cli import main\n"
    "sys.argv = ['pydeploy', *sys.argv[1:]]\n"
    "main()\n"
)


def board(*arguments: object) -> str:
    """`pydeploy` in a process that cannot import torch."""
    command = [sys.executable, "-c", NO_TORCH, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of probes, written by the command line without PyTorch from an ONNX file and its graph."""
    here = tmp_path_factory.mktemp("board")
    model, graph = latency_nets.residual()
    onnx.save(model, here / "net.onnx")
    graph.save(here / "graph.json")
    said = board("table", "probes", here / "net.onnx", "--graph", here / "graph.json", "--out", here / "probes",
                 "--points", 2, "--align", 4)  # fmt: skip
    assert "copy it to the board" in said
    return here / "probes"


@pytest.mark.parametrize("target", ["onnxruntime:fp32", "null:fp32"])
def test_a_board_measures_from_files_alone(probes: Path, target: str, tmp_path: Path) -> None:
    db = tmp_path / "board.sqlite"
    said = board("table", "measure", "--onnx", probes, "--target", target, "--db", db, "--rounds", 1, "--runs", 2)
    assert "4 networks measured" in said
    folder, table = ProbeFolder.load(probes), Table.open(db)
    assert {name: set(widths) for name, widths in table.widths(folder.graph).items()} == {
        name: set(widths) for name, widths in folder.widths.items()}  # fmt: skip
    assert table.predict_us(folder.graph, {}) > 0
    assert "0 networks measured, 4 kept" in board("table", "measure", "--onnx", probes, "--target", target, "--db", db)


def test_a_table_of_tensorrt_from_the_folder(world: World, probes: Path, tmp_path: Path) -> None:
    """All steps of the backend in a row: cut, build, time, layers, store; predictions are the device's own costs."""
    folder = ProbeFolder.load(probes)
    backend = open_backend("tensorrt")
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    report = measure(folder.graph, folder.model, backend, table, widths=folder.widths, rounds=2, runs=3)
    assert (report.measured, report.missing) == (4, ())
    assert world.memory == {}
    unseen = {name: values[0] for name, values in folder.widths.items()}
    exact = open_backend("null")
    other = Table.open(tmp_path / "null.sqlite", exact.target())
    measure(folder.graph, folder.model, exact, other, widths=folder.widths, rounds=1, runs=1)
    assert table.layers_us(folder.graph, unseen) == pytest.approx(other.layers_us(folder.graph, unseen), rel=1e-3)
    assert len(list((tmp_path / "cache" / "pydeploy").glob("*.timing"))) == 1, "all builds share one timing cache"


TRTEXEC = """#!{python}
import json, sys
from pathlib import Path
options = dict(argument.removeprefix("--").partition("=")[::2] for argument in sys.argv[1:])
assert "fp16" in options and options["maxAuxStreams"] == "0" and "useCudaGraph" in options, options
from pydeploy.backends import null
backend = null.Null()
engine = backend.build(Path(options["onnx"]), Path(options["onnx"] + ".engine"))
layers = json.loads(engine.path.read_text())["layers"]
total = sum(us for _, us in layers)
Path(options["exportTimes"]).write_text(json.dumps([{{"computeMs": total / 1e3}}] * 9))
rows = [{{"count": 5}}] + [{{"name": name, "medianMs": (us + 3.0) / 1e3}} for name, us in layers]
Path(options["exportProfile"]).write_text(json.dumps(rows))
found = [{{"Name": name, "LayerType": "x", "Metadata": "[ONNX Layer: " + name + "]"}} for name, _ in layers]
Path(options["exportLayerInfo"]).write_text(json.dumps({{"Layers": found, "Bindings": []}}))
"""


def test_a_table_from_trtexec_alone(probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """measure.sh runs a trtexec (one that costs with the analytic device), and the folder comes back as a table."""
    copy = tmp_path / "probes"
    source = ProbeFolder.load(probes)
    folder = ProbeFolder.write(copy, source.model, source.graph, source.widths, source.batch)
    program = tmp_path / "trtexec"
    program.write_text(TRTEXEC.format(python=sys.executable))
    program.chmod(0o755)
    script = folder.write_script((8, 6), "fp16", Options(), program=str(program))
    table = Table.open(tmp_path / "t.sqlite", target_from("Jetson Nano", "8.6", "fp16", 1, Options()))
    with pytest.raises(DataError, match="no files of trtexec"):
        folder.import_runs(table)
    subprocess.run(["sh", script.name], cwd=copy, check=True, timeout=300)
    (copy / "probe003.layers.json").rename(copy / "later.json")
    assert folder.import_runs(table) == (3, ["probe003"])
    (copy / "later.json").rename(copy / "probe003.layers.json")
    assert folder.import_runs(table) == (1, [])
    assert folder.import_runs(table) == (0, [])
    exact = open_backend("null")
    other = Table.open(tmp_path / "null.sqlite", exact.target())
    measure(folder.graph, folder.model, exact, other, widths=folder.widths, rounds=1, runs=1)
    plan = {name: values[0] for name, values in folder.widths.items()}
    assert table.layers_us(folder.graph, plan) == pytest.approx(other.layers_us(folder.graph, plan), rel=1e-6)
    assert "measured_with" in table.target.facts


def test_a_damaged_folder_is_refused(probes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder of probes"):
        ProbeFolder.load(tmp_path)
    source = ProbeFolder.load(probes)
    ProbeFolder.write(tmp_path / "p", source.model, source.graph, source.widths, 1)
    data = json.loads((tmp_path / "p" / "probes.json").read_text())
    (tmp_path / "p" / "probes.json").write_text(json.dumps({**data, "graph": "x"}))
    with pytest.raises(DataError, match="not the graph that the probes were made for"):
        ProbeFolder.load(tmp_path / "p")
    (tmp_path / "p" / "probes.json").write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        ProbeFolder.load(tmp_path / "p")


def test_wrong_usage_is_one_sentence(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pydeploy",
        "table",
        "measure",
        "--target",
        "null:fp32",
        "--db",
        str(tmp_path / "x.sqlite"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "give either a MODEL or --onnx" in done.stderr
    profile_files = Path(__file__).parent / "trtexec_files" / "10.3"
    said = board("profile", "import", "--times", profile_files / "net.times.json", "--profile", profile_files / "net.profile.json",
                 "--layers", profile_files / "net.layers.json", "--device", "Orin", "--trt", "10.3")  # fmt: skip
    assert "whole network: 65.0 us" in said
    assert "tensorrt 10.3" in said


def test_a_grid_starts_at_the_targets_multiple(world: World) -> None:
    _, graph = latency_nets.residual()
    backend = open_backend("tensorrt", precision="fp16")
    widths = grid(graph, 7, backend.align)  # type: ignore[attr-defined]
    assert all(
        w % 8 == 0 or w == graph.widths[name] or graph.widths[name] < 8 for name, ws in widths.items() for w in ws
    )
