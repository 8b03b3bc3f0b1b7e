"""Branches that a sparse training left dead, from the trained tensors to a config that trains what is left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from pydeploy.cli.app import app
from pydeploy.models import build
from pydeploy.prune.surgery.save import save
from pydeploy.run.config import load
from pydeploy.run.job import open_job, open_task, start_model
from pydeploy.tasks.evaluate import batches, named
from quiet import Quiet


def test_what_follows_a_dead_layer_goes_with_its_priors_and_heads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build("ssd_small", width=8, num_classes=10).eval()
    nn.init.constant_(model.backbone.layers[-1][1].weight, 1e-5)  # makes the fourth map
    save(tmp_path / "sparse.safetensors", model)
    done = CliRunner().invoke(
        app,
        ["ssd", "branches", "pydeploy:ssd_small", "-o", "width=8", "-o", "num_classes=10",
         "--weights", str(tmp_path / "sparse.safetensors"), "--out", str(tmp_path / "fewer"), "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["branches"], said["of"]) == (3, 4)
    config = {
        "task": {"name": "detection", "data": "canvas", "options": {"size": 32, "train_size": 8, "test_size": 4, "workers": 0}},
        "model": said["model"], "train": {"batch_size": 4}, "target": {"backend": "null"},
        "prune": {"budget": 0.9, "batch_size": 4}, "finetune": {"batch_size": 4},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    loaded = load(tmp_path / "config.yaml")
    fewer, task = start_model(open_job(loaded, Quiet())).eval(), open_task(loaded)
    batch = next(batches(task, "train", 4))
    with torch.no_grad():
        whole, part = model(*batch.inputs), fewer(*batch.inputs)
    for ours, theirs in zip(part, whole, strict=True):
        np.testing.assert_allclose(ours, theirs[:, : ours.shape[1]], atol=1e-5)
    outputs = named(task, part)
    task.check({name: tuple(value.shape) for name, value in outputs.items()}, batch)
    assert sum(task.loss(outputs, batch).values()) > 0
