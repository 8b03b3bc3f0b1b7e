"""Networks for masks: everything but their last layer can be cut, what belongs together is cut together, and a cut network
computes what the dense one does with the same channels silenced.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from oracle import random_plan, randomize, silenced_output, tensors_of
from pydeploy.graph import Graph
from pydeploy.models import build
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply

SHAPE = (2, 3, 33, 37)


def deeplab() -> nn.Module:
    """Two of four stages are shortened: the concatenation of five atrous branches is what matters here."""
    from torchvision.models.segmentation import deeplabv3_resnet50

    network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)
    for stage in ("layer3", "layer4"):
        network.backbone[stage] = network.backbone[stage][:1]
    return network  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: build("unet", num_classes=5, width=4, depth=3),
    "segnet": lambda: build("segnet", num_classes=5, width=4),
    "resnet18_seg": lambda: build("resnet18_seg", num_classes=5, width=4),
    "deeplabv3": deeplab,
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Graph]:
    torch.manual_seed(0)
    made = randomize(NETWORKS[request.param]()).double().eval()
    return made, trace(made, (torch.randn(1, *SHAPE[1:]).double(),))


def test_everything_but_the_heads_can_be_cut(network: tuple[nn.Module, Graph]) -> None:
    _, graph = network
    assert {group.frozen for group in graph.groups} == {"", "model output"}
    assert not any(group.inexact for group in graph.groups)
    assert all(group.width == 5 for group in graph.groups if group.frozen)


def test_cut_equals_silenced(network: tuple[nn.Module, Graph]) -> None:
    model, graph = network
    x = torch.randn(SHAPE).double()
    for seed in range(2):
        plan = random_plan(graph, np.random.default_rng(seed))
        with torch.no_grad():
            found, wanted = tensors_of(apply(model, graph, plan)(x)), tensors_of(silenced_output(model, graph, plan, x))
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs)


def members(graph: Graph, parameter: str, dim: int = 0) -> set[str]:
    """Parameters that are cut together with the entries of this one."""
    own = next(g for g in graph.groups if any(s.param == parameter and s.dim == dim for s in g.slices))
    return {piece.param for piece in own.slices}


def test_unpooling_ties_a_decoder_to_its_encoder() -> None:
    graph = trace(build("segnet", width=4).eval(), (torch.randn(1, 3, 64, 64),))
    for stage, convolutions in enumerate(
        (2, 2, 3, 3)
    ):  # the decoder's stages run the other way; the fifth unpools itself
        last = f"encoder.{stage}.{3 * (convolutions - 1)}.weight"
        before = 3 - stage
        ends = [
            name for name in members(graph, last) if name.startswith(f"decoder.{before}.") and name.endswith(".weight")
        ]
        assert ends, (last, sorted(members(graph, last)))


def test_transposed_convolutions_are_cut_on_both_sides() -> None:
    graph = trace(build("unet", width=4, depth=2).eval(), (torch.randn(1, 3, 32, 32),))
    assert "decoder.0.0.weight" in members(graph, "up.0.weight", dim=1)  # out of it into the concatenation
    assert "encoder.2.3.weight" in members(graph, "up.0.weight", dim=0)  # from the lowest stage into it
