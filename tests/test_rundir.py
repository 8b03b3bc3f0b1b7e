"""Run directories: finished work is kept, changed or damaged work is redone, killed work goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pydeploy.errors import ConfigError, DataError
from pydeploy.run.folder import RunFolder
from quiet import Quiet


class Maker:
    """Writes a file and counts how often it was asked to."""

    def __init__(self, text: str = "x") -> None:
        self.calls, self.text = 0, text

    def __call__(self, here: Path) -> None:
        self.calls += 1
        (here / "result.txt").write_text(self.text)


def test_finished_stages_are_kept_and_changed_ones_redone(tmp_path: Path) -> None:
    first, second = Maker("a"), Maker("b")
    for seed, resume, expected in [(0, False, (1, 1)), (0, True, (1, 1)), (1, True, (2, 2))]:
        folder = RunFolder.open(tmp_path / "run", Quiet(), resume=resume)
        folder.stage("01_a", {"seed": seed}, first)
        folder.stage("02_b", {}, second, ("01_a",))
        assert (first.calls, second.calls) == expected
        assert list(folder.seconds) == ["01_a", "02_b"]


def test_a_run_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, Quiet(), resume=False).stage("01_a", {}, Maker())
    with pytest.raises(ConfigError, match="already holds a run: pass --resume"):
        RunFolder.open(tmp_path, Quiet(), resume=False)


def test_a_damaged_file_is_noticed(tmp_path: Path) -> None:
    maker = Maker()
    RunFolder.open(tmp_path, Quiet(), resume=False).stage("01_a", {}, maker)
    (tmp_path / "01_a" / "result.txt").write_text("edited")
    console = Quiet()
    RunFolder.open(tmp_path, console, resume=True).stage("01_a", {}, maker)
    assert maker.calls == 2
    assert "result.txt is missing or was changed" in console.lines[0]


def test_an_interrupted_stage_keeps_its_partial_files_unless_inputs_change(tmp_path: Path) -> None:
    def killed(here: Path) -> None:
        (here / "checkpoint").write_text("epoch 1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RunFolder.open(tmp_path, Quiet(), resume=False).stage("01_a", {"lr": 1}, killed)
    seen: list[bool] = []

    def resumed(here: Path) -> None:
        seen.append((here / "checkpoint").exists())

    RunFolder.open(tmp_path, Quiet(), resume=True).stage("01_a", {"lr": 2}, resumed)
    with pytest.raises(KeyboardInterrupt):
        RunFolder.open(tmp_path, Quiet(), resume=True).stage("01_a", {"lr": 3}, killed)
    RunFolder.open(tmp_path, Quiet(), resume=True).stage("01_a", {"lr": 3}, resumed)
    assert seen == [False, True]


def test_stages_of_another_run_are_reused_only_with_equal_inputs(tmp_path: Path) -> None:
    maker = Maker("dense")
    RunFolder.open(tmp_path / "one", Quiet(), resume=False).stage("01_a", {"seed": 0}, maker)
    two = RunFolder.open(tmp_path / "two", Quiet(), resume=False, reuse=tmp_path / "one")
    assert (two.stage("01_a", {"seed": 0}, maker) / "result.txt").read_text() == "dense"
    assert maker.calls == 1
    three = RunFolder.open(tmp_path / "three", Quiet(), resume=False, reuse=tmp_path / "one")
    three.stage("01_a", {"seed": 1}, maker)
    assert maker.calls == 2
    with pytest.raises(ConfigError, match="no such run"):
        RunFolder.open(tmp_path / "four", Quiet(), resume=False, reuse=tmp_path / "none")


def test_an_unwritable_place_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot create"):
        RunFolder.open(tmp_path / "file" / "run", Quiet(), resume=False)
