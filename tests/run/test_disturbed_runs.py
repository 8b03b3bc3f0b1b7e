"""Runs on a simulated computer that others use at times: what they disturb proves nothing, and is measured again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pydeploy.backends.base import Engine
from pydeploy.errors import Infeasible
from pydeploy.graph import Graph
from pydeploy.latency.table.table import Table
from pydeploy.plan import Plan
from pydeploy.planning import closed_loop
from pydeploy.planning.rounds import Budget, read_rounds
from pydeploy.report import Report
from pydeploy.run.artefacts import Artefacts
from pydeploy.run.job import Job, open_job
from pydeploy.run.pipeline import run
from pydeploy.run.stages.search import best_plan, search
from pydeploy.run.stages.table import measure_table
from quiet import Quiet
from simulated_device import Busy, Device, install
from test_pipeline import settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SHARE = 0.6
CONFIG = {"table": {"points": 3, "align": 8, "rounds": 2, "runs": 3}, "prune": {"criterion": "l1", "budget": SHARE}}
UNFAIR = [pytest.param(1.0, id="small networks suffer more"), pytest.param(-1.0, id="large networks suffer more")]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages that measure nothing, and the dense engine."""
    out = tmp_path_factory.mktemp("learned") / "run"
    with pytest.MonkeyPatch.context() as patch:
        install(patch, Device())
        patch.setattr("pydeploy.run.stages.table.measure_table", _stop)
        with pytest.raises(KeyboardInterrupt):
            run(settings(**CONFIG), out, Quiet())
    return out


def until(end_s: float) -> Callable[[float], bool]:
    return lambda now_s: now_s < end_s


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def prepared(learned: Path, out: Path, device: Device) -> tuple[Job, Artefacts]:
    """A run of which the table is still to be measured, on `device`."""
    shutil.copytree(learned, out)
    shutil.rmtree(out / "05_table", ignore_errors=True)
    (out / "05_table").mkdir()
    (out / "06_search").mkdir()
    return open_job(settings(**CONFIG), Quiet()), Artefacts(out)


def true_share(at: Artefacts, name: str) -> float:
    """What the engine of a round really takes, as a share of the dense one."""
    calm, us = Device(), []
    for folder in (at.search / name, at.dense):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Busy, "device", calm)
            backend = Busy(threads=1)
            with backend.open(Engine.load(folder / "model.engine")) as session:
                from pydeploy.profiling.profile import random_feeds

                us.append(float(session.time(random_feeds(session.inputs), 200).mean()))
    return us[0] / us[1]


def chosen(at: Artefacts, plan: Plan) -> str:
    return next(one.name for one in read_rounds(at.search) if one.plan == plan)


def solved(job: Job, at: Artefacts, share: float = SHARE) -> float:
    """The true share of what the search and the choice after it give."""
    budget = Budget(share)
    tried = search(job, at, budget, at.search)
    return true_share(at, chosen(at, best_plan(job, at, budget, at.search, tried)))


@pytest.mark.parametrize("unfair", UNFAIR)
@pytest.mark.parametrize(("busy", "seen"), [(until(30.0), True), (lambda now_s: now_s % 7 > 4, False)],
                         ids=["seen at first", "unseen in phases"])  # fmt: skip
def test_a_table_of_a_busy_hour_is_measured_again(
    learned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unfair: float,
    seen: bool,
    busy: Callable[[float], bool],
) -> None:
    """Disturbed while its networks are measured; then either this call or the next one finds a quiet computer."""
    device = install(monkeypatch, Device(busy, unfair, seen))
    job, at = prepared(learned, tmp_path / "run", device)
    graph = Graph.load(at.graph)
    measure_table(job, at, at.table.parent)
    device.busy = lambda _s: False
    measure_table(job, at, at.table.parent)
    table = Table.open(at.table)
    assert table.disturbed(graph) == ()
    calm, other = Device(), tmp_path / "calm"
    install(monkeypatch, calm)
    quiet_job, quiet_at = prepared(learned, other, calm)
    measure_table(quiet_job, quiet_at, quiet_at.table.parent)
    truth = Table.open(quiet_at.table)
    for widths in ({}, *(n.widths for n in truth.networks(graph))):
        assert table.predict_us(graph, widths) == pytest.approx(truth.predict_us(graph, widths), rel=0.03)


def test_a_table_that_stays_disturbed_says_so(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = install(monkeypatch, Device(lambda _s: True))
    job, at = prepared(learned, tmp_path / "run", device)
    measure_table(job, at, at.table.parent)
    networks = Table.open(at.table).networks(Graph.load(at.graph))
    assert len(networks) > 3
    assert len(Table.open(at.table).disturbed(Graph.load(at.graph))) == len(networks)
    assert json.loads(at.table_facts.read_text())["disturbed"] == len(networks)


@pytest.mark.parametrize("unfair", UNFAIR)
@pytest.mark.parametrize(("table_busy", "busy_s"), [(False, 5.0), (True, 60.0)], ids=["calm table", "busy table"])
def test_a_search_meets_the_budget_once_the_disturbance_ends(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfair: float, table_busy: bool, busy_s: float
) -> None:
    device = install(monkeypatch, Device(lambda _s: table_busy, unfair))
    job, at = prepared(learned, tmp_path / "run", device)
    measure_table(job, at, at.table.parent)
    device.busy = until(device.now_s + busy_s)
    assert 0.8 * SHARE < solved(job, at) <= 1.01 * SHARE
    assert not all(one.disturbed for one in read_rounds(at.search) if one.met)


@pytest.mark.parametrize("unfair", UNFAIR)
def test_a_killed_search_meets_the_budget_when_it_is_resumed(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfair: float
) -> None:
    device = install(monkeypatch, Device(unfair=unfair))
    job, at = prepared(learned, tmp_path / "run", device)
    measure_table(job, at, at.table.parent)
    device.busy = lambda _s: True
    with monkeypatch.context() as patch:
        patch.setattr(closed_loop, "_told", _stop)
        with pytest.raises(KeyboardInterrupt):
            search(job, at, Budget(SHARE), at.search)
    assert all(one.disturbed for one in read_rounds(at.search))
    device.busy = lambda _s: False
    assert 0.8 * SHARE < solved(job, at) <= 1.01 * SHARE


@pytest.mark.parametrize("table_busy", [False, True], ids=["calm table", "busy table"])
def test_a_refusal_on_a_busy_computer_names_the_disturbance_and_is_not_repeated(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table_busy: bool
) -> None:
    device = install(monkeypatch, Device(lambda _s: table_busy, unfair=3.0))
    job, at = prepared(learned, tmp_path / "run", device)
    measure_table(job, at, at.table.parent)
    device.busy = lambda _s: True
    for _ in range(2):
        with pytest.raises(Infeasible) as refused:
            search(job, at, Budget(SHARE), at.search)
        text = str(refused.value)
        assert "60 % of the dense engine's latency" in text
        assert re.search(r"proves nothing, because other load disturbed the measurement of \d+ of \d+ plans", text)
        assert "--resume" in text
        assert "min_width" not in text
        assert ("networks of the latency table" in text) == table_busy
    device.busy = lambda _s: False
    assert 0.8 * SHARE < solved(job, at) <= 1.01 * SHARE


def test_a_refusal_of_a_quiet_computer_is_measured_anew_too(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = install(monkeypatch, Device())
    job, at = prepared(learned, tmp_path / "run", device)
    measure_table(job, at, at.table.parent)
    for _ in range(2):
        before_s = device.now_s
        with pytest.raises(
            Infeasible, match=r"the budget of 1 % of the dense engine's latency was not met: .*below the smallest plan"
        ):
            search(job, at, Budget(0.01), at.search)
        assert device.now_s > before_s + 0.5  # measured, not read back
        assert "proves nothing" not in json.loads((at.search / "refused.json").read_text())["doubt"]
    assert 0.8 * SHARE < solved(job, at) <= 1.01 * SHARE


def test_rounds_of_earlier_versions_are_read(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = install(monkeypatch, Device())
    job, at = prepared(learned, tmp_path / "run", device)
    measure_table(job, at, at.table.parent)
    found = search(job, at, Budget(SHARE), at.search)
    for path in at.search.glob("round*.json"):
        data = json.loads(path.read_text())
        for one in data["plans"]:
            one["readings"] = [taken["value"] for taken in one.pop("taken")]
        path.write_text(json.dumps(data))
    assert [(one.name, one.readings, one.met) for one in read_rounds(at.search)] == [
        (one.name, one.readings, one.met) for one in found
    ]


@pytest.mark.parametrize("unfair", UNFAIR)
def test_a_whole_run_beside_other_load_is_mended_by_resuming_it(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfair: float
) -> None:
    """From the table on, others have the cores; they end when the run has ended, whether refused or with a report."""
    device = install(monkeypatch, Device(lambda _s: True, unfair=3.0 * unfair))
    out, console = tmp_path / "run", Quiet()
    shutil.copytree(learned, out)
    config = settings(**CONFIG, compare={"uniform": [0.9]})
    if unfair > 0:
        with pytest.raises(Infeasible, match="proves nothing"):
            run(config, out, console, resume=True)
    else:
        run(config, out, console, resume=True)
        report = Report.load(out / "report.json")
        assert any("other load disturbed" in warning for warning in report.warnings)
    device.busy = lambda _s: False
    run(config, out, console, resume=True)
    if not (report := Report.load(out / "report.json")).met:  # the engines of a misled search were measured: once more
        run(config, out, console, resume=True)
        report = Report.load(out / "report.json")
    assert report.met
    assert not any("disturbed the final comparison" in warning for warning in report.warnings)
    assert report.models.pruned.latency_us.median <= 1.01 * SHARE * report.models.dense.latency_us.median
    kept = len(console.lines)
    run(config, out, console, resume=True)
    assert not any("done again" in line for line in console.lines[kept:])
