"""The house keeps its shape: imports point down, modules stay small, heavy packages stay where they belong."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pydeploy"
MODULES = sorted(PACKAGE.rglob("*.py"))

RANKS = {
    "pydeploy._core": 0,
    "pydeploy.errors": 0,
    "pydeploy.version": 0,
    "pydeploy.files": 1,
    "pydeploy.graph": 2,
    "pydeploy.timing.records": 2,
    "pydeploy.data.preprocessing": 2,
    "pydeploy.planning.next_plans": 3,
    "pydeploy.run.config": 3,
    "pydeploy.timing.rounds": 3,
    "pydeploy.timing.reference": 4,
    "pydeploy.backends.base": 3,
    "pydeploy.backends.device": 3,
    "pydeploy.backends.node_origins": 3,
    "pydeploy.onnxfile.read": 4,
    "pydeploy.backends": 5,
    "pydeploy.models": 4,
    "pydeploy.prune": 4,
    "pydeploy.train": 5,
    "pydeploy.quant.placement": 4,
    "pydeploy.onnxfile.prepare": 4,
    "pydeploy.quant.half": 4,
    "pydeploy.quant": 5,
    "pydeploy.export": 5,
    "pydeploy.planning.solve": 5,
    "pydeploy.planning.baselines": 6,
    "pydeploy.profiling.compare_outputs": 5,
    "pydeploy.profiling.profile": 5,
    "pydeploy.profiling.compare_layers": 6,
    "pydeploy.latency": 6,
    "pydeploy.report": 6,
    "pydeploy.run.folder": 6,
    "pydeploy.run.artefacts": 6,
    "pydeploy.latency.table.by_precision": 7,
    "pydeploy.run.stages.shared": 7,
    "pydeploy.run.stages.precisions": 8,
    "pydeploy.run.stages.search": 8,
    "pydeploy.run.stages.comparison": 9,
    "pydeploy.run.stages.final": 10,
    "pydeploy.run.pipeline": 11,
    "pydeploy.cli": 12,
    "pydeploy": 13,
}
"""Layer of each module, longest prefix wins. A module imports from its own package or from lower layers only."""

TORCH = ("prune", "train", "models")
"""Packages that may import torch at module level; everything else must work on a board without it."""


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rank(module: str) -> int:
    while module not in RANKS:
        module = module.rpartition(".")[0]
    return RANKS[module]


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


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = name_of(path)
    for module, _ in imports(path):
        if not module.startswith("pydeploy") or own == "pydeploy":
            continue
        package = ".".join(own.split(".")[:2])
        same_package = (PACKAGE / package.removeprefix("pydeploy.")).is_dir() and (module + ".").startswith(
            package + "."
        )
        assert same_package or rank(module) < rank(own), (
            f"{own} (layer {rank(own)}) imports {module} (layer {rank(module)})"
        )


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torch_stays_in_its_rooms(path: Path) -> None:
    own = name_of(path).split(".")
    if (own[1:2] and own[1] in TORCH) or own[1:] == ["export"]:
        return
    heavy = [m for m, outer in imports(path) if outer and m.split(".")[0] in ("torch", "torchvision", "accelerate")]
    assert not heavy


def test_modules_stay_small() -> None:
    sources = [*MODULES, *(PACKAGE.parent / "csrc").rglob("*.[ch]pp")]
    long = {str(p): n for p in sources if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_no_cycles_between_modules() -> None:
    graph = {name_of(p): {m for m, outer in imports(p) if outer and m.startswith("pydeploy")} for p in MODULES}
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
