"""Configs: every shipped one loads, every mistake is named with the nearest known key."""

from __future__ import annotations

from pathlib import Path

import pytest

from pydeploy.data.manifest import load_manifest
from pydeploy.errors import ConfigError
from pydeploy.run.config import Config, load, parse

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SMALL = {"model": {"name": "resnet8"}, "prune": {"budget": 0.5}}


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_load(path: Path) -> None:
    config = load(path)
    assert path.read_text().startswith(f"# pydeploy run configs/{path.name} --out ")
    if config.quantize is not None:
        assert load_manifest(ROOT / config.quantize.calibration).count >= 1


@pytest.mark.parametrize("path", sorted((ROOT / "calib").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_manifests_load(path: Path) -> None:
    assert load_manifest(path).source


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            {**SMALL, "prune": {"budget": 0.5, "criterium": "l1"}},
            "unknown key 'prune.criterium' .did you mean 'criterion'",
        ),
        ({**SMALL, "modle": {}}, "unknown key 'modle' .did you mean 'model'"),
        (
            {**SMALL, "finetune": {"distill": {"temperatur": 3}}},
            "'finetune.distill.temperatur' .did you mean 'temperature'",
        ),
        ({"prune": {"budget": 0.5}}, "key 'model' is required"),
        ({**SMALL, "prune": {}}, "exactly one of 'budget'"),
        ({**SMALL, "prune": {"budget": 0.5, "budget_us": 9}}, "exactly one of 'budget'"),
        ({**SMALL, "prune": {"budget": 1.5}}, "'prune.budget'.*less than or equal to 1, got 1.5"),
        ({**SMALL, "train": {"epochs": "many"}}, "'train.epochs'.*integer.*got 'many'"),
        ({**SMALL, "train": {"lr": float("nan")}}, "'train.lr'"),
        ({**SMALL, "target": {"precision": "int8"}}, "target.precision is int8, which needs a section 'quantize'"),
        ({**SMALL, "target": {"precision": "fp64"}}, "'target.precision'.*'fp32'"),
    ],
)
def test_mistakes_are_named(data: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        parse(data, "x.yaml")
    assert str(caught.value).startswith("x.yaml: ")


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: {name: resnet8}\nprune: {budget: 0.5}\n")
    config = load(path, ["prune.budget=0.25", "train.epochs=1", "quantize.observer=mse", "target.backend=null"])
    assert (config.prune.budget, config.train.epochs, config.quantize.observer) == (0.25, 1, "mse")
    assert config.target.backend == "null"
    assert load(path, ["train.amp=off"]).train.amp == "off"
    for wrong, text in [
        ("prune.budget", "section.key=value"),
        ("prune.budgit=1", "did you mean 'budget'"),
        ("model.name.x=1", "is a value"),
    ]:
        with pytest.raises(ConfigError, match=text):
            load(path, [wrong])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "must hold a mapping"),
        ("a: [1\n", "not readable YAML"),
        ("!!python/object/apply:os.getcwd []", "not readable YAML"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(path)
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "none.yaml")


def test_config_round_trips_through_json() -> None:
    config = parse(SMALL, "x")
    assert Config.model_validate(config.model_dump(mode="json")) == config
