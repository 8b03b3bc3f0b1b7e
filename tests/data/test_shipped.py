"""Configs and manifests that come with pydeploy, found by name in a checkout and in an installed package."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pydeploy.data import shipped
from pydeploy.data.manifest import load_manifest
from pydeploy.errors import ConfigError, DataError
from pydeploy.run.config import load

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", shipped.KINDS)
def test_every_file_is_found_by_its_name_anywhere(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {path.stem: path for path in (ROOT / kind).glob("*.yaml")}
    assert files
    assert {name: shipped.find(kind, name).resolve() for name in files} == {n: p.resolve() for n, p in files.items()}
    for name in files:
        if kind == "configs":
            assert load(Path(name)).model.name
            assert shipped.summary(files[name])
        else:
            assert load_manifest(Path(name)).count


def test_a_file_of_ones_own_comes_first_and_paths_are_taken_as_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("smoke").write_text("mine")
    assert shipped.find("configs", "smoke") == Path("smoke")
    for path in ("smoke.yaml", "configs/smoke", "./x/smoke"):
        assert shipped.find("configs", path) == Path(path)


def test_an_unknown_name_is_told_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"unknown config 'smkoe', and there is no such file .did you mean 'smoke'"):
        shipped.find("configs", "smkoe")
    with pytest.raises(ConfigError, match=r"unknown calibration manifest 'nothing'.*known: "):
        load_manifest(Path("nothing"))


def test_an_installed_package_has_them_inside(tmp_path: Path) -> None:
    (tmp_path / "site" / "pydeploy").mkdir(parents=True)
    for kind in shipped.KINDS:
        shutil.copytree(ROOT / kind, tmp_path / "site" / "pydeploy" / kind)
        assert shipped.home(kind, tmp_path / "site" / "pydeploy") == tmp_path / "site" / "pydeploy" / kind
        assert shipped.home(kind, ROOT / "pydeploy") == ROOT / kind


def test_copies_are_whole_and_replace_nothing_else(tmp_path: Path) -> None:
    made = shipped.copy(tmp_path, ["smoke"])
    assert {path.relative_to(tmp_path).as_posix() for path in made if path.suffix == ".yaml"} >= {
        "configs/smoke.yaml", "calib/smoke.yaml"}  # fmt: skip
    for path in made:
        assert path.read_bytes() == (ROOT / path.relative_to(tmp_path)).read_bytes()
    assert shipped.copy(tmp_path, ["smoke"]) == made  # again is no error
    (tmp_path / "configs" / "smoke.yaml").write_text("seed: 1")
    with pytest.raises(DataError, match="exists and is another file"):
        shipped.copy(tmp_path)
    assert not (tmp_path / "configs" / "mixed_precision_cpu.yaml").exists()
    assert (tmp_path / "configs" / "smoke.yaml").read_text() == "seed: 1"
