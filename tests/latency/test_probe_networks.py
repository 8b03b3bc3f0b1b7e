"""Probes of every traced pattern: the cut file runs, and computes what the cut module computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import zoo
from made import MADE
from oracle import randomize, tensors_of
from patterns import PATTERNS
from pydeploy.export import export
from pydeploy.graph import Graph
from pydeploy.latency.probes.cut_onnx import resize
from pydeploy.plan import Plan
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply

pytestmark = pytest.mark.filterwarnings("ignore")
CASES: dict[str, Callable[[], nn.Module]] = {
    **{name: made[0] for name, made in PATTERNS.items()},
    **{f"made {name}": made[0] for name, made in MADE.items()},
    **{f"zoo {name}": lambda name=name: zoo.build(name) for name in zoo.ZOO},
}


def widths_of(graph: Graph, seed: int) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    found = {group.name: int(rng.integers(group.min_width, group.width + 1)) for group in graph.prunable}
    return found | {name: graph.widths[name] for name in graph.idle if name in found}  # the file lacks these layers


@pytest.mark.parametrize("name", CASES)
def test_every_probe_network_runs(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = randomize(CASES[name]()).eval(), torch.rand(2, 3, 8, 8)
    graph = trace(model, x)
    dense = onnx.load(export(model, x, tmp_path / "dense.onnx"))
    for seed in range(2):
        widths = widths_of(graph, seed)
        small = resize(dense, graph, widths)
        session = onnxruntime.InferenceSession(small.SerializeToString(), providers=["CPUExecutionProvider"])
        found = session.run(None, {"input": x.numpy()})
        plan = Plan({group: tuple(range(width)) for group, width in widths.items()}, graph.fingerprint)
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in tensors_of(apply(model, graph, plan)(x))]
        assert [array.shape for array in found] == [array.shape for array in expected]
        if not any(
            group.inexact for group in graph.groups
        ):  # the file holds weights that were normalized before the cut
            for got, wanted in zip(found, expected, strict=True):
                np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4 * max(1.0, float(np.abs(wanted).max())))


@pytest.mark.parametrize("name", ["swin_t", "convnext_tiny", "shufflenet_v2_x0_5"])
def test_probe_networks_of_the_model_zoo_run(name: str, tmp_path: Path) -> None:
    from torchvision.models import get_model

    torch.manual_seed(0)
    model, x = get_model(name, weights=None).eval(), torch.rand(1, 3, 64, 64)
    graph = trace(model, x)
    dense = onnx.load(export(model, x, tmp_path / "dense.onnx"))
    small = resize(dense, graph, widths_of(graph, 0), np.random.default_rng(0))
    session = onnxruntime.InferenceSession(small.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(None, {"input": x.numpy()})[0]).all()
