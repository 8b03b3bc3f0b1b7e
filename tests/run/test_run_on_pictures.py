"""The whole job on a folder of pictures: paths relative to the config, and what lies beside the engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from picture_trees import two_splits
from pydeploy.data.deployment import FILE, Deployment
from pydeploy.report import Report
from pydeploy.run.config import load
from pydeploy.run.pipeline import run
from quiet import Quiet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CONFIG = {
    "task": {"data": "folder", "options": {"root": "pictures", "size": 16, "workers": 0}},
    "model": {"name": "resnet8", "options": {"width": 16}},
    "train": {"epochs": 1, "batch_size": 8, "lr": 0.1, "warmup_epochs": 0, "amp": "off"},
    "target": {"backend": "null", "threads": 1},
    "table": {"points": 2, "align": 8, "rounds": 1, "runs": 3},
    "prune": {"criterion": "l1", "batches": 1, "batch_size": 8, "budget": 0.9},
    "finetune": {"epochs": 1, "batch_size": 8, "lr": 0.05, "warmup_epochs": 0, "amp": "off"},
}


def test_a_folder_of_pictures_becomes_an_engine_with_its_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_splits(tmp_path / "mine" / "pictures")
    (tmp_path / "mine" / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    monkeypatch.chdir(tmp_path)  # not where the config lies
    config = load(Path("mine/config.yaml"))
    assert Path(config.task.options["root"]).resolve() == (tmp_path / "mine" / "pictures").resolve()
    run(config, tmp_path / "run", Quiet())
    report = Report.load(tmp_path / "run" / "report.json")
    for folder in ("04_dense", "08_pruned"):
        way = Deployment.load(tmp_path / "run" / folder / FILE)
        assert way.class_names == ("blue", "green", "red")
        assert (way.preprocessing.resize, way.preprocessing.crop) == (18, 16)
        assert report.preprocessing == json.loads((tmp_path / "run" / folder / FILE).read_text())
    assert "crop 16" in (tmp_path / "run" / "report.md").read_text()
    engines = ["dense", *({report.recommendation.model} - {"dense"})]
    assert [one.index for one in report.samples] == [0, 2, 5, 8, 11, 14]
    for one in report.samples:
        assert list(one.said) == engines
        with Image.open(tmp_path / "run" / one.file) as picture:  # enlarged twelve times, and beside each other
            assert picture.size == (192 * len(engines) + 8 * (len(engines) - 1), 192)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 6
    assert "img-src data:; base-uri 'none'" in page
