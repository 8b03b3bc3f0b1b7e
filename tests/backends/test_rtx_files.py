"""Every ONNX file that pydeploy writes for TensorRT is taken by NVIDIA's own parser and builder; none of it needs a GPU.

Every kind of file (precisions, mixed precision, 2:4 sparsity, open batch), dense and cut, of the zoo's models, of torchvision's
(classification and segmentation, at reduced resolution), and of the blocks that detectors, segmenters and inspection networks
are made of. What the parsed network says of its layers is compared with what the placement of pairs promised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

import quant_nets
import quant_zoo
from pydeploy.backends.fused_nodes import node_name
from pydeploy.export import export
from pydeploy.models import CLASSIFIERS, build
from pydeploy.onnxfile.half import is_typed
from pydeploy.planning.baselines import uniform
from pydeploy.prune.criteria.score import score
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.half import to_half
from pydeploy.quant.lint import lint
from pydeploy.quant.qdq import QuantizeReport, quantize
from rtx_builder import Layer, accept, module

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


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


def vision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision import models

        settings = {"weights": None, "num_classes": 4}
        if name.startswith("lraspp"):
            settings |= {"weights_backbone": None}
        return models.get_model(name, **settings)

    return make


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{name: (lambda name=name: build(name, width=16 if name.startswith("vgg") else 32), 32) for name in CLASSIFIERS if name != "resnet56"},
    **{name: (vision(name), 64) for name in ("mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "lraspp_mobilenet_v3_large")},
    "ssd heads": (SsdHeads, 32),
    "inspection": (Inspection, 32),
}  # fmt: skip
"""Networks and the resolution of their pictures."""
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


@pytest.fixture(scope="module", params=[*FAMILIES, *(f"{name}, cut" for name in CLASSIFIERS if name in FAMILIES)])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Net:
    module()
    name, comma, _ = request.param.partition(",")
    make, size = FAMILIES[name]
    torch.manual_seed(0)
    model, example = make().eval(), torch.randn(1, 3, size, size)
    if comma:
        graph = trace(model, example)
        model = apply(model, graph, uniform(graph, score(model, graph, "l1"), ratio=0.4, align=8))
    return net_of(export(model, example, tmp_path_factory.mktemp("net") / "net.onnx"))


@pytest.fixture(scope="module", params=BLOCKS, ids="-".join)
def block(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Net:
    module()
    return net_of(quant_zoo.build(tmp_path_factory.mktemp("block") / "net.onnx", *request.param))


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


def check(net: Net, kind: str) -> None:
    path = FILES[kind](net)
    assert not [finding for finding in lint(path, "tensorrt-rtx") if finding.severity == "error"]
    compare_with_the_file(accept(path).layers(), onnx.load(path))


@pytest.mark.parametrize("kind", FILES)
def test_networks(family: Net, kind: str) -> None:
    check(family, kind)


@pytest.mark.parametrize("kind", FILES)
def test_blocks(block: Net, kind: str) -> None:
    check(block, kind)


WEIGHTED = {"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY"}
TYPES = {TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.BFLOAT16: "BF16"}


def compare_with_the_file(layers: list[Layer], model: onnx.ModelProto) -> None:
    """Layers fed by restored values on both sides, additions by restored inputs, and the types that they compute in."""
    makers = {name: layer for layer in layers for name in layer.outputs}
    restored = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    graph = onnx.shape_inference.infer_shapes(model).graph
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)
    } | stored
    by_name: dict[str, list[Layer]] = {}
    for layer in layers:
        by_name.setdefault(layer.name, []).append(layer)
    seen = 0
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        (layer,) = (found for found in by_name[node_name(node)] if found.kind in WEIGHTED)
        promised = [name in restored for name in node.input[:2]]
        found = [_comes_from_restorer(layer, place, makers) for place in range(2)]
        assert found == promised, node_name(node)
        kind = TYPES[kinds[node.input[0]]]
        assert (layer.reads[0], layer.writes[0]) == (kind, kind), node_name(node)
        seen += 1
    assert seen
    for node in model.graph.node:
        if node.op_type == "Add" and not set(node.input) & set(stored):
            (layer,) = (found for found in by_name[node_name(node)] if found.kind == "ELEMENTWISE")
            places = [_comes_from_restorer(layer, place, makers) for place in range(2)]
            assert places == [name in restored for name in node.input], node_name(node)
    pairs = [layer for layer in layers if layer.kind == "QUANTIZE"]
    assert len(pairs) == sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    assert {kind for layer in pairs for kind in layer.writes} <= {"INT8"}


def _comes_from_restorer(layer: Layer, place: int, makers: dict[str, Layer]) -> bool:
    """Whether an input was restored, past the reshapes that the parser puts in by itself."""
    if place >= len(layer.inputs):
        return False  # a weight that the layer holds
    maker = makers.get(layer.inputs[place])
    while maker is not None and maker.kind == "SHUFFLE" and maker.name.startswith("ONNXTRT_"):
        maker = makers.get(maker.inputs[0])
    return maker is not None and maker.kind == "DEQUANTIZE"


def test_the_placement_keeps_what_it_promised(family: Net) -> None:
    """Exactly the layers that `quantize` reports read integers on both sides."""
    layers = accept(family.int8, gpus=("sm86",)).layers()
    makers = {name: layer for layer in layers for name in layer.outputs}
    both = {layer.name for layer in layers if layer.kind in WEIGHTED
            and all(_comes_from_restorer(layer, place, makers) for place in range(2))}  # fmt: skip
    assert both == set(family.report.quantized)


def test_two_of_four_weights(tmp_path: Path) -> None:
    """Half of every four neighbouring input channels is zero; the builder may use its sparse kernels."""
    path = quant_nets.residual(tmp_path / "net.onnx", width=64)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("block") and tensor.name.endswith("weight"):
            values = numpy_helper.to_array(tensor).copy()
            values.reshape(values.shape[0], -1, 4, *values.shape[2:])[:, :, 2:] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    net = net_of(path)
    for kind in ("fp16", "typed int8"):
        accept(FILES[kind](net), sparse=True)


@pytest.mark.parametrize("kind", FILES)
def test_open_batch(kind: str, tmp_path: Path) -> None:
    path = quant_nets.residual(tmp_path / "net.onnx", batch="n")
    ranges = calibrate(
        path, quant_nets.random_feeds(path, 2), observer="minmax", style="tensorrt-rtx", threads=1, few=0
    )
    net = Net(path, tmp_path / "int8.onnx", quantize(path, ranges, tmp_path / "int8.onnx", style="tensorrt-rtx"))
    file = FILES[kind](net)
    accept(file, batch=8)
    assert is_typed(onnx.load(file)) == (kind not in ("fp32", "int8"))


@pytest.mark.parametrize("gpus", [("sm80", "sm86", "sm89", "sm120", "sm121"), ("sm75",)])
def test_all_gpus(gpus: tuple[str, ...], tmp_path: Path) -> None:
    """The default, and Turing, which has neither bfloat16 nor float32 matrix products."""
    net = net_of(quant_nets.residual(tmp_path / "net.onnx"))
    for kind in ("fp32", "fp16", "bf16", "typed int8"):
        path = FILES[kind](net)
        if gpus == ("sm75",) and kind in ("fp32", "bf16"):
            with pytest.raises(AssertionError, match=r"Turing|sm75"):
                accept(path, gpus=gpus)
        else:
            accept(path, gpus=gpus)
