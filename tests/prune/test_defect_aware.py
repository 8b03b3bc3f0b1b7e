"""Channels that tell defects, against loops over pictures and channels with autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pydeploy.errors import ConfigError, DataError
from pydeploy.graph import Graph
from pydeploy.models import build
from pydeploy.prune.criteria.score import score
from pydeploy.prune.structure.trace import trace
from pydeploy.tasks.contract import Batch

SIZE = (64, 128)
NORMS = {"volume.0.0": (0, 1), "volume.3.0": (3, 1), "volume.11.0": (11, 1)}
"""Blocks of the trunk by their group: the norm of each, as places in `volume`."""


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    model = build("segdecnet", in_channels=1, width=2).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def graph(net: nn.Module) -> Graph:
    return trace(net, torch.zeros(1, 1, *SIZE, dtype=torch.float64))


def batches() -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Five pictures in two batches: defective, sound, defective with a mask that is empty; defective, sound."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(5, 1, *SIZE, dtype=torch.float64, generator=generator)
    masks = torch.zeros(5, 1, 8, 16)
    masks[0, 0, 2:5, 3:7] = torch.rand(3, 4, generator=generator)
    masks[3, 0, 1, 1] = 1
    defective = torch.tensor([1.0, 0, 1, 1, 0])[:, None]
    return [
        (pictures[part], {"defective": defective[part], "mask": masks[part]}) for part in (slice(0, 3), slice(3, 5))
    ]


def by_hand(net: Any, group: str, *, gradient: bool, masked: bool) -> np.ndarray:
    block, place = NORMS[group]
    rows = []
    for pictures, target in batches():
        for index in range(len(pictures)):
            mask = target["mask"][index, 0].double().numpy()
            if not target["defective"][index] or (masked and not mask.any()):
                continue
            kept = []
            handle = net.volume[block][place].register_forward_hook(lambda m, i, o, kept=kept: kept.append(o))
            decision = net(pictures[index : index + 1])[0]
            handle.remove()
            a = kept[0]
            loss = F.binary_cross_entropy_with_logits(decision[0, 0], torch.ones((), dtype=torch.float64))
            slope = torch.autograd.grad(loss, a)[0] if gradient else torch.ones_like(a)
            strength = (a * slope).detach().abs()[0].numpy()
            height, width = strength.shape[1:]
            area = np.ones((height, width))
            if masked:  # bilinear, as torch counts: pixels' middles
                area = F.interpolate(torch.from_numpy(mask)[None, None], (height, width), mode="bilinear")[0, 0].numpy()
            rows.append([(plane * area).sum() / (area.sum() + 1e-8) for plane in strength])
    return np.mean(rows, axis=0)


@pytest.mark.parametrize("mask", ["defect", "none"])
@pytest.mark.parametrize("mode", ["grad_act", "act_mask"])
def test_scores_are_those_of_loops(net: Any, graph: Graph, mode: str, mask: str) -> None:
    found = score(net, graph, "defect_aware", data=batches(), options={"mode": mode, "mask": mask})
    assert {*found} == {group.name for group in graph.prunable}
    for group in NORMS:
        expected = by_hand(net, group, gradient=mode == "grad_act", masked=mask == "defect")
        np.testing.assert_allclose(found[group], expected, rtol=1e-5, atol=1e-12)


def test_whole_batches_of_a_task_do_as_well(net: Any, graph: Graph) -> None:
    whole = [(pictures, Batch((pictures,), target)) for pictures, target in batches()]
    found, expected = (score(net, graph, "defect_aware", data=data) for data in (whole, batches()))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_the_decision_reaches_the_trunk_although_training_stops_it(net: Any, graph: Graph) -> None:
    assert net.gradient_adjustment
    found = score(net, graph, "defect_aware", data=batches())
    assert all(scores.any() for scores in found.values())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_batches_without_defects_or_masks_are_told(net: Any, graph: Graph) -> None:
    sound = [(pictures, {**target, "defective": target["defective"] * 0}) for pictures, target in batches()]
    unmasked = [(pictures, {"defective": target["defective"]}) for pictures, target in batches()]
    flat = [(pictures, {**target, "mask": target["mask"][:, 0]}) for pictures, target in batches()]
    labels = [(pictures, target["defective"]) for pictures, target in batches()]
    for data, text in ((sound, "saw no defective picture with a mask in 2 batches"), (unmasked, "'mask' is missing"),
                       (flat, r"\[3, 8, 16\]; expected \[3, 1, h, w\]"), (labels, "'defective' is missing")):  # fmt: skip
        with pytest.raises(DataError, match=text):
            score(net, graph, "defect_aware", data=data)
    assert score(net, graph, "defect_aware", data=unmasked, options={"mask": "none"})
    with pytest.raises(ConfigError, match="needs batches"):
        score(net, graph, "defect_aware")
    with pytest.raises(ConfigError, match="mode"):
        score(net, graph, "defect_aware", data=batches(), options={"mode": "gradient"})


def test_a_network_without_a_decision_is_told() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)).double()
    x, target = batches()[0]
    graph = trace(model, x)
    with pytest.raises(DataError, match="one number a sample"):
        score(model, graph, "defect_aware", data=[(x, target)])
    assert score(model, graph, "defect_aware", data=[(x, target)], options={"mode": "act_mask"})["0"].shape == (4,)
