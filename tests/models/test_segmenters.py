"""Networks with one score a class and pixel: sizes, what they learn with, and SegNet's two forms."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from pydeploy.export.exporter import exported
from pydeploy.models import SEGMENTERS, build
from pydeploy.models.segnet import unpooled

SMALL = {"unet": {"width": 4, "depth": 3}, "segnet": {"width": 4}, "resnet18_seg": {"width": 4}, "resnet50_seg": {}}


def made(name: str, in_channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return build(name, num_classes=5, in_channels=in_channels, **SMALL[name])


@pytest.mark.parametrize("name", SEGMENTERS)
def test_scores_lie_over_the_picture_whatever_its_size(name: str) -> None:
    network = made(name, 2).eval()
    share = 2 if name.startswith("resnet") else 1
    for size in ((32, 48), (45, 37)):
        scores = network(torch.randn(2, 2, *size))
        assert scores.shape == (2, 5, *(-(-side // share) for side in size))


@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_parameter_receives_a_gradient(name: str) -> None:
    network = made(name).train()
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_segnet_has_the_convolutions_of_vgg16() -> None:
    network = build("segnet", num_classes=11)
    widths = [m.out_channels for m in network.encoder.modules() if isinstance(m, nn.Conv2d)]  # type: ignore[union-attr]
    assert widths == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 27  # and 13 mirrored ones, and the head


@pytest.mark.parametrize("size", [(8, 12), (9, 7), (45, 60), (1, 3), (101, 2)])
def test_both_forms_of_unpooling_agree(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    before = torch.randn(2, 3, *size)
    pooled, places = nn.functional.max_pool2d(before, 2, ceil_mode=True, return_indices=True)
    x = torch.randn_like(pooled)
    by_index = unpooled(x, before, pooled, places)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert torch.equal(unpooled(x, before, pooled, places), by_index)
    expected = torch.zeros(2, 3, size[0] * size[1])
    for n in range(2):
        for c in range(3):
            expected[n, c, places[n, c].ravel()] = x[n, c].ravel()
    assert torch.equal(by_index, expected.view_as(before))


def test_the_exported_segnet_computes_what_pytorch_does() -> None:
    network = made("segnet").eval()
    picture = torch.randn(1, 3, 45, 60)
    proto, _ = exported(network, (picture,))
    assert not {"MaxUnpool", "ScatterElements", "ScatterND"} & {node.op_type for node in proto.graph.node}
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: picture.numpy()})
    np.testing.assert_allclose(found, network(picture).detach().numpy(), atol=1e-4)
