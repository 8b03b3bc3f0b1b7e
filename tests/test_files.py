"""Files: a failed or killed write loses nothing, broken input is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pydeploy.errors import DataError, nearest
from pydeploy.files import read_json, replacing, sha256, write_json, write_text


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def write_half() -> None:
        with replacing(path) as partial:
            partial.write_text("{half")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        write_half()
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    """The limit on file sizes stands in for a full disk: both fail in the middle of a write."""
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom pydeploy.files import write_text\n"
        "from pydeploy.errors import DataError\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_text(Path(sys.argv[1]), 'x' * 5000)\nexcept DataError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert "nothing was changed" in done.stdout
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_folders_are_made_and_permissions_are_usual(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "hello")
    plain = tmp_path / "plain.txt"
    plain.write_text("hello")
    assert path.stat().st_mode == plain.stat().st_mode
    assert sha256(path) == sha256(plain)


def test_nan_becomes_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [float("inf"), 1.5], "z": (1, 2)})
    assert read_json(tmp_path / "a.json") == {"x": None, "y": [None, 1.5], "z": [1, 2]}


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe"])
def test_broken_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.json is not readable JSON"):
        read_json(path)
    with pytest.raises(DataError, match="does not exist"):
        read_json(tmp_path / "none.json")


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_nearest_names_the_known_words() -> None:
    assert nearest("tailor", ["taylor", "l1"]) == " (did you mean 'taylor'?)"
    assert nearest("zzz", ["b", "a"]) == " (known: a, b)"
