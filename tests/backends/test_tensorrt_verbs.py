"""The verbs for TensorRT as a user meets them, right and wrong: exit code 2 and one sentence, nothing half-written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

import latency_nets
from onnx_nets import residual
from pydeploy.backends.tensorrt import driver, trtexec
from pydeploy.latency.board import ProbeFolder
from pydeploy.latency.table.table import Table
from pydeploy.timing.records import Profile
from test_cli import fails, pydeploy
from test_tensorrt_trtexec import FOLDER, VERSIONS, files

STATED = ("--device", "Orin", "--trt", "10.3")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "load_driver", lambda: None)
    monkeypatch.setattr(trtexec, "PLACES", ())
    driver.find_gpu.cache_clear()


# ---------------------------------------------------------------- trtexec-command


@pytest.mark.parametrize("version", VERSIONS)
def test_a_command_for_every_version(version: str, tmp_path: Path) -> None:
    done = pydeploy("trtexec-command", residual(tmp_path / "net.onnx"), "--trt", version)
    assert done.returncode == 0
    assert done.stdout.startswith(f"trtexec --onnx={tmp_path}/net.onnx ")
    assert ("takes precision from the file" in done.stderr) == (version in ("10.16", "11.0", "11.4"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [((), "no trtexec on this machine"), (("--trt", "10"), "a TensorRT version looks like 10.3, got '10'"),
     (("--trt", "7.2"), "TensorRT 7.2 is too old"), (("--trt", "8.6", "--target", "tensorrt:bf16"), "bf16 needs TensorRT 10"),
     (("--trt", "10.3", "--target", "tensorrt:fp4"), "the target must be tensorrt:PRECISION"),
     (("--trt", "10.3", "--target", "onnxruntime:fp32"), "the target must be tensorrt:PRECISION"),
     (("--trt", "10.3", "--target", "tensorrt:fp16,sparze"), "no option 'sparze'"),
     (("--trt", "10.3", "--target", "tensorrt:int8"), "holds no Q/DQ nodes"),
     (("--trt", "11.4", "--target", "tensorrt:int8,calibration=c.cache"), "TensorRT 11.4 has no calibrators any more")],
)  # fmt: skip
def test_a_command_that_cannot_be(arguments: tuple[str, ...], text: str, tmp_path: Path) -> None:
    done = pydeploy("trtexec-command", residual(tmp_path / "net.onnx"), *arguments)
    fails(done, text)
    assert done.stdout == ""


def test_a_file_that_cannot_be_built_gets_no_command(tmp_path: Path) -> None:
    version = ("--trt", "10.3")
    fails(pydeploy("trtexec-command", tmp_path / "none.onnx", *version), "not a readable ONNX file")
    whole = residual(tmp_path / "net.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    fails(pydeploy("trtexec-command", tmp_path / "cut.onnx", *version), "not a readable ONNX file")
    fails(pydeploy("trtexec-command", residual(tmp_path / "q.onnx", qdq=True), *version), "holds Q/DQ nodes")
    model = onnx.load(tmp_path / "net.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    onnx.save(model, tmp_path / "h.onnx")
    fails(pydeploy("trtexec-command", tmp_path / "h.onnx", *version), "dynamic shape [1, 3, H, 12]")


def test_implicit_int8_takes_the_float_file(tmp_path: Path) -> None:
    done = pydeploy(
        "trtexec-command", residual(tmp_path / "net.onnx"), "--trt", "10.16", "--target", "tensorrt:int8,calibration=c"
    )
    assert {"--int8", "--fp16", "--calib=c"} <= set(done.stdout.split())
    assert "--stronglyTyped" not in done.stdout
    assert done.stderr == ""


# ---------------------------------------------------------------- profile import


def profile_import(folder: Path, *more: object, **other: Path) -> tuple[object, ...]:
    found = {kind: other.get(kind, folder / f"net.{kind}.json") for kind in ("times", "profile", "layers")}
    return ("profile", "import", *(word for kind, path in found.items() for word in (f"--{kind}", path)), *more)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_versions_files_are_imported(version: str, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    done = pydeploy(*profile_import(FOLDER / version, "--device", "Orin", "--trt", version, "--out", out))
    assert done.returncode == 0, done.stderr
    assert "whole network: 65.0 us" in done.stdout
    assert Profile.from_json(json.loads(out.read_text())).layers["stem"].median_us == pytest.approx(24.0)


@pytest.mark.parametrize("kind", ["times", "profile", "layers"])
@pytest.mark.parametrize(("damage", "text"), [("missing", "cannot be read"), ("cut", "is not "), ("other", "is not a file of trtexec"),
                                              ("folder", "cannot be read"), ("binary", "is not ")])  # fmt: skip
def test_a_damaged_file_is_named(kind: str, damage: str, text: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "10.3", tmp_path / "run")
    path = tmp_path / "run" / f"net.{kind}.json"
    content = path.read_text()
    path.unlink()
    if damage == "cut":
        path.write_text(content[: len(content) // 2])
    elif damage == "other":
        path.write_text('{"a": [1, 2]}')
    elif damage == "binary":
        path.write_bytes(bytes(range(256)))
    elif damage == "folder":
        path.mkdir()
    out = tmp_path / "p.json"
    done = pydeploy(*profile_import(tmp_path / "run", *STATED, "--out", out))
    fails(done, text)
    assert f"net.{kind}.json" in done.stderr
    assert not out.exists()


def test_files_in_each_others_place_are_refused() -> None:
    at = FOLDER / "11.4"
    fails(pydeploy(*profile_import(at, *STATED, times=files("11.4").profile)), "is not a file of trtexec --exportTimes")
    fails(pydeploy(*profile_import(at, *STATED, profile=files("11.4").times)), "names no layers")
    fails(
        pydeploy(*profile_import(at, *STATED, layers=files("11.4").times)), "is not a file of trtexec --exportLayerInfo"
    )


def test_what_the_user_states_is_checked(tmp_path: Path) -> None:
    at = FOLDER / "10.3"
    fails(pydeploy(*profile_import(at, "--device", "Orin", "--trt", "x")), "a TensorRT version looks like 10.3")
    fails(pydeploy(*profile_import(at, "--device", "Orin", "--trt", "5.1")), "too old")
    fails(pydeploy(*profile_import(at, *STATED, "--target", "openvino:fp32")), "the target must be tensorrt:PRECISION")
    fails(pydeploy(*profile_import(at, *STATED, "--graph", tmp_path / "none.json")), "none.json")
    _, graph = latency_nets.residual()
    replace(graph, ops=tuple(replace(op, name=f"other.{op.name}") for op in graph.ops)).save(tmp_path / "other.json")
    fails(pydeploy(*profile_import(at, *STATED, "--graph", tmp_path / "other.json")), "name none of its operators")
    done = pydeploy("profile", "import", "--times", at / "net.times.json")
    assert done.returncode == 2
    assert "Missing option" in done.stderr


# ---------------------------------------------------------------- table import


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A folder of probes that trtexec has measured, each with the same times."""
    model, graph = latency_nets.residual()
    onnx.save(model, tmp_path / "net.onnx")
    graph.save(tmp_path / "graph.json")
    here = tmp_path / "probes"
    done = pydeploy("table", "probes", tmp_path / "net.onnx", "--graph", tmp_path / "graph.json", "--out", here, "--points", 2,
                    "--align", 4, "--trtexec", "10.3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = [op.name for op in graph.ops]
    for name in ProbeFolder.load(here).plans():
        found = trtexec.Files.beside(here / f"{name}.onnx")
        found.times.write_text(json.dumps([{"computeMs": 0.01 * len(names)}] * 5))
        found.profile.write_text(json.dumps([{"count": 5}, *({"name": op, "medianMs": 0.01} for op in names)]))
        found.layers.write_text(
            json.dumps({"Layers": [{"Name": op, "Metadata": f"[ONNX Layer: {op}]"} for op in names]})
        )
        (here / f"{name}.done").touch()
    return here


def test_a_folder_is_imported(measured: Path, tmp_path: Path) -> None:
    db = tmp_path / "t.sqlite"
    done = pydeploy("table", "import", measured, "--db", db, *STATED)
    assert "4 networks added" in done.stdout, done.stderr
    assert {row.timing.median_us for row in Table.open(db).rows()} == {10.0}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [((), "give --device and --trt"), (("--device", "Orin"), "give --device and --trt"),
     (("--device", "Orin", "--trt", "10.x"), "a TensorRT version looks like 10.3"), (("--device", "Orin", "--trt", "8.4"), "too old"),
     ((*STATED, "--target", "tensorrt:int8"), "precision: 'fp16' against 'int8'"),
     ((*STATED, "--target", "tensorrt:fp16,sparse"), "options: '' against 'sparse'")],
)  # fmt: skip
def test_a_folder_of_something_else_is_refused(
    arguments: tuple[str, ...], text: str, measured: Path, tmp_path: Path
) -> None:
    db = tmp_path / "t.sqlite"
    fails(pydeploy("table", "import", measured, "--db", db, *arguments), text)
    assert not db.exists()


@pytest.mark.parametrize("kind", ["times", "profile", "layers"])
def test_a_damaged_probe_is_named(kind: str, measured: Path, tmp_path: Path) -> None:
    """What was read before it is kept; repaired or removed, the import goes on."""
    db, last = tmp_path / "t.sqlite", sorted(measured.glob(f"*.{kind}.json"))[-1]
    content = last.read_text()
    last.write_text(content[: len(content) // 2])
    done = pydeploy("table", "import", measured, "--db", db, *STATED)
    fails(done, last.name)
    last.write_text(content)
    assert pydeploy("table", "import", measured, "--db", db, *STATED).returncode == 0
    assert len(Table.open(db).networks()) == 4


def test_layers_of_another_model_make_no_table(measured: Path, tmp_path: Path) -> None:
    for path in measured.glob("*.json"):
        if path.name.startswith("probe-"):
            path.write_text(path.read_text().replace("conv", "a").replace("fc", "b").replace("stem", "c"))
    done = pydeploy("table", "import", measured, "--db", tmp_path / "t.sqlite", *STATED)
    fails(done, "name none of its operators")


def test_a_folder_without_its_files(measured: Path, tmp_path: Path) -> None:
    db = tmp_path / "t.sqlite"
    (measured / "measure.json").unlink()
    fails(pydeploy("table", "import", measured, "--db", db, *STATED), "no measure.json")
    (measured / "probes.json").unlink()
    fails(pydeploy("table", "import", measured, "--db", db, *STATED), "is no folder of probes")
    fails(
        pydeploy("table", "import", FOLDER / "10.3" / "net.times.json", "--db", db),
        "trtexec's files are imported as a folder",
    )
    assert not db.exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(("--trtexec", "9"), "looks like 10.3"), (("--trtexec", "8.2"), "too old"),
     (("--trtexec", "8.6", "--target", "tensorrt:bf16"), "bf16 needs TensorRT 10"),
     (("--trtexec", "11.4", "--target", "tensorrt:int8,calibration=c"), "no calibrators any more"),
     (("--trtexec", "10.3", "--target", "onnxruntime:fp32"), "the target must be tensorrt:PRECISION")],
)  # fmt: skip
def test_probes_that_cannot_be_measured_are_not_written(arguments: tuple[str, ...], text: str, tmp_path: Path) -> None:
    model, graph = latency_nets.residual()
    onnx.save(model, tmp_path / "net.onnx")
    graph.save(tmp_path / "graph.json")
    fails(
        pydeploy(
            "table",
            "probes",
            tmp_path / "net.onnx",
            "--graph",
            tmp_path / "graph.json",
            "--out",
            tmp_path / "p",
            *arguments,
        ),
        text,
    )
    assert not (tmp_path / "p").exists()


# ---------------------------------------------------------------- a machine without a GPU


@pytest.mark.parametrize(
    "words",
    [("build", "net.onnx", "--target", "tensorrt:fp16", "--out", "net.engine"),
     ("table", "measure", "--onnx", "probes", "--target", "tensorrt:fp16", "--db", "t.sqlite")],
)  # fmt: skip
def test_without_a_gpu_it_is_one_sentence(words: tuple[str, ...], measured: Path, tmp_path: Path) -> None:
    place = {name: str(tmp_path / name) for name in ("net.onnx", "net.engine", "probes", "t.sqlite")}
    done = pydeploy(*(place.get(word, word) for word in words))
    fails(done, "no NVIDIA driver on this machine")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "t.sqlite").exists()
    assert not (tmp_path / "net.engine").exists()


def test_the_doctor_says_what_is_missing_and_how_to_get_it() -> None:
    done = pydeploy("doctor", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["tensorrt"]["GPU"].startswith("missing: no NVIDIA driver on this machine")
    assert found["backend"]["tensorrt"].startswith("no NVIDIA driver")
    assert found["tensorrt"]["trtexec"].startswith("not found")
    for part, text in found["tensorrt"].items():
        assert not text.startswith("missing") or "install" in text, part
