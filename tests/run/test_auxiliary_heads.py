"""A head that only trains: in the loss and in the cut, not in the engine, its table, its size or its metrics."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from pydeploy.report import Report
from pydeploy.run.config import parse
from pydeploy.run.pipeline import run
from quiet import Quiet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CODE = """
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from pydeploy.tasks.contract import Batch, Task
from pydeploy.tasks.metric import Metric, MetricTable

class Two(Task):
    data, metric, input_names, output_names = "two", Metric("accuracy"), ("x",), ("classes",)
    def size(self, split): return 64
    def samples(self, split, chosen, preprocessing=None):
        x = np.random.default_rng(0).normal(size=(64, 2, 8, 8)).astype(np.float32)[chosen]
        return Batch((torch.from_numpy(x),), torch.from_numpy((x.mean((1, 2, 3)) > 0).astype(np.int64)))
    def loss(self, outputs, batch):
        assert list(outputs) == ["classes", "aux"]
        return {"classes": cross_entropy(outputs["classes"], batch.target), "aux": 0.4 * cross_entropy(outputs["aux"], batch.target)}
    def metrics(self, results):
        counts = np.zeros((2, 2), int)
        for outputs, batch in results:
            assert list(outputs) == ["classes"]
            np.add.at(counts, (batch.target.numpy(), outputs["classes"].argmax(1)), 1)
        return {"accuracy": np.trace(counts) / counts.sum(), "confusion": MetricTable.confusion(("low", "high"), counts)}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(2, 64, 3), nn.BatchNorm2d(64), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(64, 2)
        self.aux = nn.Sequential(nn.Conv2d(64, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 2))
    def forward(self, x):
        x = self.one(x)
        return {"out": self.head(self.pool(self.two(x))), "aux": self.aux(x)}
"""

FIT = {"epochs": 1, "batch_size": 16, "lr": 0.05, "warmup_epochs": 0, "amp": "off"}
CONFIG = {
    "task": {"name": "two.py:Two"},
    "model": {"name": "two.py:Net"},
    "train": FIT,
    "target": {"backend": "null", "threads": 1},
    "table": {"points": 2, "align": 8, "rounds": 1, "runs": 2},
    "prune": {"criterion": "taylor", "batches": 1, "batch_size": 8, "budget": 0.9},
    "finetune": FIT,
}


def test_a_head_that_only_trains(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(CODE)
    run(parse(CONFIG, "test", tmp_path), tmp_path / "run", Quiet())
    history = json.loads((tmp_path / "run" / "01_train" / "history.json").read_text())
    assert list(history[0]["parts"]) == ["classes", "aux"]
    assert history[0]["loss"] == pytest.approx(sum(history[0]["parts"].values()))
    assert (
        list(json.loads((tmp_path / "run" / "07_finetune" / "history.json").read_text())[0]["parts"])[-1] == "distill"
    )
    for folder in ("04_dense", "08_pruned"):
        net = onnx.load(tmp_path / "run" / folder / "model.onnx")
        assert [value.name for value in net.graph.output] == ["classes"]
        assert not [node.name for node in net.graph.node if "aux" in node.name]
    graph = json.loads((tmp_path / "run" / "02_graph" / "graph.json").read_text())
    assert graph["idle"] == ["aux.0", "aux.4"]
    report = Report.load(tmp_path / "run" / "report.json")
    assert not [layer.name for layer in report.layers if "aux" in layer.name]
    assert report.models.dense.tables["confusion"].rows == ("low", "high")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "true, below; predicted, right" in page
