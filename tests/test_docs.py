"""Blocks of code in the README and in docs/ do what they say: run in order, one folder and one namespace a document.

Comments that readers do not see say what a block cannot tell: ``<!-- before: CODE -->`` runs first, ``<!-- with: A => B; C => D -->``
puts small things in the place of what takes hours or hardware, ``<!-- file: NAME -->`` writes a block to a file,
``<!-- not run: REASON -->`` leaves it out (its ``pydeploy`` commands must still be understood by the command line).
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml

import generate as reference
from pydeploy.cli import main
from pydeploy.cli.app import app
from pydeploy.data.manifest import load_manifest
from pydeploy.run.config import parse

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "report.md")]
GENERATED = {ROOT / "docs" / place for place in reference.pages()}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@dataclass(frozen=True)
class Block:
    """A block of a document, or hidden code before one."""

    line: int
    text: str
    replacements: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    """Why it is not run."""
    file: str = ""
    """Where its text belongs."""

    @property
    def kind(self) -> str:
        first = self.text.split(maxsplit=1)[0]
        if first == "pydeploy":
            return "shell"
        return (
            "yaml"
            if re.match(r"\w+: ", self.text)
            else "python"
            if re.match(r"\w+ *=|import |from |pd\.", self.text)
            else "other"
        )

    def code(self) -> str:
        text = self.text
        for old, new in self.replacements:
            assert old in text, f"line {self.line}: there is no '{old}' to be replaced"
            text = text.replace(old, new)
        return text


def blocks(path: Path) -> Iterator[Block]:
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(r"<!-- (?P<key>before|with|not run|file): (?P<said>.*?) -->|(?<=\n\n)(?P<block>(?:    [^\n]*\n(?:\n(?=    ))?)+)"
                         r"|^```\w*\n(?P<fenced>.*?)^```", re.DOTALL | re.MULTILINE)  # fmt: skip
    replacements: tuple[tuple[str, str], ...] = ()
    reason = file = ""
    for found in pattern.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        said = found["said"]
        if found["key"] == "before":
            yield Block(line, said.strip())
        elif found["key"] == "with":
            replacements = tuple(
                (old.strip(), new.strip()) for old, new in (pair.split("=>") for pair in said.split(";"))
            )
        elif found["key"] == "not run":
            reason = said
        elif found["key"] == "file":
            file = said.strip()
        else:
            body = found["fenced"] or re.sub(r"(?m)^    ", "", found["block"])
            yield Block(line, body.strip("\n"), replacements, reason, file)
            replacements, reason, file = (), "", ""


BLOCKS = {path.relative_to(ROOT).as_posix(): list(blocks(path)) for path in DOCUMENTS}


def commands(text: str) -> list[list[str]]:
    joined = text.replace("\\\n", " ").splitlines()
    return [words for line in joined if (words := shlex.split(line, comments=True))]


def call(words: list[str]) -> None:
    """A pydeploy command, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        code: object = 0
        try:
            main()
        except SystemExit as done:
            code = done.code
        assert not code, f"{shlex.join(words)}: exit code {code}"


def run_block(block: Block, names: dict[str, Any]) -> None:
    if block.file:
        Path(block.file).write_text(block.code())
    elif block.kind == "shell":
        for words in commands(block.code()):
            assert words[0] == "pydeploy", (
                f"'{words[0]}' cannot be tested here: say <!-- not run: REASON --> before the block"
            )
            call(words)
    elif block.kind == "python":
        exec(compile(block.code(), f"line {block.line}", "exec"), names)
    elif block.kind == "yaml":
        data = yaml.safe_load(block.code())
        if "source" in data:
            Path("manifest.yaml").write_text(block.code())
            load_manifest(Path("manifest.yaml"))
        else:
            parse({"model": {"name": "resnet8"}, "prune": {"budget": 0.5}, **data}, "the block")
    else:
        pytest.fail("is neither pydeploy commands, Python nor YAML: say <!-- not run: REASON --> before it")


@pytest.mark.parametrize("document", [name for name, found in BLOCKS.items() if found])
def test_blocks_do_what_they_say(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("configs", "calib"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    np.save(tmp_path / "calib" / "images.npy", np.random.default_rng(0).integers(0, 256, (40, 12, 12, 1), np.uint8))
    (tmp_path / "calib" / "tiny.yaml").write_text(
        "source: ./images.npy\ncount: 32\npreprocessing: {mean: [0.5], std: [0.3]}\n"
    )
    for file in (ROOT / "tests" / "backends" / "trtexec_files" / "10.3").iterdir():
        shutil.copy(file, tmp_path / file.name.replace("net.", "model."))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "block"}
    for block in BLOCKS[document]:
        if not block.reason:
            try:
                run_block(block, names)
            except BaseException as error:
                raise AssertionError(f"{document}, line {block.line}: {error}\n{block.code()}") from error


def understood(words: list[str]) -> str:
    """'' where the command line knows the verb and all flags."""
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(command, "commands"):
        name = rest[0] if rest[0] in command.commands else "engine"
        if name not in command.commands:
            return f"no verb '{rest[0]}'"
        rest = rest[1:] if rest[0] == name else rest
        command = command.commands[name]
    known = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}
    unknown = [word for word in rest if word.startswith("-") and word.split("=")[0] not in known]
    return f"no option {unknown[0]}" if unknown else ""


def test_every_command_is_understood() -> None:
    """Also those that are not run, and the examples that the verbs show."""
    lines = [(f"{name}:{block.line}", words) for name, found in BLOCKS.items() for block in found
             for words in (commands(block.text) if block.kind in ("shell", "other") else []) if words[0] == "pydeploy"]  # fmt: skip
    for path in sorted((ROOT / "pydeploy" / "cli").rglob("*.py")):
        examples = re.findall(r"Example: (pydeploy .*)", path.read_text())
        lines += [(path.name, shlex.split(example)) for example in examples]
    assert len(lines) > 40
    assert not [f"{where}: {shlex.join(words)}: {fault}" for where, words in lines if (fault := understood(words))]


def anchors(path: Path) -> set[str]:
    """What links may name behind ``#``: headings in small letters, words joined by hyphens."""
    heads = re.findall(r"(?m)^#+ +(.+)$", path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda path: path.name
)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        place = path.parent / file if file else path
        if place.resolve() in GENERATED:
            continue
        assert place.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(place), f"{target}: no such heading"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_reference_has_every_verb_option_and_key_with_its_meaning() -> None:
    pages = reference.pages()
    for name in ("table measure", "run", "profile engine", "doctor"):
        assert f"\n## pydeploy {name}\n" in pages["reference/cli.md"]
    assert "| `--budget-us` |" in pages["reference/cli.md"]
    assert "| `min_width` | whole number, at least 1 | `1` |" in pages["reference/config.md"]
    rows = [line for page in pages.values() for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert not [row for row in rows if re.search(r"\| *\|$", row)], (
        "these say nothing: a string below the key, or a help text"
    )


def test_every_page_is_in_the_menu() -> None:
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages: set[str] = set()
    for one in menu:
        pages |= {one} if isinstance(one, str) else {page for section in one.values() for page in section}
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages == there | set(reference.pages())


GLOSSARY = [
    "group",
    "slice",
    "plan",
    "table",
    "probe",
    "level",
    "round",
    "budget",
    "observer",
    "style",
    "target",
    "engine",
    "profile",
]


def test_the_glossary_has_the_words_that_users_meet() -> None:
    text = (ROOT / "docs" / "reference" / "glossary.md").read_text(encoding="utf-8")
    assert not [word for word in [*GLOSSARY, "kept score"] if f"**{word}**" not in text]


def test_this_file_would_notice() -> None:
    assert understood(["pydeploy", "table", "measure", "x", "--dbb", "y"]) == "no option --dbb"
    assert understood(["pydeploy", "trac", "x"])
    for text in ("pydeploy lint none.onnx", "scp a b", "1 / 0", "import no_such_module", "target: {backendd: null}"):
        with pytest.raises(BaseException):  # noqa: B017, PT011 (whatever it is)
            run_block(Block(1, text), {})
