"""The two renderings: complete, self-contained, escaped, honest about what was not measured."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydeploy.errors import DataError
from pydeploy.report import Report, render
from pydeploy.report.page import CHART_FILES, in_line
from pydeploy.tasks.metric import Metric
from report_factory import CPU, candidate, latency, model, models, sample

ANALYTIC = replace(CPU, device="roofline", backend="null", measured=False)
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Outline(HTMLParser):
    """Checks that every element is closed in order; collects elements, attributes and visible text."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(markup)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _ in self.seen]

    @property
    def visible(self) -> str:
        return " ".join(" ".join(self.words).split())


def rendered(folder: Path, **changes: Any) -> tuple[str, str]:
    markdown, page = render(sample(**changes), folder)
    return markdown.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Markdown and page of the sample as it is; most tests read only them."""
    return rendered(tmp_path_factory.mktemp("plain"))


def markdown_tables(text: str) -> list[list[str]]:
    """Blocks of consecutive lines that start with a bar."""
    blocks = re.findall(r"(?:^\|.*\n)+", text + "\n", flags=re.MULTILINE)
    return [block.splitlines() for block in blocks]


def test_all_files_are_written(tmp_path: Path) -> None:
    markdown, page = render(sample(), tmp_path / "new" / "folder")
    assert (markdown.name, page.name) == ("report.md", "report.html")
    assert {path.name for path in markdown.parent.iterdir()} == {"report.md", "report.html", *CHART_FILES}


def test_rendering_is_repeatable(tmp_path: Path) -> None:
    assert rendered(tmp_path / "a") == rendered(tmp_path / "b")


def test_a_loaded_report_renders_the_same(tmp_path: Path) -> None:
    sample().save(tmp_path / "report.json")
    markdown, page = render(Report.load(tmp_path / "report.json"), tmp_path)
    assert (markdown.read_text(), page.read_text()) == rendered(tmp_path / "direct")


def test_markdown_reads_like_this(plain: tuple[str, str]) -> None:
    text, _ = plain
    assert text.startswith(
        "# resnet20: deployment report\n\n"
        "**Budget 0.551 ms: met, 0.452 ms measured (2.44x faster), accuracy 93.18 % (dense 93.21 %)**\n\n"
        "Recommended: **quantized**. int8 at 0.452 ms is the fastest engine within 1 point of dense: "
        "2.44x faster, -0.03 points.\n\n"
        "Target: Intel Xeon (2 cores) / onnxruntime 1.31.0 / fp32 / batch 1 / 2 threads\n\n"
        "## Engines\n\n"
        "|                 |          dense |         pruned | quantized (recommended) |\n"
        "| --------------- | -------------: | -------------: | ----------------------: |\n"
        "| precision       |           fp32 |           fp32 |                    int8 |\n"
        "| **latency, ms** |      **1.102** |      **0.532** |               **0.452** |\n"
    )
    assert text.endswith("    }\n")
    assert "\n\n\n" not in text


SECTIONS = ["Engines", "All points", "Predicted against measured, by round", "Layers", "Channel groups", "Target",
            "Latency table", "Time spent", "How to repeat it"]  # fmt: skip


def test_markdown_sections_and_numbers(plain: tuple[str, str]) -> None:
    text, _ = plain
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == SECTIONS
    for shown in ("1.075 to 1.146", "+0.13", "402 k", "41.2 M", "459.00 KiB", "3c296b87", "Torch-Pruning 50 %, 16",
                  "-6.5 %", "Prediction error of the last round: 3.5 %", "32 \u2192 20", "188.2", "output of the model",
                  "amx_bf16", "812", "421.0", "654.8", '      "fraction": 0.5'):  # fmt: skip
        assert shown in text


def test_markdown_tables_are_aligned(plain: tuple[str, str]) -> None:
    text, _ = plain
    tables = markdown_tables(text)
    assert len(tables) == 8
    for lines in tables:
        assert len({len(line) for line in lines}) == 1
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_markdown_names_only_charts_that_exist(tmp_path: Path) -> None:
    for changes in ({}, {"rounds": (), "layers": (), "groups": ()}):
        text, _ = rendered(tmp_path, **changes)
        named = set(re.findall(r"\]\(([a-z]+\.svg)\)", text))
        assert named == {path.name for path in tmp_path.glob("*.svg")}


def test_points_are_sorted_by_latency(plain: tuple[str, str]) -> None:
    text, _ = plain
    rows = next(lines for lines in markdown_tables(text) if lines[0].startswith("| engine "))[2:]
    times = [float(row.split("|")[4].replace("*", "").split()[0]) for row in rows]
    assert len(times) == 9
    assert times == sorted(times)


def test_html_is_well_formed_and_complete(plain: tuple[str, str]) -> None:
    _, page = plain
    outline = Outline(page)
    assert outline.tags.count("svg") == 4
    assert outline.tags.count("table") == 8
    assert outline.tags.count("h1") == 1
    ids = [attributes["id"] for _, attributes in outline.seen if "id" in attributes]
    assert len(ids) == len(set(ids)) == 8
    for shown in ("Met", "Budget 0.551 ms: met, 0.452 ms measured", "2.44x", "93.18 %", "Recommended: quantized.",
                  "joint 0.70", "layer3.2.conv2", "output of the model", "amx_bf16", "654.8"):  # fmt: skip
        assert shown in outline.visible


def test_html_needs_nothing_from_outside(plain: tuple[str, str]) -> None:
    _, page = plain
    outline = Outline(page)
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(outline.tags)
    assert not [a for _, a in outline.seen if {"src", "href", "srcset", "xlink:href", "action"} & set(a)]
    assert not re.search(r"@import|url\(|javascript:", page)
    assert not [name for _, a in outline.seen for name in a if name.startswith("on")]
    policy = [a["content"] for _, a in outline.seen if a.get("http-equiv") == "Content-Security-Policy"]
    style = re.search(r"<style>(.*)</style>", page, re.DOTALL)
    assert style is not None
    allowed = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == [f"default-src 'none'; style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"]
    assert not [a for _, a in outline.seen if "style" in a], "the policy would ignore it"
    assert len(page.encode()) < 200_000


def test_html_serves_phone_print_and_dark_screens(plain: tuple[str, str]) -> None:
    _, page = plain
    assert 'name="viewport"' in page
    assert "@media print" in page
    assert page.count("@media screen and (prefers-color-scheme: dark)") == 2
    assert "tabular-nums" in page


HOSTILE = "<script>alert(1)</script>|`*[x](y)&\"'"


def hostile(words: str) -> Report:
    base = sample()
    return sample(
        model=words, metric=Metric(words, words), task=words, command=words, config={words: [words]}, warnings=(words,),
        target=replace(CPU, device=words, facts={words: words}),
        candidates=(candidate(words, words, 500.0, 0.93, note=words),),
        layers=tuple(replace(layer, name=words, kind=words) for layer in base.layers),
        groups=tuple(replace(group, name=words, frozen=words) for group in base.groups),
        seconds={words: 1.0},
    )  # fmt: skip


def test_hostile_text_is_shown_and_never_run(tmp_path: Path) -> None:
    plain = Outline(render(sample(warnings=("one",)), tmp_path / "plain")[1].read_text())
    markdown, page = render(hostile(HOSTILE), tmp_path)
    outline = Outline(page.read_text())
    assert "script" not in outline.tags
    assert set(outline.tags) == set(plain.tags)
    assert HOSTILE in outline.visible
    # Outside of code blocks no tag, and no cell of a table, is opened by a name.
    prose = [line for line in markdown.read_text().splitlines() if not line.startswith("    ")]
    assert not [line for line in prose if re.search(r"(?<!\\)<", line)]
    assert len(markdown_tables(markdown.read_text())) == 8


@given(st.text(max_size=40))
def test_any_text_makes_one_table_cell(words: str) -> None:
    cell = in_line(words)
    assert not re.search(r"[\r\n]", cell)
    assert not re.search(r"[|<`*\[\]]", re.sub(r"\\.", "", cell))


def test_code_blocks_cannot_be_left(tmp_path: Path) -> None:
    markdown, _ = render(sample(command="run\n```\n# heading", config={"a": "```"}), tmp_path)
    text = markdown.read_text()
    assert "    ```\n    # heading" in text
    assert not re.search(r"^```", text, flags=re.MULTILINE)


ABSENT: dict[str, dict[str, Any]] = {
    "no quantized": {"models": models(quantized=None)},
    "no candidates": {"candidates": ()},
    "no rounds": {"rounds": ()},
    "no layers": {"layers": ()},
    "no layer times": {"layers": tuple(replace(x, before_us=None, after_us=None) for x in sample().layers)},
    "no groups": {"groups": ()},
    "no table": {"table": None},
    "no seconds": {"seconds": {}},
    "nothing optional": {"models": models(quantized=None), "candidates": (), "rounds": (), "layers": (), "groups": (),
                         "table": None, "seconds": {}},
}  # fmt: skip


@pytest.mark.parametrize("changes", ABSENT.values(), ids=ABSENT.keys())
def test_absent_parts_are_left_out(tmp_path: Path, changes: dict[str, Any]) -> None:
    text, page = rendered(tmp_path, **changes)
    visible = Outline(page).visible
    for shown in (text, visible):
        assert "None" not in shown
        assert "nan" not in shown.split()
        assert ("Torch-Pruning" in shown) == bool(changes.get("candidates", True))
        assert ("Prediction error" in shown) == bool(changes.get("rounds", True))
        assert ("int8" in shown) == ("quantized" in sample(**changes).models.present)
    assert "\n\n\n" not in text
    assert all(len({len(line) for line in lines}) == 1 for lines in markdown_tables(text))


def test_charts_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    render(sample(), tmp_path)
    render(sample(rounds=(), layers=(), groups=()), tmp_path)
    assert {path.name for path in tmp_path.glob("*.svg")} == {"pareto.svg"}


def test_a_disturbed_measurement_is_flagged(tmp_path: Path, plain: tuple[str, str]) -> None:
    engines = models(pruned=model(531.7, 0.9334, latency_us=latency(531.7, disturbed=True)))
    changes = {"models": engines, "warnings": ("the timing of pruned was disturbed",)}
    text, page = rendered(tmp_path, **changes)
    for shown in (text, Outline(page).visible):
        assert "0.532 (disturbed)" in shown.replace("*", "")
        assert "other load disturbed the measurement of pruned" in shown
        assert "the timing of pruned was disturbed" in shown
    assert "disturbed" not in "".join(plain)


def test_every_analytic_number_is_labelled(tmp_path: Path, plain: tuple[str, str]) -> None:
    text, page = rendered(tmp_path, target=ANALYTIC)
    visible = Outline(page).visible
    assert "> **ANALYTIC, NOT MEASURED.**" in text
    assert "Analytic, not measured. Every latency on this page was computed" in visible
    for shown in (text.replace("*", ""), visible):
        assert "0.452 ms analytic, NOT measured" in shown
        assert "latency, ms (analytic, not measured)" in shown
        assert "p10 to p90, ms (analytic, not measured)" in shown
        assert "before, \u00b5s (analytic, not measured)" in shown
        assert "NO: analytic, not measured" in shown
        assert "ms measured" not in shown
        assert not re.search(r"measured, ms", shown.replace("not measured, ms", ""))
    for name in ("pareto.svg", "rounds.svg", "layers.svg"):
        assert "analytic, not measured" in (tmp_path / name).read_text().lower()
    assert "analytic" not in "".join(plain).lower()


def test_an_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write"):
        render(sample(), tmp_path / "file")


def test_templates_are_found_as_package_data() -> None:
    from importlib.resources import files

    found = {entry.name for entry in (files("pydeploy.report") / "templates").iterdir()}
    assert {"report.md.j2", "report.html.j2", "report.css"} <= found
