"""Which engine is recommended, and what the headline says."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydeploy.report import Report, headline, recommend
from pydeploy.report.charts import all_charts, frontier, points
from pydeploy.report.page import to_html
from pydeploy.report.verdict import NOTICEABLE, speedup
from pydeploy.tasks.metric import Metric
from pydeploy.timing.ratio import Ratio
from report_factory import ACCURACY, CPU, latency, model, models, sample


def test_the_fastest_engine_within_the_limit_is_recommended() -> None:
    chosen = recommend(models(), ACCURACY)
    assert chosen.model == "quantized"
    assert "int8 at 0.452 ms is the fastest engine within 1 point of dense: 2.44x faster, -0.03 points" in chosen.reason


@pytest.mark.parametrize(
    ("median", "said"),
    [(600.0, "1.13x slower"), (531.7, "1.00x as fast"), (525.0, "1.01x faster; differences below 2% count as none")],
    ids=["slower", "equal", "1.3 % faster"],
)
def test_int8_that_is_not_faster_is_said_and_not_recommended(median: float, said: str) -> None:
    chosen = recommend(models(quantized=model(median, 0.9318, precision="int8")), ACCURACY)
    assert chosen.model == "pruned"
    assert (
        f"quantized (int8, {median / 1000:.3f} ms) is not faster than pruned (fp32, 0.532 ms) ({said})" in chosen.reason
    )


def test_an_engine_that_loses_too_much_is_passed_over() -> None:
    chosen = recommend(models(quantized=model(300.0, 0.9200, precision="int8")), ACCURACY)
    assert chosen.model == "pruned"
    assert "loses 1.21 points of accuracy, more than the 1 allowed" in chosen.reason


def test_exactly_the_limit_is_within_it() -> None:
    engines = models(dense=model(1000, 0.94), pruned=model(500, 0.93), quantized=None)
    assert recommend(engines, ACCURACY, limit=1.0).model == "pruned"
    assert recommend(engines, ACCURACY, limit=0.99).model == "dense"


def test_dense_stays_when_nothing_is_better() -> None:
    chosen = recommend(models(pruned=model(1101, 0.9334), quantized=model(400, 0.5, precision="int8")), ACCURACY)
    assert chosen.model == "dense"
    assert "no other engine is both faster than dense and within 1 point" in chosen.reason
    assert "pruned (fp32, 1.101 ms) is not faster than dense (fp32, 1.102 ms)" in chosen.reason
    assert "quantized (int8, 0.400 ms) loses 43.21 points" in chosen.reason


def test_quantized_is_compared_with_dense_where_pruned_is_not_accurate() -> None:
    chosen = recommend(models(pruned=model(400, 0.80), quantized=model(1150, 0.93, precision="int8")), ACCURACY)
    assert chosen.model == "dense"
    assert "is not faster than dense" in chosen.reason


def test_disturbed_and_analytic_numbers_are_called_so() -> None:
    engines = models(pruned=model(531.7, 0.9334, latency_us=latency(531.7, disturbed=True)))
    assert "other load disturbed the measurement of pruned" in recommend(engines, ACCURACY).reason
    assert "analytic, not measured" in recommend(engines, ACCURACY, measured=False).reason
    assert "disturbed" not in recommend(models(), ACCURACY).reason


speeds = st.floats(10, 1000)
quality = st.floats(0.0, 1.0)


@given(speeds, speeds, speeds, quality, quality, quality, st.floats(0, 5))
def test_what_is_recommended_is_accurate_and_really_faster(
    d: float, p: float, q: float, da: float, pa: float, qa: float, limit: float
) -> None:
    engines = models(dense=model(d, da), pruned=model(p, pa), quantized=model(q, qa))
    chosen = recommend(engines, ACCURACY, limit=limit).model
    best = engines.present[chosen]
    assert 100 * (da - best.value) <= limit + 1e-5
    assert chosen == "dense" or best.latency_us.median < (1 - NOTICEABLE) * d
    for other in engines.present.values():
        if 100 * (da - other.value) <= limit - 1e-5:
            # Two steps of "not noticeably faster" are the most that can be left on the table.
            assert best.latency_us.median * (1 - NOTICEABLE) ** 2 <= other.latency_us.median


def test_headline_of_a_met_budget() -> None:
    said = "Budget 0.551 ms: met, 0.452 ms measured (2.44x faster), accuracy 93.18 % (dense 93.21 %)"
    assert headline(sample()) == said


def test_headline_of_a_missed_budget_says_by_how_much() -> None:
    assert "Budget 0.430 ms: missed by 5.1 %, 0.452 ms measured" in headline(sample(budget_us=430.0, met=False))


def test_headline_of_a_budget_that_only_a_further_engine_meets() -> None:
    report = sample(budget_us=500.0, met=False)
    assert "Budget 0.500 ms: missed by the pruned engine (0.532 ms), met by the quantized one, 0.452 ms" in headline(
        report
    )


def test_headline_speaks_of_the_pruned_engine_where_dense_is_recommended() -> None:
    report = sample(models=models(pruned=model(540.0, 0.80), quantized=None))
    assert report.recommendation.model == "dense"
    assert "0.540 ms measured (2.04x faster), accuracy 80.00 % (dense 93.21 %)" in headline(report)


def test_headline_of_an_analytic_target_says_so() -> None:
    report = sample(target=replace(CPU, measured=False))
    assert "0.452 ms analytic, NOT measured" in headline(report)
    assert "ms measured" not in headline(report)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(200, 100, "2.00x faster"), (100, 200, "2.00x slower"), (100, 100.2, "1.00x as fast")],
    ids=["faster", "slower", "equal"],
)
def test_speedup(before: float, after: float, said: str) -> None:
    assert speedup(Ratio(after / before)) == said


def test_a_metric_that_is_no_share_has_its_unit_and_its_direction() -> None:
    error = Metric("mean error", "px", "lower")
    engines = models(dense=model(1000, 3.0), pruned=model(500, 3.4), quantized=model(300, 4.2, precision="int8"))
    chosen = recommend(engines, error, limit=0.5)
    assert chosen.model == "pruned"
    assert "fastest engine within 0.5 px of dense: 2.00x faster, +0.4 px" in chosen.reason
    assert "quantized (int8, 0.300 ms) loses 1.2 px of mean error, more than the 0.5 allowed" in chosen.reason
    assert recommend(engines, error, limit=1.2).model == "quantized"
    report = sample(models=engines, metric=error, candidates=(), recommendation=chosen)
    assert "mean error 3.4 px (dense 3 px)" in headline(report)
    page = to_html(report, all_charts(report))
    assert "down is a lower mean error" in page
    assert not re.search("accuracy|points|Wilson", re.sub(r"<[^>]*>", " ", page))
    assert report.metric == Report.from_json(report.to_json()).metric


def test_the_front_goes_the_way_that_is_better() -> None:
    engines = models(dense=model(1000, 3.0), pruned=model(500, 3.4), quantized=model(600, 3.5, precision="int8"))
    report = sample(models=engines, metric=Metric("mean error", "px", "lower"), candidates=())
    assert [point.series for point in frontier(points(report))] == ["pruned", "dense"]
