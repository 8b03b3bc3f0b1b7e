"""``report.json``: round trip, and what a damaged or foreign file is told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pydeploy.errors import DataError
from pydeploy.report import Latency, Recommendation, Report, Round
from pydeploy.timing.records import Target, Timing
from report_factory import ACCURACY, CPU, latency, model, models, sample


def without(data: Any, *path: str | int) -> Any:
    *parents, last = path
    place = data
    for key in parents:
        place = place[key]
    del place[last]
    return data


def replaced(data: Any, value: Any, *path: str | int) -> Any:
    *parents, last = path
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    return data


def test_a_saved_report_loads_equal(tmp_path: Path) -> None:
    report = sample()
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report


def test_absent_parts_survive_the_round_trip() -> None:
    report = sample(
        models=models(quantized=None), candidates=(), rounds=(), layers=(), groups=(), table=None, seconds={}
    )
    again = Report.from_json(json.loads(json.dumps(report.to_json())))
    assert again == report
    assert again.models.quantized is None
    assert list(again.models.present) == ["dense", "pruned"]


def test_the_json_has_the_promised_names() -> None:
    data = sample().to_json()
    assert data["schema"] == 2
    assert data["target"] == CPU.to_json()
    assert Target.from_json(data["target"]).fingerprint == CPU.fingerprint
    for name in ("dense", "pruned", "quantized"):
        assert {"median", "p10", "p90", "n", "disturbed", "turns", "interval"} == set(
            data["models"][name]["latency_us"]
        )
        assert {"value", "samples", "params", "macs", "bytes", "precision", "target"} < set(data["models"][name])
    assert {"predicted_us", "measured_us", "met"} < set(data["rounds"][0])
    assert list(data["seconds"]) == ["train", "trace", "table", "solve", "finetune", "profile"]


REQUIRED = [
    ("created",),
    ("target",),
    ("target", "batch"),
    ("budget_us",),
    ("met",),
    ("models", "dense"),
    ("models", "pruned", "latency_us", "p90"),
    ("models", "quantized", "value"),
    ("rounds", 1, "measured_us"),
    ("layers", 0, "cout_after"),
    ("recommendation", "model"),
]


@pytest.mark.parametrize("path", REQUIRED, ids=lambda path: ".".join(map(str, path)))
def test_a_missing_entry_is_named(path: tuple[str | int, ...]) -> None:
    with pytest.raises(DataError, match=f"'{'.'.join(map(str, path))}' is missing"):
        Report.from_json(without(sample().to_json(), *path))


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (("extra",), "'extra' is unknown"),
        (("models", "dense", "flops"), r"'models\.dense\.flops' is unknown"),
        (("rounds", 0, "note"), r"'rounds\.0\.note' is unknown"),
        (("target", "colour"), "'target' unknown key 'colour'"),
    ],
    ids=["top", "model", "round", "target"],
)
def test_an_unknown_entry_is_named(path: tuple[str | int, ...], named: str) -> None:
    with pytest.raises(DataError, match=named):
        Report.from_json(replaced(sample().to_json(), 1, *path))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("budget_us",), "fast", "budget_us"),
        (("budget_us",), None, "budget_us"),
        (("budget_us",), 0, "budget_us"),
        (("met",), "yes", "met"),
        (("models", "dense", "params"), "12", r"models\.dense\.params"),
        (("models", "dense", "value"), 93.2, r"models\.dense\.value.*must lie in \[0, 1\], as shares do"),
        (("models", "dense", "latency_us", "p10"), 9e9, r"models\.dense\.latency_us.*ascend"),
        (("rounds", 0, "predicted_us"), -1.0, r"rounds\.0\.predicted_us"),
        (("recommendation", "model"), "tiny", r"recommendation\.model"),
        (("warnings",), "none", "warnings"),
    ],
    ids=["text", "null", "zero", "bool", "number as text", "percent", "order", "negative", "name", "no list"],
)
def test_a_wrong_entry_is_named(path: tuple[str | int, ...], value: Any, named: str) -> None:
    with pytest.raises(DataError, match=named):
        Report.from_json(replaced(sample().to_json(), value, *path))


@pytest.mark.parametrize("data", [None, [], "report", {}, {"schema": 3}, {"schema": "1"}], ids=repr)
def test_another_kind_of_data_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match="not a report of schema 2"):
        Report.from_json(data)


def test_many_faults_are_summed_up() -> None:
    with pytest.raises(DataError, match=r"\(and \d+ more\)") as caught:
        Report.from_json({"schema": 1})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "damage",
    [lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[1]"],
    ids=["cut", "empty", "foreign"],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[str], str]) -> None:
    path = tmp_path / "report.json"
    path.write_text(damage(json.dumps(sample().to_json())))
    with pytest.raises(DataError, match=r"report\.json"):
        Report.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json does not exist"):
        Report.load(tmp_path / "nowhere.json")


def test_numpy_scalars_become_plain_numbers() -> None:
    result = model(np.float64(1000.0), np.float32(0.5), params=np.int64(7), bytes=np.int32(8))
    assert (type(result.params), type(result.value)) == (int, float)
    json.dumps(sample(models=models(pruned=result)).to_json())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_json_lacks_are_refused_at_once(bad: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Round(predicted_us=bad, measured_us=1.0, met=True)


def test_a_recommendation_needs_its_engine() -> None:
    with pytest.raises(ValidationError, match="recommends 'quantized'"):
        sample(models=models(quantized=None), recommendation=Recommendation(model="quantized", reason="because"))


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=30), st.booleans())
def test_latency_states_what_the_timing_states(samples: list[float], disturbed: bool) -> None:
    timing = Timing.of(samples, disturbed=disturbed)
    found = Latency.of(timing)
    assert found == Latency(timing.median_us, timing.p10_us, timing.p90_us, len(samples), disturbed,
                            interval=timing.interval)  # fmt: skip


def test_prediction_error_is_that_of_the_last_round() -> None:
    rounds = (Round(predicted_us=100, measured_us=200, met=False), Round(predicted_us=90, measured_us=100, met=True))
    assert sample(rounds=rounds).prediction_error == pytest.approx(0.1)
    assert rounds[0].error == pytest.approx(-0.5)
    assert sample(rounds=()).prediction_error is None


def test_records_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        latency(5.0).median = 4.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[2] / "docs" / "figures").glob("*/report.json")),
    ids=lambda path: path.parent.name,
)
def test_reports_of_version_1_are_read(path: Path) -> None:
    """All metrics were shares, called accuracies."""
    report, data = Report.load(path), json.loads(path.read_text())
    assert report.metric == ACCURACY
    assert [one.value for one in report.models.present.values()] == [
        data["models"][name].get("value", data["models"][name].get("accuracy")) for name in report.models.present
    ]
    assert Report.from_json(report.to_json()) == report
