"""Sparse training by two processes is that by one with the batches of both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import os, sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
from pydeploy.data.image_sets import synthetic
from pydeploy.prune.sparsity.settings import SparsitySettings
from pydeploy.tasks.classification import Classification
from pydeploy.tasks.contract import Batch
from pydeploy.train.loop import fit
from pydeploy.train.settings import FitSettings

OUT, WORLD = Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", "1"))


class Halved(Classification):
    # A batch of 16 as one, or as two halves whose statistics and gradients are those of the whole.

    def train_batches(self, epoch, batch_size, seed):
        for batch in super().train_batches(epoch, 16, seed):
            if WORLD == 1:
                yield batch
            else:
                yield from (Batch((batch.inputs[0][part],), batch.target[part]) for part in (slice(0, 8), slice(8, 16)))


class Fixed(nn.BatchNorm2d):
    # Normalizes by its own statistics while it trains: those of a batch differ between its halves.

    def train(self, mode=True):
        return super().train(False)


def run(kind, **given):
    task = Halved(synthetic(train_size=64, test_size=16, size=8, noise=20.0))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), Fixed(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), Fixed(8), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    with torch.no_grad():
        net[1].weight.copy_(torch.linspace(0.02, 1, 8))
    settings = FitSettings(epochs=2, batch_size=16 // WORLD, lr=0.05, warmup_epochs=0, amp="off")
    found = fit(net, task, settings, out=OUT / f"{kind}{WORLD}", sparsity=SparsitySettings(kind=kind, **given))
    return {f"{kind}.{name}": value.numpy() for name, value in found.model.state_dict().items()}


found = run("slimming", rate=0.05) | run("ista", rate=0.3) | run("group_norm", rate=0.01) | run("dmcp", target=0.3)
if os.environ.get("RANK", "0") == "0":
    np.savez(OUT / f"{WORLD}.npz", **found)
"""


@pytest.mark.slow
def test_two_processes_are_one_with_both_batches(tmp_path: Path) -> None:
    """The term is added once, to the mean gradient of both processes."""
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for before in ([], two):
        subprocess.run(
            [sys.executable, *before, str(tmp_path / "train.py"), str(tmp_path)],
            env=environment,
            check=True,
            timeout=300,
        )
    one, both = (np.load(tmp_path / f"{world}.npz") for world in (1, 2))
    assert set(one.files) == set(both.files)
    for name in one.files:
        np.testing.assert_allclose(both[name], one[name], rtol=2e-3, atol=2e-4, err_msg=name)
    for kind in ("slimming", "ista"):
        assert not np.allclose(one[f"{kind}.1.weight"], np.linspace(0.02, 1, 8), atol=0.01), kind
    assert (one["ista.1.weight"] == 0).any()
    assert ((one["ista.1.weight"] == 0) == (both["ista.1.weight"] == 0)).all()
