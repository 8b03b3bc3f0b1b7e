"""The house keeps its shape: imports point down, modules stay small, heavy packages stay where they belong."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pydeploy"
MODULES = sorted(PACKAGE.rglob("*.py"))

FLOORS = (
    ("_core", "errors", "version"),
    ("files", "threads", "guests", "settings"),
    ("graph",),
    ("plan",),
    ("timing.records",),
    ("timing",),
    ("backends.base", "backends.device", "backends.fused_nodes", "backends.quiet_openvino"),
    ("onnxfile",),
    ("data",),
    ("backends",),
    ("profiling",),
    ("prune.forward", "prune.axis_maps"),
    ("prune.surgery",),
    ("prune.structure",),
    ("prune.criteria", "prune.sparsity"),
    ("models",),
    ("export",),
    ("quant",),
    ("tasks",),
    ("train",),
    ("latency.table",),
    ("latency.probes",),
    ("latency.check",),
    ("latency.board", "latency.yardstick"),
    ("planning",),
    ("report",),
    ("run.artefacts", "run.facts"),
    ("run.config", "run.folder"),
    ("run.job",),
    ("run.stages",),
    ("run",),
    ("sweep",),
    ("cli",),
)
"""Rooms of ``pydeploy`` from the ground up, longest prefix wins. A module imports from its own floor or from lower ones,
in `TYPE_CHECKING` blocks and functions too; on one floor there are no circles."""

RANKS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

TORCH = ("prune", "train", "tasks", "models", "export")
"""Rooms that may import torch at module level; everything else must work on a board without it."""


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rank(module: str) -> int:
    name = module.removeprefix("pydeploy").removeprefix(".")
    while name not in RANKS:
        assert name, f"{module} is in no room: give it a floor in FLOORS"
        name = name.rpartition(".")[0]
    return RANKS[name]


def is_module(name: str) -> bool:
    place = PACKAGE.parent / name.replace(".", "/")
    return any(p.exists() for p in (place.with_suffix(".py"), place.with_suffix(".pyi"), place / "__init__.py"))


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, at module level) of every import; `TYPE_CHECKING` blocks count as inner."""
    tree = ast.parse(path.read_text())
    outer = {id(node) for node in tree.body}
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in outer) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            exists = [m for m in inner if is_module(m)]
            found += [(m, id(node) in outer) for m in (exists or [node.module])]
    return found


def arrows() -> dict[str, set[str]]:
    """{module: modules of this package that it imports anywhere in its text}."""
    return {name_of(p): {m for m, _ in imports(p) if m.startswith("pydeploy")} - {name_of(p)} for p in MODULES}


def test_imports_point_down() -> None:
    inside = {own: found for own, found in arrows().items() if own not in ("pydeploy", "pydeploy.__main__")}
    up = {(own, other) for own, found in inside.items() for other in found if rank(other) > rank(own)}
    assert not up


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torch_stays_in_its_rooms(path: Path) -> None:
    own = name_of(path).removeprefix("pydeploy.")
    if any((own + ".").startswith(room + ".") for room in TORCH):
        return
    heavy = [m for m, outer in imports(path) if outer and m.split(".")[0] in ("torch", "torchvision", "accelerate")]
    assert not heavy


def test_modules_stay_small() -> None:
    sources = [*MODULES, *(PACKAGE.parent / "csrc").rglob("*.[ch]pp")]
    long = {str(p): n for p in sources if (n := len(p.read_text().splitlines())) > 350}
    assert not long


def test_the_top_stays_short() -> None:
    """Rooms, and the few files that belong to all of them; a stranger reads the list in one glance."""
    files = {path.stem for path in PACKAGE.glob("*.py")}
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert len(files) <= 8, sorted(files)
    assert len(files - {"__init__", "__main__"} | rooms) <= 23, sorted(files | rooms)


VAGUE = {"stages", "pace", "aim", "gains", "candidates", "summary", "precisions", "numbers", "attributes", "entries", "watch", "trial",
         "constants", "origins", "source", "model", "utils", "helpers", "common", "misc", "tools", "stuff"}  # fmt: skip
"""What says too little as the name of a file; ``run/stages`` is a folder that holds them."""


def test_module_names_say_something() -> None:
    assert not {path.stem for path in MODULES if path.stem in VAGUE}


def test_modules_are_short_in_the_middle() -> None:
    """The median module is read in one go."""
    lengths = sorted(len(path.read_text().splitlines()) for path in MODULES)
    assert lengths[len(lengths) // 2] <= 130


def test_no_cycles_between_modules() -> None:
    graph = arrows()
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module in done:
            return
        for other in graph.get(module, ()):
            visit(other, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


FORBIDDEN = re.compile(
    r"\bimport pickle|\bpickle\.\w|\beval\(|\bexec\(|yaml\.load\(|shell=True|weights_only=False|os\.system\("
)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_unsafe(path: Path) -> None:
    assert not [line for line in path.read_text().splitlines() if FORBIDDEN.search(line) and ".eval()" not in line]


def test_one_module_knows_the_files_of_a_run() -> None:
    """Names of files inside a run directory are written in run/artefacts.py and nowhere else in run and cli."""
    home = PACKAGE / "run" / "artefacts.py"
    file = re.compile(r"[\w*.-]+\.(json|onnx|engine|npz|sqlite|safetensors|html|md)")
    known = {text for text in strings(home) if file.fullmatch(text)}
    assert {"facts.json", "model.onnx", "stamp.json"} <= known
    found = {}
    for path in MODULES:
        room = name_of(path).split(".")[1:2]
        if path != home and room in (["run"], ["cli"]):
            texts = {text for text in strings(path) if file.fullmatch(text)}
            found[name_of(path)] = texts if room == ["run"] else texts & known
    assert not {name: texts for name, texts in found.items() if texts}


def strings(path: Path) -> set[str]:
    """Texts in a module's code, f-strings' parts included."""
    return {node.value for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)}  # fmt: skip
