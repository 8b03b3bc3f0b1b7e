"""Run directories of versions whose stamps were one hash: kept where nothing that a stage reads has changed, else done again.

``earlier_run.json`` holds the config, the stamps and the hash of the calibration samples of a run on the analytic device that
version wrote; what it can be compared with is not computed by today's code.
"""

from __future__ import annotations

import copy
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pydeploy.graph import Graph
from pydeploy.latency.table.store import Provenance
from pydeploy.latency.table.table import Table
from pydeploy.run.config import parse
from pydeploy.run.earlier import Earlier
from pydeploy.run.folder import RunFolder
from pydeploy.run.job import fresh_model, open_job
from pydeploy.run.pipeline import foresee, stages_of
from pydeploy.tasks.evaluate import example
from pydeploy.timing.records import Target, Timing
from quiet import Quiet

ROOT = Path(__file__).parents[2]
OLD = json.loads((Path(__file__).parent / "earlier_run.json").read_text())


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(ROOT)  # the calibration manifest is named relative to it
    data = copy.deepcopy(OLD["config"])
    data["compare"]["torch_pruning"] = []  # its package need not be here
    return data


@pytest.fixture
def out(tmp_path: Path, config: dict[str, Any]) -> Path:
    """The directory, as far as it is looked at: notes, the config, the graph, the widths in the table, the ranges' samples."""
    from pydeploy.prune.structure.trace import trace as find

    root, job = tmp_path / "run", open_job(parse(config, "test"), Quiet())
    for name, stamp in OLD["stamps"].items():
        (root / name).mkdir(parents=True)
        (root / name / "stamp.json").write_text(json.dumps({"stamp": stamp, "seconds": 1.0, "files": {}}))
    graph = find(fresh_model(job), example(job.task))
    graph.save(root / "02_graph" / "graph.json")
    _table(root, graph, job.backend.target())
    (root / "09_quantized" / "ranges.json").write_text(json.dumps({"data": OLD["samples"]}))
    (root / "config.json").write_text(json.dumps(OLD["config"]))
    begun = time.time() - 3600
    os.utime(root / "config.json", (begun, begun))
    return root


def _table(root: Path, graph: Graph, target: Target) -> None:
    """A latency table with the networks of all least and of all full widths of that run: 2 points, multiples of 16."""
    table, took = Table.open(root / "05_table" / "table.sqlite", target), Timing.of([100.0, 100.0, 100.0])
    for name in ("least", "full"):
        widths = {group.name: 16 if name == "least" else group.width for group in graph.prunable}
        made = Provenance("probe", name, "2026-01-01", "0.1.0")
        table.add_network(graph, widths, took, {op.name: took for op in graph.ops}, made)


def again(data: dict[str, Any], out: Path) -> dict[str, str]:
    found = foresee(parse(data, "test"), out, Quiet())
    return {stage.name: verdict.why for stage, verdict in found if not verdict.stays and stage.name != "11_profile"}


def test_nothing_is_done_again_where_nothing_has_changed(config: dict[str, Any], out: Path) -> None:
    assert again(config, out) == {}


def test_a_kept_result_gets_a_stamp_of_today(config: dict[str, Any], out: Path) -> None:
    job = open_job(parse(config, "test"), Quiet())
    folder = RunFolder.open(out, Quiet(), resume=True, earlier=Earlier(job, [out]))
    for stage in stages_of(job)[:-1]:
        folder.stage(stage.name, job.settings(stage.reads), partial(_not_made, stage.name), stage.after)
    plain = RunFolder(out, Quiet())
    for stage in stages_of(job)[:-1]:
        assert plain.foresee(stage.name, job.settings(stage.reads), stage.after).stays


def _not_made(name: str, _here: Path) -> None:
    raise AssertionError(f"{name} is done again")


SEARCHED = {"06_search", "07_finetune", "08_pruned", "09_quantized", "09_mixed", "09_half"}


@pytest.mark.parametrize(
    ("section", "key", "value", "stages", "why"),
    [
        ("prune", "headroom", 0.03, {*SEARCHED, "10_joint-0.8"}, "prune.headroom was 0.015, is 0.03"),
        ("prune", "rounds", 2, {*SEARCHED, "10_joint-0.8"}, "prune.rounds was 3, is 2"),
        (
            "prune",
            "min_width",
            40,
            {"05_table", *SEARCHED, "10_joint-0.8", "10_uniform-0.8"},
            "prune.min_width was 1, is 40",
        ),
        ("compare", "limit", 2.0, {"09_mixed"}, "compare.limit was 1.0, is 2.0"),
        ("quantize", "observer", "mse", {"09_quantized", "09_mixed"}, 'quantize.observer was "minmax", is "mse"'),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_has_changed_since_is_done_again(
    config: dict[str, Any], out: Path, section: str, key: str, value: Any, stages: set[str], why: str
) -> None:
    config[section][key] = value
    found = again(config, out)
    assert set(found) == stages
    assert any(why in text for text in found.values())


def test_other_samples_than_those_it_was_calibrated_on(config: dict[str, Any], out: Path, tmp_path: Path) -> None:
    """The old stamp had the manifest's name only."""
    (out / "09_quantized" / "ranges.json").write_text(json.dumps({"data": "0" * 64}))
    found = again(config, out)
    assert set(found) == {"09_quantized", "09_mixed"}
    assert "other samples" in found["09_quantized"]


def test_what_an_old_stamp_did_not_note_and_nothing_else_tells(config: dict[str, Any], out: Path) -> None:
    """The directory was resumed since: its config may be another than the one that the stage was made with."""
    (out / "config.json").touch()
    os.utime(out / "config.json", (time.time() + 10, time.time() + 10))
    found = again(config, out)
    assert set(found) == {"10_joint-0.8"}
    assert "did not note prune.headroom, prune.rounds, prune.min_width" in found["10_joint-0.8"]


def test_partial_work_of_an_earlier_version_goes_on(config: dict[str, Any], out: Path) -> None:
    (out / "01_train" / "stamp.json").rename(out / "01_train" / "started.json")
    (out / "01_train" / "checkpoint").write_text("epoch 1")
    job = open_job(parse(config, "test"), Quiet())
    folder = RunFolder.open(out, Quiet(), resume=True, earlier=Earlier(job, [out]))
    first, seen = stages_of(job)[0], []
    folder.stage(first.name, job.settings(first.reads), lambda here: seen.append((here / "checkpoint").exists()))
    assert seen == [True]
