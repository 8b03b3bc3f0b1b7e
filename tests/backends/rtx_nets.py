"""Networks of every family and the files of every kind that pydeploy writes of them for TensorRT.

`FAMILIES` are cheap enough for each run of the tests; `MORE` are judged by `make trt-files` (`trt_files`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

import quant_nets
import quant_zoo
from pydeploy.export import export
from pydeploy.models import CLASSIFIERS, SEGMENTERS, build
from pydeploy.planning.baselines import uniform
from pydeploy.prune.criteria.score import score
from pydeploy.prune.sparsity.masking import MaskRules, masks_for
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply
from pydeploy.prune.surgery.masks import masked
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.half import to_half
from pydeploy.quant.lint import lint
from pydeploy.quant.qdq import QuantizeReport, quantize
from rtx_builder import accept, compare_with_the_file


class SsdHeads(nn.Module):
    """Two maps, each with a depthwise head for classes and one for boxes, joined over all places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 2, 1)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.BatchNorm2d(32), nn.ReLU6(), nn.Conv2d(32, 3 * size, 1)
            )
            for size in (5, 4, 5, 4)
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine = torch.relu(self.stem(x))
        maps = (fine, fine, coarse := torch.relu(self.down(fine)), coarse)
        rows = [head(found).permute(0, 2, 3, 1).flatten(1, 2).unflatten(-1, (3, -1)).flatten(1, 2)
                for head, found in zip(self.heads, maps, strict=True)]  # fmt: skip
        return torch.cat(rows[::2], 1).softmax(-1), torch.cat(rows[1::2], 1)


class Inspection(nn.Module):
    """Grouped convolutions down, transposed ones (plain, grouped) and bilinear upsampling up; a map and a verdict."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.SiLU(), nn.Conv2d(32, 64, 3, 2, 1, groups=4)
        )
        self.up = nn.ConvTranspose2d(64, 32, 2, 2)
        self.grouped = nn.ConvTranspose2d(32, 32, 4, 2, 1, groups=2)
        self.last, self.judge = nn.Conv2d(32, 1, 1), nn.Linear(64, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        deep = nn.functional.leaky_relu(self.down(x), 0.1)
        wide = nn.functional.interpolate(
            torch.relu(self.up(deep)), scale_factor=2.0, mode="bilinear", align_corners=False
        )
        return torch.sigmoid(self.last(torch.relu(self.grouped(wide)))), self.judge(deep.mean((2, 3)))


def vision(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision import models

        backbone = {"weights_backbone": None} if name.startswith(("lraspp", "deeplab", "fcn", "ssd")) else {}
        return models.get_model(name, weights=None, num_classes=4, **backbone, **settings)

    return make


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{name: (lambda name=name: build(name, width=32 if name != "vgg11_bn" else 16), 32)
       for name in CLASSIFIERS if name not in ("resnet56", "vgg16_bn")},
    **{name: (vision(name), 64) for name in ("mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "lraspp_mobilenet_v3_large")},
    "ssd heads": (SsdHeads, 32),
    "ssd_small": (lambda: build("ssd_small", width=16), 64),
    "inspection": (Inspection, 32),
}  # fmt: skip
"""Networks and the resolution of their pictures."""
WHOLE = {"init_weights": False, "aux_logits": False}
MORE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet56": (lambda: build("resnet56", width=16), 32),
    "vgg16_bn": (lambda: build("vgg16_bn", width=16), 32),
    "segdecnet": (lambda: build("segdecnet", width=8), 128),
    **{name: (lambda name=name: build(name), 96) for name in SEGMENTERS},
    "ssd300_vgg16_bn": (lambda: build("ssd300_vgg16_bn"), 300),
    "ssd320_mobilenetv2": (lambda: build("ssd320_mobilenetv2"), 96),
    **{name: (vision(name), 64) for name in (
        "convnext_tiny", "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "densenet121", "efficientnet_b0",
        "efficientnet_v2_s", "fcn_resnet50", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_large", "regnet_x_400mf", "regnet_y_400mf",
        "resnet50", "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_0")},
    "googlenet": (vision("googlenet", **WHOLE), 64),
    "inception_v3": (vision("inception_v3", **WHOLE), 96),
}  # fmt: skip
"""What takes longer, for `make trt-files`."""
BLOCKS = [*((block, quant_zoo.ACTIVATIONS[place % len(quant_zoo.ACTIVATIONS)]) for place, block in enumerate(quant_zoo.BLOCKS)),
          *(("residual", act) for act in quant_zoo.ACTIVATIONS)]  # fmt: skip


@dataclass(frozen=True)
class Net:
    """A float file, its int8 form, and what was said of it."""

    float32: Path
    int8: Path
    report: QuantizeReport

    def named(self, name: str) -> Path:
        return self.float32.with_name(name)


def net_of(path: Path) -> Net:
    ranges = calibrate(
        path, quant_nets.random_feeds(path, 2), observer="minmax", style="tensorrt-rtx", threads=1, few=0
    )
    report = quantize(path, ranges, path.with_name("int8.onnx"), style="tensorrt-rtx")
    return Net(path, path.with_name("int8.onnx"), report)


def half(source: Path, out: Path, dtype: str = "float16") -> Path:
    to_half(source, out, dtype=dtype)  # type: ignore[arg-type]
    return out


def mixed(net: Net) -> Path:
    """Every second layer stays in float."""
    out, path = net.named("mixed.onnx"), net.float32
    ranges = calibrate(
        path, quant_nets.random_feeds(path, 1), observer="minmax", style="tensorrt-rtx", threads=1, few=0
    )
    quantize(path, ranges, out, style="tensorrt-rtx", exclude=list(net.report.quantized[1::2]))
    return out


FILES: dict[str, Callable[[Net], Path]] = {
    "fp32": lambda net: net.float32,
    "fp16": lambda net: half(net.float32, net.named("fp16.onnx")),
    "bf16": lambda net: half(net.float32, net.named("bf16.onnx"), "bfloat16"),
    "int8": lambda net: net.int8,
    "typed int8": lambda net: half(net.int8, net.named("typed.onnx")),
    "typed mixed": lambda net: half(mixed(net), net.named("typed-mixed.onnx")),
}


KINDS = {**FILES, "mixed": mixed}


def check(net: Net, kind: str, **choices: Any) -> None:
    """The file of that kind passes the lint, parser and builder, and its layers are those that were promised."""
    path = KINDS[kind](net)
    assert not [finding for finding in lint(path, "tensorrt-rtx") if finding.severity == "error"]
    compare_with_the_file(accept(path, **choices).layers(), onnx.load(path))


def cut(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """With 40 % of the channels gone, in steps of 8."""
    graph = trace(model, example)
    return apply(model, graph, uniform(graph, score(model, graph, "l1"), ratio=0.4, align=8))


def written(model: nn.Module, example: torch.Tensor, form: str, path: Path) -> Path:
    """The float file of a network as it is, cut, with 2:4 sparse weights, or with an open batch (then by PyTorch alone)."""
    if form == "open batch":
        torch.onnx.export(model, (example.repeat(2, 1, 1, 1),), path, dynamo=True, dynamic_shapes=({0: torch.export.Dim("n")},),
                          external_data=False, verbose=False)  # fmt: skip
        return path
    if form == "cut":
        model = cut(model, example)
    elif form == "2:4":
        model = masked(model, masks_for(model, trace(model, example), MaskRules(kind="nm")).masks)
    return export(model, example, path)
