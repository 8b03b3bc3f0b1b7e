"""Random reports whose facts agree with each other, for the tests of what their text claims."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pydeploy.report import GroupWidth, Latency, Layer, ModelResult, Models, Report, Round, TableFacts, recommend
from pydeploy.report.schema import MODELS
from pydeploy.timing.records import Turn
from report_factory import ACCURACY, CPU, candidate, model, sample

Share = tuple[float, float | None, float | None, int, bool]
"""Median, ends of its interval, rounds, whether disturbed."""


def share(ours: Latency, theirs: Latency) -> Share:
    """What the rounds say, by NumPy: those that nothing disturbed where there are six (or all are fewer)."""
    loud = ours.disturbed or theirs.disturbed
    if not ours.turns:
        return ours.median / theirs.median, None, None, 0, loud
    each = np.array([one.us / other.us for one, other in zip(ours.turns, theirs.turns, strict=True)])
    calm = np.array([one.calm and other.calm for one, other in zip(ours.turns, theirs.turns, strict=True)])
    if calm.sum() >= min(6, len(each)):
        each = each[calm]
    else:
        loud = True
    n, ordered = len(each), sorted(each.tolist())
    ranks = [k for k in range(1, n // 2 + 1) if 2 * sum(math.comb(n, i) for i in range(k)) <= 0.05 * 2**n]
    ends = (ordered[ranks[-1] - 1], ordered[-ranks[-1]]) if ranks else (None, None)
    return float(np.median(each)), *ends, n, loud


def used(report: Report, result: ModelResult) -> Share:
    """The share of the budget that an engine takes."""
    latency = result.latency_us
    if report.budget_share is None:
        value, half = latency.median / report.budget_us, latency.interval
        ends = (None, None) if half is None else (value * (1 - half), value * (1 + half))
        return value, *ends, 0 if half is None else len(latency.turns), latency.disturbed
    value, low, high, rounds, loud = share(latency, report.models.dense.latency_us)
    by = 1 / report.budget_share
    return value * by, None if low is None else low * by, None if high is None else high * by, rounds, loud


def _latencies(draw: st.DrawFn, count: int) -> list[Latency]:
    """Of engines that one measurement timed in turns, or of an older report that holds no turns."""
    rounds = draw(st.sampled_from([0, 5, 6, 15]))
    noise = st.sampled_from([1.0, 0.999, 1.004, 0.9, 1.25])
    found = []
    for _ in range(count):
        us = draw(st.sampled_from([400.0, 404.0, 500.0, 800.0, 1000.0, 12_345.0])) * draw(st.floats(0.97, 1.03))
        turns = tuple(Turn(us * draw(noise), draw(st.integers(0, 9)) > 0) for _ in range(rounds))
        interval = draw(st.floats(0, 0.05)) if rounds else None
        found.append(Latency(us, 0.93 * us, 1.2 * us, draw(st.integers(1, 2000)), draw(st.integers(0, 5)) == 0, turns,
                             interval))  # fmt: skip
    return found


@st.composite
def reports(draw: st.DrawFn) -> Report:
    names = ["dense", "pruned", *(name for name in MODELS[2:] if draw(st.booleans()))]
    latencies, n = _latencies(draw, len(names) + 1), draw(st.sampled_from([37, 1000, 10_000]))
    engines = Models(**{
        name: model(latency.median, draw(st.integers(int(0.9 * n), n)) / n, latency_us=latency, samples=n,
                    params=draw(st.integers(1, 10**8)), macs=draw(st.integers(0, 10**10)),
                    bytes=draw(st.integers(0, 10**10)), onnx_bytes=draw(st.integers(0, 10**7)))
        for name, latency in zip(names, latencies, strict=False)})  # fmt: skip
    dense_us = latencies[0].median
    part = draw(st.sampled_from([0.33, 0.5, 0.997, 1.0])) if latencies[0].turns and draw(st.booleans()) else None
    changes: dict[str, Any] = {"budget_us": (part or draw(st.floats(0.3, 1.2))) * dense_us, "budget_share": part}
    limit = draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    changes |= {
        "models": engines,
        "recommendation": recommend(engines, ACCURACY, limit=limit),
        "candidates": (candidate("uniform", "uniform", latencies[-1].median, 0.9, latency_us=latencies[-1]),),
        "rounds": tuple(draw(st.lists(_rounds(timed=bool(latencies[0].turns)), max_size=3))),
        "layers": tuple(Layer(name=f"stage{i}.0.conv", kind="conv", cin_before=64, cin_after=draw(st.integers(1, 64)),
                              cout_before=32, cout_after=draw(st.integers(1, 32)), before_us=draw(st.floats(1, 500)),
                              after_us=draw(st.one_of(st.none(), st.floats(1, 500))))
                        for i in range(draw(st.integers(0, 3)))),
        "groups": tuple(GroupWidth(name=f"stage{i}.0.conv", before=64, after=draw(st.integers(1, 64)))
                        for i in range(draw(st.integers(0, 2)))),
        "table": TableFacts(probes=26, keys=draw(st.integers(0, 999)), seconds=draw(st.floats(0, 1e4)),
                            disturbed=draw(st.integers(0, 26))),
        "seconds": {"01_train": draw(st.floats(0, 1e4))}, "total_seconds": draw(st.floats(0, 1e4)),
        "dense_us": draw(st.floats(100, 1e4)), "target": CPU,
    }  # fmt: skip
    return _consistent(changes)


def _consistent(changes: dict[str, Any]) -> Report:
    """The report whose `met` is what its rounds say."""
    for met in (True, False):
        try:
            report = sample(**changes, met=met)
        except ValueError:
            continue
        if (used(report, report.models.pruned)[0] <= 1) == met:
            return report
    raise AssertionError("no value of 'met' is accepted")


@st.composite
def _rounds(draw: st.DrawFn, *, timed: bool) -> Round:
    limit, measured = draw(st.floats(200, 2000)), draw(st.floats(200, 2000))
    return Round(number=draw(st.integers(1, 9)), predicted_us=draw(st.floats(200, 2000)), measured_us=measured,
                 met=measured <= limit, limit_us=limit if timed else None, disturbed=draw(st.booleans()),
                 widths={"a": draw(st.integers(1, 64)), "b": 20})  # fmt: skip
