"""`latency.foreign`: published lines, and the verbs that read and write table files."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pydeploy.cli.app import app
from pydeploy.errors import DataError
from pydeploy.graph import OpKey
from pydeploy.latency.table.foreign import read_lines
from pydeploy.latency.table.table import Table

LINES = """\
{Regular,1,16,28,28,32,3,1,0} 0.0125
{Regular,1,16,28,28,64,3,1,0} 0.0250
{Regular,1,16,28,28,48,3,1,1} 0.0300

{Regular,1,3,225,225,32,3,2,0} 0.1
{Depthwise,1,32,14,14,32,3,1,0} 5e-3
{Regular,1,16,28,28,96,3,1,0} -1
{Regular,8,16,28,28,32,3,1,0} 0.07
"""


def test_lines(tmp_path: Path) -> None:
    (tmp_path / "conv.txt").write_text(LINES)
    found = dict(read_lines(tmp_path / "conv.txt", batch=1))
    conv = OpKey("conv", 16, 32, 28, 28, (3, 3))
    assert found[conv].median_us == pytest.approx(12.5)
    assert (found[conv].n, found[conv].interval) == (1, 1.0)
    assert found[OpKey("conv", 16, 48, 28, 28, (3, 3), tail="add")].median_us == pytest.approx(30.0)
    assert found[OpKey("conv", 3, 32, 113, 113, (3, 3), (2, 2))].median_us == pytest.approx(100.0)
    assert found[OpKey("conv", 32, 32, 14, 14, (3, 3), groups=32)].median_us == pytest.approx(5.0)
    assert len(found) == 5
    assert len(read_lines(tmp_path / "conv.txt", batch=8)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINES + "{Regular,1,16,28} 3\n", r":9: '\{Regular,1,16,28\} 3' is not"),
        ("{Regular,4,16,28,28,32,3,1,0} 1\n", "no measured layer at batch 1"),
        ("", "no measured layer"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "conv.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_lines(tmp_path / "conv.txt", batch=1)


def run(*words: object) -> str:
    result = CliRunner().invoke(app, ["table", *map(str, words)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


NEW = ("--device", "NVIDIA V100", "--target", "tensorrt:fp16", "--batch", "1")


def test_import_lines_show_plot_and_round_trip(tmp_path: Path) -> None:
    (tmp_path / "conv.txt").write_text(LINES)
    db = tmp_path / "v100.sqlite"
    assert "5 layers added" in run("import", tmp_path / "conv.txt", "--db", db, *NEW)
    assert Table.open(db).target.device == "NVIDIA V100"
    assert "cin=16 cout=64" in run("show", "--db", db)
    for suffix, start in ((".html", b"<!doctype html>"), (".svg", b"<svg"), (".png", b"\x89PNG")):
        run("plot", "--db", db, "--layer", "conv3x3/s1", "--out", tmp_path / f"stairs{suffix}")
        assert (tmp_path / f"stairs{suffix}").read_bytes().lower().startswith(start.lower())
    run("export", "--db", db, "--out", tmp_path / "all.json")
    run("import", tmp_path / "all.json", "--db", tmp_path / "copy.sqlite")
    assert Table.open(tmp_path / "copy.sqlite").rows() == Table.open(db).rows()
    (tmp_path / "more.txt").write_text("{Regular,1,16,28,28,80,3,1,0} 0.03\n")
    run("import", tmp_path / "more.txt", "--db", tmp_path / "copy.sqlite")
    assert "1 rows of" in run("merge", tmp_path / "copy.sqlite", "--db", db)
    assert "0 rows of" in run("merge", tmp_path / "copy.sqlite", "--db", db)
    assert len(Table.open(db).rows()) == 6


def test_merge_refuses_another_target(tmp_path: Path) -> None:
    (tmp_path / "conv.txt").write_text(LINES)
    run("import", tmp_path / "conv.txt", "--db", tmp_path / "a.sqlite", *NEW)
    run("import", tmp_path / "conv.txt", "--db", tmp_path / "b.sqlite", *NEW[:1], "NVIDIA A10", *NEW[2:])
    result = CliRunner().invoke(app, ["table", "merge", str(tmp_path / "b.sqlite"), "--db", str(tmp_path / "a.sqlite")])
    assert result.exit_code != 0
    assert "device: 'NVIDIA V100' against 'NVIDIA A10'" in str(result.exception) or "device" in result.output
