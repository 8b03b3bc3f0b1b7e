"""A network from a cfg: its layers in order, feature maps out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pydeploy.errors import ConfigError
from pydeploy.models.detection.cfg import Block, Cfg

LEAK = 0.1
L2_SCALE = 20.0


class L2Norm(nn.Module):
    """Every pixel's channels divided by their length, times one learned factor a channel.

    Source: Liu, Rabinovich and Berg, "ParseNet: Looking Wider to See Better", 2016.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, channels, 1, 1), L2_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        length = (x * x).sum(1, keepdim=True).sqrt() + 1e-10
        return x / length * self.weight


class Shortcut(nn.Module):
    """The sum of two layers' outputs, then an activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:
        found: Tensor = self.activation(x + earlier)
        return found


class Backbone(nn.Module):
    """Feature maps, shallow first, from pictures ``(N, C, H, W)``."""

    def __init__(self, cfg: Cfg, in_channels: int) -> None:
        super().__init__()
        self.cfg = cfg
        widths = widths_of(cfg, in_channels)
        before = [in_channels, *widths]
        self.layers = nn.ModuleList(_layer(block, before[n], widths[n]) for n, block in enumerate(cfg.blocks))
        self.norms = nn.ModuleDict(
            {str(n): L2Norm(widths[n]) for n in cfg.features if cfg.blocks[n].word("feature") == "l2_norm"}
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        found: list[Tensor] = []
        for number, (block, layer) in enumerate(zip(self.cfg.blocks, self.layers, strict=True)):
            x = layer(x, outputs[number + block.number("from")]) if block.kind == "shortcut" else layer(x)
            outputs.append(x)
            if block.word("feature") != "no":
                found.append(self.norms[str(number)](x) if str(number) in self.norms else x)
        return found

    def first(self, levels: int) -> Backbone:
        """With the same layers and weights, up to the first `levels` feature maps."""
        cut = Backbone.__new__(Backbone)
        nn.Module.__init__(cut)
        cut.cfg = self.cfg.first(levels)
        cut.layers = self.layers[: len(cut.cfg.blocks)]
        cut.norms = nn.ModuleDict({name: norm for name, norm in self.norms.items() if int(name) in cut.cfg.features})
        return cut


def widths_of(cfg: Cfg, channels: int) -> list[int]:
    """Output channels of every layer; raises `ConfigError` where layers do not fit together."""
    found: list[int] = []
    for number, block in enumerate(cfg.blocks):
        before = found[-1] if found else channels
        where = f"{cfg.source}, line {block.line}"
        if block.kind == "depthwise" and int(block.given.get("filters", before)) != before:
            raise ConfigError(f"{where}: [depthwise] keeps its {before} channels, got filters={block.given['filters']}")
        if block.kind == "shortcut" and found[number + block.number("from")] != before:
            raise ConfigError(
                f"{where}: [shortcut] adds {before} channels to the {found[number + block.number('from')]} of "
                f"layer {number + block.number('from')}; both must have as many"
            )
        found.append(block.number("filters") if block.kind == "convolutional" else before)
    return found


def _layer(block: Block, cin: int, cout: int) -> nn.Module:
    if block.kind == "shortcut":
        return Shortcut(_activation(block.word("activation")))
    size, stride, pad = (block.number(key) for key in ("size", "stride", "pad"))
    if block.kind == "maxpool":
        return nn.MaxPool2d(size, stride, pad, ceil_mode=bool(block.number("ceil_mode")))
    groups = cin if block.kind == "depthwise" else 1
    normal, dilation = block.number("batch_normalize"), block.number("dilation")
    bias = bool(block.number("bias")) and not normal
    parts: list[nn.Module] = [nn.Conv2d(cin, cout, size, stride, pad, dilation, groups, bias)]
    if normal:
        parts.append(nn.BatchNorm2d(cout))
    if block.word("activation") != "linear":
        parts.append(_activation(block.word("activation")))
    return nn.Sequential(*parts)


def _activation(name: str) -> nn.Module:
    made = {"relu": nn.ReLU, "relu6": nn.ReLU6, "h_swish": nn.Hardswish, "linear": nn.Identity}
    return nn.LeakyReLU(LEAK) if name == "leaky" else made[name]()
