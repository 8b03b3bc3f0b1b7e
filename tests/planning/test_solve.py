from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from pydeploy.errors import ConfigError, DataError, Infeasible, MissingTiming
from pydeploy.graph import Extent, Graph, Group, Op
from pydeploy.planning.baselines import fit_budget, global_threshold, halp, uniform
from pydeploy.planning.solve import pareto_front, solve


@dataclass
class StairTable:
    """A made-up device: time is a staircase of both channel counts, plus a start-up time per layer."""

    graph: Graph
    widths: dict[str, tuple[int, ...]]
    missing: set[tuple[int, int]] = field(default_factory=set)
    asked: list = field(default_factory=list)

    def latency_us(self, key):
        self.asked.append(key)
        if (key.cin, key.cout) in self.missing:
            raise MissingTiming(f"no timing for {key}")
        cin = key.cin // key.groups
        return 1.5 + 0.25 * math.ceil(key.cout / 4) * math.ceil(cin / 2) * math.prod(key.kernel) + 0.01 * key.cout

    overhead_us = 3.0

    def predict_us(self, widths):
        full = {**self.graph.widths, **widths}
        return 3.0 + sum(self.latency_us(layer.key(full)) for layer in self.graph.ops)


def op(name, cin, cout, **facts):
    return Op(name, "conv", f"{name}.weight", cin, cout, h=8, w=8, **facts)


def graph_of(kind):
    """Small graphs, all with a frozen output group of 10."""
    if kind == "chain":
        sizes, ops = {"a": 8, "b": 6, "c": 8}, [
            op("first", Extent(3), Extent(0, (("a", 1),)), kernel=(3, 3)),
            op("second", Extent(0, (("a", 1),)), Extent(0, (("b", 1),))),
            op("third", Extent(0, (("b", 1),)), Extent(0, (("c", 1),))),
            op("last", Extent(0, (("c", 4),)), Extent(0, (("out", 1),))),
        ]  # fmt: skip
    elif kind == "residual":
        sizes, ops = {"s": 8, "m": 6, "n": 6}, [
            op("stem", Extent(3), Extent(0, (("s", 1),))),
            op("up1", Extent(0, (("s", 1),)), Extent(0, (("m", 1),))),
            op("down1", Extent(0, (("m", 1),)), Extent(0, (("s", 1),))),
            op("up2", Extent(0, (("s", 1),)), Extent(0, (("n", 1),))),
            op("depth", Extent(0, (("n", 1),)), Extent(0, (("n", 1),)), depthwise=True, kernel=(3, 3)),
            op("down2", Extent(0, (("n", 1),)), Extent(0, (("s", 1),))),
            op("head", Extent(0, (("s", 1),)), Extent(0, (("out", 1),))),
        ]  # fmt: skip
    else:  # dense: every layer reads all groups before it; the last ones read more than three
        sizes = {"a": 4, "b": 4, "c": 4, "d": 4, "e": 6}
        terms = (("a", 1), ("b", 1), ("c", 1), ("d", 1))
        ops = [op("stem", Extent(3), Extent(0, terms[:1]))]
        ops += [op(f"layer{i}", Extent(2, terms[:i]), Extent(0, (terms[i],))) for i in (1, 2, 3)]
        ops += [
            op("mix", Extent(2, terms), Extent(0, (("e", 1),))),
            op("depth", Extent(2, terms), Extent(2, terms), depthwise=True),
            op("loop", Extent(0, (*terms, ("a", 1))), Extent(0, (("a", 1),))),
            op("last", Extent(0, (*terms, ("out", 2))), Extent(0, (("out", 1),))),
        ]
    groups = [Group(name, width, ()) for name, width in sizes.items()]
    frozen = Group("out", 10, (), frozen="graph output")
    fixed = op("fixed", Extent(3), Extent(5))
    return Graph((*groups, frozen), (*ops, fixed))


def scores_of(graph, seed=0):
    rng = np.random.default_rng(seed)
    return {group.name: rng.random(group.width).astype(np.float32) for group in graph.prunable}


def table_of(graph, step=2):
    return StairTable(graph, {g.name: tuple(sorted({*range(step, g.width, step), g.width})) for g in graph.prunable})


def kept_score(scores, widths):
    return sum(float(np.sort(scores[name].astype(np.float64))[::-1][:w].sum()) for name, w in widths.items())


def all_plans(graph, table):
    names = [g.name for g in graph.prunable]
    for widths in itertools.product(*(table.widths[name] for name in names)):
        yield dict(zip(names, widths, strict=True))


KINDS = ["chain", "residual", "dense"]


def planned_for(kind, share):
    """Graph, scores, table, and the budget that lies at `share` between the smallest and the dense network."""
    graph = graph_of(kind)
    table = table_of(graph, 1 if kind == "dense" else 2)
    smallest_us = min(table.predict_us(widths) for widths in all_plans(graph, table))
    return graph, scores_of(graph), table, smallest_us + share * (table.predict_us({}) - smallest_us)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 1.0])
def test_the_plan_is_the_best_that_fits(kind, share):
    graph, scores, table, budget_us = planned_for(kind, share)
    plan = solve(graph, scores, table, budget_us=budget_us)
    best = max(
        kept_score(scores, widths) for widths in all_plans(graph, table) if table.predict_us(widths) <= budget_us
    )
    plan.check(graph)
    assert plan.score == pytest.approx(best, rel=1e-9)
    assert plan.gap == 0.0
    assert plan.method == "joint"
    assert plan.latency_us == table.predict_us(plan.widths) <= budget_us
    for name, channels in plan.kept.items():
        assert scores[name][list(channels)].min() >= np.sort(scores[name])[::-1][len(channels) - 1]


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_counts_calls_overhead_and_frozen_layers(kind):
    graph = graph_of(kind)
    table = table_of(graph)
    total_us = 3.0
    for layer in graph.ops:
        total_us += table.latency_us(layer.key(graph.widths))
    assert table.predict_us({}) == pytest.approx(total_us)


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_below_everything_names_the_smallest_plan(kind):
    graph = graph_of(kind)
    scores, table = scores_of(graph), table_of(graph)
    smallest_us = min(table.predict_us(widths) for widths in all_plans(graph, table))
    with pytest.raises(
        Infeasible, match=rf"budget 9 us is below the smallest plan, {smallest_us:.6g} us .*raise the budget$"
    ):
        solve(graph, scores, table, budget_us=9.0)  # min_width is 1: nothing to lower
    with pytest.raises(Infeasible, match=r"budget 9 us is below the smallest plan, .*min_width"):
        solve(graph, scores, table, budget_us=9.0, min_width=2)
    assert solve(graph, scores, table, budget_us=smallest_us * (1 + 1e-9)).latency_us == pytest.approx(smallest_us)


def test_min_width_and_own_limits_hold():
    graph = graph_of("chain")
    tight = replace(graph, groups=tuple(replace(g, min_width=4, align=4) if g.name == "c" else g for g in graph.groups))
    table = table_of(graph, 1)
    plan = solve(tight, scores_of(graph), table, budget_us=60.0, min_width=3)
    assert plan.widths["a"] >= 3
    assert plan.widths["b"] >= 3
    assert plan.widths["c"] in (4, 8)
    whole = solve(graph, scores_of(graph), table, budget_us=1e9, min_width=7)
    assert whole.widths == {"a": 8, "b": 6, "c": 8}


def test_given_widths_replace_the_tables_and_groups_not_named_stay_whole():
    graph = graph_of("chain")
    plan = solve(graph, scores_of(graph), table_of(graph), budget_us=80.0, widths={"a": (3, 5), "b": (6,)})
    assert plan.widths["a"] in (3, 5)
    assert (plan.widths["b"], plan.widths["c"]) == (6, 8)


def test_combinations_without_a_timing_are_left_out():
    graph = graph_of("chain")
    scores, table = scores_of(graph), table_of(graph)
    full = solve(graph, scores, table, budget_us=1e9)
    assert full.widths == {"a": 8, "b": 6, "c": 8}
    table.missing = {(8, 6)}
    cut = solve(graph, scores, table, budget_us=1e9)
    assert (cut.widths["a"], cut.widths["b"]) != (8, 6)
    assert math.isfinite(cut.latency_us)


def test_a_layer_without_any_timing_is_named():
    graph = graph_of("chain")
    table = table_of(graph)
    table.missing = {(a, b) for a in range(9) for b in range(9) if a != 3}
    with pytest.raises(MissingTiming, match=r"layer 'second' has no timing at any offered width.*no timing for conv"):
        solve(graph, scores_of(graph), table, budget_us=1e9)


def test_timings_that_never_meet_are_told():
    graph = graph_of("chain")
    table = table_of(graph)
    # 'second' is known from b = 2 only, 'third' from b = 4 only.
    table.missing = {(a, b) for a in (2, 4, 6, 8) for b in (4, 6)} - {(4, 4)}
    table.missing |= {(2, c) for c in (2, 4, 6, 8)} | {(6, c) for c in (2, 4, 6, 8)} | {(4, 4), (8, 2)}
    table.missing -= {(4, 2), (4, 8)}
    with pytest.raises(MissingTiming, match="no combination of the offered widths has timings for all layers"):
        solve(graph, scores_of(graph), table, budget_us=1e9)


def test_equal_layers_are_looked_up_once():
    graph = graph_of("residual")
    table = table_of(graph)
    solve(graph, scores_of(graph), table, budget_us=1e9)
    predicted = len(graph.ops)
    assert len(table.asked) - predicted == len(set(table.asked))


def test_planning_is_repeatable():
    graph = graph_of("residual")
    scores, table = scores_of(graph), table_of(graph, 1)
    assert solve(graph, scores, table, budget_us=50.0) == solve(graph, scores, table, budget_us=50.0)


def changed(scores, name, value):
    return {key: score for key, score in {**scores, name: value}.items() if score is not None}


BAD_SCORES = {
    "missing group": (None, "the scores lack group 'b'"),
    "wrong length": (np.zeros(5, np.float32), r"scores of group 'b' have shape \(5,\), expected \(6,\)"),
    "NaN": (np.float32([0, 1, np.nan, 0, 0, 0]), "score of channel 2 of group 'b' is nan"),
    "infinite": (np.float32([0, np.inf, 0, 0, 0, 0]), "score of channel 1 of group 'b' is inf"),
}


@pytest.mark.parametrize(("score", "message"), BAD_SCORES.values(), ids=BAD_SCORES)
def test_bad_scores_name_the_group(score, message):
    graph = graph_of("chain")
    scores = changed(scores_of(graph), "b", score)
    with pytest.raises(DataError, match=message):
        solve(graph, scores, table_of(graph), budget_us=100.0)
    with pytest.raises(DataError, match=message):
        uniform(graph, scores, ratio=0.5)
    with pytest.raises(DataError, match=message):
        global_threshold(graph, scores, ratio=0.5)


BAD_SETTINGS = {
    "NaN budget": ({"budget_us": math.nan}, "budget_us is not a number"),
    "too wide": ({"widths": {"a": (2, 9)}}, r"widths of group 'a' are \[2, 9\], expected numbers within 1..8"),
    "zero wide": ({"widths": {"a": (0, 8)}}, r"within 1..8"),
    "negative tolerance": ({"tolerance": -1.0}, "tolerance at least 0"),
}


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings_are_named(settings, message):
    graph = graph_of("chain")
    with pytest.raises(ConfigError, match=message):
        solve(graph, scores_of(graph), table_of(graph), **{"budget_us": 100.0, **settings})


def wide_graph(**widths):
    return Graph(tuple(Group(name, width, ()) for name, width in widths.items()), ())


@pytest.mark.parametrize(
    ("width", "ratio", "align", "min_width", "kept"),
    [
        (64, 0.5, 8, 1, 32),
        (64, 0.3, 8, 1, 48),  # 44.8
        (24, 0.5, 8, 1, 16),  # 12 is half way: up
        (40, 0.9, 8, 1, 8),
        (64, 0.99, 8, 1, 8),  # never empty
        (5, 0.5, 8, 1, 5),  # narrower than one multiple
        (20, 0.1, 8, 1, 16),
        (20, 0.0, 8, 1, 20),  # 24 exceeds the width
        (64, 0.9, 8, 20, 24),
        (7, 0.5, 1, 1, 4),
        (10, 0.9, 1, 1, 1),
    ],
)
def test_uniform_rounds_to_the_nearest_multiple(width, ratio, align, min_width, kept):
    graph = wide_graph(g=width)
    plan = uniform(graph, scores_of(graph), ratio=ratio, align=align, min_width=min_width)
    assert plan.widths == {"g": kept}
    assert plan.method == "uniform"
    assert math.isnan(plan.latency_us)
    assert math.isnan(plan.bound)


def test_uniform_keeps_the_best_channels():
    graph = wide_graph(g=6)
    plan = uniform(graph, {"g": np.float32([3, 1, 2, 3, 0, 3])}, ratio=0.5, align=1)
    assert plan.kept == {"g": (0, 3, 5)}
    assert plan.score == 9.0


def test_uniform_respects_the_groups_own_limits():
    graph = Graph((Group("g", 64, (), min_width=33, align=12), Group("f", 64, (), frozen="output")), ())
    assert uniform(graph, scores_of(graph), ratio=0.9, align=8).widths == {"g": 48}


def test_the_global_rule_ranks_all_channels_together():
    graph = wide_graph(a=4, b=4)
    scores = {"a": np.float32([9, 8, 7, 1]), "b": np.float32([2, 3, 6, 0])}
    plan = global_threshold(graph, scores, ratio=0.5, align=1)
    assert plan.kept == {"a": (0, 1, 2), "b": (2,)}
    assert plan.method == "global"


def test_the_global_rule_removes_exactly_the_share_also_among_ties():
    graph = wide_graph(a=50, b=50)
    equal = {name: np.zeros(50, np.float32) for name in "ab"}
    assert global_threshold(graph, equal, ratio=0.3, align=1).widths == {"a": 50, "b": 20}
    assert global_threshold(graph, equal, ratio=0.29, align=1).widths == {"a": 50, "b": 21}


def test_the_global_rule_never_empties_a_group():
    graph = wide_graph(a=32, b=32)
    scores = {"a": np.ones(32, np.float32), "b": np.zeros(32, np.float32)}
    assert global_threshold(graph, scores, ratio=0.5, align=8).widths == {"a": 32, "b": 8}


@pytest.mark.parametrize("rule", [uniform, global_threshold])
def test_a_table_adds_the_predicted_latency(rule):
    graph = graph_of("chain")
    table = table_of(graph)
    plan = rule(graph, scores_of(graph), ratio=0.5, align=2, table=table)
    assert plan.latency_us == table.predict_us(plan.widths)


@pytest.mark.parametrize("rule", [uniform, global_threshold])
@pytest.mark.parametrize(
    ("settings", "message"), [({"ratio": 1.0}, "ratio is 1.0"), ({"ratio": 0.5, "align": 0}, "align is 0")]
)
def test_impossible_ratios_are_refused(rule, settings, message):
    graph = wide_graph(g=8)
    with pytest.raises(ConfigError, match=message):
        rule(graph, scores_of(graph), **settings)


@pytest.mark.parametrize("rule", [uniform, global_threshold])
def test_nothing_prunable_gives_an_empty_plan(rule):
    graph = Graph((Group("f", 4, (), frozen="output"),), ())
    assert rule(graph, {}, ratio=0.5).kept == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_front_equals_separate_plans(kind):
    graph = graph_of(kind)
    scores, table = scores_of(graph), table_of(graph)
    smallest_us = min(table.predict_us(widths) for widths in all_plans(graph, table))
    budgets = [smallest_us + 1e-6, 1e9, *np.linspace(smallest_us, table.predict_us({}), 9)[1:]]
    front = pareto_front(graph, scores, table, budgets_us=budgets)
    for budget, plan in zip(budgets, front, strict=True):
        alone = solve(graph, scores, table, budget_us=budget)
        assert plan.score == alone.score
        assert plan.latency_us <= budget * (1 + 1e-12)  # a budget may be the very sum that a plan takes
        assert plan.gap == 0.0


def test_a_front_without_budgets_spans_everything():
    graph = graph_of("chain")
    scores, table = scores_of(graph), table_of(graph)
    front = pareto_front(graph, scores, table, points=5)
    assert len(front) == 5
    assert front[0].latency_us == pytest.approx(min(table.predict_us(w) for w in all_plans(graph, table)))
    assert front[-1].widths == {"a": 8, "b": 6, "c": 8}
    assert [p.score for p in front] == sorted(p.score for p in front)
    with pytest.raises(Infeasible, match="budget 1 us is below"):
        pareto_front(graph, scores, table, budgets_us=[60.0, 1.0])
    with pytest.raises(ConfigError, match="points is 0"):
        pareto_front(graph, scores, table, points=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_no_other_rule_keeps_more_than_the_joint_plan(kind, share):
    graph, scores, table, budget_us = planned_for(kind, share)
    best = solve(graph, scores, table, budget_us=budget_us)
    plans = [halp(graph, scores, table, budget_us=budget_us)]
    plans += [
        fit_budget(rule, graph, scores, table, budget_us=budget_us, align=2) for rule in (uniform, global_threshold)
    ]
    for plan in plans:
        plan.check(graph)
        assert plan.latency_us == table.predict_us(plan.widths) <= budget_us
        assert plan.score <= best.score * (1 + 1e-9)


def test_halp_in_one_step_is_a_knapsack_with_frozen_inputs():
    graph = graph_of("chain")
    scores, table = scores_of(graph), table_of(graph)
    budget_us = 0.85 * table.predict_us({})

    def frozen_us(widths):
        total_us = table.predict_us({})
        for layer in graph.ops:
            made = {**graph.widths, **{name: widths[name] for name, _ in layer.cout.terms if name in widths}}
            key = replace(layer, cin=Extent(layer.cin.at(graph.widths)), cout=Extent(layer.cout.at(made))).key({})
            total_us += table.latency_us(key) - table.latency_us(layer.key(graph.widths))
        return total_us

    fitting = [widths for widths in all_plans(graph, table) if frozen_us(widths) <= budget_us]
    best = max(fitting, key=lambda widths: kept_score(scores, widths))
    plan = halp(graph, scores, table, budget_us=budget_us, steps=1)
    assert plan.widths == best


def test_baselines_that_cannot_reach_a_budget_say_so():
    graph = graph_of("chain")
    scores, table = scores_of(graph), table_of(graph)
    with pytest.raises(Infeasible, match="no uniform cut rounded to 2 meets 5 us"):
        fit_budget(uniform, graph, scores, table, budget_us=5.0, align=2)
    with pytest.raises(Infeasible, match="HALP stays at"):
        halp(graph, scores, table, budget_us=5.0)
    with pytest.raises(ConfigError, match="steps is 0"):
        halp(graph, scores, table, budget_us=50.0, steps=0)


def test_a_rule_passes_over_what_the_table_cannot_tell():
    graph = graph_of("chain")
    scores, table = scores_of(graph), table_of(graph)
    full = fit_budget(uniform, graph, scores, table, budget_us=60.0, align=2)
    table.missing = {(full.widths["a"], full.widths["b"])}
    other = fit_budget(uniform, graph, scores, table, budget_us=60.0, align=2)
    assert other.score < full.score
    assert other.latency_us <= 60.0
    table.missing = {(a, b) for a in range(9) for b in range(9)}
    with pytest.raises(MissingTiming, match="no timing for"):
        fit_budget(uniform, graph, scores, table, budget_us=60.0, align=2)
