"""SSD: a backbone's feature maps, and on each a head that says for every prior box what is in it and where it lies.

Source: Liu et al., "SSD: Single Shot MultiBox Detector", 2016; Sandler et al., "MobileNetV2", 2018 (SSDLite).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pydeploy.errors import ConfigError, Infeasible
from pydeploy.files import write_text
from pydeploy.models.blocks import he_initialize
from pydeploy.models.detection import cfg as cfgs
from pydeploy.models.detection.backbone import Backbone, widths_of
from pydeploy.prune.surgery.save import save


class SSD(nn.Module):
    """``(scores, boxes)``: ``(N, P, classes + 1)`` logits, the background first, and ``(N, P, 4)`` offsets from the priors.

    `per_cell` is the number of boxes of a cell, map by map. P runs over maps, rows, cells and the boxes of a cell, in this order.
    """

    def __init__(
        self,
        cfg: cfgs.Cfg,
        num_classes: int,
        in_channels: int,
        per_cell: Sequence[int],
        head: Literal["full", "lite"] = "full",
    ) -> None:
        super().__init__()
        self.backbone = Backbone(cfg, in_channels)
        widths = widths_of(cfg, in_channels)
        channels = [widths[n] for n in cfg.features]
        if len(per_cell) != len(channels):
            raise ConfigError(f"{cfg.source} has {len(channels)} feature maps, the priors are those of {len(per_cell)}")
        self.classes = num_classes + 1
        last = len(channels) - 1
        self.scores, self.boxes = (
            nn.ModuleList(
                _head(cin, boxes * each, lite=head == "lite", last=n == last)
                for n, (cin, boxes) in enumerate(zip(channels, per_cell, strict=True))
            )
            for each in (self.classes, 4)
        )
        he_initialize(self)
        for made in (
            *self.scores,
            *self.boxes,
        ):  # small, or the hardest of thousands of negatives drown the first steps
            nn.init.normal_(_last(made).weight, std=0.01)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(x)
        scores = [_rows(head(one), self.classes) for head, one in zip(self.scores, features, strict=True)]
        boxes = [_rows(head(one), 4) for head, one in zip(self.boxes, features, strict=True)]
        return torch.cat(scores, 1), torch.cat(boxes, 1)

    @property
    def cfg(self) -> cfgs.Cfg:
        """The backbone as it is now: after a cut with the filters that are left."""
        found = {n: layer[0].out_channels for n, layer in enumerate(self.backbone.layers)
                 if isinstance(layer, nn.Sequential) and isinstance(layer[0], nn.Conv2d)}  # fmt: skip
        blocks = self.backbone.cfg.blocks
        return self.backbone.cfg.widened({n: width for n, width in found.items() if "filters" in blocks[n].given})

    @property
    def options(self) -> dict[str, Any]:
        """What `ssd_cfg` builds this network with, beside its cfg."""
        boxes = [_last(head).out_channels // 4 for head in self.boxes]
        return {"boxes": boxes, "head": "lite" if isinstance(self.boxes[0], nn.Sequential) else "full"}

    def save(self, folder: Path) -> None:
        """Write `cfg` as ``network.cfg`` and all tensors as ``weights.safetensors``, from which `ssd_cfg` builds it again."""
        write_text(folder / "network.cfg", self.cfg.text())
        save(folder / "weights.safetensors", self)

    def live_levels(self, threshold: float) -> int:
        """Number of the first feature maps that no dead layer comes before or makes.

        A layer is dead where all its batch norm's factors are smaller than `threshold`. Raises `Infeasible` where none is left.
        """
        if not threshold >= 0:
            raise ConfigError(f"the threshold of a batch norm's factors must be at least 0, got {threshold}")
        dead = (n for n, layer in enumerate(self.backbone.layers) if _is_dead(layer, threshold))
        features = self.backbone.cfg.features
        first = next((n for n in dead if not self._is_beside(n)), features[-1] + 1)
        if (levels := sum(feature < first for feature in features)) == 0:
            raise Infeasible(
                f"layer {first} of the backbone has no channel above {threshold}, and all feature maps need it; lower the threshold"
            )
        return levels

    def first(self, levels: int) -> SSD:
        """The same network without the branches after the first `levels` feature maps; layers are shared, not copied."""
        if not 1 <= levels <= len(self.scores):
            raise ConfigError(f"the network has {len(self.scores)} feature maps, cannot keep {levels}")
        cut = SSD.__new__(SSD)
        nn.Module.__init__(cut)
        cut.backbone, cut.classes = self.backbone.first(levels), self.classes
        cut.scores, cut.boxes = self.scores[:levels], self.boxes[:levels]
        return cut.train(self.training)

    def _is_beside(self, layer: int) -> bool:
        """Whether a shortcut leads around a layer, so that what follows lives without it."""
        blocks = self.backbone.cfg.blocks
        return any(block.kind == "shortcut" and n + block.number("from") < layer < n for n, block in enumerate(blocks))


def _head(cin: int, cout: int, *, lite: bool, last: bool) -> nn.Module:
    if not lite:
        return nn.Conv2d(cin, cout, 3, padding=1)
    if last:  # a map of one cell has no neighbours
        return nn.Conv2d(cin, cout, 1)
    depthwise = nn.Conv2d(cin, cin, 3, padding=1, groups=cin, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(cin), nn.ReLU6(), nn.Conv2d(cin, cout, 1))


def _last(head: nn.Module) -> nn.Conv2d:
    found = head[-1] if isinstance(head, nn.Sequential) else head
    assert isinstance(found, nn.Conv2d)
    return found


def _rows(maps: Tensor, each: int) -> Tensor:
    """``(N, boxes * each, H, W)`` to ``(N, H * W * boxes, each)``."""
    return torch.unflatten(maps.permute(0, 2, 3, 1).flatten(1), 1, (-1, each))


def _is_dead(layer: nn.Module, threshold: float) -> bool:
    norms = [one for one in layer.modules() if isinstance(one, nn.BatchNorm2d)]
    return bool(norms) and all(bool((norm.weight.abs() < threshold).all()) for norm in norms)
