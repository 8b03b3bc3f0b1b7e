"""Weights that are centred or scaled by their own statistics, in any spelling: cut like the batch-norm form, and said to be inexact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oracle import random_plan, silence
from patterns import Net, conv
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply

SHAPE = (2, 3, 8, 8)
EPS = 1e-5
ALL = [1, 2, 3]


def _mean_and_std(w: Tensor) -> Tensor:
    return (w - w.mean(ALL, keepdim=True)) / (w.std(ALL, keepdim=True, unbiased=False) + EPS)


def _var_mean(w: Tensor) -> Tensor:
    var, mean = torch.var_mean(w, dim=ALL, keepdim=True, unbiased=False)
    return (w - mean) * torch.rsqrt(var + EPS)


def _std_mean(w: Tensor) -> Tensor:
    std, mean = torch.std_mean(w.flatten(1), dim=1, unbiased=False)
    return (w - mean.view(-1, 1, 1, 1)) / (std.view(-1, 1, 1, 1) + EPS)


def _squares(w: Tensor) -> Tensor:
    middle = w - w.mean(3, keepdim=True).mean(2, keepdim=True).mean(1, keepdim=True)
    return middle / ((middle**2).mean(ALL, keepdim=True) + EPS).sqrt()


def _flat(w: Tensor) -> Tensor:
    flat = w.view(w.shape[0], -1)
    middle = flat - flat.mean(1, keepdim=True)
    return (middle / (middle.pow(2).mean(1, keepdim=True).sqrt() + EPS)).view_as(w)


def _batch_norm(w: Tensor) -> Tensor:
    return F.batch_norm(w.reshape(1, w.shape[0], -1), None, None, training=True, eps=EPS).reshape_as(w)


def _centred_norm(w: Tensor) -> Tensor:
    middle = w - w.mean(ALL, keepdim=True)
    return middle / (middle.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + EPS)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean and std": _mean_and_std,
    "var_mean": _var_mean,
    "std_mean": _std_mean,
    "squares": _squares,
    "flat": _flat,
    "batch norm": _batch_norm,
    "centred norm": _centred_norm,
}


def net(form: Callable[[Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    layers = {"a": conv(3, 6), "c": conv(8, 3), "w": nn.Parameter(torch.randn(8, 6, 3, 3) + 0.5)}

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.c(F.relu(F.conv2d(F.relu(m.a(x)), form(m.w), padding=1)))

    return Net(forward, **layers).double().eval()


@pytest.mark.parametrize("name", FORMS)
def test_all_spellings_are_cut_alike(name: str) -> None:
    form = FORMS[name]

    def over_kept(w: Tensor) -> Tensor:
        """The form over the inputs that are not silenced alone."""
        kept = [i for i in range(w.shape[1]) if w[:, i].any()]
        whole = torch.zeros_like(w)
        whole[:, kept] = form(w[:, kept])
        return whole

    model = net(form)
    graph = trace(model, torch.zeros(SHAPE, dtype=torch.float64))
    assert {group.name for group in graph.prunable} == {"a", "w"}, graph.frozen
    assert {group.name for group in graph.prunable if group.inexact} == {"a"}
    for seed in range(3):
        plan = random_plan(graph, np.random.default_rng(seed))
        small, dense = apply(model, graph, plan), net(over_kept)
        silence(dense, graph, plan)
        x = torch.randn(3, *SHAPE[1:], dtype=torch.float64)
        torch.testing.assert_close(small(x), dense(x), rtol=1e-6, atol=1e-9)


def test_statistics_that_meet_no_channels_keep_theirs() -> None:
    """A mean of a whole weight scales something else: nobody could tell that a cut changes it."""
    forward = lambda m, x: m.c(F.relu(m.a(x))) * m.a.weight.mean()  # noqa: E731
    graph = trace(Net(forward, a=conv(3, 8), c=conv(8, 2)), torch.zeros(SHAPE))
    assert "mean or deviation" in graph.frozen["a"]
    centred = lambda m, x: F.conv2d(m.a(x), m.w - m.w.mean(0, keepdim=True), padding=1)  # noqa: E731
    across = lambda m, x: m.c(centred(m, x))  # noqa: E731
    model = Net(across, a=conv(3, 6), c=conv(8, 2), w=nn.Parameter(torch.randn(8, 6, 3, 3))).double()
    graph = trace(model, torch.zeros(SHAPE, dtype=torch.float64))
    assert {group.name for group in graph.prunable if not group.inexact} == {"a"}
