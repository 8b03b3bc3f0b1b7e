"""`latency.probes` against the whole torch path: cutting the ONNX file equals cutting the module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

import zoo
from pydeploy.export import export
from pydeploy.graph import Graph
from pydeploy.latency.probes.cut_onnx import resize
from pydeploy.plan import Plan
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply


def first_channels(graph: Graph, seed: int) -> Plan:
    random = np.random.default_rng(seed)
    widths = {group.name: int(random.integers(1, group.width + 1)) for group in graph.prunable}
    return Plan({name: tuple(range(width)) for name, width in widths.items()}, graph.fingerprint)


@pytest.fixture(scope="module", params=["plain", "residual", "pre_activation", "depthwise_se", "dense", "grouped"])
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    model = zoo.build(request.param)
    example = torch.randn(zoo.SHAPE)
    path = export(model, example, tmp_path_factory.mktemp(request.param) / "dense.onnx")
    return model, trace(model, example), onnx.load(path)


@pytest.mark.parametrize("seed", range(3))
def test_resized_file_computes_what_the_pruned_module_computes(traced, seed: int) -> None:
    model, graph, dense = traced
    plan = first_channels(graph, seed)
    image = torch.randn(zoo.SHAPE, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = apply(model, graph, plan)(image).numpy()
    small = resize(dense, graph, plan.widths)
    got = ReferenceEvaluator(small).run(None, {"input": image.numpy()})[0]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_resized_file_has_the_shapes_of_the_exported_pruned_module(tmp_path: Path) -> None:
    model, example = zoo.build("depthwise_se"), torch.randn(zoo.SHAPE)
    graph = trace(model, example)
    plan = first_channels(graph, 5)
    dense = onnx.load(export(model, example, tmp_path / "dense.onnx"))
    pruned = onnx.load(export(apply(model, graph, plan), example, tmp_path / "pruned.onnx"))

    def layers(model: onnx.ModelProto) -> dict[str, list[list[int]]]:
        dims = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
        nodes = [node for node in model.graph.node if node.name in {op.name for op in graph.ops}]
        return {node.name: [dims[name] for name in node.input if name in dims] for node in nodes}

    assert layers(resize(dense, graph, plan.widths)) == layers(pruned)
