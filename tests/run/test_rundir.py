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
    with pytest.raises(ConfigError, match="no run directory"):
        RunFolder.open(tmp_path / "four", Quiet(), resume=False, reuse=tmp_path / "none")


@pytest.mark.parametrize("kind", ["missing", "empty", "a file", "nothing finished"])
def test_what_is_no_run_cannot_be_reused_and_leaves_no_folder(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "earlier"
    if kind == "a file":
        place.touch()
    elif kind != "missing":
        (place / "01_train").mkdir(parents=True)
    if kind == "nothing finished":
        (place / "01_train" / "started.json").write_text("{}")
    with pytest.raises(ConfigError, match="no run directory"):
        RunFolder.open(tmp_path / "run", Quiet(), resume=False, reuse=place)
    assert not (tmp_path / "run").exists()


def test_an_unwritable_place_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot create"):
        RunFolder.open(tmp_path / "file" / "run", Quiet(), resume=False)


def test_a_stage_that_was_made_anew_is_followed_by_those_that_read_it(tmp_path: Path) -> None:
    """Also when the run was killed in between: the result that was read is not the one that lies there now."""

    def run(text: str, *, whole: bool = True) -> None:
        folder = RunFolder.open(tmp_path / "run", Quiet(), resume=True)
        folder.stage("01_a", {}, Maker(text))
        if whole:
            folder.stage("02_b", {}, reader, ("01_a",))

    reader = Maker()
    run("first")
    (tmp_path / "run" / "01_a" / "stamp.json").unlink()
    run("second", whole=False)
    run("third, but not made")
    assert reader.calls == 2
    (tmp_path / "run" / "01_a" / "stamp.json").unlink()
    run("second")  # the same again
    assert reader.calls == 2


def test_a_setting_that_is_new_meant_its_default_before(tmp_path: Path) -> None:
    maker = Maker()
    RunFolder.open(tmp_path, Quiet(), resume=True).stage("01_a", {"lr": 1}, maker)
    for value, calls in ((0.5, 1), (0.6, 2)):
        folder = RunFolder.open(tmp_path, Quiet(), resume=True)
        folder.stage("01_a", {"lr": 1, "momentum": value}, maker, defaults={"momentum": 0.5})
        assert maker.calls == calls


def test_the_reason_is_said(tmp_path: Path) -> None:
    console = Quiet()
    for settings in ({"lr": 1, "data": {"sha256": "a"}}, {"lr": 2, "data": {"sha256": "b"}}):
        RunFolder.open(tmp_path, console, resume=True).stage("01_a", settings, Maker())
    assert "01_a: done again, because lr was 1, is 2; data is another" in console.lines


def test_foreseeing_writes_nothing(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "run", Quiet(), resume=True).stage("01_a", {"lr": 1}, Maker())
    before = sorted(tmp_path.rglob("*"))
    folder = RunFolder(tmp_path / "run", Quiet())
    assert folder.foresee("01_a", {"lr": 1}).stays
    assert folder.foresee("02_b", {}, ("01_a",)).why == "it is new"
    assert folder.foresee("03_c", {}, ("02_b",)).why == "it is new"
    assert sorted(tmp_path.rglob("*")) == before
