"""Every criterion on every family of networks: finite, the same twice, and the network is left as it was."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

pytest.importorskip("torchvision")

from families import FAMILIES, family
from pydeploy.graph import Graph
from pydeploy.prune.criteria import CRITERIA
from pydeploy.prune.criteria.score import score
from pydeploy.prune.structure.trace import trace
from test_scores import NETS, SHAPE, made

GIVEN: dict[str, dict[str, Any]] = {"dmcp_lite": {"steps": 2}, "sirfp": {"steps": 2}, "l1": {"fold_bn": True}}
LEARNED = ("dmcp",)
"""Scores that are made while a network trains."""
SKIPPED = ("defect_aware",)
"""Asks for masks of defects, which only the inspection task has."""


@cache
def traced(name: str) -> tuple[nn.Module, Graph, Tensor]:
    model, example = family(name)
    return model, trace(model, example), example


def loss(outputs: Any, _target: Any) -> Tensor:
    """Of whatever a network returns."""
    leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return torch.stack([leaf.float().square().mean() for leaf in leaves]).sum()


def test_there_are_twelve_families() -> None:
    assert len(FAMILIES) >= 12


@pytest.mark.parametrize("criterion", [name for name in CRITERIA.known if name not in (*LEARNED, *SKIPPED)])
@pytest.mark.parametrize("name", FAMILIES)
def test_finite_repeatable_and_without_side_effects(name: str, criterion: str) -> None:
    model, graph, example = traced(name)
    assert graph.prunable
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(2, *example.shape[1:], generator=generator), None)]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    flags = {key: (p.requires_grad, p.grad) for key, p in model.named_parameters()}
    options = {**GIVEN.get(criterion, {}), "fallback": "random"}
    found, again = (score(model, graph, criterion, data=batches, loss=loss, options=options) for _ in range(2))
    assert set(found) == {group.name for group in graph.prunable}
    for key, values in found.items():
        assert values.shape == (graph.by_name[key].width,)
        assert np.isfinite(values).all()
        assert np.array_equal(values, again[key])
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in state.items())
    assert flags == {key: (p.requires_grad, p.grad) for key, p in model.named_parameters()}
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", NETS)
def test_every_structure_is_scored(name: str) -> None:
    """Transposed, grouped, shared, bare, fused and parametrized weights, and networks of which nothing may be cut."""
    model, x = made(name), torch.zeros(SHAPE, dtype=torch.float64)
    graph = trace(model, x)
    batches = [(torch.randn(SHAPE, dtype=torch.float64), None)]
    for criterion in CRITERIA.known:
        if criterion in (*LEARNED, *SKIPPED):
            continue
        options = {**GIVEN.get(criterion, {}), "fallback": "random"}
        found = score(model, graph, criterion, data=batches, loss=loss, options=options)
        assert set(found) == {group.name for group in graph.prunable}, criterion
        assert all(np.isfinite(values).all() for values in found.values()), criterion


def test_slimming_judges_norms_that_are_written_out() -> None:
    """SegDecNet's FeatureNorm, whose ``scale`` is (1, channels, 1, 1)."""
    model, graph, _ = traced("segdecnet")
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "scale"):
                module.scale.uniform_(-1, 1)
    for key, values in score(model, graph, "bn_scale").items():
        norm = model.get_submodule(f"{key.rpartition('.')[0]}.1")
        np.testing.assert_allclose(values, norm.get_parameter("scale").detach().abs().flatten(), rtol=1e-6)
