"""Every number in a report comes from a fact of ``report.json``, and every claim is one that the facts support."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import permutations
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings

from pydeploy.report import Candidate, Latency, ModelResult, Report, headline
from pydeploy.report.charts import all_charts
from pydeploy.report.drawing import Chart
from pydeploy.report.page import to_html, to_markdown
from pydeploy.report.verdict import shown_model
from pydeploy.tasks.sampling import wilson
from pydeploy.timing.records import Turn
from report_factory import model, models, sample
from report_facts import Share, reports, share, used

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.(\d+))?(?![\w.]*\w\.\w)(?: ([kMG]|[KMG]iB)\b)?")
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
CLAIM = re.compile(r"\b(faster|gain|better|met|within)\b", re.IGNORECASE)
PERCENT_OF_INTERVALS, LEAST_EXCESS, NO_DIFFERENCE, SAME_SPEED = 95.0, 0.1, 2.0, 1.0
"""All numbers that a report may hold without a fact: 95 % intervals, 'by less than 0.1 %', 'below 2 %', '1.00x as fast'."""

Numbers = Iterable[float | None]


def untraced(text: str, facts: Numbers) -> list[str]:
    """Numbers in `text` that are none of `facts`, rounded as they are printed."""
    known = [fact for fact in facts if fact is not None]
    found = []
    for token in NUMBER.finditer(text):
        unit = UNITS[token.group(2) or ""]
        value = float(token.group().removesuffix(token.group(2) or "").strip()) * unit
        off = 0.5000001 * unit * 10.0 ** -len(token.group(1) or "")
        if not any(abs(value - fact) <= off for fact in known):
            found.append(f"{token.group()!r} in {text!r}")
    return found


def taken_numbers(one: Share) -> list[float | None]:
    value, low, high, rounds, _ = one
    return [value, 1 / value, low, high, float(rounds), PERCENT_OF_INTERVALS, SAME_SPEED]


def grids(markdown: str) -> dict[str, list[list[str]]]:
    """The cells of each section's table, without its rule."""
    found = {}
    for part in markdown.split("\n## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        rows = [[cell.strip().strip("*") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        found[part.splitlines()[0]] = [row for row in rows if not set("".join(row)) <= set("-:")]
    return found


def sentences(markdown: str) -> list[str]:
    """All lines that are no table, no code and no picture."""
    return [line for line in markdown.splitlines() if line and not line.startswith(("|", "    ", "![", "#"))]


def of_headline(report: Report) -> Numbers:
    name, dense = shown_model(report), report.models.dense
    shown, pruned = report.models.present[name], report.models.pruned
    excess = 100 * (used(report, shown)[0] - 1)
    times = [x / 1000 for x in (report.budget_us, shown.latency_us.median, pruned.latency_us.median)]
    return [*times, 100 * shown.value, 100 * dense.value, excess if excess >= LEAST_EXCESS else LEAST_EXCESS,
            *taken_numbers(share(shown.latency_us, dense.latency_us)), *taken_numbers(used(report, shown))]  # fmt: skip


def of_reason(report: Report, limits: Sequence[float]) -> Numbers:
    present, dense = report.models.present, report.models.dense
    pairs = [share(one.latency_us, other.latency_us) for one, other in permutations(present.values(), 2)]
    return [*limits, NO_DIFFERENCE, *(x for pair in pairs for x in taken_numbers(pair)),
            *(m.latency_us.median / 1000 for m in present.values()),
            *(sign * 100 * (m.value - dense.value) for m in present.values() for sign in (1, -1))]  # fmt: skip


def of_engine(report: Report, name: str, label: str) -> Numbers:
    """What a cell of the table of engines may hold, in the row `label`."""
    m, dense = report.models.present[name], report.models.dense  # type: ignore[index]
    us, taken = m.latency_us, share(m.latency_us, dense.latency_us)
    known: dict[str, Numbers] = {
        "precision": (), "latency, ms": [us.median / 1000], "p10 to p90, ms": [us.p10 / 1000, us.p90 / 1000],
        "timed runs": [us.n], "share of dense": taken[:3], "against dense": [taken[0], 1 / taken[0], SAME_SPEED],
        "share of budget": used(report, m)[:3], "within budget": (), "accuracy, %": [100 * m.value],
        "95 % interval": [100 * end for end in wilson(round(m.value * m.samples), m.samples)],
        "change, points": [100 * (m.value - dense.value)], "test samples": [m.samples],
        "parameters": [m.params], "MACs": [m.macs], "engine file": [m.bytes], "ONNX file": [m.onnx_bytes],
    }  # fmt: skip
    return known[label]


def expected_rows(report: Report) -> dict[str, list[Numbers]]:
    """What each row of the other tables may hold."""
    rounds = [[x.number, x.predicted_us / 1000, x.measured_us / 1000, 100 * x.error, sum((x.widths or {}).values()),
               *((x.limit_us / 1000, x.measured_us / x.limit_us) if x.limit_us else ())] for x in report.rounds]  # fmt: skip
    layers: list[Numbers] = [
        [x.cin_before, x.cin_after, x.cout_before, x.cout_after, x.before_us, x.after_us,
         x.after_us / x.before_us if x.after_us and x.before_us else None] for x in report.layers]  # fmt: skip
    both = [(x.before_us, x.after_us) for x in report.layers if x.before_us is not None and x.after_us is not None]
    if both:
        before, after = (sum(side) for side in zip(*both, strict=True))
        layers.append([before, after, after / before])
    points: list[ModelResult | Candidate] = [*report.models.present.values(), *report.candidates]
    table = report.table
    assert table is not None
    told: list[Numbers] = [
        [table.probes],
        [table.keys],
        [table.seconds],
        *([[table.disturbed]] if table.disturbed else []),
    ]
    return {
        "Predicted against measured, by round": list(rounds), "Layers": layers,
        "Channel groups": [[x.before, x.after, 100 * x.after / x.before] for x in report.groups],
        "Latency table": told,
        "Time spent": [*([x] for x in report.seconds.values()), [report.total_seconds]],
        "All points": [[x.latency_us.median / 1000, x.latency_us.p10 / 1000, x.latency_us.p90 / 1000, 100 * x.value,
                        x.params, x.macs]
                       for x in sorted(points,
                                       key=lambda x: (x.latency_us.median, -x.value))],
    }  # fmt: skip


many = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@many
@given(reports())
def test_every_number_is_a_fact(report: Report) -> None:
    markdown = to_markdown(report, all_charts(report))
    found = grids(markdown)
    bad = []
    for label, *cells in found["Engines"][1:]:
        if label != "target":
            for name, cell in zip(report.models.present, cells, strict=True):
                bad += untraced(cell, of_engine(report, name, label))
    for section, rows in expected_rows(report).items():
        for shown, facts in zip(found.get(section, [()])[1:], rows, strict=True):
            bad += untraced(
                " | ".join(shown[1:] if section in ("Layers", "Channel groups", "Time spent") else shown), facts
            )
    assert set(found) <= {*expected_rows(report), "Engines", "Target", "Warnings", "How to repeat it"}
    assert [row[1] for row in found["Target"][1:7]] == [
        report.target.device, f"{report.target.backend} {report.target.backend_version}", report.target.precision,
        str(report.target.batch), str(report.target.threads), report.target.facts["instruction sets"]]  # fmt: skip
    bad += _untold_sentences(report, markdown)
    code = [line[4:] for line in markdown.splitlines() if line.startswith("    ")]
    assert code[0] == report.command
    assert json.loads("".join(code[1:])) == report.config
    assert not bad


def _untold_sentences(report: Report, markdown: str) -> list[str]:
    first, chosen, target, *rest = sentences(markdown)
    bad = untraced(first, of_headline(report)) + untraced(chosen, of_reason(report, (0.0, 0.5, 1.0, 3.0)))
    assert target == f"Target: {report.target}"
    last = 100 * (report.prediction_error or 0.0)
    verbatim = (f"Seed {report.seed}, task {report.task}, pydeploy {report.pydeploy_version}, {report.created}.",)
    for line in rest:
        if line not in verbatim:
            bad += untraced(line, [report.dense_us] if "Latencies" in line else
                            [last] if "Prediction" in line else [PERCENT_OF_INTERVALS])  # fmt: skip
    return bad


def faster(taken: Share) -> bool:
    value, low, high, _, loud = taken
    return value < 1 and not loud and (low is None or high is None or high < 1)


def holds(report: Report, name: str) -> bool:
    """Whether an engine takes at most the budget."""
    one = report.models.present[name]  # type: ignore[index]
    value, _, _, rounds, _ = used(report, one)
    return report.met if name == "pruned" and not rounds else value <= 1


@many
@given(reports())
def test_every_claim_is_supported(report: Report) -> None:
    markdown = to_markdown(report, all_charts(report))
    first, chosen, *rest = sentences(markdown)
    name, dense = shown_model(report), report.models.dense
    shown = report.models.present[name]
    loud = used(report, shown)[4] or used(report, report.models.pruned)[4]
    assert first == f"**{headline(report)}**"
    assert ("DISTURBED" in first) == loud
    assert ("95 % interval" in first) == (used(report, shown)[1] is not None and used(report, shown)[3] > 0)
    if "faster" in first:
        assert faster(share(shown.latency_us, dense.latency_us))
    said = first.split(" ms: ")[1]
    claims = (said.startswith("met"), "missed" in said)
    assert claims == (holds(report, "pruned"), not (holds(report, name) and holds(report, "pruned")))
    assert (f"met by the {name} one" in said) == (holds(report, name) and not holds(report, "pruned"))
    pairs = [share(a.latency_us, b.latency_us) for a, b in permutations(report.models.present.values(), 2)]
    for times in re.findall(r"([\d.]+)x faster", chosen):
        assert any(faster(one) and abs(1 / one[0] - float(times)) <= 0.0050001 for one in pairs)
    for claim in (" is not faster than ", " is not shown to be faster than ", " both faster than dense", "x faster"):
        chosen = chosen.replace(claim, "")
    chosen = re.sub(r"within [\d.]+ points? of", "", chosen)
    assert not [line for line in (chosen, *rest) if CLAIM.search(line)]
    _tables_claim_no_more(report, grids(markdown))


def _tables_claim_no_more(report: Report, found: dict[str, list[list[str]]]) -> None:
    rows = {row[0]: row[1:] for row in found["Engines"][1:]}
    dense = report.models.dense
    for column, (name, result) in enumerate(report.models.present.items()):
        loud = used(report, result)[4]
        assert rows["within budget"][column] == ("disturbed" if loud else "yes" if holds(report, name) else "no")
        if "faster" in rows["against dense"][column]:
            assert faster(share(result.latency_us, dense.latency_us))
    told = found.get("Predicted against measured, by round", [[]])
    column = told[0].index("budget met") if report.rounds else 0
    for row, one in zip(told[1:], report.rounds, strict=True):
        assert row[column] == ("disturbed" if one.disturbed else "yes" if one.met else "no")
    cells = [
        cell for section, rows in found.items() for row in rows[1:] for cell in row[1 if section == "Engines" else 0 :]
    ]
    assert not [cell for cell in cells if CLAIM.search(cell.replace("x faster", ""))]


@cache
def drawn_once() -> dict[str, Chart]:
    """Charts for pages whose drawings are not looked at, only what is written around them."""
    return all_charts(sample())


@many
@given(reports())
def test_the_page_claims_no_more_than_the_text(report: Report) -> None:
    """Its claims outside of the tables are the headline, the badge, the reason and the tile of the speed."""
    page = re.sub(r"<(style|svg|table|pre).*?</\1>", "", to_html(report, drawn_once()), flags=re.DOTALL)
    page = page.split("<body>")[1].replace("&#39;", "'").replace("&#34;", '"')
    for known in (headline(report), report.recommendation.reason):
        assert known in page
        page = page.replace(known, "")
    words = re.sub(r"<[^>]*>", " ", page)
    name, dense = shown_model(report), report.models.dense
    if "faster than dense" in words:
        assert faster(share(report.models.present[name].latency_us, dense.latency_us))
    badge = re.search(r"\b(Met|Missed|Disturbed)\b", words)
    assert badge is not None
    loud = "DISTURBED" in headline(report)
    assert badge.group() == ("Disturbed" if loud else "Met" if holds(report, "pruned") else "Missed")
    assert not CLAIM.search(words.replace("faster than dense", "").replace(badge.group(), "", 1))


def test_the_tracing_sees_a_number_that_is_no_fact() -> None:
    assert untraced("0.2 points of 93.21 %, 1.09 M, conv1x1, v1.2.3", [93.2099, 1_091_000]) == [
        "'0.2' in '0.2 points of 93.21 %, 1.09 M, conv1x1, v1.2.3'"
    ]
    assert untraced("1.10 M", [1_091_000]) != []


@pytest.mark.parametrize("met", [True, False])
def test_a_report_whose_verdict_contradicts_its_rounds_is_refused(met: bool) -> None:
    turns = {us: tuple(Turn(float(us)) for _ in range(15)) for us in (1000, 499, 501)}
    pruned = 501 if met else 499
    timed = {us: Latency(us, us, us, 15, turns=found, interval=0.0) for us, found in turns.items()}
    engines = models(quantized=None, dense=model(1000.0, 0.9, latency_us=timed[1000]),
                     pruned=model(float(pruned), 0.9, latency_us=timed[pruned]))  # fmt: skip
    with pytest.raises(ValueError, match="'met' is"):
        sample(models=engines, budget_us=500.0, budget_share=0.5, met=met)


@pytest.mark.parametrize("name", ["demo", "openvino"])
def test_the_shown_reports_are_what_this_version_renders(name: str) -> None:
    """`make figures` writes them again."""
    here = Path(__file__).parents[2] / "docs" / "figures" / name
    report = Report.load(here / "report.json")
    charts = all_charts(report)
    assert (here / "report.md").read_text() == to_markdown(report, charts)
    for file in here.glob("*.svg"):
        assert shown_words(file.read_text()) == shown_words(charts[file.stem].standalone())


def shown_words(chart: str) -> list[str]:
    """All texts of a chart, in order; where they lie may differ between versions of matplotlib by a hair."""
    return [
        element.text or "" for element in ET.fromstring(chart).iter() if element.tag.endswith(("text", "title", "desc"))
    ]
