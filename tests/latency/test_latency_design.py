"""`latency.design`: the probe plans hold every pair of widths that meets in a layer."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_nets import residual
from pydeploy.errors import ConfigError
from pydeploy.graph import Extent, Graph, Group, Op
from pydeploy.latency.probes.design import grid, op_keys, plan_keys, probe_plans, unmeasured


def graph_of(widths: dict[str, int], meetings: list[tuple[str, ...]], **facts: int) -> Graph:
    groups = tuple(Group(name, width, (), **facts) for name, width in widths.items())
    return Graph(groups, tuple(op_between(f"op{i}", names[:-1], names[-1]) for i, names in enumerate(meetings)))


def op_between(name: str, sources: tuple[str, ...], out: str) -> Op:
    cin = Extent(0, tuple((source, 1) for source in sources))
    return Op(name, "conv", f"{name}.weight", cin, Extent(0, ((out, 1),)), 4, 4)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    names = [f"g{i}" for i in range(draw(st.integers(2, 7)))]
    widths = {name: draw(st.integers(1, 96)) for name in names}
    scopes = st.lists(st.sampled_from(names), min_size=2, max_size=4, unique=True).map(tuple)
    return graph_of(widths, draw(st.lists(scopes, min_size=1, max_size=8)))


@settings(max_examples=60, deadline=None)
@given(graph=graphs(), points=st.integers(1, 7))
def test_every_pair_that_meets_occurs(graph: Graph, points: int) -> None:
    offered = grid(graph, points)
    plans = probe_plans(graph, offered)
    assert plans[0] == graph.widths
    assert len({tuple(plan.items()) for plan in plans}) == len(plans)
    for op in graph.ops:
        for one, other in combinations(op.scope, 2):
            held = {(plan[one], plan[other]) for plan in plans}
            assert held == set(product(offered[one], offered[other]))
    two = Graph(graph.groups, tuple(op for op in graph.ops if len(op.scope) <= 2))
    assert not two.ops or not unmeasured(two, offered, plans)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 300), points=st.integers(1, 9), align=st.sampled_from([1, 8, 16, 32]),
    min_width=st.integers(1, 40), own=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_grid_is_aligned_bounded_and_ends_dense(width: int, points: int, align: int, min_width: int, own: int) -> None:
    width = width * own
    values = grid(graph_of({"g": width}, [], align=own), points, align, min_width)["g"]
    assert list(values) == sorted(set(values))
    assert values[-1] == width
    assert 1 <= len(values) <= points
    for value in values[:-1]:
        assert value >= min_width
        assert value % own == 0
        assert value % align == 0 or width < align


@pytest.mark.parametrize(
    ("width", "expected"),
    [(64, (8, 16, 24, 40, 48, 56, 64)), (32, (8, 16, 24, 32)), (8, (8,)), (5, (2, 4, 5)), (1, (1,))],
    ids=str,
)
def test_grid_examples(width: int, expected: tuple[int, ...]) -> None:
    assert grid(graph_of({"g": width}, []))["g"] == expected


def test_frozen_groups_are_not_probed() -> None:
    _, graph = residual()
    plans = probe_plans(graph, grid(graph))
    assert set(plans[0]) == {"a", "b"}
    assert len(plans) == 4


def test_seven_widths_need_the_dense_plan_and_49_in_a_deep_residual_net() -> None:
    names = [f"b{i}" for i in range(20)]
    meetings = [pair for name in names for pair in (("trunk", name), (name, "trunk"))]
    graph = graph_of({"trunk": 64, **dict.fromkeys(names, 64)}, meetings)
    assert len(probe_plans(graph, grid(graph))) == 1 + 7 * 7


def test_limit_takes_the_most_informative_plans_and_tells_what_is_left() -> None:
    graph = graph_of({"a": 64, "b": 64, "c": 64}, [("a", "b"), ("b", "c")])
    offered = grid(graph)
    few = probe_plans(graph, offered, limit=10)
    left = unmeasured(graph, offered, few)
    assert len(few) == 10
    assert few[0] == graph.widths
    assert len(left) == 49 - (1 + 9 * 2)  # the dense plan holds one key for both layers, any other plan two
    assert not left & set().union(*(plan_keys(graph, plan) for plan in few))


def test_concat_keys_are_sums_not_products() -> None:
    names = [f"g{i}" for i in range(40)]
    graph = graph_of(dict.fromkeys(names, 32), [tuple(names)])
    keys = op_keys(graph, graph.ops[0], grid(graph))
    assert {key.cin for key in keys} == set(range(39 * 8, 39 * 32 + 1, 8))


@pytest.mark.parametrize("bad", [{"points": 0}, {"align": 0}, {"min_width": 0}], ids=str)
def test_nonsense_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        grid(graph_of({"g": 8}, []), **bad)


def test_every_plan_mixes_narrow_and_wide_groups() -> None:
    names = [f"g{i}" for i in range(12)]
    graph = graph_of(dict.fromkeys(names, 64), [*pairwise(names)])
    plans = probe_plans(graph, grid(graph))
    assert len(plans) == 7 * 7 + 1
    totals = [sum(plan.values()) for plan in plans[1:]]
    assert min(totals) > 0.4 * max(totals)  # where groups of a colour share their level, they go from 96 to 768
    assert all(min(plan.values()) < 32 < max(plan.values()) for plan in plans[1:])
