"""The whole job of a detector: from drawn scenes to a measured INT8 engine, whose boxes are drawn on pictures."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from box_trees import NAMES, voc_tree, yolo_tree
from pydeploy.backends.base import BACKENDS
from pydeploy.cli.app import app
from pydeploy.data.canvas import Canvas
from pydeploy.data.deployment import FILE, Deployment
from pydeploy.errors import ConfigError
from pydeploy.export import export
from pydeploy.models import build
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.qdq import quantize
from pydeploy.report import Report
from pydeploy.run.config import load, parse
from pydeploy.run.job import open_job, open_task
from pydeploy.run.pipeline import run
from pydeploy.tasks.detection.task import MAP_50
from quiet import Quiet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
ROOT = Path(__file__).parents[2]
CONFIG = {
    "task": {"name": "detection", "data": "canvas", "options": {"size": 32, "train_size": 24, "test_size": 6, "workers": 0}},
    "model": {"name": "ssd_small", "options": {"width": 8}},
    "train": {"epochs": 1, "batch_size": 8, "lr": 0.02, "warmup_epochs": 0, "amp": "off"},
    "target": {"backend": "null", "threads": 1},
    "table": {"points": 2, "align": 4, "rounds": 1, "runs": 2},
    "prune": {"criterion": "l1", "batches": 1, "batch_size": 8, "budget": 0.95},
    "finetune": {"epochs": 1, "batch_size": 8, "lr": 0.01, "warmup_epochs": 0, "amp": "off"},
    "quantize": {"observer": "minmax", "calibration": "scenes.yaml"},
}  # fmt: skip


def test_scenes_become_an_int8_engine_that_draws_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "null", "computing_backend:Computing")  # type: ignore[index]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "scenes.yaml").write_text(yaml.safe_dump({"source": "canvas", "count": 16}))
    run(load(tmp_path / "config.yaml"), tmp_path / "run", Quiet())
    report = Report.load(tmp_path / "run" / "report.json")
    assert report.metric.name == MAP_50
    assert report.models.quantized is not None
    table = report.models.quantized.tables["classes"]
    assert len(table.rows) == 10
    assert "mAP@0.5" in (tmp_path / "run" / "report.md").read_text()
    folder = tmp_path / "run" / "09_quantized"
    way = Deployment.load(folder / FILE)
    assert way.kind == "detection"
    way.settings["score"] = 0.001  # an untrained network is sure of nothing
    way.save(folder)
    photo = tmp_path / "photo.png"
    Image.fromarray(Canvas((48, 64)).scene("test", 3).picture).save(photo)
    done = CliRunner().invoke(
        app, ["predict", str(folder / "model.engine"), str(photo), "--out", str(tmp_path / "seen")]
    )
    assert done.exit_code == 0, done.output
    (one,) = json.loads((tmp_path / "seen" / "predictions.json").read_text())["predictions"]
    assert one["objects"]
    assert all(0 <= edge <= 32 for found in one["objects"] for edge in found["box"])
    drawn = np.asarray(Image.open(tmp_path / "seen" / "0_photo.png"))
    assert drawn.shape == (48, 64, 3)
    assert (drawn != np.asarray(Image.open(photo))).any()


def test_a_cfg_says_which_layers_int8_leaves_alone(tmp_path: Path) -> None:
    layers = ["quantization=0", "quantization=1", "quantization=1\nfeature=linear"]
    (tmp_path / "net.cfg").write_text(
        "".join(f"[convolutional]\nfilters=16\nsize=3\nstride=2\npad=1\n{one}\n" for one in layers)
    )
    data = {**copy.deepcopy(CONFIG), "model": {"name": "ssd_cfg", "options": {"cfg": "net.cfg", "boxes": [2]}}}
    data["quantize"]["exclude"] = ["boxes.0"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    config = load(tmp_path / "config.yaml")
    assert config.quantize is not None
    assert config.quantize.exclude == ["boxes.0", "backbone.layers.0.0"]
    assert parse(config.to_json(), "again").quantize == config.quantize
    model = build("ssd_cfg", **config.model.options).eval()
    path = export(model, torch.zeros(1, 3, 32, 32), tmp_path / "net.onnx")
    feeds = [{"input": np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)}]
    ranges = calibrate(path, feeds, observer="minmax", style="onnxruntime", threads=1, few=0)
    done = quantize(path, ranges, tmp_path / "int8.onnx", style="onnxruntime", exclude=config.quantize.exclude)
    assert {name for name, why in done.skipped.items() if why == "excluded by name"} == set(config.quantize.exclude)
    (tmp_path / "net.cfg").write_text("[route]")
    with pytest.raises(ConfigError, match="line 1: unknown section"):
        load(tmp_path / "config.yaml")


SHIPPED = {
    "detection_voc_ssd300_vgg16": (
        lambda top: voc_tree(top, 8, 4),
        {"root": "", "test_root": "", "classes": list(NAMES)},
    ),
    "detection_hand_ssd320_mobilenetv2": (lambda top: yolo_tree(top, 8, 4), {"root": ""}),
    "detection_neu_ssd_small": (lambda top: voc_tree(top, 8, 4), {"root": "", "classes": list(NAMES)}),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_take_trees_in_their_layouts(name: str, tmp_path: Path) -> None:
    """Data, network and loss of the full-size settings fit together (the network's forward and backward: `pydeploy check`)."""
    tree, options = SHIPPED[name]
    root = str(tree(tmp_path / "tree"))
    data = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    data["task"]["options"] |= {key: value or root for key, value in options.items()} | {"workers": 0}
    for section in ("train", "prune", "finetune"):
        data[section]["batch_size"] = 2
    config = parse(data, "here.yaml")
    task = open_task(config)
    from pydeploy.run.job import build_model
    from pydeploy.tasks.evaluate import batches, named

    model, batch = build_model(config, task).eval(), next(batches(task, "train", 1))
    outputs = named(task, model(*batch.inputs))
    task.check({key: tuple(value.shape) for key, value in outputs.items()}, batch)
    assert all(part.item() > 0 for part in task.loss(outputs, batch).values())


def test_places_are_relative_to_the_config_and_a_cfg_counts_by_its_text(tmp_path: Path) -> None:
    voc_tree(tmp_path / "mine" / "voc")
    cfg = tmp_path / "mine" / "net.cfg"
    cfg.write_text("[convolutional]\nfilters=8\nsize=3\nstride=8\npad=1\nfeature=linear\n")
    priors = {"image": 32, "maps": [4], "strides": [8], "min_sizes": [8], "max_sizes": [16], "ratios": [[]]}
    data = {
        "task": {"name": "detection", "data": "voc", "options": {"root": ["voc"], "size": 32, "classes": list(NAMES),
                                                                "workers": 0, "priors": priors}},
        "model": {"name": "ssd_cfg", "options": {"cfg": "net.cfg", "boxes": [2]}},
        "train": {"batch_size": 4}, "target": {"backend": "null"}, "prune": {"budget": 0.9, "batch_size": 4}, "finetune": {"batch_size": 4},
    }  # fmt: skip
    (tmp_path / "mine" / "config.yaml").write_text(yaml.safe_dump(data))
    config = load(tmp_path / "mine" / "config.yaml")
    seen = [open_job(config, Quiet()).values["model.options"]]
    cfg.write_text(cfg.read_text().replace("filters=8", "filters=16"))
    seen.append(open_job(config, Quiet()).values["model.options"])
    assert seen[0] != seen[1]
