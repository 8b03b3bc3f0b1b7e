"""Every ONNX file that reaches TensorRT passes the lint: each precision, dense and pruned, by file and through the backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

import trt_fake
from pydeploy.backends.base import open_backend
from pydeploy.export import export
from pydeploy.models import build
from pydeploy.planning.baselines import uniform
from pydeploy.prune.criteria.score import score
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.half import to_half
from pydeploy.quant.lint import lint
from pydeploy.quant.observe import Ranges
from pydeploy.quant.qdq import quantize
from trt_bench import machine
from trt_surface import VERSIONS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Net:
    """A float file, its ranges, and its layers with weights."""

    path: Path
    ranges: Ranges
    layers: tuple[str, ...]


@pytest.fixture(scope="module", params=["resnet8", "mobilenet_small"])
def name(request: pytest.FixtureRequest) -> str:
    """Residual additions, or depthwise convolutions."""
    return str(request.param)


@pytest.fixture(scope="module", params=["dense", "pruned"])
def net(request: pytest.FixtureRequest, name: str, tmp_path_factory: pytest.TempPathFactory) -> Net:
    folder = tmp_path_factory.mktemp(f"{name}-{request.param}")
    torch.manual_seed(0)
    model, example = build(name, width=32).eval(), torch.randn(1, 3, 16, 16)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # folded, it leaves a bias
            torch.nn.init.normal_(module.running_mean)
    if request.param == "pruned":
        graph = trace(model, example)
        model = apply(model, graph, uniform(graph, score(model, graph, "l1"), ratio=0.4, align=8))
    path = export(model, example, folder / "net.onnx")
    (value,) = onnx.load(path).graph.input
    feeds = [{value.name: np.random.default_rng(i).standard_normal((1, 3, 16, 16), np.float32)} for i in range(4)]
    layers = tuple(node.name for node in onnx.load(path).graph.node if node.op_type in ("Conv", "Gemm"))
    return Net(path, calibrate(path, feeds, style="tensorrt"), layers)


def qdq(net: Net, out: Path, exclude: tuple[str, ...] = ()) -> Path:
    done = quantize(net.path, net.ranges, out, style="tensorrt", exclude=list(exclude))
    assert done.quantized
    assert not set(exclude) & set(done.quantized)
    return out


def half(source: Path, out: Path, dtype: str = "float16") -> Path:
    to_half(source, out, dtype=dtype)  # type: ignore[arg-type]
    return out


FILES: dict[str, Callable[[Net, Path], Path]] = {
    "typed fp16": lambda net, at: half(net.path, at / "f16.onnx"),
    "typed bf16": lambda net, at: half(net.path, at / "bf16.onnx", "bfloat16"),
    "int8": lambda net, at: qdq(net, at / "int8.onnx"),
    "typed int8": lambda net, at: half(qdq(net, at / "int8.onnx"), at / "typed.onnx"),
    "mixed": lambda net, at: qdq(net, at / "mixed.onnx", net.layers[1::2]),
    "typed mixed": lambda net, at: half(qdq(net, at / "mixed.onnx", net.layers[1::2]), at / "typed.onnx"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_pass_the_lint(net: Net, kind: str, tmp_path: Path) -> None:
    path = FILES[kind](net, tmp_path)
    assert lint(path) == ()
    halves = {"typed bf16": TensorProto.BFLOAT16, "typed": TensorProto.FLOAT16}
    floats = halves.get(kind) or halves.get(kind.split()[0], TensorProto.FLOAT)
    check_types(onnx.load(path), floats, pairs=kind.endswith(("int8", "mixed")))


def check_types(model: onnx.ModelProto, floats: int, *, pairs: bool) -> None:
    """Weights, biases and scales are all of the type `floats`; int8 files hold pairs, others none."""
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert bool(quantizers) == pairs
    assert {kinds[node.input[1]] for node in quantizers} == ({floats} if pairs else set())
    assert {kind for kind in kinds.values() if kind in FLOATS} == {floats}


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.16.1", VERSIONS[-1]])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_what_reaches_the_parser_passes_the_lint(
    net: Net, version: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend writes types into a copy where the version wants them: that copy is linted, as the parser gets it."""
    if precision == "bf16" and version == "8.6.1":
        pytest.skip("no bf16 in TensorRT 8")
    world = machine(monkeypatch, version, tmp_path)
    read: list[onnx.ModelProto] = []
    parse = trt_fake.ParserCore.parse

    def watched(self: trt_fake.ParserCore, model: bytes, path: str | None = None) -> bool:
        read.append(onnx.ModelProto.FromString(model))
        return parse(self, model, path)

    monkeypatch.setattr(trt_fake.ParserCore, "parse", watched)
    source = qdq(net, tmp_path / "int8.onnx") if precision == "int8" else net.path
    open_backend("tensorrt", precision=precision).build(source, tmp_path / "net.engine")
    (model,) = read
    onnx.save(model, tmp_path / "read.onnx")
    assert lint(tmp_path / "read.onnx") == ()
    typed = tuple(map(int, world.surface.version.split(".")[:2])) >= (10, 12)
    halves = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16, "int8": TensorProto.FLOAT16}
    floats = halves.get(precision, TensorProto.FLOAT) if typed else TensorProto.FLOAT
    check_types(model, floats, pairs=precision == "int8")
