"""Users' own code: what runs under Python's own rules runs here alike, leaves nothing behind, and fails in one sentence."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from pydeploy.errors import ConfigError, DataError
from pydeploy.guests import resolve
from pydeploy.guests.folders import PREFIX

Tree = dict[str, str]

SETTINGS = """
from __future__ import annotations
import typing
from dataclasses import dataclass, field, fields
from helper import Other

@dataclass
class Settings:
    width: int = 3
    other: Other = field(default_factory=Other)
    kind: typing.ClassVar[str] = "k"

def make():
    hints = typing.get_type_hints(Settings)
    return f"{Settings().other.size} {hints['other'] is Other} {len(fields(Settings))}"
"""
OTHER = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass(frozen=True)
class Other:
    size: int = 5
"""

PLAIN: dict[str, Tree] = {
    "alone": {"net.py": "def make(): return 'net'"},
    "neighbour": {"net.py": "from helper import name\ndef make(): return name", "helper.py": "name = 'helper'"},
    "module of a neighbour": {
        "net.py": "import helper as h, os.path\ndef make(): return h.name + os.path.sep",
        "helper.py": "name = 'x'",
    },
    "star": {"net.py": "from helper import *\ndef make(): return name", "helper.py": "name = 'star'"},
    "late": {"net.py": "def make():\n    import helper\n    return helper.name", "helper.py": "name = 'late'"},
    "package beside it": {
        "net.py": "import blocks.conv\nfrom blocks import act\ndef make(): return blocks.conv.name + act.name",
        "blocks/__init__.py": "",
        "blocks/conv.py": "from .act import name as other\nname = 'conv after ' + other",
        "blocks/act.py": "from blocks import __name__ as package\nname = 'act'",
    },
    "package that names itself": {
        "net.py": "from blocks.conv import name\ndef make(): return name",
        "blocks/__init__.py": "from blocks.act import name",
        "blocks/act.py": "name = 'act'",
        "blocks/conv.py": "import blocks\nname = blocks.name + '!'",
    },
    "folder without __init__": {
        "net.py": "from parts.conv import name\ndef make(): return name",
        "parts/conv.py": "name = 'part'",
    },
    "by text": {
        "net.py": "import importlib\nfrom registry import KNOWN\n"
        "for one in ('a', 'b'): importlib.import_module(f'kinds.{one}')\ndef make(): return ''.join(sorted(KNOWN))",
        "registry.py": "KNOWN = {}",
        "kinds/__init__.py": "",
        "kinds/a.py": "from registry import KNOWN\nKNOWN['a'] = 1",
        "kinds/b.py": "import registry\nregistry.KNOWN['b'] = 1",
    },
    "by text, late": {
        "net.py": "import importlib\ndef make(): return importlib.import_module('helper').name",
        "helper.py": "import other\nname = other.name",
        "other.py": "name = 'other'",
    },
    "a circle": {
        "net.py": "import other\ndef make(): return other.name()\ndef mine(): return 'mine'",
        "other.py": "def name():\n    import net\n    return net.mine()",
    },
    "neighbour named like an installed package": {
        "net.py": "import yaml\ndef make(): return yaml.name",
        "yaml.py": "name = 'my yaml'",
    },
    "neighbour named like a loaded module": {
        "net.py": "import io\nfrom os import path\ndef make(): return io.BytesIO.__name__ + path.sep",
        "io.py": "name = 'mine'",
        "os.py": "",
    },
    "dataclass": {"net.py": SETTINGS, "helper.py": OTHER},
    "source": {"net.py": "import inspect\nclass Net: pass\ndef make(): return inspect.getsource(Net)"},
    "guarded import": {
        "net.py": "try:\n    import not_there\nexcept ImportError:\n    not_there = None\ndef make(): return str(not_there)"
    },
    "script": {"net.py": "def make(): return 'script'\nif __name__ == '__main__':\n    raise SystemExit(3)"},
    "encoding": {"net.py": "# äöü\ndef make(): return 'größe'"},
}
"""Folders with a net.py that needs nothing but its folder."""

PACKAGED: dict[str, Tree] = {
    "relative": {"net.py": "from .helper import name\ndef make(): return name"},
    "relative, late": {"net.py": "def make():\n    from . import helper\n    return helper.name"},
    "by its own name": {"net.py": "from zoo_pkg.helper import name\ndef make(): return name"},
    "init that imports": {
        "__init__.py": "from .net import make",
        "net.py": "from . import helper\ndef make(): return helper.name",
    },
    "sibling named like the library": {
        "net.py": "import yaml\ndef make(): return yaml.__name__",
        "yaml.py": "x = 1",
    },
    "uncle": {
        "net.py": "from .deep.inner import make",
        "deep/__init__.py": "",
        "deep/inner.py": "from ..helper import name\ndef make(): return name",
    },
}
"""Packages zoo_pkg with a net.py; all have a helper.py."""
SHARED = {"__init__.py": "", "helper.py": "name = 'helper'"}


def plant(root: Path, tree: Tree) -> Path:
    for name, text in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def under_python(code: str, path: Path) -> str:
    """What Python itself makes of it, with `path` first on sys.path."""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONDONTWRITEBYTECODE": "1"}
    code = f"import sys\nsys.path.insert(0, {str(path)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


def made(spec: str, **given: object) -> object:
    return resolve.call(spec, resolve.find(spec, "a function"), given)


def state(folder: Path) -> tuple[list[str], list[str]]:
    """What a file could leave behind: paths, and modules of its folder under plain names."""
    modules = [name for name, module in list(sys.modules.items()) if not name.startswith(PREFIX)
               and str(folder) in (getattr(module, "__file__", None) or "")]  # fmt: skip
    return list(sys.path), modules


@pytest.mark.parametrize("case", PLAIN)
def test_a_file_runs_as_under_python(case: str, tmp_path: Path) -> None:
    plant(tmp_path, PLAIN[case])
    expected = under_python("from net import make\nprint(make())", tmp_path)
    before = state(tmp_path)
    assert str(made(f"{tmp_path / 'net.py'}:make")).rstrip("\n") == expected
    assert state(tmp_path) == before, "nothing of it is left"
    assert not list(tmp_path.rglob("__pycache__"))


@pytest.mark.parametrize("case", PACKAGED)
def test_a_file_in_a_package_runs_as_under_python(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by its path from anywhere, and by module from the folder above it."""
    package = plant(tmp_path / "zoo_pkg", {**SHARED, **PACKAGED[case]})
    expected = under_python("from zoo_pkg.net import make\nprint(make())", tmp_path)
    before = state(tmp_path)
    assert made(f"{package / 'net.py'}:make") == expected
    monkeypatch.chdir(tmp_path)
    assert made("zoo_pkg.net:make") == expected
    assert made("zoo_pkg/net.py:make") == expected
    assert state(tmp_path) == before


def test_deep_packages_by_path(tmp_path: Path) -> None:
    package = plant(tmp_path / "zoo_pkg", {**SHARED, **PACKAGED["uncle"]})
    assert made(f"{package / 'deep' / 'inner.py'}:make") == "helper"


def test_an_installed_module_is_imported_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import decimal

    assert resolve.find("decimal:Decimal", "") is decimal.Decimal
    assert resolve.find("os.path:join", "") is os.path.join
    assert resolve.find("decimal:Decimal.from_float", "")(0.5) == decimal.Decimal("0.5")
    monkeypatch.chdir(Path(__file__).parent.parent)
    from pydeploy import errors

    assert resolve.find("pydeploy.errors:nearest", "") is errors.nearest
    assert resolve.find(f"{errors.__file__}:nearest", "") is errors.nearest, "an importable file is not run twice"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_equal_names_do_not_meet(order: tuple[int, ...], tmp_path: Path) -> None:
    """Three folders with a net.py, a helper.py and a late.py each; imports inside functions come in any order."""
    for index in range(3):
        plant(tmp_path / str(index), {
            "net.py": "import helper\ndef make(): return helper.name\ndef later():\n    import late\n    return late.name\n",
            "helper.py": f"name = 'helper {index}'",
            "late.py": f"import helper\nname = 'late ' + helper.name + '{index}'",
        })  # fmt: skip
    found = {index: f"{tmp_path / str(index) / 'net.py'}" for index in range(3)}
    late = {index: resolve.find(f"{file}:later", "") for index, file in found.items()}
    for index in order:
        assert made(f"{found[index]}:make") == f"helper {index}"
    for index in reversed(order):
        assert late[index]() == f"late helper {index}{index}"


def test_two_names_of_one_file_share_it(tmp_path: Path) -> None:
    plant(tmp_path, {"net.py": "class Net: pass\ndef make(): return Net()", "other.py": "from net import Net"})
    net = resolve.find(f"{tmp_path / 'net.py'}:Net", "")
    assert isinstance(made(f"{tmp_path / 'net.py'}:make"), net)
    assert resolve.find(f"{tmp_path / 'other.py'}:Net", "") is net


def test_a_changed_text_is_run_anew(tmp_path: Path) -> None:
    plant(tmp_path, {"net.py": "from helper import name\ndef make(): return name", "helper.py": "name = 'old'"})
    old = resolve.find(f"{tmp_path / 'net.py'}:make", "")
    (tmp_path / "helper.py").write_text("name = 'new'")  # of the same length, within the same second
    assert made(f"{tmp_path / 'net.py'}:make") == "new"
    assert old() == "old"


def test_type_hints_work_at_any_later_time(tmp_path: Path) -> None:
    plant(tmp_path, PLAIN["dataclass"])
    settings = resolve.find(f"{tmp_path / 'net.py'}:Settings", "")
    assert typing.get_type_hints(settings)["width"] is int


def test_prints_do_not_reach_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(tmp_path, {"net.py": "print('loading')\ndef make():\n    print('making')\n    return 1"})
    assert made(f"{tmp_path / 'net.py'}:make") == 1
    assert capsys.readouterr() == ("", "loading\nmaking\n")


BROKEN: dict[str, tuple[Tree, str]] = {
    "raises": ({"net.py": "\n\nraise ValueError('two\\nlines')"}, r"ValueError: two lines \(.*/net.py, line 3\)$"),
    "neighbour raises": ({"net.py": "import helper", "helper.py": "x = 1\n1 / 0"}, r"ZeroDivisionError.*/helper.py, line 2\)$"),
    "library raises": ({"net.py": "import json\n\njson.loads('{')"}, r"JSONDecodeError.*/net.py, line 3\)$"),
    "syntax": ({"net.py": "def make(:\n"}, r"SyntaxError: .*/net.py, line 1\)$"),
    "syntax of a neighbour": ({"net.py": "import helper", "helper.py": "\n\n)"}, r"SyntaxError: .*/helper.py, line 3\)$"),
    "lacks a package": ({"net.py": "import no_such_package"}, r"No module named 'no_such_package' \(.*/net.py, line 1\)$"),
    "lacks a name": ({"net.py": "from helper import no", "helper.py": ""}, r"cannot import name 'no' from 'helper'.*net.py, line 1\)$"),
    "beyond the top": ({"net.py": "from ..up import x"}, r"ImportError: attempted relative import.*/net.py, line 1\)$"),
    "ends": ({"net.py": "import sys\nsys.exit(0)"}, "ends the program"),
    "reads arguments": ({"net.py": "import argparse\nargparse.ArgumentParser().parse_args(['--epochs', '3'])"}, "ends the program"),
    "is empty": ({"net.py": ""}, "has no function 'make'"),
    "is not a function": ({"net.py": "make = 3"}, "has no function 'make'"),
    "nearly": ({"net.py": "def mke(): pass"}, r"did you mean 'mke'\?"),
    "recursion": ({"net.py": "def f(): return f()\nf()"}, "RecursionError"),
    "assertion without a text": ({"net.py": "assert 1 > 2"}, r"AssertionError \(.*, line 1\)$"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_code_is_one_sentence(case: str, tmp_path: Path) -> None:
    tree, text = BROKEN[case]
    plant(tmp_path, tree)
    before = state(tmp_path)
    with pytest.raises(ConfigError, match=text) as caught:
        resolve.find(f"{tmp_path / 'net.py'}:make", "a function")
    assert "\n" not in str(caught.value)
    assert PREFIX not in str(caught.value)
    assert state(tmp_path) == before


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00", b"\x89PNG\r\n\x1a\n", b"name = '\xe9'\n"], ids=repr)
def test_what_is_not_python_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_bytes(content)
    with pytest.raises(ConfigError, match=r"net\.py cannot be run: (SyntaxError|ValueError)") as caught:
        resolve.find(f"{tmp_path / 'net.py'}:make", "a function")
    assert "\n" not in str(caught.value)


def test_a_mended_file_works(tmp_path: Path) -> None:
    plant(tmp_path, {"net.py": "from helper import name\ndef make(): return name", "helper.py": "1 / 0"})
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        made(f"{tmp_path / 'net.py'}:make")
    (tmp_path / "helper.py").write_text("name=1")
    assert made(f"{tmp_path / 'net.py'}:make") == 1


def test_missing_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(DataError, match=r"none\.py does not exist; expected a Python file with a function"):
        resolve.find("none.py:make", "a function")
    with pytest.raises(DataError, match=r"folder\.py is a folder"):
        resolve.find("folder.py:make", "a function")
    with pytest.raises(
        ConfigError, match=r"module json\.none cannot be imported: ModuleNotFoundError: No module named 'json\.none'"
    ):
        resolve.find("json.none:make", "a function")
    assert resolve.is_module("json")
    assert not resolve.is_module("no_such_package.module")
    assert not resolve.is_module("some/path")


ARGUMENTS = """
def none(): return "none"
def needs(width, depth, *, heads, act="relu"): return f"{width} {depth} {heads} {act}"
def anything(width, **rest): return f"{width} {rest}"
def by_place(width, /): return width
class Net:
    def __init__(self, width=8): self.width = width
    def __call__(self): return self.width
ready = Net(3)
def fails(): raise KeyError("x")
def leaves(): raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("name", "given", "result"),
    [
        ("none", {}, "none"),
        ("none", {"width": 3}, "net.py:none: no setting 'width'; it takes none$"),
        ("needs", {}, "needs width, depth, heads: give them as options$"),
        ("needs", {"width": 1, "heads": 2}, "needs depth: give it as options$"),
        ("needs", {"width": 1, "depth": 2, "heads": 3}, "1 2 3 relu"),
        (
            "needs",
            {"width": 1, "depth": 2, "heads": 3, "atc": 4},
            r"net.py:needs: no setting 'atc' \(did you mean 'act'\?\)$",
        ),
        ("anything", {"width": 1, "x": 2}, "1 {'x': 2}"),
        ("anything", {"x": 2}, "needs width: give it as options$"),
        ("by_place", {}, "by position only"),
        ("fails", {}, r"cannot be built with \{\}: KeyError: 'x' \(.*/net.py, line 10\)$"),
        ("leaves", {}, "ends the program"),
        ("ready", {}, 3),
    ],
)
def test_arguments_are_checked_by_name(name: str, given: dict[str, object], result: object, tmp_path: Path) -> None:
    plant(tmp_path, {"net.py": ARGUMENTS})
    spec = f"{tmp_path / 'net.py'}:{name}"
    if not isinstance(result, str) or not result.endswith(("$", "only", "program")):
        assert made(spec, **given) == result
        return
    with pytest.raises(ConfigError, match=result) as caught:
        made(spec, **given)
    assert "\n" not in str(caught.value)
