"""Segmentation from data to an INT8 engine and its pictures, on a small canvas; and the shipped configs on generated trees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mask_trees import camvid_tree, cityscapes_tree
from pydeploy.cli.app import app
from pydeploy.data.canvas import Canvas
from pydeploy.errors import ConfigError, DataError
from pydeploy.models.named import named
from pydeploy.report import Report
from pydeploy.run.config import load, parse
from pydeploy.run.pipeline import check, run
from quiet import Quiet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = {
    "task": {"name": "segmentation", "data": "canvas",
             "options": {"size": [32, 32], "train_size": 24, "test_size": 6, "workers": 0, "dice": 0.5}},
    "model": {"name": "unet", "options": {"width": 16, "depth": 1}},
    "train": {"epochs": 1, "batch_size": 8, "lr": 0.05, "warmup_epochs": 0, "amp": "off", "schedule": "poly"},
    "target": {"backend": "computing_backend:Computing", "threads": 1},
    "table": {"points": 2, "align": 8, "rounds": 1, "runs": 3},
    "prune": {"criterion": "taylor", "batches": 1, "batch_size": 4, "budget": 0.9, "rounds": 1},
    "finetune": {"epochs": 1, "batch_size": 8, "lr": 0.05, "warmup_epochs": 0, "amp": "off"},
    "quantize": {"observer": "minmax", "calibration": "scenes.yaml"},
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("canvas")
    (place / "scenes.yaml").write_text("source: canvas\ncount: 8\n")
    (place / "config.yaml").write_text(json.dumps(CONFIG))
    run(load(place / "config.yaml"), place / "run", Quiet())
    return place / "run"


def test_every_engine_is_judged_by_mean_iou(finished: Path) -> None:
    report = Report.load(finished / "report.json")
    assert report.metric.name == "mIoU"
    text = (finished / "report.md").read_text()
    assert "mIoU" in text
    assert "background" in text  # the table of classes
    assert "Wilson" not in text  # a mean over classes counts no samples
    assert report.models.quantized is not None
    for engine in (report.models.dense, report.models.pruned, report.models.quantized):
        assert engine.samples == 6
        assert {*engine.tables} == {"classes", "confusion"}


def test_predictions_are_masks_with_a_legend(finished: Path, tmp_path: Path) -> None:
    scene = Canvas((32, 32)).scene("test", 0)
    (tmp_path / "photos").mkdir()
    for name, factor in (("own", 1), ("larger", 5)):
        Image.fromarray(np.kron(scene.picture, np.ones((factor, factor, 1), np.uint8))).save(
            tmp_path / "photos" / f"{name}.png"
        )
    engine = finished / "08_pruned" / "model.engine"
    done = CliRunner().invoke(app, ["predict", str(engine), str(tmp_path / "photos"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    for record in json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]:
        assert record["size"] == [32, 32]
        assert sum(length for _, length in record["runs"]) == 32 * 32
    for file, side in (("0_larger.png", 160), ("1_own.png", 32)):
        with Image.open(tmp_path / "out" / file) as drawn:
            assert drawn.width > side  # the legend
            assert drawn.height >= side


@pytest.mark.parametrize(
    ("name", "tree"),
    [("camvid_resnet18_seg", camvid_tree), ("camvid_resnet50_seg", camvid_tree), ("cityscapes_deeplabv3", cityscapes_tree)],
)  # fmt: skip
def test_shipped_configs_are_accepted_on_a_tree_of_their_layout(name: str, tree: Any, tmp_path: Path) -> None:
    """With a small network in place of one that takes a minute to export; the other one is built."""
    root = tree(tmp_path / "data", 16)
    (tmp_path / "few.yaml").write_text(f"source: {name.partition('_')[0]}\ncount: 4\n")
    settings = [f"task.options.root={root}", "task.options.size=[32, 48]", "task.options.workers=0", "target.backend='null'",
                f"quantize.calibration={tmp_path / 'few.yaml'}", "finetune.batch_size=2", "train.batch_size=4"]  # fmt: skip
    path = ROOT / "configs" / f"segmentation_{name}.yaml"
    asked = load(path, settings).model
    named(asked.name, asked.options, {"num_classes": 19, "in_channels": 3})
    check(load(path, [*settings, "model.name=unet", "model.options={width: 4, depth: 1}"]), Quiet())


def test_a_tree_of_another_layout_ends_with_one_sentence(tmp_path: Path) -> None:
    cityscapes_tree(tmp_path / "data")
    settings = ["--set", f"task.options.root={tmp_path / 'data'}", "--set", "target.backend='null'"]
    config = str(ROOT / "configs" / "segmentation_camvid_resnet18_seg.yaml")
    with pytest.raises(DataError, match="is not CamVid in SegNet's layout"):
        CliRunner().invoke(app, ["check", config, *settings], catch_exceptions=False)


def test_an_unknown_task_name_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'segmentation'"):
        parse({**CONFIG, "task": {"name": "segmentatoin"}}, "x.yaml")
