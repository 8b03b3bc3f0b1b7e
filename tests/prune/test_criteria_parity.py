"""Torch-Pruning's scores, where both define a criterion alike: the same channels of every group go first."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pydeploy.graph import Graph
from pydeploy.prune.criteria.members import members
from pydeploy.prune.criteria.score import score
from pydeploy.prune.structure.trace import trace

tp = pytest.importorskip("torch_pruning")
models = pytest.importorskip("torchvision.models")
X = torch.zeros(1, 3, 64, 64)
CONVS = [nn.Conv2d, nn.Linear]
SAME: dict[str, tuple[dict[str, Any], Any]] = {
    "l1": ({"normalize": "none", "reduce": "first"}, ("GroupMagnitudeImportance", {"p": 1, "normalizer": None, "group_reduction": "first",
                                                                                   "target_types": CONVS})),
    "bn_scale": ({"fallback": "l1"}, ("BNScaleImportance", {"normalizer": None})),
    "group_norm": ({}, ("GroupMagnitudeImportance", {"p": 2})),
    "lamp": ({}, ("LAMPImportance", {"p": 2})),
}  # fmt: skip
"""Our options, Torch-Pruning's class and arguments."""


@cache
def traced(name: str) -> tuple[nn.Module, Graph, Any]:
    """A network, our graph of it and Torch-Pruning's."""
    torch.manual_seed(0)
    model = models.get_model(name, weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model, trace(model, X), tp.DependencyGraph().build_dependency(model, example_inputs=X)


@pytest.mark.parametrize("model_name", ["resnet18", "mobilenet_v2", "densenet121"])
@pytest.mark.parametrize("criterion", SAME)
def test_same_scores(criterion: str, model_name: str) -> None:
    model, graph, theirs = traced(model_name)
    options, (name, given) = SAME[criterion]
    ours = score(model, graph, criterion, options=options)
    scorer, compared = getattr(tp.importance, name)(**given), 0
    for group in members(model, graph).values():
        depthwise = any(model.get_submodule(m.piece.param.removesuffix(".weight")).groups > 1 for m in group.filters)
        if (depthwise and criterion in ("group_norm", "lamp")) or (criterion == "bn_scale" and not group.scales):
            continue  # Torch-Pruning counts no depthwise filters, which make the channel as much as others do
        root = model.get_submodule(group.name)
        want = (
            scorer(theirs.get_pruning_group(root, tp.prune_conv_out_channels, idxs=list(range(group.width))))
            .double()
            .numpy()
        )
        np.testing.assert_allclose(ours[group.name], want, rtol=2e-4, err_msg=group.name)
        half = group.width // 2
        assert set(np.argsort(ours[group.name])[:half]) == set(np.argsort(want)[:half])
        compared += 1
    assert compared >= (7 if model_name == "mobilenet_v2" else len(graph.prunable) - 1)
