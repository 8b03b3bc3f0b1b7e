"""Models of one's own in a config: where their weights come from, and what is told before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pydeploy.errors import ConfigError, DataError, DeployError, Mismatch
from pydeploy.prune.surgery.save import read
from pydeploy.run.artefacts import Files
from pydeploy.run.config import Config, load, parse
from pydeploy.run.job import fresh_model, open_job
from pydeploy.run.pipeline import foresee, run, run_stage
from quiet import Quiet
from test_config_checks import WHOLE

# torch's ONNX exporter and accelerate warn about their own internals.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NET = """
from torch import nn
def make(num_classes, in_channels, width=8):
    return nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 16, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
def ten(): return make(10, 1)
def colour(num_classes): return make(num_classes, 3)
def two(num_classes): return Two(num_classes)
class Two(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.net = make(classes, 1)
    def forward(self, x): return self.net(x), x.mean()
def fails(num_classes):
    class Broken(nn.Module):
        def forward(self, x): return x.no_such_method()
    return Broken()
"""


def config(tmp_path: Path, *, train: dict[str, Any] | None = None, **model: Any) -> Config:
    (tmp_path / "net.py").write_text(NET)
    data = {key: value for key, value in WHOLE.items() if key not in ("train", "quantize", "compare")}
    data["model"] = {"name": "net.py:make", **model}
    return parse({**data, **({"train": train} if train is not None else {})}, "test", tmp_path)


def weights_of(settings: Config, path: Path, **more: Any) -> dict[str, torch.Tensor]:
    job = open_job(settings, Quiet())
    torch.manual_seed(5)
    state = {name: torch.rand_like(value) if value.is_floating_point() else value
             for name, value in fresh_model(job).state_dict().items()}  # fmt: skip
    torch.save({"state_dict": state, **more}, path)
    return state


def first_stage(settings: Config, out: Path) -> dict[str, torch.Tensor]:
    """The tensors of the dense model, made by the first stage alone, from the run directory's config."""
    from pydeploy.files import write_json
    from pydeploy.run.artefacts import Artefacts

    out.mkdir(exist_ok=True)
    write_json(Artefacts(out).config, settings.to_json())
    return read(Files(run_stage(out, "01_train", Quiet())).weights)[0]


def test_without_a_train_section_the_model_counts_as_trained(tmp_path: Path) -> None:
    state = weights_of(config(tmp_path), tmp_path / "w.pth")
    made = first_stage(config(tmp_path, weights="w.pth"), tmp_path / "out")
    assert all(torch.equal(made[name], value) for name, value in state.items())


def test_a_factory_may_bring_its_own_weights(tmp_path: Path) -> None:
    settings = config(tmp_path)
    made = first_stage(settings, tmp_path / "out")
    job = open_job(settings, Quiet())
    assert all(torch.equal(made[name], value) for name, value in fresh_model(job).state_dict().items())


def test_training_starts_from_the_weights(tmp_path: Path) -> None:
    state = weights_of(config(tmp_path), tmp_path / "w.pth")
    still = {"epochs": 1, "batch_size": 32, "lr": 1e-9, "weight_decay": 0.0, "warmup_epochs": 0, "amp": "off"}
    made = first_stage(config(tmp_path, train=still, weights="w.pth"), tmp_path / "out")
    for name, value in state.items():
        if name.endswith("weight"):
            torch.testing.assert_close(made[name], value, rtol=1e-4, atol=1e-6)
    assert not torch.equal(made["1.running_mean"], state["1.running_mean"]), "it did train"


def test_pydeploys_own_models_are_trained_unless_they_have_weights(tmp_path: Path) -> None:
    assert config(tmp_path, name="resnet8").trains
    assert config(tmp_path, name="pydeploy:resnet8").trains
    assert not config(tmp_path, name="resnet8", weights="w.pth").trains
    assert config(tmp_path, name="resnet8", weights="w.pth", train={}).trains
    assert not config(tmp_path, name="torchvision:resnet18").trains
    for settings in (config(tmp_path, weights="w.pth"), config(tmp_path, train={}, weights="w.pth")):
        assert parse(settings.to_json(), "again").trains == settings.trains


def test_what_is_read_of_the_weights_counts(tmp_path: Path) -> None:
    """Another file, a section that comes or goes: the first stage is done again."""
    state = weights_of(config(tmp_path), tmp_path / "w.pth")
    torch.save(state, tmp_path / "same.pth")
    settings = config(tmp_path, weights="w.pth")
    first_stage(settings, tmp_path / "out")

    def stays(now: Config) -> bool:
        return foresee(now, tmp_path / "out", Quiet())[0][1].stays

    assert stays(settings)
    assert not stays(config(tmp_path, weights="same.pth"))
    assert not stays(config(tmp_path))
    assert not stays(config(tmp_path, train={"batch_size": 32}, weights="w.pth"))
    assert not stays(config(tmp_path, weights="w.pth", strict=False))
    (tmp_path / "w.pth").rename(tmp_path / "moved.pth")
    assert stays(config(tmp_path, weights="moved.pth"))


def test_an_earlier_run_that_trained_is_not_taken_for_one_with_weights(tmp_path: Path) -> None:
    quick = {"epochs": 1, "batch_size": 32, "warmup_epochs": 0, "amp": "off"}
    first_stage(config(tmp_path, train=quick), tmp_path / "out")
    assert foresee(config(tmp_path, train=quick), tmp_path / "out", Quiet())[0][1].stays
    assert not foresee(config(tmp_path), tmp_path / "out", Quiet())[0][1].stays


TOLD = {
    "classes": ("net.py:ten", {}, DataError, r"'logits' of shape \(samples, 4\), got .*10.*has 4 classes"),
    "channels": ("net.py:colour", {}, ConfigError, r"net.py:colour fails on inputs \[2, 1, 12, 12\], as the data 'synthetic' give"),
    "outputs": ("net.py:two", {}, ConfigError, r"returns 2 outputs \(Tensor, Tensor\), the task names 1 tensors: logits"),
    "code": ("net.py:fails", {}, ConfigError, r"net.py:fails fails on inputs .*AttributeError.*net.py, line 16"),
    "option": ("net.py:make", {"widht": 3}, ConfigError, r"net.py:make: no setting 'widht' \(did you mean 'width'\?\)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOLD)
def test_what_does_not_fit_the_data_is_told_before_any_work(kind: str, tmp_path: Path) -> None:
    name, options, error, text = TOLD[kind]
    with pytest.raises(error, match=text) as caught:
        run(config(tmp_path, name=name, options=options), tmp_path / "out", Quiet())
    assert isinstance(caught.value, DeployError)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("started.json"))


def test_weights_of_another_network_are_told_before_any_work(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8))
    torch.save(other.state_dict(), tmp_path / "w.pth")
    with pytest.raises(Mismatch, match=r"w.pth does not fit the model: 4 missing: 3.weight, 3.bias, 7.weight, 7.bias"):
        run(config(tmp_path, weights="w.pth"), tmp_path / "out", Quiet())
    assert not list(tmp_path.rglob("started.json"))
    console = Quiet()
    settings = config(tmp_path, weights="w.pth", strict=False)
    from pydeploy.run.job import start_model

    start_model(open_job(settings, console))
    assert any("what fits is taken; 4 missing" in line for line in console.lines)


def test_weights_are_relative_to_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "net.py").write_text(NET)
    (tmp_path / "configs" / "c.yaml").write_text(
        "model: {name: net.py:make, weights: w.pth}\nprune: {budget: 0.5}\ntask: {data: synthetic}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load("configs/c.yaml").model.weights == Path("configs/w.pth")
    assert load("configs/c.yaml", ["model.weights=w.pth"]).model.weights == tmp_path / "w.pth"
