from __future__ import annotations

import pytest
import torch
from torch import nn

from pydeploy.errors import ConfigError
from pydeploy.models import CLASSIFIERS, build


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize(("height", "width"), [(28, 28), (8, 8), (33, 17)], ids=["28x28", "8x8", "33x17"])
def test_every_model_takes_any_view_size(name: str, height: int, width: int) -> None:
    model = build(name, num_classes=7, in_channels=2, width=4).eval()
    logits = model(torch.randn(3, 2, height, width))
    assert logits.shape == (3, 7)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("name", "layers"), [("resnet20", 20), ("resnet56", 56)], ids=["resnet20", "resnet56"])
def test_resnet_depth_counts_all_layers_but_the_projections(name: str, layers: int) -> None:
    model = build(name, width=4)
    counted = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n]
    assert len(counted) == layers


def test_resnet20_parameters_follow_the_formula() -> None:
    # Weights by hand: stem, per stage 3x3 convolutions, projections; two normalization values per channel; linear.
    w = 16
    convolutions = 9 * 3 * w + 6 * 9 * w * w
    norms = w * 7
    for cin, cout in ((w, 2 * w), (2 * w, 4 * w)):
        convolutions += 9 * cin * cout + 5 * 9 * cout * cout + cin * cout
        norms += cout * 7
    expected = convolutions + 2 * norms + 4 * w * 10 + 10
    assert sum(p.numel() for p in build("resnet20", width=w).parameters()) == expected


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_first_activations_are_of_order_one(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, width=16 if name.startswith("vgg") else 8).train()
    spread = model(torch.randn(32, 3, 16, 16)).std().item()
    assert 0.05 < spread < 5


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_parameter_receives_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, width=8).train()
    model(torch.randn(8, 3, 16, 16)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("resnet2O", {}, r"unknown model 'resnet2O' \(did you mean 'resnet20'\?\)"),
        ("resnet20", {"widht": 8}, r"no setting 'widht' \(did you mean 'width'\?\)"),
        ("resnet20", {"width": 0}, "positive integer, got 0"),
        ("resnet20", {"width": True}, "positive integer, got True"),
        ("vgg11_bn", {"width": "wide"}, "positive integer, got 'wide'"),
    ],
    ids=["name", "setting", "zero", "bool", "text"],
)
def test_unknown_names_and_settings_are_refused(name: str, settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build(name, **settings)
