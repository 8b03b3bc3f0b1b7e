"""The shipped configs of classifiers, opened on generated trees of the real layouts; one of them as a whole by `check`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from picture_trees import tree
from pydeploy.run.checks import check_batch
from pydeploy.run.config import load
from pydeploy.run.job import fresh_model, open_job
from pydeploy.run.pipeline import check
from quiet import Quiet

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def binary(top: Path, names: tuple[str, ...], labels: int, classes: int) -> Path:
    top.mkdir(parents=True)
    for number, name in enumerate(names):
        rows = np.random.default_rng(number).integers(0, 256, (560, labels + 3072), np.uint8)
        rows[:, :labels] = (np.arange(560) % classes)[:, None]
        (top / name).write_bytes(rows.tobytes())
    return top


def imagenet(top: Path) -> Path:
    for split in ("train", "val"):
        tree(top / split, 180)
    return top


CIFAR10 = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
TREES = {
    "classification_cifar10_resnet20": lambda top: binary(top, CIFAR10, 1, 10),
    "classification_cifar100_resnet50": lambda top: binary(top, ("train.bin", "test.bin"), 2, 100),
    "classification_imagenet_mobilenetv3": imagenet,
}


@pytest.mark.parametrize("name", TREES)
def test_a_shipped_config_opens_on_its_layout(name: str, tmp_path: Path) -> None:
    small = ["target.backend=null", "model.options.width=16"] if name.endswith("resnet20") else []
    config = load(ROOT / "configs" / f"{name}.yaml", [f"task.options.root={TREES[name](tmp_path / 'data')}", *small])
    job = open_job(config, Quiet())
    check_batch(job, fresh_model(job))
    if name.endswith("resnet20"):
        assert check(config, Quiet())
