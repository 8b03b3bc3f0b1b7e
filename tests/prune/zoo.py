"""Tiny networks, one per structural pattern; the property tests run over all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(cin: int, cout: int, k: int = 3, **kw: int) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, k, padding=k // 2, **kw)


class Plain(nn.Module):
    """conv-bn-relu, pooling, flatten with H*W > 1, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), conv(8, 12, bias=False), nn.BatchNorm2d(12), nn.ReLU6()
        )  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(12 * 16, 10), nn.ReLU(), nn.Dropout(0.3), nn.Linear(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Residual(nn.Module):
    """Identity and projection shortcuts, in-place add, global average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.a = nn.Sequential(conv(8, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 8), nn.BatchNorm2d(8))
        self.b = nn.Sequential(conv(8, 10, stride=2), nn.BatchNorm2d(10), nn.ReLU(), conv(10, 12), nn.BatchNorm2d(12))
        self.down = nn.Sequential(conv(8, 12, 1, stride=2), nn.BatchNorm2d(12))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.a(x))
        y = self.b(x)
        y += self.down(x)
        return self.fc(F.adaptive_avg_pool2d(F.relu(y), 1).flatten(1))


class PreActivation(nn.Module):
    """Batch norm before the convolution, identity shortcut from before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.bn1, self.conv1 = nn.BatchNorm2d(8), conv(8, 6)
        self.bn2, self.conv2 = nn.BatchNorm2d(6), conv(6, 8)
        self.head = conv(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return self.head(x)


class DepthwiseSE(nn.Module):
    """Inverted residual: expand, depthwise (multiplier 1 and 2), squeeze-excite, project."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.Hardswish())
        self.expand = nn.Sequential(conv(8, 12, 1), nn.BatchNorm2d(12), nn.SiLU())
        self.depthwise = nn.Sequential(conv(12, 12, groups=12), nn.BatchNorm2d(12), nn.SiLU())
        self.squeeze, self.excite = conv(12, 4, 1), conv(4, 12, 1)
        self.project = nn.Sequential(conv(12, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.twice = conv(8, 16, groups=8)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = x + self.project(y * scale)
        return self.fc(self.twice(x).mean((2, 3)))


class Dense(nn.Module):
    """Dense concat, and a concat of a tensor with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 5), conv(5, 6), conv(11, 7)
        self.d = conv(14, 4, 1)
        self.bn = nn.BatchNorm2d(11)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = torch.cat([x, F.relu(self.b(x))], 1)
        y = self.c(F.relu(self.bn(x)))
        return self.d(torch.cat([y, y], 1))


class Grouped(nn.Module):
    """Grouped convolution that is not depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 12), conv(12, 18, groups=3), conv(18, 4)
        self.norm = nn.BatchNorm2d(18)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.norm(self.b(F.relu(self.a(x))))))


class Scaled(nn.Module):
    """A bare parameter multiplied and added, PReLU-free; a module called twice; tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.shared, self.c = conv(3, 8), conv(8, 8), conv(8, 4)
        self.tied = conv(8, 8)
        self.tied.weight = self.shared.weight
        self.gain = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.shift = nn.Parameter(torch.randn(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) * self.gain + self.shift
        return self.c(self.tied(F.relu(self.shared(F.relu(self.shared(x))))))


class Frozen(nn.Module):
    """Operators without a rule: softmax over channels, a channel reduction. Their groups must be frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 6), conv(6, 5), conv(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.softmax(self.a(x), 1)
        return self.c(x) * self.b(x).mean(1, keepdim=True)


ZOO: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "pre_activation": PreActivation,
    "depthwise_se": DepthwiseSE,
    "dense": Dense,
    "grouped": Grouped,
    "scaled": Scaled,
    "frozen": Frozen,
}
SHAPE = (1, 3, 8, 8)


def build(name: str, seed: int = 0) -> nn.Module:
    """A tiny net in eval mode whose weights and batch-norm statistics are random."""
    torch.manual_seed(seed)
    model = ZOO[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model.eval()
