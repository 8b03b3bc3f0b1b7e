"""`pydeploy check`, and what a run tries before it trains: whatever fails later is told now, and nothing stays behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pydeploy.cli.app import app
from pydeploy.errors import ConfigError, DeployError
from pydeploy.run.config import Config, parse
from pydeploy.run.job import open_job
from pydeploy.run.pipeline import check, run, stages_of
from quiet import Quiet
from test_config_checks import WHOLE

# torch's ONNX exporter and accelerate warn about their own internals.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TASK = """
import numpy as np
import torch
from torch import nn
from pydeploy.tasks.contract import Batch, Task
from pydeploy.tasks.metric import Metric

class Mine(Task):
    data, metric, input_names, output_names = "mine", Metric("score", ""), ("x",), ("y",)
    def size(self, split): return 100 if split == "train" else 40
    def samples(self, split, chosen, preprocessing=None):
        x = torch.from_numpy(np.random.default_rng(0).normal(size=(100, 1, 12, 12)).astype(np.float32)[chosen])
        return Batch((x,), x.mean((1, 2, 3)))
    def loss(self, outputs, batch): return ((outputs["y"][:, 0] - batch.target) ** 2).mean()
    def metrics(self, results): return {"score": sum(len(o["y"]) for o, _ in results)}

class NoGradient(Mine):
    def loss(self, outputs, batch): return batch.target.mean().requires_grad_()
class InfiniteGradient(Mine):
    def loss(self, outputs, batch): return (outputs["y"][:, 0] * 0).abs().sqrt().mean()
class TextLoss(Mine):
    def loss(self, outputs, batch): return "small"
class LossOfMany(Mine):
    def loss(self, outputs, batch): return outputs["y"]
class NanLoss(Mine):
    def loss(self, outputs, batch): return outputs["y"].mean() * float("nan")
class OtherMetric(Mine):
    def metrics(self, results): return {"scores": 1.0}
class FailingMetric(Mine):
    def metrics(self, results): return {"score": 1 / 0}
class FailingBatches(Mine):
    def train_batches(self, epoch, batch_size, seed): return [self.no_such_thing]
class NoBatches(Mine):
    def train_batches(self, epoch, batch_size, seed): return iter(())
class TextMetric(Mine):
    metric = "score"
class Lacking(Task):
    data = "x"
class NotATask:
    pass

def net():
    return nn.Sequential(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1))
"""


def config(tmp_path: Path, task: str, model: str = "net") -> Config:
    (tmp_path / "mine.py").write_text(TASK)
    data = {key: value for key, value in WHOLE.items() if key not in ("task", "quantize", "compare")}
    return parse({**data, "task": {"name": f"mine.py:{task}"}, "model": {"name": f"mine.py:{model}"}}, "test", tmp_path)


WRONG = {
    "NoGradient": "no parameter of the network gets a gradient",
    "InfiniteGradient": "has gradients that are NaN or infinite",
    "TextLoss": "must be one finite number, got 'small'",
    "LossOfMany": r"must be one finite number, got a tensor \[2, 1\]",
    "NanLoss": "must be one finite number, got tensor.nan",
    "OtherMetric": "the task's metrics are scores; expected 'score' among them",
    "FailingMetric": r"the metrics of the task .*FailingMetric fail on 40 test samples: ZeroDivisionError.*mine.py, line 30",
    "FailingBatches": r"the training batches of the task .* cannot be made: AttributeError.*no_such_thing",
    "NoBatches": "gives no training batch of 32 samples",
    "TextMetric": "'metric' is 'score'; expected a pydeploy.tasks.metric.Metric",
    "Lacking": r"Lacking cannot be built with \{\}: TypeError: Can't instantiate abstract class Lacking.*loss.*metrics.*samples.*size",
    "NotATask": "gives a NotATask; expected a class that follows pydeploy.tasks.contract.Task",
}


@pytest.mark.parametrize("task", WRONG)
def test_a_task_that_would_fail_later_is_told_before_any_training(task: str, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=WRONG[task]) as caught:
        run(config(tmp_path, task), tmp_path / "out", Quiet())
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("started.json"))


def test_a_check_tells_about_every_stage_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path, "Mine")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    found = check(settings, Quiet())
    assert list(found) == [stage.name for stage in stages_of(open_job(settings, Quiet()))]
    assert all(spent >= 0 for spent in found.values())
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before


def test_the_verb(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TASK)
    data: dict[str, Any] = {key: value for key, value in WHOLE.items() if key not in ("quantize", "compare")}
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(data))
    result = CliRunner().invoke(app, ["check", str(path)])
    assert result.exit_code == 0, result.output
    assert "01_train" in result.output
    assert f"{path}: nothing is wrong" in result.output
    shown = CliRunner().invoke(app, ["check", str(path), "--json"])
    assert "01_train" in json.loads(shown.stdout)["seconds"]
    with pytest.raises(ConfigError, match="unknown criterion"):
        CliRunner().invoke(app, ["check", str(path), "--set", "prune.criterion=tailor"], catch_exceptions=False)


def test_a_metric_that_needs_more_samples_is_only_a_remark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that wants both classes, where the first samples are all of one."""
    monkeypatch.setattr("pydeploy.run.preflight.SAMPLES", 8)
    console = Quiet()
    check(config(tmp_path, "FailingMetric"), console)
    assert any("fail on 8 test samples: ZeroDivisionError" in line for line in console.lines)
