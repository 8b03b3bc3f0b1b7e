"""Stages are data: each declares what it reads, and exactly the stages that read what has changed are done again."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pydeploy.cli.app import app
from pydeploy.errors import ConfigError, DataError, DeployError
from pydeploy.prune.surgery.save import save
from pydeploy.run.artefacts import Artefacts
from pydeploy.run.config import Config, parse
from pydeploy.run.folder import RunFolder
from pydeploy.run.job import Job, fresh_model, open_job
from pydeploy.run.pipeline import Stage, foresee, run_stage, stages_of
from pydeploy.settings import defaults, leaves, open_names
from quiet import Quiet
from stage_spy import ArtefactsSpy, JobSpy
from test_config_checks import WHOLE, keys

# torch's ONNX exporter and accelerate warn about their own internals.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """A config in which every setting is given and every file is one of this test's own."""
    config = copy.deepcopy(WHOLE)
    np.save(tmp_path / "samples.npy", np.random.default_rng(0).normal(size=(20, 1, 12, 12)).astype(np.float32))
    (tmp_path / "set.yaml").write_text("source: ./samples.npy\ncount: 16\n")
    config["quantize"]["calibration"] = str(tmp_path / "set.yaml")
    return config


def job_of(data: dict[str, Any]) -> Job:
    return open_job(parse(data, "test"), Quiet())


def pretend(job: Job, out: Path) -> None:
    """A finished run, without the work: every stage leaves one file."""
    folder = RunFolder.open(out, Quiet(), resume=True)
    for stage in stages_of(job):
        folder.stage(stage.name, job.settings(stage.reads), partial(_result, stage.name), stage.after)


def _result(name: str, here: Path) -> None:
    (here / "result.txt").write_text(name)


def again(data: dict[str, Any], out: Path) -> set[str]:
    """The stages that would be done again."""
    return {stage.name for stage, verdict in foresee(parse(data, "test"), out, Quiet()) if not verdict.stays}


def readers(stages: Iterable[Stage], setting: str) -> set[str]:
    """The stages that declare to read `setting`, and all that come after one of them."""
    found: set[str] = set()
    for stage in stages:
        reads = any(setting == name or setting.startswith(f"{name}.") for name in stage.reads)
        if reads or found & set(stage.after):
            found.add(stage.name)
    return found


def changed(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(data)
    *sections, last = path.split(".")
    place = found
    for section in sections:
        place = place[section]
    place[last] = value
    return found


FIT = {"epochs": 3, "batch_size": 16, "lr": 0.3, "momentum": 0.7, "weight_decay": 2e-4, "warmup_epochs": 0.25,
       "schedule": "linear", "clip_norm": 2.0, "amp": "bf16",
       "milestones": [0.4], "gamma": 0.3, "accumulate": 3, "ema": 0.6, "keep": "last", "patience": 4}  # fmt: skip
OTHER: dict[str, Any] = {
    "seed": 2,
    "task.options": {**WHOLE["task"]["options"], "label_smoothing": 0.2},
    "model.name": "resnet20",
    "model.options": {"width": 16},
    "model.strict": False,
    **{f"train.{key}": value for key, value in FIT.items()},
    **{f"finetune.{key}": value for key, value in FIT.items()},
    "train.sparsity.kind": "group_norm",
    "train.sparsity.rate": 0.02,
    "train.sparsity.schedule": "cosine",
    "train.sparsity.layers": "shortcut",
    "train.sparsity.cost": "speed",
    "train.sparsity.rescale": 0.25,
    "train.sparsity.target": 0.7,
    "finetune.distill.alpha": 0.6,
    "finetune.distill.temperature": 3.0,
    "target.precision": "bf16",
    "target.batch": 2,
    "target.threads": 2,
    "table.points": 3,
    "table.align": 2,
    "table.rounds": 2,
    "table.runs": 4,
    "prune.criterion": "l2",
    "prune.options": {"fallback": "l2"},
    "prune.batches": 3,
    "prune.batch_size": 16,
    "prune.budget": 0.6,
    "prune.headroom": 0.03,
    "prune.rounds": 3,
    "prune.min_width": 3,
    "quantize.observer": "mse",
    "quantize.exclude": ["conv1"],
    "compare.limit": 3.0,
    "compare.budgets": [0.8, 0.7],
    "compare.uniform": [0.7],
    "compare.global_threshold": [],
    "compare.halp": [0.8, 0.9],
    "compare.torch_pruning": [0.4],
}
"""Another value for every setting that has one; the rest have a test of their own below."""
ELSEWHERE = {"track", "task.name", "task.data", "model.weights", "train.weights", "target.backend", "target.options", "prune.budget_us",
             "finetune.distill.loss", "quantize.calibration", "quantize.table",
             "train.sparsity.table"}  # fmt: skip


def test_every_setting_is_changed_somewhere() -> None:
    assert {key for key, _ in keys()} == set(OTHER) | ELSEWHERE


@pytest.mark.parametrize("setting", OTHER)
def test_exactly_the_stages_that_read_a_setting_are_done_again(
    data: dict[str, Any], tmp_path: Path, setting: str
) -> None:
    job = job_of(data)
    pretend(job, tmp_path / "run")
    assert again(data, tmp_path / "run") == set()
    other = changed(data, setting, OTHER[setting])
    stages = stages_of(job_of(other))
    new = {stage.name for stage in stages} - {stage.name for stage in stages_of(job)}
    expected = readers(stages, setting) | new | (readers(stages, "compare") & {"11_profile"} if new else set())
    assert again(other, tmp_path / "run") == expected
    assert expected


def test_settings_of_the_other_kind_of_budget_and_of_distillation(data: dict[str, Any], tmp_path: Path) -> None:
    job = job_of(data)
    pretend(job, tmp_path / "run")
    absolute = changed(data, "prune", {**data["prune"], "budget": None, "budget_us": 100})
    assert again(absolute, tmp_path / "run") == readers(stages_of(job), "prune.budget")
    plain = changed(data, "finetune.distill", None)
    assert again(plain, tmp_path / "run") == readers(stages_of(job), "finetune.distill.alpha")
    pretend(job_of(plain), tmp_path / "plain")
    assert again(changed(data, "finetune.distill", {}), tmp_path / "plain") == readers(stages_of(job), "finetune")


def test_another_data_set_is_another_run(data: dict[str, Any], tmp_path: Path) -> None:
    pretend(job_of(data), tmp_path / "run")
    noisy = changed(data, "task.options.data_settings.noise", 50.0)
    assert "01_train" in again(noisy, tmp_path / "run")
    digits = changed(data, "task", {"data": "digits", "options": {}})
    del digits["quantize"]
    pytest.importorskip("sklearn")
    assert "01_train" in again(digits, tmp_path / "run")


def test_a_data_set_whose_files_change(data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same name, same settings, one label flipped."""
    from pydeploy.data import image_sets, named

    pretend(job_of(data), tmp_path / "run")
    real = image_sets.synthetic

    def other(**settings: Any) -> image_sets.ImageSet:
        images = real(**settings)
        images.train_labels[3] = (images.train_labels[3] + 1) % images.classes
        return images

    other.__annotations__ = {"return": image_sets.ImageSet}
    monkeypatch.setitem(named.DATA, "synthetic", other)
    assert "01_train" in again(data, tmp_path / "run")


# ---- files


def of_int8(data: dict[str, Any]) -> dict[str, Any]:
    return changed(data, "target.precision", "int8")


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("what", ["manifest", "samples", "moved"])
def test_a_calibration_set(data: dict[str, Any], tmp_path: Path, what: str, *, int8: bool) -> None:
    data = of_int8(data) if int8 else data
    job = job_of(data)
    pretend(job, tmp_path / "run")
    if what == "manifest":
        (tmp_path / "set.yaml").write_text("source: ./samples.npy\ncount: 16\nseed: 1\n")
    elif what == "samples":
        np.save(tmp_path / "samples.npy", np.load(tmp_path / "samples.npy") + 1)
    else:  # the same text under another name says the same
        (tmp_path / "set.yaml").rename(tmp_path / "other.yaml")
        data = changed(data, "quantize.calibration", str(tmp_path / "other.yaml"))
    expected = set() if what == "moved" else readers(stages_of(job), "quantize.calibration")
    assert again(data, tmp_path / "run") == expected
    assert ("04_dense" in expected) == (int8 and what != "moved")


@pytest.mark.parametrize("what", ["replaced", "moved", "removed", "settings"])
def test_a_weights_file(data: dict[str, Any], tmp_path: Path, what: str) -> None:
    model = fresh_model(job_of(data))
    save(tmp_path / "dense.safetensors", model)
    data = changed(data, "train.weights", str(tmp_path / "dense.safetensors"))
    job = job_of(data)
    pretend(job, tmp_path / "run")
    every = {stage.name for stage in stages_of(job)}
    if what == "replaced":
        model.get_parameter("fc.bias").data += 1
        save(tmp_path / "dense.safetensors", model)
    elif what == "moved":
        (tmp_path / "dense.safetensors").rename(tmp_path / "same.safetensors")
        data = changed(data, "train.weights", str(tmp_path / "same.safetensors"))
    elif what == "removed":
        data = changed(data, "train.weights", None)
    else:  # nothing is trained, so how is without meaning
        data = changed(data, "train.epochs", 4)
    assert again(data, tmp_path / "run") == (every if what in ("replaced", "removed") else set())


CODE = {
    "model.name": """
from pydeploy.models import build
def mine(num_classes, in_channels): return build("resnet8", width=8, num_classes=num_classes, in_channels=in_channels)
""",
    "task.name": """
from pydeploy.tasks.named import build_task
DATA = {"size": 12, "train_size": 64, "test_size": 32}
def mine(): return build_task("classification", data="synthetic", data_settings=DATA)
""",
    "quantize.observer": "def mine(seen, levels): return seen.histogram.minimum, seen.histogram.maximum",
    "finetune.distill.loss": "def mine(task, student, teacher, settings): return (student['logits'] - teacher['logits']).abs().mean()",
    "prune.criterion": "def mine(group): return [1.0 * i for i in range(group.width)]",
}
"""A user's own thing for every setting that takes one."""


def test_every_open_setting_has_a_thing_of_ones_own(data: dict[str, Any]) -> None:
    assert set(open_names(parse(data, "test"))) == set(CODE)


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("setting", CODE)
def test_code_of_ones_own_counts_by_its_contents(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, *, int8: bool
) -> None:
    """Where it is read, with what it imports, and wherever the folder lies; what lies beside it does not count."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "mine.py").write_text("import helper\n" + CODE[setting])
    (folder / "helper.py").write_text("")
    (folder / "other.py").write_text("")
    data = changed(of_int8(data) if int8 else data, setting, f"{folder}/mine.py:mine")
    data["model"]["options"] = {} if setting == "model.name" else data["model"]["options"]
    data["prune"]["options"] = {} if setting == "prune.criterion" else data["prune"].get("options", {})
    if setting == "task.name":
        data["task"] = {"name": data["task"]["name"]}
    job = job_of(data)
    pretend(job, tmp_path / "run")
    assert again(data, tmp_path / "run") == set()
    expected = readers(stages_of(job), setting)
    for name in ("mine.py", "helper.py", "other.py"):
        text = (folder / name).read_text()
        (folder / name).write_text(f"{text}\n# another text")
        assert again(data, tmp_path / "run") == (set() if name == "other.py" else expected), name
        (folder / name).write_text(text)
    folder.rename(tmp_path / "moved")
    data = changed(data, setting, "mine:mine")
    monkeypatch.chdir(tmp_path / "moved")
    assert again(data, tmp_path / "run") == set()


def test_a_criterion_of_ones_own(data: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def score(group): return range(group.width)\n")
    data = changed(changed(data, "prune.criterion", f"{file}:score"), "prune.options", {})
    job = job_of(data)
    pretend(job, tmp_path / "run")
    assert again(data, tmp_path / "run") == set()
    file.write_text("def score(group): return [1] * group.width\n")
    assert again(data, tmp_path / "run") == readers(stages_of(job), "prune.criterion")


def test_a_second_latency_table(data: dict[str, Any], tmp_path: Path) -> None:
    from pydeploy.backends.base import reopen
    from pydeploy.latency.table.by_precision import other_target
    from pydeploy.latency.table.table import Table

    job = job_of(data)
    pretend(job, tmp_path / "none")
    target = reopen(other_target(job.backend)).target()
    Table.open(tmp_path / "one.sqlite", target)
    with_table = changed(data, "quantize.table", str(tmp_path / "one.sqlite"))
    assert again(with_table, tmp_path / "none") == {"09_mixed", "11_profile"}
    pretend(job_of(with_table), tmp_path / "run")
    assert again(with_table, tmp_path / "run") == set()
    with (tmp_path / "one.sqlite").open("ab") as stream:
        stream.write(bytes(4096))
    assert again(with_table, tmp_path / "run") == {"09_mixed", "11_profile"}


def test_the_latency_table_of_a_sparse_training(data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "one.sqlite").write_bytes(b"one")
    sparse = changed(data, "train.sparsity", {"kind": "ista", "cost": "latency", "table": str(tmp_path / "one.sqlite")})
    pretend(job_of(sparse), tmp_path / "run")
    assert again(sparse, tmp_path / "run") == set()
    (tmp_path / "one.sqlite").write_bytes(b"two")
    assert "01_train" in again(sparse, tmp_path / "run")


def test_a_backend_of_another_version(data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the config has changed, but what is measured has."""
    from dataclasses import replace

    from pydeploy.backends.null import Null

    job = job_of(data)
    pretend(job, tmp_path / "run")
    target = Null.target
    monkeypatch.setattr(Null, "target", lambda self: replace(target(self), backend_version="2"))
    assert again(data, tmp_path / "run") == readers(stages_of(job), "target")


# ---- what is declared is what is read


def spied(out: Path, data: dict[str, Any]) -> Iterator[tuple[Stage, set[str], set[str]]]:
    """Each stage of a real run on the analytic device, the settings and the stages' folders that it really used."""
    job = job_of(data)
    out.mkdir()
    for stage in stages_of(job):
        (out / stage.name).mkdir()
        spy, at = JobSpy(job), ArtefactsSpy(out)
        stage.make(spy, at, out / stage.name)  # type: ignore[arg-type]
        yield stage, spy.seen, at.seen - {stage.name}


def small(data: dict[str, Any]) -> dict[str, Any]:
    data = changed(data, "train.epochs", 1)
    data = changed(data, "prune.criterion", "taylor")  # the one that looks at batches
    data = changed(data, "model.options", {"width": 32})
    return changed(data, "table", {"points": 2, "align": 16, "rounds": 1, "runs": 2})


PRESENT = {"quantize", "finetune.distill", "train.sparsity"}


@pytest.mark.parametrize("kind", ["float", "int8", "weights"])
def test_stages_read_what_they_declare(data: dict[str, Any], tmp_path: Path, kind: str) -> None:
    """No more, or results would go stale; no less, or work would be done again for nothing."""
    points = {"budgets": [0.8], "uniform": [0.8], "torch_pruning": [0.5]} if kind == "float" else {"uniform": [0.8]}
    data = changed(small(of_int8(data) if kind == "int8" else data), "compare", points)
    if kind == "weights":
        save(tmp_path / "dense.safetensors", fresh_model(job_of(data)))
        data = changed(data, "train.weights", str(tmp_path / "dense.safetensors"))
    known = set(leaves(parse(data, "test")))
    for stage, seen, folders in spied(tmp_path / "run", data):
        declared = {key for key in known for name in stage.reads if key == name or key.startswith(f"{name}.")}
        used = {key for key in known for name in seen if key == name or key.startswith(f"{name}.")}
        given = {key for key in declared if _given(data, key)} - PRESENT
        assert used <= declared, f"{stage.name} reads {sorted(used - declared)}, which it does not declare"
        assert given <= used, f"{stage.name} declares {sorted(given - used)}, which it does not read"
        assert folders == set(stage.after), stage.name
        if kind == "weights":
            break  # only the first stage reads them


def _given(data: dict[str, Any], key: str) -> bool:
    place: Any = data
    for part in key.split("."):
        place = place.get(part) if isinstance(place, dict) else None
    return place is not None


# ---- explained, and made elsewhere


def test_the_defaults_are_those_of_the_schema() -> None:
    least = parse({"model": {"name": "resnet8"}, "prune": {"budget": 0.5}, "quantize": {}}, "test")
    found = leaves(least)
    assert {key: value for key, value in defaults(Config).items() if key in found and key != "quantize"} == {
        key: value if not isinstance(value, str) or not key.endswith("calibration") else Path(value)
        for key, value in found.items()
        if key not in ("model.name", "prune.budget", "quantize")
    } | {"prune.budget": None}


def test_plan_lists_every_stage_and_says_why(data: dict[str, Any], tmp_path: Path) -> None:
    path, out = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(json.dumps(data))

    def planned(*more: str) -> dict[str, str]:
        result = CliRunner().invoke(app, ["run", str(path), "--plan", *more])
        assert result.exit_code == 0, result.output
        lines = result.output.splitlines()
        assert all(line.startswith("    reads ") for line in lines[1::2])
        return dict(line.split(": ", 1) for line in lines[:-1:2])

    job = job_of(data)
    names = [stage.name for stage in stages_of(job)]
    assert planned() == dict.fromkeys(names, "would run: it is new")
    assert planned("--out", str(out)) == dict.fromkeys(names, "would run: it is new")
    assert not out.exists()
    pretend(job, out)
    before = sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*"))
    assert planned("--out", str(out)) == dict.fromkeys(names, "kept: finished earlier")
    why = planned("--out", str(out), "--set", "prune.min_width=3")
    assert why["05_table"] == "would run: prune.min_width was 2, is 3"
    assert why["06_search"] == "would run: prune.min_width was 2, is 3; 05_table is done again"
    assert why["04_dense"] == "kept: finished earlier"
    other = planned("--out", str(tmp_path / "second"), "--reuse", str(out), "--set", "target.threads=2")
    assert other["03_scores"] == f"kept: taken from {out}"
    assert other["04_dense"] == "would run: it is new"
    assert sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*")) == before


def test_a_run_needs_a_folder(data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps(data))
    result = CliRunner().invoke(app, ["run", str(tmp_path / "config.yaml")])
    assert result.exit_code != 0
    assert "--out" in str(result.exception or result.output)


def test_one_stage_is_made_in_another_process_from_the_run_directory_alone(
    data: dict[str, Any], tmp_path: Path
) -> None:
    data = small(data)
    out = tmp_path / "run"
    pretend(job_of(data), tmp_path / "finished")
    out.mkdir()
    Artefacts(out).config.write_text(json.dumps(parse(data, "test").model_dump(mode="json")))
    with pytest.raises(DataError, match=r"02_graph reads the files of 01_train, which has to be made first: it is new"):
        run_stage(out, "02_graph", Quiet())
    with pytest.raises(ConfigError, match=r"no stage '02_grap' .did you mean '02_graph'"):
        run_stage(out, "02_grap", Quiet())
    context = multiprocessing.get_context("spawn")
    for name in ("01_train", "02_graph"):
        worker = context.Process(target=_make, args=(str(out), name))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
    states = {stage.name: verdict.stays for stage, verdict in foresee(parse(data, "test"), out, Quiet())}
    assert [name for name, stays in states.items() if stays] == ["01_train", "02_graph"]


def _make(out: str, name: str) -> None:
    assert os.getpid() != os.getppid()
    run_stage(Path(out), name, Quiet())


def test_what_earlier_stages_left_is_what_counts(data: dict[str, Any], tmp_path: Path) -> None:
    """A stage whose folder was deleted is made again, and so are those after it, unless it ends as before."""
    job, out = job_of(data), tmp_path / "run"
    pretend(job, out)
    for path in (out / "05_table").iterdir():
        path.unlink()
    stages = stages_of(job)
    assert again(data, out) == {"05_table"} | {s.name for s in stages if "05_table" in s.after} | readers(
        stages, "compare.limit"
    ) | {"07_finetune", "08_pruned", "09_quantized", "09_half"}
    pretend(job, out)  # the same result
    assert again(data, out) == set()
    (out / "05_table" / "stamp.json").unlink()
    folder = RunFolder.open(out, Quiet(), resume=True)
    for stage in stages[:5]:
        make = partial(_result, "measured again" if stage.name == "05_table" else stage.name)
        folder.stage(stage.name, job.settings(stage.reads), make, stage.after)
    # Killed here: what comes after was made from the table of before.
    assert {"06_search", "10_joint-0.8", "11_profile"} <= again(data, out)


def test_errors_are_deploy_errors() -> None:
    with pytest.raises(DeployError):
        run_stage(Path("no such run"), "01_train", Quiet())
