"""Models by name: nothing of torchvision's is downloaded, users' own code is built, errors are one sentence."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

import pydeploy as pd
from pydeploy.backends.base import open_backend
from pydeploy.errors import BackendUnavailable, ConfigError
from pydeploy.export import export
from pydeploy.models.named import named

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning"
)  # torchvision's of GoogLeNet's and Inception's initial values


class Network(BaseException):
    """Somebody wanted to reach the network."""


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise Network

    for owner, name in ((socket.socket, "connect"), (socket, "create_connection"), (socket, "getaddrinfo"), (urllib.request, "urlopen"),
                        (torch.hub, "download_url_to_file"), (torch.hub, "load_state_dict_from_url")):  # fmt: skip
        monkeypatch.setattr(owner, name, refuse)


@pytest.fixture
def no_initial_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters keep whatever lies in memory, so that networks of gigabytes are built at once, without using any."""
    for name in [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")]:
        monkeypatch.setattr(nn.init, name, lambda tensor, *_args, **_kwargs: tensor)


@pytest.mark.parametrize("name", models.list_models())
def test_torchvision_models_come_untrained_without_a_network(name: str, offline: None, no_initial_values: None) -> None:
    assert isinstance(named(f"torchvision:{name}", {}), nn.Module)


@pytest.mark.parametrize("options", [{"weights": "DEFAULT"}, {"weights_backbone": "DEFAULT"}], ids=str)
def test_trained_weights_are_for_those_who_ask(options: dict[str, str], offline: None) -> None:
    with pytest.raises(Network):
        named("torchvision:ssdlite320_mobilenet_v3_large", options)


def test_options_reach_torchvisions_builders() -> None:
    assert named("torchvision:resnet18", {"num_classes": 7}).fc.out_features == 7
    assert not named("torchvision:resnet18", {}).training
    with pytest.raises(ConfigError, match=r"cannot be built with \{'no_such': 1\}: TypeError"):
        named("torchvision:resnet18", {"no_such": 1})
    with pytest.raises(ConfigError, match=r"torchvision has no model 'resnet19' \(did you mean 'resnet18'\?\)"):
        named("torchvision:resnet19", {})


NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)

    def forward(self, x):
        import late
        return self.conv(x) * late.factor

ready = Net(5)
def wrong(): return 3
def nothing(): pass
"""


def test_users_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class, a module that is ready, and what is no module; a neighbour that only the forward imports."""
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "late.py").write_text("factor = 2")
    file = tmp_path / "net.py"
    x = torch.randn(1, 3, 8, 8)
    for net in (named(f"{file}:Net", {"width": 4}), named(f"{file}:ready", {})):
        assert not net.training
        torch.testing.assert_close(net(x), net.conv(x) * 2)
    monkeypatch.chdir(tmp_path)
    assert named("net:Net", {"width": 3})(x).shape[1] == 3
    with pytest.raises(ConfigError, match=r"net\.py:Net needs width: give it as options$"):
        named(f"{file}:Net", {})
    for name, kind in (("wrong", "int"), ("nothing", "NoneType")):
        with pytest.raises(ConfigError, match=f"returns {kind}; expected a PyTorch module"):
            named(f"{file}:{name}", {})


def test_unknown_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown model library 'torchvison' \(did you mean 'torchvision'\?\); or FILE.py:FACTORY"
    ):
        named("torchvison:resnet18", {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="'timm:resnet18' needs the package 'timm': pip install timm"):
        named("timm:resnet18", {})


@pytest.mark.parametrize(
    ("name", "options", "package"),
    [
        ("smp:Unet", {"encoder_name": "resnet18"}, "segmentation_models_pytorch"),
        ("timm:mobilenetv3_small_050", {}, "timm"),
    ],
)
def test_networks_of_other_libraries_go_the_whole_way(
    name: str, options: dict[str, str], package: str, tmp_path: Path, offline: None
) -> None:
    """Traced, cut, exported and built; the engine computes what the cut module does."""
    pytest.importorskip(package, reason=f"needs the package {package}")
    torch.manual_seed(0)
    model, x = named(name, options, {"num_classes": 3, "in_channels": 3}), torch.randn(1, 3, 64, 64)
    graph = pd.trace(model, x)
    small = pd.apply(model, graph, pd.uniform(graph, pd.score(model, graph, "l1"), ratio=0.5, align=8)).eval()
    assert sum(p.numel() for p in small.parameters()) < 0.4 * sum(p.numel() for p in model.parameters())
    export(small, x, tmp_path / "small.onnx")
    backend = open_backend("onnxruntime", precision="fp32", threads=1)
    with backend.open(backend.build(tmp_path / "small.onnx", tmp_path / "small.engine")) as session, torch.no_grad():
        (spec,) = session.inputs
        (found,) = session.run({spec.name: x.numpy()}).values()
        torch.testing.assert_close(torch.from_numpy(found.copy()), small(x), rtol=1e-4, atol=1e-4)
