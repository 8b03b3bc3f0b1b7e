"""Attention of torchvision's window transformers: the changed forward is the original one, and whole heads can be removed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

from oracle import random_plan, randomize, silenced_output
from patterns import Net
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply
from pydeploy.prune.surgery.attention_heads import by_heads

HEADS = 3
WIDTH = 12
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "swin": (lambda: ShiftedWindowAttention(WIDTH, [4, 4], [0, 0], HEADS), (2, 8, 8)),
    "swin, shifted and padded": (lambda: ShiftedWindowAttention(WIDTH, [4, 4], [2, 2], HEADS), (1, 6, 10)),
    "swin v2, shifted": (lambda: ShiftedWindowAttentionV2(WIDTH, [4, 4], [2, 2], HEADS), (2, 8, 8)),
    "video swin, shifted": (lambda: ShiftedWindowAttention3d(WIDTH, [2, 4, 4], [1, 2, 2], HEADS), (1, 4, 8, 8)),
    "video swin, short clip": (lambda: ShiftedWindowAttention3d(WIDTH, [4, 4, 4], [2, 2, 2], HEADS), (1, 2, 8, 6)),
    "maxvit": (lambda: RelativePositionalMultiHeadAttention(WIDTH, WIDTH // HEADS, 16), (2, 4, 16)),
}
"""Layer and the shape of its input without the channels."""


def built(name: str) -> tuple[nn.Module, Tensor]:
    """Layers before and after the attention, in float64, and an input."""
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    net = Net(lambda m, x: m.c(m.t(m.a(x))), a=nn.Linear(5, WIDTH), t=layer(), c=nn.Linear(WIDTH, 3))
    return randomize(net).double().eval(), torch.randn(*shape, 5, dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_the_changed_forward_is_the_original_one(name: str) -> None:
    model, x = built(name)
    kind = type(model.t)
    with torch.no_grad():
        expected = model(x)
        with by_heads(model):
            assert type(model.t) is not kind
            torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-12)
        assert type(model.t) is kind


@pytest.mark.parametrize("name", LAYERS)
def test_heads_are_removed_as_a_whole(name: str) -> None:
    model, x = built(name)
    graph = trace(model, x)
    heads = next(g for g in graph.prunable if any("qkv" in s.param and s.dim == 0 for s in g.slices))
    stream = [
        g.width for g in graph.prunable if g is not heads and "cpb_mlp" not in g.name
    ]  # v2 computes its position bias
    assert (heads.width, stream) == (HEADS, [WIDTH, WIDTH])
    for seed in range(2):
        plan = random_plan(graph, np.random.default_rng(seed))
        small = apply(model, graph, plan)
        with torch.no_grad():
            torch.testing.assert_close(small(x), silenced_output(model, graph, plan, x), rtol=1e-6, atol=1e-9)
        again = trace(small, x)
        assert again.macs() == graph.macs(plan.widths)
