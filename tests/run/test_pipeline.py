"""The whole job: on the analytic backend for every detail, and once on ONNX Runtime for real."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pydeploy.backends.base import Engine, reopen
from pydeploy.backends.null import Null
from pydeploy.errors import BackendUnavailable, ConfigError, DataError, Infeasible, Mismatch
from pydeploy.graph import Graph, OpKey
from pydeploy.latency.probes.measure import measure
from pydeploy.latency.table.by_precision import other_target
from pydeploy.latency.table.table import Table
from pydeploy.plan import Plan
from pydeploy.planning.case import Meter
from pydeploy.planning.rounds import Budget, read_rounds
from pydeploy.report import Report
from pydeploy.run.artefacts import Artefacts, Files
from pydeploy.run.config import Config, parse
from pydeploy.run.job import model_of, open_job
from pydeploy.run.pipeline import run, stages_of
from pydeploy.run.stages import reduced_precision
from pydeploy.run.stages.comparison import PLANNERS, wanted
from pydeploy.run.stages.engines import build_dense
from pydeploy.run.stages.search import best_plan, search
from pydeploy.run.stages.table import measure_table
from pydeploy.timing.records import Profile, Target, Timing
from pydeploy.timing.reference import Waits
from pydeploy.timing.rounds import unwatched
from quiet import Quiet
from report_facts import used

ROOT = Path(__file__).parents[2]
# torch's ONNX exporter and accelerate warn about their own internals.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def settings(**changes: object) -> Config:
    data: dict[str, object] = {
        "task": {"data": "synthetic", "options": {"data_settings": {"size": 12, "train_size": 256, "test_size": 64}}},
        "model": {"name": "resnet8", "options": {"width": 32}},
        "train": {"epochs": 1, "batch_size": 64, "lr": 0.1, "warmup_epochs": 0, "amp": "off"},
        "target": {"backend": "null", "threads": 1},
        "table": {"points": 2, "align": 16, "rounds": 1, "runs": 3},
        "prune": {"criterion": "taylor", "batches": 2, "batch_size": 32, "budget": 0.7},
        "finetune": {"epochs": 1, "batch_size": 64, "lr": 0.05, "warmup_epochs": 0, "amp": "off"},
    }
    return parse({**data, **changes}, "test")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run on the analytic backend; tests that change it work on a copy."""
    out = tmp_path_factory.mktemp("run") / "out"
    run(settings(compare={"budgets": [0.8], "uniform": [0.8]}), out, Quiet(), command="pydeploy run")
    return out


def test_the_report_holds_what_it_promises(finished: Path) -> None:
    data = json.loads((finished / "report.json").read_text())
    assert data["schema"] == 2
    assert data["target"]["backend"] == "null"
    assert data["met"] is True
    assert {"dense", "pruned", "quantized"} <= set(data["models"])
    for name in ("dense", "pruned"):
        model = data["models"][name]
        assert {"median", "p10", "p90", "n"} <= set(model["latency_us"])
        assert {"value", "params", "macs", "bytes"} <= set(model)
        assert model["samples"] == 64
    assert data["models"]["pruned"]["latency_us"]["median"] <= data["budget_us"]
    assert data["models"]["pruned"]["params"] < data["models"]["dense"]["params"]
    assert all(r["predicted_us"] > 0 and r["measured_us"] > 0 for r in data["rounds"])
    assert {"01_train", "05_table", "06_search", "07_finetune", "11_profile"} <= set(data["seconds"])
    assert [c["method"] for c in data["candidates"]] == ["joint", "uniform"]


def test_analytic_numbers_are_labelled(finished: Path) -> None:
    for name in ("report.md", "report.html"):
        assert "not measured" in (finished / name).read_text().lower()
    assert any("not measured" in warning for warning in Report.load(finished / "report.json").warnings)


def test_prediction_is_exact_where_the_device_is_analytic(finished: Path) -> None:
    report = Report.load(finished / "report.json")
    assert report.prediction_error is not None
    assert report.prediction_error < 0.005


def test_the_shipped_engine_is_the_planned_one(finished: Path) -> None:
    graph, plan = Graph.load(finished / "02_graph" / "graph.json"), Plan.load(finished / "06_search" / "plan.json")
    report = Report.load(finished / "report.json")
    assert report.models.pruned.macs == graph.macs(plan.widths)
    engine = Engine.load(finished / "08_pruned" / "model.engine")
    engine.require_onnx(finished / "08_pruned" / "model.onnx")


def test_resume_redoes_nothing(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    console = Quiet()
    run(settings(compare={"budgets": [0.8], "uniform": [0.8]}), out, console, resume=True)
    assert sum("finished earlier" in line for line in console.lines) == 11
    before, after = (Report.load(p / "report.json") for p in (finished, out))
    assert (before.models, before.rounds) == (after.models, after.rounds)


@pytest.mark.parametrize("stage", ["01_train", "06_search", "10_uniform-0.8"])
def test_a_run_killed_in_any_stage_ends_like_an_undisturbed_one(finished: Path, tmp_path: Path, stage: str) -> None:
    """The stage and all after it are gone, as after a kill -9 while it was at work; the same report comes out."""
    out = tmp_path / "killed"
    shutil.copytree(finished, out)
    (out / "report.json").unlink()
    for folder in sorted(
        p for p in out.iterdir() if p.is_dir() and p.name >= stage and p.name not in ("deploy", "samples")
    ):
        stamp = json.loads((folder / "stamp.json").read_text())
        if folder.name == stage:  # half done: its notes and some files are there
            notes = {key: value for key, value in stamp.items() if key != "files"}
            (folder / "started.json").write_text(json.dumps({**notes, "seconds": 1.0}))
            (folder / "stamp.json").unlink()
        else:
            shutil.rmtree(folder)
    run(settings(compare={"budgets": [0.8], "uniform": [0.8]}), out, Quiet(), resume=True)
    before, after = (Report.load(p / "report.json") for p in (finished, out))
    assert (before.models, before.rounds, before.groups) == (after.models, after.rounds, after.groups)


def test_a_second_target_reuses_the_trained_model(finished: Path, tmp_path: Path) -> None:
    console = Quiet()
    run(
        settings(target={"backend": "null", "threads": 1, "precision": "bf16"}),
        tmp_path / "bf16",
        console,
        reuse=finished,
    )
    assert "01_train: finished earlier, kept" in console.lines
    assert (tmp_path / "bf16" / "01_train" / "model.safetensors").read_bytes() == (
        finished / "01_train" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"prune": {"budget": 0.01}}, Infeasible, "below the smallest plan"),
        ({"prune": {"budget_us": 1e9}}, ConfigError, "is not below the dense engine"),
        ({"prune": {"budget": 0.9, "criterion": "l3"}}, ConfigError, "unknown criterion 'l3'"),
        ({"model": {"name": "resnet9"}}, ConfigError, "unknown model 'resnet9'"),
        ({"target": {"backend": "onnxruntim"}}, BackendUnavailable, "did you mean 'onnxruntime'"),
        ({"quantize": {"calibration": "none.yaml"}}, ConfigError, "none.yaml does not exist"),
        ({"task": {"data": "mnist-fashion"}}, ConfigError, "unknown data set"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input(finished: Path, tmp_path: Path, changes: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        run(settings(**changes), tmp_path / "bad", Quiet(), reuse=finished)


def test_nan_in_the_weights_is_named(finished: Path, tmp_path: Path) -> None:
    from pydeploy.prune.surgery.save import save

    model = model_of(open_job(settings(), Quiet()), finished / "01_train" / "model.safetensors")
    model.get_parameter("fc.weight").data[0, 0] = float("nan")
    save(tmp_path / "nan.safetensors", model)
    train = {"epochs": 1, "weights": str(tmp_path / "nan.safetensors")}
    with pytest.raises(DataError, match=r"'fc.weight'.*NaN"):
        run(settings(train=train), tmp_path / "out", Quiet())


def test_every_precision_is_tried_and_the_fastest_is_recommended(finished: Path, tmp_path: Path) -> None:
    """On the analytic device int8 is fastest, and a layer that the config excludes stays float in the mixed one too."""
    quantize = {"observer": "minmax", "calibration": str(ROOT / "calib" / "smoke.yaml"), "exclude": ["fc"]}
    out = tmp_path / "out"
    run(settings(quantize=quantize), out, Quiet(), reuse=finished)
    report = Report.load(out / "report.json")
    medians = {name: model.latency_us.median for name, model in report.models.present.items()}
    assert medians["quantized"] < medians["half"] < medians["pruned"]
    assert report.models.half is not None
    assert report.models.half.precision == "bf16"
    assert report.recommendation.model in ("quantized", "mixed")
    mixed = json.loads((out / "09_mixed" / "mixed.json").read_text())
    assert {layer["name"] for layer in mixed["layers"]} == set(
        json.loads((out / "09_quantized" / "quantized.json").read_text())["quantized"]
    )
    assert all(layer["error"] >= 0 and layer["float_us"] >= layer["int8_us"] > 0 for layer in mixed["layers"])
    assert (report.models.mixed is None) == bool(mixed["note"])
    assert mixed["times"] == "engines"


def other_table(out: Path, config: Config, path: Path) -> Path:
    """A latency table, in the precision beside the run's, of its network with the dense and with the planned widths."""
    job, at = open_job(config, Quiet()), Artefacts(out)
    backend = reopen(other_target(job.backend))
    plans = [{}, Plan.load(at.plan).widths]
    table = Table.open(path, backend.target())
    measure(Graph.load(at.graph), Files(at.dense).source, backend, table, widths={}, plans=plans, rounds=2, runs=5)
    return path


def mixed_by_tables(out: Path, config: Config, here: Path) -> dict:
    """``mixed.json`` of the finished run with latency tables in both precisions; what it says is checked against them."""
    quantize = {**config.quantize.model_dump(), "table": str(other_table(out, config, here / "other.sqlite"))}
    changed = parse({**config.model_dump(), "quantize": quantize}, "test")
    at, job = Artefacts(out), open_job(changed, Quiet())
    reduced_precision.mix(job, at, here)
    mixed = json.loads((here / "mixed.json").read_text())
    assert mixed["times"] == "latency tables"
    graph, widths = Graph.load(at.graph), Plan.load(at.plan).widths
    own, other = Table.open(at.table), Table.open(here / "other.sqlite")
    keys = {op.name: op.key(graph.at(widths)) for op in graph.ops}
    speeds = [[layer[side] / table.latency_us(keys[layer["name"]]) for layer in mixed["layers"]
               if table.latency_us(keys[layer["name"]])]
              for side, table in (("float_us", own), ("int8_us", other))]  # fmt: skip
    for ratios in speeds:  # one factor for all layers of a table: what the computer does now over what it did then
        assert len(ratios) > 3
        assert min(ratios) == pytest.approx(max(ratios))
        assert min(ratios) > 0
    chosen = [layer for layer in mixed["layers"] if layer["name"] in mixed["int8"]]
    assert bool(chosen) == (sum(layer["float_us"] - layer["int8_us"] for layer in chosen) > 0)
    return mixed


def test_gains_of_layers_come_from_the_latency_tables(finished: Path, tmp_path: Path) -> None:
    quantize = {"observer": "minmax", "calibration": str(ROOT / "calib" / "smoke.yaml"), "exclude": ["fc"]}
    out, here, console = tmp_path / "out", tmp_path / "mixed", Quiet()
    config = settings(quantize=quantize)
    run(config, out, Quiet(), reuse=finished)
    here.mkdir()
    mixed = mixed_by_tables(out, config, here)
    by_engines = json.loads((out / "09_mixed" / "mixed.json").read_text())
    # The device is analytic, so both agree.
    for ours, theirs in zip(mixed["layers"], by_engines["layers"], strict=True):
        assert ours.pop("name") == theirs.pop("name")
        assert ours == pytest.approx(theirs, rel=0.01)
    assert mixed["int8"] == by_engines["int8"]

    # A table that lacks the planned widths leaves the word to the engines; nothing but this stage depends on the table.
    lacking = Table.open(tmp_path / "lacking.sqlite", Table.open(here / "other.sqlite").target)
    changed = settings(quantize={**quantize, "table": str(lacking.path)})
    run(changed, out, console, resume=True)
    assert "09_quantized: finished earlier, kept" in console.lines
    assert any("not the latency tables: " in line and "no network of graph" in line for line in console.lines)
    assert json.loads((out / "09_mixed" / "mixed.json").read_text())["times"] == "engines"


def test_the_second_table_belongs_to_the_other_precision(finished: Path, tmp_path: Path) -> None:
    quantize = {"observer": "minmax", "calibration": str(ROOT / "calib" / "smoke.yaml")}
    own = str(finished / "05_table" / "table.sqlite")
    with pytest.raises(Mismatch, match=r"quantize.table: .*precision: 'fp32' against 'int8'"):
        open_job(settings(quantize={**quantize, "table": own}), Quiet())
    with pytest.raises(DataError, match=r"none.sqlite"):
        open_job(settings(quantize={**quantize, "table": "none.sqlite"}), Quiet())
    int8 = {"backend": "null", "threads": 1, "precision": "int8"}
    assert open_job(settings(target=int8, quantize={**quantize, "table": own}), Quiet()).backend.precision == "int8"


def is_quantized(folder: Path, layer: str) -> bool:
    """Whether the layer's weight in the folder's file comes out of a DequantizeLinear, as its engine was built from it."""
    Engine.load(folder / "model.engine").require_onnx(folder / "model.onnx")
    nodes = onnx.load(folder / "model.onnx").graph.node
    weight = next(node.input[1] for node in nodes if node.name == layer)
    return any(weight in node.output for node in nodes if node.op_type == "DequantizeLinear")


def check_int8_run(out: Path) -> Report:
    """What holds for every run whose target is int8 and whose config excludes the layer 'fc'."""
    report = Report.load(out / "report.json")
    precisions = {name: model.precision for name, model in report.models.present.items()}
    assert report.target.precision == precisions["dense"] == precisions["pruned"] == "int8"
    assert precisions["unquantized"] == "fp32"
    assert "quantized" not in precisions
    for folder in ("04_dense", "06_search/round1", "08_pruned"):
        assert Engine.load(out / folder / "model.engine").target.precision == "int8"
        assert is_quantized(out / folder, "stage1.0.conv1")
        assert not is_quantized(out / folder, "fc")
    reached = json.loads((out / "04_dense" / "float.json").read_text())[report.metric.name]
    lost = round(max(0.0, 100 * (reached - report.models.dense.value)), 2)
    assert any(f" {lost:g} point" in warning and "worse than float" in warning for warning in report.warnings)
    return report


INT8 = {"observer": "minmax", "calibration": str(ROOT / "calib" / "smoke.yaml"), "exclude": ["fc"]}


def test_pruning_for_int8_sees_int8_latencies(finished: Path, tmp_path: Path) -> None:
    """On the analytic device the table, the rounds and the budget are int8's, so predictions stay exact."""
    target = {"backend": "null", "threads": 1, "precision": "int8"}
    run(settings(target=target, quantize=INT8, compare={"uniform": [0.8]}), tmp_path / "out", Quiet(), reuse=finished)
    report, plain = check_int8_run(tmp_path / "out"), Report.load(finished / "report.json")
    assert report.met
    assert report.prediction_error is not None
    assert report.prediction_error < 0.005
    assert report.dense_us < plain.dense_us
    assert report.candidates[0].precision == "int8"
    assert report.models.unquantized is not None
    assert report.models.unquantized.latency_us.median > report.models.pruned.latency_us.median


@pytest.mark.slow
def test_pruning_for_int8_on_onnx_runtime(tmp_path: Path) -> None:
    """As on the analytic device, for real."""
    config = settings(
        task={"data": "synthetic", "options": {"data_settings": {"size": 32, "train_size": 256, "test_size": 64}}},
        target={"backend": "onnxruntime", "precision": "int8", "threads": 1},
        table={"points": 2, "align": 16, "rounds": 2, "runs": 5},
        prune={"criterion": "l1", "budget": 0.8, "headroom": 0.2, "rounds": 3},
        quantize=INT8,
    )
    run(config, tmp_path / "out", Quiet())
    report = check_int8_run(tmp_path / "out")
    assert report.target.measured
    assert report.models.pruned.macs < report.models.dense.macs
    assert report.met == (used(report, report.models.pruned)[0] <= 1)


@pytest.mark.slow
def test_end_to_end_on_onnx_runtime(tmp_path: Path) -> None:
    """Everything real: trained, measured, cut, quantized and evaluated on ONNX Runtime. The budget is generous,
    because this machine may be busy; whether it is met is the run's own claim and is checked against its numbers."""
    config = settings(
        model={"name": "resnet8", "options": {"width": 32}},
        task={"data": "synthetic", "options": {"data_settings": {"size": 32, "train_size": 256, "test_size": 64}}},
        target={"backend": "onnxruntime", "threads": 1},
        table={"points": 2, "align": 16, "rounds": 2, "runs": 5},
        prune={"criterion": "l1", "budget": 0.8, "headroom": 0.2, "rounds": 3},
        quantize={"observer": "minmax", "calibration": str(ROOT / "calib" / "smoke.yaml")},
    )
    page = run(config, tmp_path / "out", Quiet())
    report = Report.load(tmp_path / "out" / "report.json")
    assert page.read_text().startswith("<!")
    assert report.target.measured
    assert report.models.quantized is not None
    assert report.models.quantized.precision == "int8"
    assert report.models.half is None  # ONNX Runtime computes in float32 on CPUs
    mixed = json.loads((tmp_path / "out" / "09_mixed" / "mixed.json").read_text())
    assert (report.models.mixed is None) == bool(mixed["note"])
    (tmp_path / "mixed").mkdir()
    by_tables = mixed_by_tables(tmp_path / "out", config, tmp_path / "mixed")
    errors = [{layer["name"]: layer["error"] for layer in found["layers"]} for found in (mixed, by_tables)]
    assert errors[0] == errors[1]
    assert reduced_precision.has_engine(tmp_path / "mixed") != bool(by_tables["note"])
    assert report.models.pruned.macs < report.models.dense.macs
    assert report.met == (used(report, report.models.pruned)[0] <= 1)
    assert all(layer.after_us is not None for layer in report.layers if layer.kind == "conv")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its table, on a fine grid of widths."""
    out = tmp_path_factory.mktemp("table")
    job, at = open_job(settings(table={"points": 5, "align": 4, "rounds": 1, "runs": 3}), Quiet()), Artefacts(out)
    for stage in stages_of(job)[:5]:
        (out / stage.name).mkdir()
        stage.make(job, at, out / stage.name)
    return out


@pytest.mark.parametrize("flattery", [0.1, 0.5])
def test_a_flattering_table_is_overcome_in_three_rounds(measured: Path, tmp_path: Path, flattery: float) -> None:
    """Every layer of the table is too fast by its own share; the rounds find out and the budget is met and used."""
    out = _flattered(measured, tmp_path / "run", flattery, seed=0)
    job, at = open_job(settings(), Quiet()), Artefacts(out)
    tried = search(job, at, Budget(share=0.6), out / "06_search")
    assert tried[-1].number <= 3
    used = [r.measured_us / r.limit_us for r in tried if r.met]
    assert max(used) > (0.95 if flattery < 0.5 else 0.7)
    plan = best_plan(job, at, Budget(share=0.6), out / "06_search", tried)
    assert plan in [r.plan for r in tried if r.met]


def test_every_round_measures_the_earlier_plans_again(measured: Path, tmp_path: Path) -> None:
    """In the first round's minute, cut networks take 30 % longer beside the dense one than in any later minute."""
    out = _flattered(measured, tmp_path / "run", 0.1, seed=0)
    job, at = open_job(settings(), Quiet()), Artefacts(out)
    taken: list[dict[str, Timing]] = []

    class Shifting(Meter):
        def measure(self, engines: Any, level_us: float | None) -> dict[str, Timing]:
            taken.append(super().measure(engines, level_us))
            factor = 1.3 if len(taken) == 1 else 1.0
            return {name: timing if name == "dense" else timing.scaled(factor) for name, timing in taken[-1].items()}

    first, *others = search(job, at, Budget(share=0.6), out / "06_search", meter=Shifting())
    assert all(set(earlier) < set(later) for earlier, later in pairwise(taken))
    assert first.readings[0] == pytest.approx(1.3 * first.readings[-1])
    assert [len(one.readings) for one in (first, *others)] == [len(taken) + 1 - one.number for one in (first, *others)]
    for one in (first, *others):
        assert one.tried.measured == pytest.approx(np.median(one.readings))
        assert one.profile.whole.median_us == pytest.approx(one.measured_us)
    assert any(0.85 < result.tried.measured <= 1 for result in [first, *others])
    assert read_rounds(out / "06_search") == [first, *others]
    rounds = len(taken)
    assert search(job, at, Budget(share=0.6), out / "06_search", meter=Shifting()) == [first, *others]
    assert len(taken) == rounds  # finished: nothing is measured again


class Busy(Meter):
    """Others have the cores, more from round to round: cut networks take ever longer beside the dense one."""

    def __init__(self, *, until: int) -> None:
        super().__init__(watch=unwatched)
        self.surveys, self.passes, self.until = 0, 0, until

    def comes_to_rest(self, *_: Any) -> bool:
        return True

    def prevailing_us(self, _backend: Any, _dense: Any, level_us: float, _patience_s: float | None = None) -> float:
        self.surveys += 1
        return level_us * (1 if self.surveys >= self.until else 2)

    @property
    def factor(self) -> float:
        return 1.0 if self.surveys >= self.until else 1.5**self.passes

    def measure(self, engines: Any, level_us: float | None) -> dict[str, Timing]:
        self.passes += 1
        times = super().measure(engines, level_us)
        return {name: timing if name == "dense" else timing.scaled(self.factor) for name, timing in times.items()}

    def profile(self, backend: Any, engine: Any, ops: Any, whole: Timing | None = None) -> Profile:
        if whole is None:
            return super().profile(backend, engine, ops)
        return super().profile(backend, engine, ops, whole.scaled(1 / self.factor)).scaled(self.factor)


@pytest.mark.parametrize("returns", [True, False])
def test_a_search_that_met_nothing_at_another_speed_is_begun_again(
    measured: Path, tmp_path: Path, returns: bool
) -> None:
    out = _clocked(measured, tmp_path / "run")
    console = Quiet()
    job = replace(open_job(settings(), console), backend=Clocked())
    at, here = Artefacts(out), out / "06_search"
    # The speed is taken at the start of a search and when it is about to give up.
    busy = Busy(until=2 if returns else 3)
    if not returns:
        with pytest.raises(Infeasible, match="no plan met the budget in 3 rounds"):
            search(job, at, Budget(share=0.6), here, meter=busy)
        assert not any(one.met for one in read_rounds(here))
    found = search(job, at, Budget(share=0.6), here, meter=busy)  # what --resume does
    assert any(one.met for one in found)
    assert found == read_rounds(here)
    said = "back at the speed at which the table was measured" if returns else "they are measured anew"
    assert any(said in line for line in console.lines)


@pytest.mark.parametrize("share", [0.4, 0.5])
def test_where_the_table_overprices_the_budget_is_used_further(measured: Path, tmp_path: Path, share: float) -> None:
    """Corrected by a plan that was too fast, the table proposes it again; more expensive ones are then tried."""
    dense = _dense_layers(measured)
    out = _rescaled(measured, tmp_path / "run", lambda key: 1.0 if key in dense else 1.5)
    job, at = open_job(settings(), Quiet()), Artefacts(out)
    first, *more = search(job, at, Budget(share=share), out / "06_search")
    assert first.tried.measured < 0.9
    assert first.tried.measured + 0.04 < max(result.tried.measured for result in more if result.met)


def test_a_budget_below_the_table_is_refused_only_after_a_measurement(measured: Path, tmp_path: Path) -> None:
    """The table holds a part of all layers' time for overhead: the smallest network is faster than it says."""
    out = _rescaled(measured, tmp_path / "run", lambda _: 0.7)
    job, at = open_job(settings(), Quiet()), Artefacts(out)
    with pytest.raises(Infeasible, match=r"below the smallest plan.* The closest engine that was built takes"):
        search(job, at, Budget(share=0.01), out / "06_search")
    (smallest,) = read_rounds(out / "06_search")
    real = smallest.measured_us / smallest.limit_us * 0.01
    assert smallest.predicted_us > 1.2 * smallest.measured_us
    shutil.rmtree(out / "06_search")
    (out / "06_search").mkdir()
    rounds = search(job, at, Budget(share=1.05 * real), out / "06_search")
    assert rounds[0].plan == smallest.plan
    assert rounds[0].met


@pytest.mark.parametrize("method", ["halp", "global-threshold"])
def test_other_rules_take_the_same_loop(measured: Path, tmp_path: Path, method: str) -> None:
    out = _flattered(measured, tmp_path / "run", 0.05, seed=0)
    job, at = open_job(settings(), Quiet()), Artefacts(out)
    rounds = search(job, at, Budget(share=0.6), out / "06_search", PLANNERS[method])
    assert best_plan(job, at, Budget(share=0.6), out / "06_search", rounds).method in ("halp", "global")
    assert any(r.met for r in rounds)


class Clocked(Null):
    """The analytic device, taken for a real one: its level of speed matters."""

    def target(self) -> Target:
        return replace(super().target(), measured=True)


def test_a_table_of_a_slow_hour_serves_a_fast_one(measured: Path, tmp_path: Path) -> None:
    """Convolutions of 3 x 3 took three times as long while the table was measured, all else a fifth longer."""
    out = _clocked(measured, tmp_path / "run")
    console = Quiet()
    job, at = replace(open_job(settings(), console), backend=Clocked()), Artefacts(out)
    _slow_hour(at.table, lambda key: 3.0 if "[3,3]" in key else 1.2)
    meter = Meter(patience_s=0.1, waits=Waits(survey_s=0.0), watch=unwatched)
    first = search(job, at, Budget(share=0.6), out / "06_search", meter=meter)[0]
    assert any("layers are scaled by what its own layers take now" in line for line in console.lines)
    assert first.predicted_us == pytest.approx(first.measured_us, rel=0.02)


def _clocked(measured: Path, out: Path) -> Path:
    """The run `measured`, its dense engine and table of the device `Clocked`, and a folder for a search."""
    shutil.copytree(measured, out)
    job, at = open_job(settings(table={"points": 5, "align": 4, "rounds": 1, "runs": 3}), Quiet()), Artefacts(out)
    for name, make in {"04_dense": build_dense, "05_table": measure_table}.items():
        shutil.rmtree(out / name)
        (out / name).mkdir()
        make(replace(job, backend=Clocked()), at, out / name)
    (out / "06_search").mkdir()
    return out


def _slow_hour(table: Path, factor: Callable[[str], float]) -> None:
    """Rewrite a table as if every layer had taken `factor` times as long, and the networks accordingly."""
    times = ("median_us", "p10_us", "p90_us")
    with sqlite3.connect(table) as base:
        longer: dict[str, float] = {}
        for row, key, probe, us in base.execute("SELECT rowid, key, probe, median_us FROM samples").fetchall():
            longer[probe] = longer.get(probe, 0.0) + (factor(key) - 1) * us
            scaled = ", ".join(f"{name} = {name} * {factor(key)}" for name in times)
            base.execute(f"UPDATE samples SET {scaled} WHERE rowid = ?", (row,))
        added = ", ".join(f"{name} = {name} + :more" for name in (*times, "layers_us"))
        for probe, more in longer.items():
            base.execute(f"UPDATE networks SET {added} WHERE probe = :probe", {"more": more, "probe": probe})
        (dense,) = base.execute("SELECT max(median_us) FROM networks").fetchone()
        for name in ("samples", "networks"):
            base.execute(f"UPDATE {name} SET reference_us = ?", (dense,))
    base.close()


def test_further_points_are_those_of_the_config() -> None:
    asked = {"budgets": [0.8], "uniform": [0.7], "global_threshold": [0.6], "halp": [0.5, 0.4]}
    assert [(p.method, p.strength, p.slug) for p in wanted(settings(compare=asked))] == [
        ("joint", 0.8, "joint-0.8"),
        ("uniform", 0.7, "uniform-0.7"),
        ("global-threshold", 0.6, "global-threshold-0.6"),
        ("halp", 0.5, "halp-0.5"),
        ("halp", 0.4, "halp-0.4"),
    ]


def _flattered(measured: Path, out: Path, flattery: float, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    return _rescaled(measured, out, lambda _: 1 - flattery * rng.random())


def _dense_layers(measured: Path) -> set[OpKey]:
    graph = Graph.load(Artefacts(measured).graph)
    return {op.key(graph.widths) for op in graph.ops}


def _rescaled(measured: Path, out: Path, factor: Callable[[OpKey], float]) -> Path:
    """A copy of the run with a wrong table: every time of a layer times the `factor` of its key."""
    shutil.copytree(measured, out)
    with sqlite3.connect(out / "05_table" / "table.sqlite") as base:
        for (key,) in base.execute("SELECT DISTINCT key FROM samples").fetchall():
            change = factor(OpKey.from_list(json.loads(key)))
            base.execute("UPDATE samples SET median_us = median_us * ? WHERE key = ?", (change, key))
    base.close()
    (out / "06_search").mkdir()
    return out
