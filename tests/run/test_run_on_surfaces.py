"""The whole job on drawn cloth: decision and mask through pruning, INT8 and `pydeploy predict`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from defect_trees import elpv_tree, ksdd2_tree, tiles_tree
from pydeploy.backends.base import BACKENDS, open_backend
from pydeploy.cli import main
from pydeploy.data.canvas_textures import Woven
from pydeploy.data.deployment import FILE, Deployment
from pydeploy.errors import ConfigError
from pydeploy.report import Report
from pydeploy.run.config import load
from pydeploy.run.job import open_task
from pydeploy.run.pipeline import check, run
from quiet import Quiet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

ROOT = Path(__file__).parents[2]
CONFIG = {
    "task": {"name": "inspection", "data": "canvas",
             "options": {"size": [64, 128], "train_size": 32, "test_size": 8, "defective": 0.5, "validation": 0.25, "workers": 0}},
    "model": {"name": "segdecnet", "options": {"width": 2}},
    "train": {"epochs": 1, "batch_size": 6, "lr": 0.1, "warmup_epochs": 0, "clip_norm": 1.0, "amp": "off"},
    "target": {"backend": "null", "threads": 1},
    "table": {"points": 2, "align": 1, "rounds": 1, "runs": 3},
    "prune": {"criterion": "defect_aware", "batches": 1, "batch_size": 8, "budget": 0.8},
    "finetune": {"epochs": 1, "batch_size": 6, "lr": 0.02, "warmup_epochs": 0, "clip_norm": 1.0, "amp": "off"},
    "quantize": {"observer": "minmax", "calibration": "samples.yaml"},
}  # fmt: skip


def test_cloth_is_inspected_by_a_pruned_int8_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "null", "computing_backend:Computing")  # type: ignore[index]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "samples.yaml").write_text("source: canvas\ncount: 16\n")
    run(load(tmp_path / "config.yaml"), tmp_path / "run", Quiet())
    report = Report.load(tmp_path / "run" / "report.json")
    assert report.metric.name == "AP (trapezoid)"
    facts = {name: json.loads((tmp_path / "run" / name / "facts.json").read_text())["metrics"]
             for name in ("04_dense", "08_pruned", "09_quantized")}  # fmt: skip
    for found in facts.values():
        assert {"AP (step)", "AUROC", "F1", "accuracy", "TP", "FP", "FN", "TN", "pixel AP", "pixel IoU"} <= {*found}
    assert facts["09_quantized"] != facts["08_pruned"]
    assert report.models.quantized is not None
    assert report.models.quantized.tables["images and places"].columns == ("images", "places")
    way = Deployment.load(tmp_path / "run" / "08_pruned" / FILE)
    assert 0 < way.settings["threshold"] < 1
    assert way.settings["threshold"] != 0.5
    assert report.preprocessing is not None
    assert report.preprocessing["settings"] == dict(way.settings)
    predict(tmp_path)


def predict(top: Path) -> None:
    """The pruned network as an engine that a user has, on pictures that a user has."""
    (top / "mine").mkdir()
    shutil.copy(top / "run" / "08_pruned" / FILE, top / "mine")
    open_backend("onnxruntime", threads=1).build(
        top / "run" / "08_pruned" / "model.onnx", top / "mine" / "model.engine"
    )
    cloth = Woven((64, 128), 8, 8, 0.5, seed=5)
    (top / "pictures").mkdir()
    for index in range(4):
        Image.fromarray(cloth.piece("test", index)[0][:, :, 0]).save(top / "pictures" / f"{index}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys,
            "argv",
            [
                "pydeploy",
                "predict",
                str(top / "mine" / "model.engine"),
                str(top / "pictures"),
                "--out",
                str(top / "out"),
            ],
        )
        with pytest.raises(SystemExit) as done:
            main()
    assert not done.value.code
    found = json.loads((top / "out" / "predictions.json").read_text())["predictions"]
    assert len(found) == 4
    for one in found:
        assert one["label"] == ("defective" if one["score"] >= one["threshold"] else "sound")
        assert np.prod(one["heat"]["size"]) == len(one["heat"]["values"]) == 8 * 16
    assert len([*(top / "out").glob("*.png")]) == 4


@pytest.mark.parametrize("section", ["train", "finetune"])
def test_a_batch_is_no_larger_than_an_epoch(section: str) -> None:
    sizes = [f"{section}.batch_size=20", "prune.batch_size=16", "task.options.train_size=25"]
    config = load(ROOT / "configs" / "inspection_canvas.yaml", sizes)
    with pytest.raises(ConfigError, match=rf"{section}\.batch_size is 20, an epoch has 18 samples"):
        open_task(config)


@pytest.mark.parametrize(
    ("name", "tree", "more"),
    [("ksdd2_segdecnet", lambda root: ksdd2_tree(root, 24, 4), ["model.options.width=2"]),
     ("magnetic_tiles_cpu", lambda root: tiles_tree(root, 16), ["model.options.width=2", "table.align=1"]),
     ("elpv_cpu", lambda root: elpv_tree(root, 24), ["task.options.size=64"])],
    ids=["ksdd2", "tiles", "elpv"],
)  # fmt: skip
def test_shipped_configs_fit_their_layouts(
    tmp_path: Path, name: str, tree: Callable[[Path], Path], more: list[str]
) -> None:
    samples = (ROOT / "calib" / f"{name.split('_cpu')[0].split('_seg')[0]}.yaml").read_text()
    (tmp_path / "samples.yaml").write_text(samples.replace("count: 256", "count: 16"))
    places = [f"task.options.root={tree(tmp_path / 'data')}", f"quantize.calibration={tmp_path / 'samples.yaml'}"]
    check(
        load(
            ROOT / "configs" / f"inspection_{name}.yaml",
            [*places, 'target.backend="null"', "task.options.workers=0", *more],
        ),
        Quiet(),
    )
