"""SSDs by name: the cfg of the backbone, the boxes of a cell, the kind of head."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydeploy.data.boxes.priors import NAMED, SMALL_STRIDES
from pydeploy.errors import ConfigError
from pydeploy.models.detection import cfg as cfgs
from pydeploy.models.detection.ssd import SSD

FOLDER = Path(__file__).parent
SMALL_BOXES = 8


def ssd300_vgg16_bn(num_classes: int = 20, in_channels: int = 3, l2_norm: bool = True) -> SSD:
    """SSD300 on VGG-16 with batch normalization, 8732 priors ``ssd300``.

    Without `l2_norm` conv4_3 is read as it is, and conv6 is not dilated: for devices that have neither.
    """
    name = "vgg16_bn_ssd300" if l2_norm else "vgg16_bn_ssd300_plain"
    return SSD(cfgs.read(FOLDER / f"{name}.cfg"), num_classes, in_channels, NAMED["ssd300"].per_cell)


def ssd320_mobilenetv2(num_classes: int = 20, in_channels: int = 3) -> SSD:
    """SSD320 on MobileNetV2 with SSDLite heads, priors ``ssd320``."""
    cfg = cfgs.read(FOLDER / "mobilenetv2_ssd320.cfg")
    return SSD(cfg, num_classes, in_channels, NAMED["ssd320"].per_cell, "lite")


def ssd_small(num_classes: int = 20, in_channels: int = 3, width: int = 48) -> SSD:
    """A residual SSD to be trained on a CPU, for inputs of 64 to 256 pixels, priors ``small``.

    `width` is the number of channels at a quarter of the resolution; the deeper ones have up to four times as many.
    """
    cfg = cfgs.read(FOLDER / "small_ssd.cfg")
    scaled = {
        n: max(8, int(block.given["filters"]) * width // 48)
        for n, block in enumerate(cfg.blocks)
        if "filters" in block.given
    }
    return SSD(cfg.widened(scaled), num_classes, in_channels, (SMALL_BOXES,) * len(SMALL_STRIDES))


def ssd_cfg(
    cfg: str,
    boxes: tuple[int, ...],
    num_classes: int = 20,
    in_channels: int = 3,
    head: Literal["full", "lite"] = "full",
) -> SSD:
    """An SSD on the backbone in the file `cfg`; `boxes` of a cell, map by map, as the priors of the task have them."""
    if min(boxes, default=0) < 1:
        raise ConfigError(f"'boxes' are the boxes of a cell, one number for each feature map, got {list(boxes)}")
    return SSD(cfgs.read(Path(cfg)), num_classes, in_channels, boxes, head)
