"""A metric's words and its arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydeploy.tasks.metric import Metric

ACCURACY, PSNR, ERROR = Metric("accuracy"), Metric("PSNR", "dB"), Metric("error", "px", "lower")
numbers = st.floats(-1e3, 1e3)


def test_words() -> None:
    assert (ACCURACY.text(0.9125), ACCURACY.change(0.94, 0.9369), ACCURACY.amount(1)) == (
        "91.25 %",
        "-0.31 points",
        "1 point",
    )
    assert (PSNR.text(31.234), PSNR.change(31.2, 31.4), PSNR.amount(0.5)) == ("31.23 dB", "+0.2 dB", "0.5 dB")
    assert (ACCURACY.label, ACCURACY.change_label, PSNR.label, PSNR.change_label) == (
        "accuracy, %", "change, points", "PSNR, dB", "change, dB")  # fmt: skip
    assert (Metric("score", "").text(3), Metric("score", "").label, Metric("mIoU").title) == ("3", "score", "MIoU")


def test_a_point_is_exactly_a_point() -> None:
    assert ACCURACY.lost(0.94, 0.93) == 1.0
    assert ACCURACY.change(0.5, 0.5 - 1e-12) == "+0.00 points"


@pytest.mark.parametrize("metric", [ACCURACY, PSNR, ERROR], ids=lambda metric: metric.name)
@given(a=numbers, b=numbers)
def test_what_is_lost_one_way_is_won_the_other(metric: Metric, a: float, b: float) -> None:
    assert metric.lost(a, b) == -metric.lost(b, a)
    assert (metric.lost(a, b) > 0) <= ((b < a) if metric.better == "higher" else (b > a))
