"""Torch-Pruning's cut, beside which ours are shown: outputs stay whole, and what it cannot cut is said in one sentence."""

from __future__ import annotations

import pytest
import torch

from pydeploy.errors import ConfigError
from pydeploy.models import build
from pydeploy.run.stages.comparison import torch_pruning_l1

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize(("name", "options"), [("unet", {"width": 32, "depth": 1}), ("resnet8", {"width": 32})])
def test_as_many_classes_come_out_as_before(name: str, options: dict[str, int]) -> None:
    pytest.importorskip("torch_pruning")
    network = build(name, num_classes=48, **options).eval()  # a multiple of 16, to which widths are rounded
    picture = torch.randn(1, 3, 16, 16)
    small = torch_pruning_l1(network, (picture,), 0.5)
    assert small(picture).shape == network(picture).shape
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in network.parameters())


def test_a_network_that_it_cannot_cut_is_told() -> None:
    pytest.importorskip("torch_pruning")
    torch.manual_seed(
        0
    )  # it does not tie what is unpooled to where the places come from; by chance both may stay as wide
    network = build("segnet", num_classes=11, width=16).eval()
    with pytest.raises(ConfigError, match="Torch-Pruning cannot cut this network"):
        torch_pruning_l1(network, (torch.randn(1, 3, 64, 64),), 0.3)
