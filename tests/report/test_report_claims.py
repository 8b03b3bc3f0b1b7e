"""A report claims nothing that its facts do not hold: random facts, and what the text says of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydeploy.report import Latency, Round, TableFacts, recommend
from pydeploy.report.charts import all_charts
from pydeploy.report.page import to_html, to_markdown
from pydeploy.tasks.metric import Metric
from pydeploy.tasks.sampling import right_answers, wilson
from pydeploy.timing.records import Turn
from report_factory import ACCURACY, model, models, sample


def timed(us: float, spread: list[float], disturbed: bool = False) -> Latency:
    """A latency whose rounds took `us` times each of `spread`."""
    turns = tuple(Turn(us * one, not disturbed) for one in spread)
    return Latency(us, 0.9 * us, 1.1 * us, 10 * len(turns), disturbed, turns)


spreads = st.lists(st.floats(0.5, 2.0), min_size=8, max_size=8)


@given(st.floats(100, 1000), st.floats(100, 1000), spreads, spreads, st.booleans())
def test_a_gain_is_recommended_only_beyond_its_interval(
    dense_us: float, pruned_us: float, one: list[float], other: list[float], disturbed: bool
) -> None:
    engines = models(dense=model(dense_us, 0.93, latency_us=timed(dense_us, one)), quantized=None,
                     pruned=model(pruned_us, 0.93, latency_us=timed(pruned_us, other, disturbed)))  # fmt: skip
    ratios = sorted(pruned_us * b / (dense_us * a) for a, b in zip(one, other, strict=True))
    chosen = recommend(engines, ACCURACY)
    if chosen.model == "pruned":
        assert ratios[-1] < 1  # of eight rounds the interval reaches from the least to the largest
    assert ("other load disturbed" in chosen.reason) == disturbed


@given(st.integers(1, 40), st.data())
def test_wilsons_interval_is_the_score_tests(n: int, data: st.DataObject) -> None:
    """Its ends are the shares p from which k of n is 1.96 standard errors (of p) away."""
    k = data.draw(st.integers(0, n))
    for end in wilson(k, n):
        if 0 < end < 1:
            assert abs(k / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), abs=1e-6)
    low, high = wilson(k, n)
    assert 0 <= low <= k / n + 1e-12
    assert k / n - 1e-12 <= high <= 1


@settings(max_examples=12)
@given(metric=st.sampled_from(["accuracy", "mIoU", "mAP"]), n=st.integers(10, 5000), share=st.floats(0.1, 0.9),
       loud=st.booleans(), disturbed=st.integers(0, 26))  # fmt: skip
def test_the_text_says_what_the_facts_hold(metric: str, n: int, share: float, loud: bool, disturbed: int) -> None:
    rounds = (Round(predicted_us=1000.0, measured_us=1200.0, met=True, limit_us=1490.0, disturbed=loud),
              Round(number=2, predicted_us=3500.0, measured_us=3600.0, met=False, limit_us=3000.0))  # fmt: skip
    engines = models(**{name: replace(one, value=share, samples=n) for name, one in models().present.items()})
    table = TableFacts(probes=26, keys=100, seconds=9.0, disturbed=disturbed)
    report = sample(metric=Metric(metric), models=engines, rounds=rounds, table=table)
    charts = all_charts(report)
    markdown, page = to_markdown(report, charts), to_html(report, {"rounds": charts["rounds"]})
    for text in (markdown, page):
        assert "0.2 points" not in text
        assert ("disturbed by other load" in text) == (disturbed > 0)
        assert str(n) in text
    k = right_answers(share, n)
    interval = "-" if k is None else "{:.2f} to {:.2f}".format(*(100 * end for end in wilson(k, n)))
    row = next(line for line in markdown.splitlines() if line.startswith("| 95 % interval"))
    assert interval in row
    chart = charts["rounds"].standalone()
    assert "of the budget in that round" in chart
    assert (", disturbed" in chart) == loud
    assert ", missed" in chart
    assert (", met" in chart) == (not loud)


def test_a_metric_that_counts_no_samples_has_no_interval() -> None:
    assert right_answers(0.9321, 10_000) == 9321
    assert right_answers(0.41234567, 500) is None
