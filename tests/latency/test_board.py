"""The board's side: a table from a folder of files alone, without PyTorch; and from trtexec where there is no Python API."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from typer.testing import CliRunner

import board_env
import latency_nets
import trt_fake
from pydeploy.backends.base import open_backend
from pydeploy.backends.tensorrt.options import Options
from pydeploy.cli.app import app
from pydeploy.errors import DataError, Mismatch
from pydeploy.graph import OpKey
from pydeploy.latency.board import ProbeFolder, target_from
from pydeploy.latency.probes.design import grid
from pydeploy.latency.probes.measure import measure, minutes
from pydeploy.latency.probes.refine import costs
from pydeploy.latency.table import store
from pydeploy.latency.table.table import Table
from pydeploy.plan import Plan
from pydeploy.quant.lint import lint
from trt_bench import machine
from trt_fake import World
from trt_surface import VERSIONS

Board = Callable[..., str]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a board: pydeploy and its base dependencies are installed, PyTorch is not."""
    return board_env.make(tmp_path_factory.mktemp("venv"))


@pytest.fixture(scope="module")
def board(python: Path) -> Board:
    """`pydeploy` on that board; the output of a command that succeeds."""
    return lambda *arguments: board_env.run(python, "-m", "pydeploy", *arguments).stdout


def test_the_board_has_no_pytorch(python: Path, board: Board) -> None:
    missing = board_env.run(python, "-c", "import torch", code=1)
    assert "ModuleNotFoundError: No module named 'torch'" in missing.stderr
    looked = "import importlib.util as u; print([n for n in %r if u.find_spec(n)])"
    others = ("torchvision", "accelerate", "safetensors", "onnxscript", "openvino", "tensorrt", "pytest")
    assert board_env.run(python, "-c", looked % (others,)).stdout.strip() == "[]"
    said = json.loads(board("doctor", "--json"))
    assert said["backend"]["onnxruntime"].startswith("ready: fp32")
    assert "pydeploy-hil[train]" in said["package"]["torch"]
    refused = board_env.run(python, "-m", "pydeploy", "trace", "pydeploy:resnet8", "--input", "1x3x8x8", code=2)
    assert refused.stderr.startswith("error: this needs PyTorch and its companions")
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_measured_on_the_board_and_cut_elsewhere(board: Board, tmp_path: Path) -> None:
    """The workflow of docs/howto/tensorrt.md: probes from a PyTorch model, a table from files alone, the file back, a plan."""
    model = ("pydeploy:resnet8", "--input", "1x3x32x32", "-o", "width=48")
    invoke("probes", *model, "--out", tmp_path / "probes", "--points", 2, "--align", 8, "--target", "onnxruntime:fp32")
    shutil.copytree(tmp_path / "probes", tmp_path / "board" / "probes")
    at = ("--onnx", tmp_path / "board" / "probes", "--db", tmp_path / "board" / "board.sqlite")
    said = board("table", "measure", *at, "--target", "onnxruntime:fp32", "--rounds", 1, "--runs", 3)
    assert " 0 kept" in said
    shutil.copy(tmp_path / "board" / "board.sqlite", tmp_path / "back.sqlite")  # this one file
    folder, table = ProbeFolder.load(tmp_path / "probes"), Table.open(tmp_path / "back.sqlite")
    assert {name: set(found) for name, found in table.widths(folder.graph).items()} == {
        name: set(wanted) for name, wanted in folder.widths.items()}  # fmt: skip
    narrow = {name: min(values) for name, values in folder.widths.items()}
    budget = (table.predict_us(folder.graph, {}) + table.predict_us(folder.graph, narrow)) / 2
    done = CliRunner().invoke(app, ["prune", *model, "--table", str(tmp_path / "back.sqlite"), "--budget-us", str(budget),
                                    "--out", str(tmp_path / "small.safetensors"), "--plan", str(tmp_path / "plan.json")])  # fmt: skip
    assert done.exit_code == 0, done.output
    plan = Plan.load(tmp_path / "plan.json")
    kept = {**folder.graph.widths, **plan.widths}
    assert table.predict_us(folder.graph, kept) <= budget
    assert any(kept[name] < max(widths) for name, widths in folder.widths.items())
    assert (tmp_path / "small.safetensors").exists()


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory, board: Board) -> Path:
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
def test_a_board_measures_from_files_alone(board: Board, probes: Path, target: str, tmp_path: Path) -> None:
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
    assert table.predictions(folder.graph).layers_us(unseen) == pytest.approx(
        other.predictions(folder.graph).layers_us(unseen), rel=1e-3
    )
    assert len(list((tmp_path / "cache" / "pydeploy").glob("*.timing"))) == 1, "all builds share one timing cache"


def test_the_minutes_are_told_after_the_first_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building an engine takes a minute here, everything else no time: 4 probes take 4 minutes, told before they start."""
    world = machine(monkeypatch, VERSIONS[-1], tmp_path)
    world.numeric = True  # half-precision engines are compared with their file
    model, graph = latency_nets.residual()
    onnx.save(model, tmp_path / "net.onnx")
    builds: list[str] = []
    build = trt_fake.BuilderCore.build_serialized_network

    def slow(self: trt_fake.BuilderCore, *arguments: object) -> object:
        builds.append("build")
        return build(self, *arguments)

    monkeypatch.setattr(trt_fake.BuilderCore, "build_serialized_network", slow)
    clock = SimpleNamespace(monotonic=lambda: 60.0 * len(builds))
    monkeypatch.setattr("pydeploy.latency.probes.lab.time", clock)
    backend = open_backend("tensorrt", precision="fp16")
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    told: list[tuple[int, float]] = []
    found = measure(graph, tmp_path / "net.onnx", backend, table, widths=grid(graph, 2, 4), rounds=1, runs=1,
                    announce=lambda seconds: told.append((len(builds), seconds)))  # fmt: skip
    assert told == [(1, 60.0 * found.measured)]
    assert found.measured == 4
    assert minutes(told[0][1]) == "the latency table takes about 4 minutes of the device"


TRTEXEC = """#!{python}
import json, sys
from pathlib import Path
import onnx
options = dict(argument.removeprefix("--").partition("=")[::2] for argument in sys.argv[1:])
source = Path(options["onnx"])
with source.with_suffix(".runs").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + chr(10))
graph = onnx.load(source).graph
shapes = {{tensor.name: tensor.dims for tensor in graph.initializer}}
makers = {{node.output[0]: node for node in graph.node}}
def weight(name):
    return shapes[name] if name in shapes else weight(makers[name].input[0])
layers = [(node.name, *weight(node.input[1])[:2]) for node in graph.node if node.op_type in ("Conv", "Gemm")]
rows = [{{"count": 5}}] + [{{"name": name, "medianMs": (1000 * out + into) / 1e3}} for name, out, into in layers]
total = sum(row["medianMs"] for row in rows[1:])
Path(options["exportTimes"]).write_text(json.dumps([{{"computeMs": total}}] * 9))
if {fail!r} in str(source):
    sys.exit("killed half-way")
Path(options["exportProfile"]).write_text(json.dumps(rows))
said = {{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}}
found = [{{"Name": name, "LayerType": "x", "Metadata": "[ONNX Layer: " + name + "]",
           "Inputs": [{{"Name": "x", "Dimensions": [1, into, 4, 4], **said}}],
           "Outputs": [{{"Name": "y", "Dimensions": [1, out, 4, 4], **said}}]}} for name, out, into in layers]
Path(options["exportLayerInfo"]).write_text(json.dumps({{"Layers": found, "Bindings": []}}))
"""
"""A trtexec whose layers take 1000 us for each channel they write and 1 us for each they read."""


def trtexec_in(folder: Path, fail: str = "nothing") -> Path:
    folder.mkdir(exist_ok=True)
    program = folder / "trtexec"
    program.write_text(TRTEXEC.format(python=sys.executable, fail=fail))
    program.chmod(0o755)
    return program


def cost_us(key: OpKey) -> float:
    return 1000.0 * key.cout + key.cin


def check_against_the_files(table: Table, folder: ProbeFolder) -> None:
    """Every sample in the table is what the trtexec above says of a layer of that shape: no probe was mixed up."""
    assert {row.key: row.timing.median_us for row in table.rows()} == pytest.approx(
        {row.key: cost_us(row.key) for row in table.rows()}
    )
    for network in table.networks(folder.graph):
        full = {**folder.graph.widths, **network.widths}
        assert network.whole.median_us == pytest.approx(sum(cost_us(op.key(full)) for op in folder.graph.ops))


def test_a_table_from_trtexec_alone(probes: Path, tmp_path: Path) -> None:
    """measure.sh runs trtexec, is killed, goes on, and the folder comes back as a table."""
    source = ProbeFolder.load(probes)
    folder = ProbeFolder.write(tmp_path / "probes", source.model, source.graph, source.widths, source.batch)
    names = list(folder.plans())
    program = trtexec_in(tmp_path / "bin", fail=names[2])
    script = folder.write_script((8, 6), "fp16", Options(), program=str(program))
    table = Table.open(tmp_path / "t.sqlite", target_from("Jetson Nano", "8.6", "fp16", 1, Options()))
    with pytest.raises(DataError, match="no files of trtexec"):
        folder.import_runs(table)
    stopped = subprocess.run(["sh", script.name], cwd=folder.path, capture_output=True, text=True, timeout=300)
    assert stopped.returncode == 1
    said = stopped.stdout.splitlines()
    assert said[0] == "4 networks: at least 1 minutes of the device, and the time of their builds"
    assert said[1:4] == [f"network {i} of 4: {name}" for i, name in enumerate(names[:3], 1)]
    assert "killed half-way" in stopped.stdout
    assert folder.import_runs(table) == (2, names[2:])
    trtexec_in(tmp_path / "bin")
    subprocess.run(["sh", script.name], cwd=folder.path, check=True, timeout=300)
    assert folder.import_runs(table) == (2, [])
    assert folder.import_runs(table) == (0, [])
    runs = {name: (folder.path / f"{name}.runs").read_text().splitlines() for name in names}
    assert [len(runs[name]) for name in names] == [1, 1, 2, 1], "what was measured is not measured again"
    assert all("--fp16 " in run and "--maxAuxStreams=0" in run and "--useCudaGraph" in run
               for lines in runs.values() for run in lines)  # fmt: skip
    check_against_the_files(table, folder)
    assert len(table.networks()) == 4
    assert "measured_with" in table.target.facts
    other = Table.open(tmp_path / "o.sqlite", target_from("Jetson Nano", "8.6", "int8", 1, Options()))
    with pytest.raises(Mismatch, match="precision: 'fp16' against 'int8'"):
        folder.import_runs(other)


INT8 = [("8.6", {"--int8", "--fp16"}, 1), ("10.3", {"--int8", "--fp16"}, 1), ("11.4", set(), 10)]


@pytest.mark.parametrize(("version", "switches", "scales"), INT8, ids=[row[0] for row in INT8])
def test_an_int8_table_from_trtexec_alone(version: str, switches: set[str], scales: int, tmp_path: Path) -> None:
    """Quantized (and from 10.12 on typed) probes, the three most informative ones: which file is which plan stays known."""
    here, db = tmp_path / "probes", tmp_path / "t.sqlite"
    model, graph = latency_nets.residual(64, 64)
    onnx.save(model, tmp_path / "net.onnx")
    graph.save(tmp_path / "graph.json")
    target = ("--target", "tensorrt:int8")
    said = invoke("probes", tmp_path / "net.onnx", "--graph", tmp_path / "graph.json", "--out", here, "--points", 2,
                  "--trtexec", version, *target, "--limit", 3)  # fmt: skip
    assert "table import" in said
    files = sorted(here.glob("probe-*.onnx"))
    assert len(files) == 3
    for file in files:
        assert lint(file) == ()
        kinds = {tensor.name: tensor.data_type for tensor in onnx.load(file).graph.initializer}
        pairs = [node for node in onnx.load(file).graph.node if node.op_type == "QuantizeLinear"]
        assert {kinds[node.input[1]] for node in pairs} == {scales}, "float32, or float16 where types are the precision"
    program = trtexec_in(tmp_path / "bin")
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", "measure.sh"], cwd=here, check=True, timeout=300, env=env)
    runs = [set(path.read_text().split()) for path in here.glob("*.runs")]
    assert all(switches == run & {"--int8", "--fp16", "--best"} for run in runs)
    stated = ("--device", "Orin", "--trt", version)
    with pytest.raises(Mismatch, match="precision: 'int8' against 'fp16'"):
        invoke("import", here, "--db", db, *stated, "--target", "tensorrt:fp16")
    assert not db.exists(), "nothing is left of a refused import"
    assert "3 networks added" in invoke("import", here, "--db", db, *stated, *target)
    table, folder = Table.open(db), ProbeFolder.load(here)
    assert table.target.precision == "int8"
    assert {w for values in folder.widths.values() for w in values} == {32, 64}, "widths start at int8's multiple"
    check_against_the_files(table, folder)
    shown = json.loads(invoke("show", "--db", db, "--json"))["layers"]
    assert {tuple(row["padding"]) for row in shown} == {(32, 32)}
    assert "cin padded to 32" in invoke("show", "--db", db, "--layer", "cin=3 ")


@pytest.mark.parametrize(("version", "kind"), [("8.6", 1), ("10.3", 1), ("10.16", 10), ("11.4", 10)])
def test_fp16_probes_are_typed_where_the_version_wants_it(version: str, kind: int, tmp_path: Path) -> None:
    model, graph = latency_nets.residual(16, 16)
    onnx.save(model, tmp_path / "net.onnx")
    graph.save(tmp_path / "graph.json")
    invoke("probes", tmp_path / "net.onnx", "--graph", tmp_path / "graph.json", "--out", tmp_path / "p", "--points", 2,
           "--trtexec", version, "--target", "tensorrt:fp16")  # fmt: skip
    files = sorted((tmp_path / "p").glob("probe-*.onnx"))
    assert files
    for file in files:
        assert lint(file) == ()
        assert {
            tensor.data_type
            for tensor in onnx.load(file).graph.initializer
            if tensor.data_type != onnx.TensorProto.INT64
        } == {kind}


@pytest.mark.parametrize("version", ["8.6.1", "10.16.1"])
def test_a_table_of_implicit_int8(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a calibration cache TensorRT quantizes float probes itself: no Q/DQ pairs are put into them."""
    world = machine(monkeypatch, version, tmp_path)
    model, graph = latency_nets.residual(32, 32)
    onnx.save(model, tmp_path / "net.onnx")
    cache = tmp_path / "c.cache"
    number = {"8.6.1": 8601, "10.16.1": 101601}[version]
    cache.write_text(f"TRT-{number}-EntropyCalibration2\nimage: 3c010a14\n")
    backend = open_backend("tensorrt", precision="int8", options=f"calibration={cache}")
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    measure(graph, tmp_path / "net.onnx", backend, table, widths={"a": (32,), "b": (32,)}, rounds=1, runs=2)
    assert table.padding() == dict.fromkeys({op.key(graph.widths) for op in graph.ops}, (32, 32))
    assert "INT8" in world.flags
    graph.save(tmp_path / "graph.json")
    at = ("--graph", tmp_path / "graph.json", "--out", tmp_path / "p", "--points", 2, "--trtexec", version)
    invoke("probes", tmp_path / "net.onnx", *at, "--target", "tensorrt:int8,calibration=c.cache")
    assert "--int8 " in (tmp_path / "p" / "measure.sh").read_text()
    assert "--calib=c.cache" in (tmp_path / "p" / "measure.sh").read_text()
    for file in (tmp_path / "p").glob("probe-*.onnx"):
        assert not [node for node in onnx.load(file).graph.node if node.op_type == "QuantizeLinear"]


def invoke(*words: object) -> str:
    result = CliRunner().invoke(app, ["table", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_padding_survives_export_and_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What TensorRT's formats say of each layer lies in the table, and old tables without it are read."""
    world = machine(monkeypatch, VERSIONS[0], tmp_path)
    world.numeric = True  # half-precision engines are compared with their file
    model, graph = latency_nets.residual(12, 20)
    onnx.save(model, tmp_path / "net.onnx")
    backend = open_backend("tensorrt", precision="fp16")
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    assert table.padding() == {}
    measure(graph, tmp_path / "net.onnx", backend, table, widths={"a": (12,), "b": (20,)}, rounds=1, runs=2)
    assert table.padding() == dict.fromkeys({op.key(graph.widths) for op in graph.ops}, (8, 8))
    table.to_json(tmp_path / "t.json")
    copy, merged = (Table.open(tmp_path / name, backend.target()) for name in ("copy.sqlite", "merged.sqlite"))
    copy.import_file(tmp_path / "t.json")
    merged.merge(table)
    assert merged.merge(copy) == 0
    assert table.padding() == copy.padding() == merged.padding()
    assert len(store.read_padding(merged.path)) == len(store.read_padding(table.path))
    rows = {tuple(row["key"][:3]): row for row in json.loads(invoke("show", "--db", copy.path, "--json"))["layers"]}
    assert rows["conv", 12, 20]["padding"] == [8, 8]
    assert "cin padded to 16, cout padded to 24" in invoke("show", "--db", copy.path, "--layer", "cin=12 cout=20")


def test_the_measured_stairs_decide_which_widths_are_worth_having(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 starts in steps of 8; this device computes in steps of 16, and the table shows it."""
    world = machine(monkeypatch, VERSIONS[-1], tmp_path)
    world.numeric = True  # half-precision engines are compared with their file
    model, graph = latency_nets.residual(64, 64)
    onnx.save(model, tmp_path / "net.onnx")
    backend = open_backend("tensorrt", precision="fp16")
    widths = grid(graph, 31, backend.align)
    assert widths == {"a": tuple(range(8, 65, 8)), "b": tuple(range(8, 65, 8))}
    table = Table.open(tmp_path / "t.sqlite", backend.target())
    measure(graph, tmp_path / "net.onnx", backend, table, widths=widths, rounds=1, runs=1)
    curve = costs(graph, table, graph.by_name["b"], widths["b"])
    steps = {w: curve[w] for w in (24, 32, 40, 48)}
    assert steps[24] == pytest.approx(steps[32], rel=0.05)
    assert steps[40] == pytest.approx(steps[48], rel=0.05)
    assert steps[40] > 1.1 * steps[32]


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


def test_wrong_usage_is_one_sentence(board: Board, tmp_path: Path) -> None:
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
    profile_files = Path(__file__).parents[1] / "backends" / "trtexec_files" / "10.3"
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
