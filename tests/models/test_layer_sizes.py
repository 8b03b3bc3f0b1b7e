"""`pydeploy summary` against numbers worked by hand and by torch."""

from __future__ import annotations

import torch
from torch import nn
from torchvision import models

from pydeploy.models.layer_sizes import layer_sizes


def test_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )
    conv, norm, linear = layer_sizes(net, (torch.zeros(1, 3, 8, 8),))
    assert (conv.name, conv.kind, conv.output, conv.params) == ("0", "Conv2d", (1, 8, 6, 6), 216)
    assert (conv.macs, conv.fp32_bytes, conv.int8_bytes) == (216 * 36, 864, 216 + 4 * 8)
    assert (norm.params, norm.macs, norm.fp32_bytes, norm.int8_bytes) == (16, 0, 64, 64)
    assert (linear.params, linear.macs, linear.int8_bytes) == (1445, 1440, 1440 + 4 * 5 + 4 * 5)


def test_shared_and_unused_layers_count_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(4, 4, 1)
            self.unused = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(self.a(x))

    a, unused = layer_sizes(Net(), (torch.zeros(1, 4, 5, 5),))
    assert (a.macs, a.params) == (2 * 16 * 25, 20)
    assert (unused.output, unused.macs) == ((), 0)


def test_resnet18_as_published() -> None:
    found = layer_sizes(models.resnet18(), (torch.zeros(1, 3, 224, 224),))
    assert sum(one.params for one in found) == 11_689_512
    assert sum(one.macs for one in found) == 1_814_073_344
