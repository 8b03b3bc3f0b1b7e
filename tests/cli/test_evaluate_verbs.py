"""`pydeploy train`, `eval` and `summary`, one after the other."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pydeploy.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CONFIG = """
task: {data: synthetic, options: {data_settings: {size: 12, classes: 3, train_size: 32, test_size: 20}}}
model: {name: resnet8, options: {width: 4}}
train: {epochs: 2, batch_size: 16, lr: 0.1, warmup_epochs: 0, amp: "off", keep: best, ema: 0.5}
target: {backend: "null"}
prune: {budget: 0.7, batch_size: 16}
finetune: {epochs: 1, batch_size: 16}
"""


@pytest.fixture
def verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a verb in this process, in a folder with the config; gives what it writes."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)

    def run(*words: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["pydeploy", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            main()
        said = capsys.readouterr()
        assert (done.value.code or 0) == code, said.err
        return said.err if code else said.out

    return run


def test_what_training_reached_is_what_eval_says(verb: Any) -> None:
    verb("train", "config.yaml", "--out", "dense")
    history = json.loads(Path("dense/history.json").read_text())
    found = json.loads(verb("eval", "config.yaml", "dense/model.safetensors", "--json"))
    assert found["metrics"]["accuracy"] == max(epoch["metric"] for epoch in history)
    counts = found["tables"]["confusion"]["values"]
    assert sum(map(sum, counts)) == 20
    assert sum(counts[index][index] for index in range(3)) / 20 == found["metrics"]["accuracy"]
    assert json.loads(verb("train", "config.yaml", "--out", "dense", "--eval-only", "--json")) == found
    text = verb("eval", "config.yaml", "dense/model.safetensors", "--batch", 7)
    assert f"{100 * found['metrics']['accuracy']:.2f} %" in text
    assert "confusion" in text
    verb("train", "config.yaml", "--out", "dense", "--no-resume")
    assert [e["loss"] for e in json.loads(Path("dense/history.json").read_text())] == [e["loss"] for e in history]
    assert "nowhere.safetensors does not exist" in verb("eval", "config.yaml", "nowhere.safetensors", code=2)


def test_summary_adds_up(verb: Any) -> None:
    words = ("summary", "pydeploy:resnet8", "-o", "width=4", "--input", "1x3x12x12")
    found = json.loads(verb(*words, "--json"))
    assert found["total"]["params"] == sum(layer["params"] for layer in found["layers"])
    assert found["total"]["int8_bytes"] < found["total"]["fp32_bytes"] == 4 * found["total"]["params"]
    assert f"{found['total']['macs']:,} MACs" in verb(*words)
