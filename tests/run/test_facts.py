"""Facts of a run are records: what is missing, unknown or wrong in a file is named; files of before are read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pydeploy.errors import ConfigError, DataError
from pydeploy.run.artefacts import Files
from pydeploy.run.config import parse
from pydeploy.run.facts import EngineFacts, TableFacts, load
from pydeploy.run.pipeline import foresee, run
from pydeploy.timing.records import Timing, Turn
from quiet import Quiet
from test_config_checks import WHOLE

LATENCY = Timing(20, 100.0, 90.0, 110.0, interval=0.01, turns=(Turn(99.5, calm=True), Turn(100.5, calm=False)))
FACTS = EngineFacts(latency=LATENCY, metrics={"accuracy": 0.9, "loss": 1.2}, params=10, macs=20, precision="fp32",
                    target="abc", bytes=30, onnx_bytes=40)  # fmt: skip
TABLE = TableFacts(probes=3, keys=20, disturbed=1, seconds=2.5)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = Files(tmp_path).facts
    for record in (FACTS, TABLE):
        record.save(path)
        assert load(type(record), path) == record
    FACTS.save(path)
    assert json.loads(path.read_text())["latency"] == json.loads(json.dumps(asdict(LATENCY)))


def test_facts_of_before_are_read(tmp_path: Path) -> None:
    """Versions without rounds and intervals."""
    old = {"latency": {"n": 20, "median_us": 100.0, "p10_us": 90.0, "p90_us": 110.0, "disturbed": False},
           "metrics": {"accuracy": 1}, "params": 1, "macs": 2, "precision": "int8", "target": "x", "bytes": 1, "onnx_bytes": 2}  # fmt: skip
    Files(tmp_path).facts.write_text(json.dumps(old))
    assert load(EngineFacts, Files(tmp_path).facts).latency.median_us == 100.0


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [("params", None, "params"), ("params", -1, "params"), ("params", "3", "params"), ("metrics", {"a": "b"}, r"metrics\.a"),
     ("latency", {"n": 1}, r"latency\."), ("latency", 3, "latency"), ("colour", 3, "colour"), ("precision", 8, "precision")],
)  # fmt: skip
def test_a_wrong_entry_is_named(tmp_path: Path, key: str, value: Any, text: str) -> None:
    data = {**FACTS.model_dump(mode="json"), key: value}
    Files(tmp_path).facts.write_text(json.dumps(data))
    with pytest.raises(DataError, match=rf"facts\.json: '{text}.*run again with --resume"):
        load(EngineFacts, Files(tmp_path).facts)


@pytest.mark.parametrize("key", [key for key, field in EngineFacts.model_fields.items() if field.is_required()])
def test_a_missing_entry_is_named(tmp_path: Path, key: str) -> None:
    data = FACTS.model_dump(mode="json")
    del data[key]
    Files(tmp_path).facts.write_text(json.dumps(data))
    with pytest.raises(DataError, match=f"facts.json: '{key}'"):
        load(EngineFacts, Files(tmp_path).facts)


def test_a_plan_refuses_what_a_run_refuses(tmp_path: Path) -> None:
    """Results to take from where there are none."""
    config = parse(WHOLE, "test")
    for reuse in (tmp_path, tmp_path / "none"):
        for attempt in (
            lambda reuse=reuse: foresee(config, tmp_path / "out", Quiet(), reuse=reuse),
            lambda reuse=reuse: run(config, tmp_path / "out", Quiet(), reuse=reuse),
        ):
            with pytest.raises(ConfigError, match="is no run directory with a finished stage"):
                attempt()
    assert not (tmp_path / "out").exists()
