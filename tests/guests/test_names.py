"""Names of open kinds: pydeploy's own, those of installed packages, users' code; and when users' code is another one."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from pydeploy.errors import ConfigError, DataError
from pydeploy.guests.contents import digest, files
from pydeploy.guests.names import Names
from pydeploy.models.named import MODELS
from pydeploy.quant.observe import OBSERVERS
from pydeploy.tasks.named import TASKS
from pydeploy.train.distill.logits import LOSSES

KINDS = [MODELS, TASKS, OBSERVERS, LOSSES]


def own() -> int:
    return 1


NAMES: Names[object] = Names("thing", "a function", {"own": own, "lazy": "json:loads"}, "pydeploy.things")


def test_own_names() -> None:
    assert NAMES.find("own") is own
    assert NAMES["lazy"].__name__ == "loads"
    assert list(NAMES) == ["own", "lazy"]
    assert NAMES.stamp("own") == "own"
    with pytest.raises(
        ConfigError, match=r"unknown thing 'owm' \(did you mean 'own'\?\); or FILE.py:NAME or PACKAGE.MODULE:NAME"
    ):
        NAMES.find("owm")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_kind_is_open(kind: Names[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a module in the current folder, an entry point; each with the contents of its text as its stamp."""
    (tmp_path / "my_code.py").write_text("def mine(): return 3")
    file = f"{tmp_path}/my_code.py:mine"
    assert kind.find(file)() == 3  # type: ignore[operator]
    monkeypatch.chdir(tmp_path)
    assert kind.find("my_code:mine")() == 3  # type: ignore[operator]
    entry = importlib.metadata.EntryPoint("registered", "my_code:mine", kind.group)
    monkeypatch.setattr("pydeploy.guests.names.entry_points", lambda group: [entry] if group == kind.group else [])
    assert kind.find("registered")() == 3  # type: ignore[operator]
    assert "registered" in kind.all()
    with pytest.raises(ConfigError, match="did you mean 'registered'"):
        kind.find("registred")
    stamps = [kind.stamp(name) for name in (file, "my_code:mine", "registered")]
    assert stamps[0] == stamps[1] == stamps[2]
    (tmp_path / "my_code.py").write_text("def mine(): return 4")
    assert all(kind.stamp(name) != stamps[0] for name in (file, "my_code:mine", "registered"))
    for name in kind:
        assert kind.stamp(name) == name


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
@pytest.mark.parametrize(
    ("name", "error"),
    [("none.py:mine", DataError), ("my_code.py:mien", ConfigError), ("my_code.py:", ConfigError), (":mine", ConfigError),
     ("no_such_module:mine", ConfigError), ("", ConfigError), ("broken.py:mine", ConfigError)],
)  # fmt: skip
def test_what_cannot_be_found(
    kind: Names[object], name: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_code.py").write_text("def mine(): return 3")
    (tmp_path / "broken.py").write_text("def mine(:")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        kind.find(name)
    assert "\n" not in str(caught.value)


def test_names_in_a_file_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "code.py").write_text("def mine(): return 'a'")
    monkeypatch.chdir(tmp_path / "b")
    for spec in ("code.py:mine", "../a/code.py:mine", "code:mine", f"{tmp_path}/a/code.py:mine"):
        placed = NAMES.placed(spec, Path("../a"))
        assert NAMES.find(placed)() == "a", spec  # type: ignore[operator]
    assert NAMES.placed("own", Path("../a")) == "own"
    assert NAMES.placed("json:loads", Path("../a")) == "json:loads"
    assert MODELS.placed("torchvision:resnet18", Path("../a")) == "torchvision:resnet18"


TREE = {
    "net.py": "import helper\nfrom blocks.conv import act\ndef mine():\n    from late import name\n    return name",
    "helper.py": "import deeper as d",
    "deeper.py": "",
    "late.py": "name = 1",
    "blocks/__init__.py": "",
    "blocks/conv.py": "from . import act",
    "blocks/act.py": "import norm",
    "blocks/norm.py": "",
    "other.py": "import net",
    "blocks/unused.py": "",
    "kinds/a.py": "",
}
READ = set(TREE) - {"other.py", "blocks/unused.py", "kinds/a.py"}


def plant(root: Path, tree: dict[str, str]) -> Path:
    for name, text in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_exactly_the_texts_that_are_imported_count(tmp_path: Path) -> None:
    root = plant(tmp_path / "one", TREE)
    before = digest(f"{root}/net.py:mine")
    for name, text in TREE.items():
        (root / name).write_text(text + "\n# changed")
        assert (digest(f"{root}/net.py:mine") != before) == (name in READ), name
        (root / name).write_text(text)
    assert digest(f"{root}/net.py:mine") == before
    assert digest(f"{plant(tmp_path / 'two', TREE)}/net.py:mine") == before, "the place does not matter"
    (root / "blocks" / "norm.py").unlink()
    assert digest(f"{root}/net.py:mine") != before


def test_imports_by_computed_names_may_read_all_beside_them(tmp_path: Path) -> None:
    text = "import importlib\ndef mine(): return importlib.import_module('kinds.' + 'a')"
    root = plant(tmp_path, {**TREE, "net.py": text})
    before = digest(f"{root}/net.py:mine")
    (root / "kinds" / "a.py").write_text("x = 1")
    assert digest(f"{root}/net.py:mine") != before


def test_a_file_in_a_package(tmp_path: Path) -> None:
    root = plant(tmp_path, {
        "pkg/net.py": "from .sub import a\nfrom pkg import b\nfrom ..x import y", "pkg/sub/a.py": "from .. import c",
        **dict.fromkeys(("pkg/__init__.py", "pkg/sub/__init__.py", "pkg/b.py", "pkg/c.py", "c.py"), ""),
    })  # fmt: skip
    found = {str(path.relative_to(root)) for path in files(root, root / "pkg" / "net.py")}
    assert found == {"pkg/__init__.py", "pkg/net.py", "pkg/sub/__init__.py", "pkg/sub/a.py", "pkg/b.py", "pkg/c.py"}


def test_an_installed_package_is_read_but_not_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = plant(tmp_path / "site-packages", {
        "mine_pkg/net.py": "import json, other_pkg\nfrom mine_pkg import b",
        **dict.fromkeys(("mine_pkg/__init__.py", "mine_pkg/b.py", "other_pkg/__init__.py"), ""),
    })  # fmt: skip
    monkeypatch.syspath_prepend(str(site))
    before = digest("mine_pkg.net:make")
    (site / "other_pkg" / "__init__.py").write_text("x = 1")
    assert digest("mine_pkg.net:make") == before
    (site / "mine_pkg" / "b.py").write_text("x = 1")
    assert digest("mine_pkg.net:make") != before
