"""Twelve families of networks in small: channels and pictures reduced, every kind of layer and connection there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pydeploy.models import build


def _vision(name: str, **given: object) -> nn.Module:
    from torchvision import models

    found: nn.Module = models.get_model(name, weights=None, num_classes=5, **given)
    return found


def _mobilenet_v3() -> nn.Module:
    from torchvision.models import mobilenetv3

    blocks, last = mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small", width_mult=0.25)
    return mobilenetv3.MobileNetV3(blocks[:6], last, num_classes=5)


def _densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(growth_rate=8, block_config=(2, 3), num_init_features=16, bn_size=2, num_classes=5)


def _efficientnet() -> nn.Module:
    from torchvision.models import efficientnet

    blocks, last = efficientnet._efficientnet_conf("efficientnet_b0", width_mult=0.25, depth_mult=0.3)
    return efficientnet.EfficientNet(blocks[:5], 0.2, num_classes=5, last_channel=last)


def _regnet() -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    return RegNet(BlockParams([1, 2], [16, 32], [8, 8], [1.0, 1.0], [2, 2], 0.25), num_classes=5, stem_width=16)


def _vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    net = VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5)
    nn.init.normal_(net.heads[-1].weight)  # zeros give no gradient
    return net


def _swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5)


class Inception(nn.Module):
    """Two modules of four branches each, factorized convolutions and a pooled branch, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 16, 3, 2)
        self.first, self.second = _Branches(16), _Branches(32)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(self.stem(x))).mean((2, 3)))


class _Branches(nn.Module):
    def __init__(self, cin: int) -> None:
        super().__init__()
        self.one, self.pooled = _conv(cin, 8, 1), _conv(cin, 8, 1)
        self.three = nn.Sequential(_conv(cin, 6, 1), _conv(6, 8, 3))
        self.seven = nn.Sequential(_conv(cin, 6, 1), _conv(6, 6, (1, 7)), _conv(6, 8, (7, 1)))

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(nn.functional.avg_pool2d(x, 3, 1, 1))
        return torch.cat([self.one(x), self.three(x), self.seven(x), pooled], 1)


def _conv(cin: int, cout: int, kernel: int | tuple[int, int], stride: int = 1) -> nn.Sequential:
    pads = (kernel // 2,) * 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    return nn.Sequential(nn.Conv2d(cin, cout, kernel, stride, pads, bias=False), nn.BatchNorm2d(cout), nn.ReLU())


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "resnet": (lambda: build("resnet8", width=8, num_classes=5), (32, 32)),
    "vgg": (lambda: build("vgg16_bn", width=4, num_classes=5), (32, 32)),
    "mobilenet_v2": (lambda: _vision("mobilenet_v2", width_mult=0.25), (32, 32)),
    "mobilenet_v3": (_mobilenet_v3, (48, 48)),
    "densenet": (_densenet, (32, 32)),
    "inception": (Inception, (24, 24)),
    "efficientnet": (_efficientnet, (48, 48)),
    "regnet": (_regnet, (32, 32)),
    "unet": (lambda: build("unet", width=4, depth=2, num_classes=5), (32, 32)),
    "segdecnet": (lambda: build("segdecnet", width=2), (128, 64)),
    "ssd": (lambda: build("ssd_small", width=8, num_classes=5), (64, 64)),
    "vit": (_vit, (32, 32)),
    "swin": (_swin, (32, 32)),
}
"""What builds each, and height and width of its pictures."""


def family(name: str) -> tuple[nn.Module, Tensor]:
    """A network with fixed weights, scales of different sizes, and an example; in eval mode."""
    make, size = FAMILIES[name]
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model, torch.randn(1, 3, *size)
