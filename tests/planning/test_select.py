"""Selections without a table against counting by hand, and every rule against what it promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from pydeploy.errors import ConfigError, DataError, Infeasible
from pydeploy.graph import Extent, Graph, Group, Op, Slice
from pydeploy.planning.select import parameters, select
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply


def graph_of(**widths: int) -> Graph:
    """A chain of 1x1 layers, one group each."""
    groups = tuple(
        Group(name, width, (Slice(f"{name}.weight", 0, roles=("filter",)),)) for name, width in widths.items()
    )
    names, ops, before = list(widths), [], Extent(3)
    for name in names:
        ops.append(Op(name, "conv", f"{name}.weight", before, Extent(0, ((name, 1),)), 4, 4))
        before = Extent(0, ((name, 1),))
    shapes = dict(
        zip((f"{name}.weight" for name in names), ((width, 3, 1, 1) for width in widths.values()), strict=True)
    )
    return Graph(groups, tuple(ops), shapes)


GRAPH = graph_of(a=10, b=20, c=40)


def scores_of(graph: Graph = GRAPH, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        group.name: (rng.random(group.width) * (1 + i)).astype(np.float32) for i, group in enumerate(graph.prunable)
    }


def kept(selection: Any) -> dict[str, int]:
    return dict(selection.plan.widths)


def test_local_removes_the_floor_of_the_share_of_every_group() -> None:
    found = select(GRAPH, scores_of(), ratio=0.33)
    assert kept(found) == {"a": 10 - 3, "b": 20 - 6, "c": 40 - 13}
    for name, values in scores_of().items():
        best = sorted(range(len(values)), key=lambda i: -values[i])[: found.plan.widths[name]]
        assert set(found.plan.kept[name]) == set(best)
    assert found.removed == pytest.approx(22 / 70)


def test_global_removes_exactly_so_many_of_all() -> None:
    found = select(GRAPH, scores_of(), ratio=0.3, scope="global")
    every = sorted((float(v), name, i) for name, values in scores_of().items() for i, v in enumerate(values))
    gone = {(name, i) for _, name, i in every[:21]}
    assert {(name, i) for name in ("a", "b", "c") for i in found.plan.kept[name]} == {
        (n, i) for _, n, i in every
    } - gone
    equal = {name: np.zeros_like(values) for name, values in scores_of().items()}
    assert kept(select(GRAPH, equal, ratio=0.3, scope="global")) == {"a": 10, "b": 20, "c": 19}


def test_threshold_and_energy() -> None:
    scores = {"a": np.float32([0] * 4 + [1] * 6), "b": np.float32([0] * 20), "c": np.float32([2] * 40)}
    found = select(GRAPH, scores, threshold=0)
    assert kept(found) == {"a": 6, "b": 1, "c": 40}
    assert found.at_minimum == ("b",)
    scores = {name: np.random.default_rng(1).random(len(values), np.float32) for name, values in scores.items()}
    for scope in ("local", "global"):
        shares = select(GRAPH, scores, energy=0.8, scope=scope).plan
        parts = [scores] if scope == "global" else [{name: values} for name, values in scores.items()]
        for part in parts:
            total = sum(float(values.sum()) for values in part.values())
            inside = sorted((float(part[name][i]) for name in part for i in shares.kept[name]), reverse=True)
            assert sum(inside) >= 0.8 * total * (1 - 1e-9) > sum(inside[:-1])


@pytest.mark.parametrize("what", ["macs", "params"])
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("name", ["residual", "plain", "grouped", "depthwise_se"])
def test_budgets_of_real_networks(name: str, scope: str, what: str) -> None:
    """Within the budget by the cut network's own count, and one channel fewer removed is not."""
    model = zoo.build(name)
    graph = trace(model, torch.zeros(zoo.SHAPE))
    scores = scores_of(graph)
    found = select(graph, scores, **{what: 0.6, "scope": scope})
    small = apply(model, graph, found.plan)
    after = trace(small, torch.zeros(zoo.SHAPE))
    share = after.macs() / graph.macs() if what == "macs" else after.learnable / graph.learnable
    assert share <= 0.6
    assert (found.macs, found.params) == pytest.approx((after.macs() / graph.macs(), after.learnable / graph.learnable))
    assert parameters(graph, {}) == graph.learnable
    steps = sum(group.width for group in graph.prunable)
    removed = [select(graph, scores, ratio=k / steps, scope=scope) for k in range(1, steps)]
    assert max(getattr(s, what) for s in removed if getattr(s, what) <= 0.6) == pytest.approx(getattr(found, what))


@settings(max_examples=80, deadline=None)
@given(ratio=st.floats(0.01, 0.99), scope=st.sampled_from(["local", "global"]), align=st.sampled_from([1, 2, 4, 8, 16]),
       rounding=st.sampled_from(["nearest", "down", "up", "power2"]), min_share=st.floats(0, 0.9), seed=st.integers(0, 99))  # fmt: skip
def test_rounding(ratio: float, scope: str, align: int, rounding: str, min_share: float, seed: int) -> None:
    scores = scores_of(seed=seed)
    plain = kept(select(GRAPH, scores, ratio=ratio, scope=scope))
    found = kept(select(GRAPH, scores, ratio=ratio, scope=scope, align=align, rounding=rounding, min_share=min_share))
    for name, width in found.items():
        full = GRAPH.by_name[name].width
        assert width == full or width % align == 0
        assert width >= min_share * full - 1e-6
        choices = (
            range(align, full, align) if rounding != "power2" else [2**k for k in range(8) if align <= 2**k < full]
        )
        allowed = [*choices, full]
        enough = [w for w in allowed if w >= max(min_share * full - 1e-6, 1)]
        if rounding in ("up", "power2"):
            assert width == next(w for w in enough if w >= min(plain[name], full))
        elif rounding == "down":
            assert width == max([w for w in enough if w <= plain[name] and (w % align == 0)], default=enough[0])
        elif plain[name] in enough and plain[name] % align == 0:
            assert width == plain[name]


def test_normal_layers_leave_shortcuts_whole() -> None:
    graph = trace(zoo.build("residual"), torch.zeros(zoo.SHAPE))
    found = select(graph, scores_of(graph), ratio=0.5, layers="normal")
    assert {name for name, width in kept(found).items() if width < graph.by_name[name].width} == {"a.0", "b.0"}
    assert found.removed == pytest.approx(0.5)


def test_sets_apart_have_thresholds_of_their_own() -> None:
    scores = {"a": np.full(10, 9, np.float32), "b": np.full(20, 8, np.float32), "c": np.full(40, 1, np.float32)}
    assert kept(select(GRAPH, scores, ratio=0.5, scope="global")) == {"a": 10, "b": 20, "c": 5}
    assert kept(select(GRAPH, scores, ratio=0.5, scope="global", apart=["c"])) == {"a": 10, "b": 5, "c": 20}


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({}, ConfigError, "give exactly one of ratio, threshold, energy, macs, params; got none"),
    ({"ratio": 0.5, "macs": 0.5}, ConfigError, "got ratio and macs"),
    ({"ratio": 0}, ConfigError, "'ratio': should be greater than 0"),
    ({"ratio": 1}, ConfigError, "'ratio': should be less than 1"),
    ({"ratio": True}, ConfigError, "not yes or no"),
    ({"ratio": math.nan}, ConfigError, "ratio"),
    ({"ratio": 0.5, "align": 64}, ConfigError, "align is 64 and the widest group has 40 channels"),
    ({"ratio": 0.5, "align": 12, "rounding": "power2"}, ConfigError, "expected a power of two"),
    ({"ratio": 0.5, "scope": "globl"}, ConfigError, "did you mean 'global'"),
    ({"ratoi": 0.5}, ConfigError, "unknown key 'ratoi' .did you mean 'ratio'"),
    ({"ratio": 0.5, "apart": ["d*"]}, ConfigError, "no group matches 'd[*]'"),
    ({"macs": 0.001}, Infeasible, "the narrowest cut has"),
]


@pytest.mark.parametrize(("rules", "kind", "said"), WRONG)
def test_wrong_rules(rules: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        select(GRAPH, scores_of(), **rules)


def test_wrong_scores() -> None:
    with pytest.raises(DataError, match="scores lack group 'c'"):
        select(GRAPH, {k: v for k, v in scores_of().items() if k != "c"}, ratio=0.5)
