"""Every ONNX file that pydeploy writes for TensorRT is taken by NVIDIA's own parser and builder; none of it needs a GPU.

Every kind of file (precisions, mixed precision, 2:4 sparsity, open batch), dense and cut, of the zoo's models, of torchvision's
(classification and segmentation, at reduced resolution), and of the blocks that detectors, segmenters and inspection networks
are made of. What the parsed network says of its layers is compared with what the placement of pairs promised.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper

import quant_nets
import quant_zoo
from pydeploy.export import export
from pydeploy.models import CLASSIFIERS
from pydeploy.onnxfile.half import is_typed
from rtx_builder import WEIGHTED, accept, comes_from_restorer, module
from rtx_nets import BLOCKS, FAMILIES, FILES, Net, check, cut, net_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module", params=[*FAMILIES, *(f"{name}, cut" for name in CLASSIFIERS if name in FAMILIES)])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Net:
    module()
    name, comma, _ = request.param.partition(",")
    make, size = FAMILIES[name]
    torch.manual_seed(0)
    model, example = make().eval(), torch.randn(1, 3, size, size)
    if comma:
        model = cut(model, example)
    return net_of(export(model, example, tmp_path_factory.mktemp("net") / "net.onnx"))


@pytest.fixture(scope="module", params=BLOCKS, ids="-".join)
def block(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Net:
    module()
    return net_of(quant_zoo.build(tmp_path_factory.mktemp("block") / "net.onnx", *request.param))


@pytest.mark.parametrize("kind", FILES)
def test_networks(family: Net, kind: str) -> None:
    check(family, kind)


@pytest.mark.parametrize("kind", FILES)
def test_blocks(block: Net, kind: str) -> None:
    check(block, kind)


def test_the_placement_keeps_what_it_promised(family: Net) -> None:
    """Exactly the layers that `quantize` reports read integers on both sides."""
    layers = accept(family.int8, gpus=("sm86",)).layers()
    makers = {name: layer for layer in layers for name in layer.outputs}
    both = {layer.name for layer in layers if layer.kind in WEIGHTED
            and all(comes_from_restorer(layer, place, makers) for place in range(2))}  # fmt: skip
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
    net = net_of(path)
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
