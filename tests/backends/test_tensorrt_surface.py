"""The committed tables of the real bindings, and the names that the backend uses, version by version."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import trt_surface
from pydeploy.backends.tensorrt import compat
from trt_fake import World, check_call, module

PACKAGE = Path(compat.__file__).parent

OLD, RTX = {"8.6.1", "10.0.1", "10.3.0", "10.16.1"}, set(trt_surface.RTX_VERSIONS)
EARLY_RTX = {"rtx-1.4.0"}  # whose flags are those of TensorRT 10

ONLY_SOME: dict[str, set[str]] = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": OLD | EARLY_RTX,
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": {"10.0.1", "10.3.0", "10.16.1", "11.0.0", "11.4.0"} | RTX,
    "BuilderFlag.FP16": OLD | EARLY_RTX,
    "BuilderFlag.INT8": OLD | EARLY_RTX,
    "BuilderFlag.BF16": (OLD | EARLY_RTX) - {"8.6.1"},
    "IProgressMonitor": {"10.0.1", "10.3.0", "10.16.1", "11.0.0", "11.4.0"} | RTX,
    "IInt8EntropyCalibrator2": OLD | EARLY_RTX,
    **{name: RTX for name in trt_surface.RTX_CLASSES if name not in ("IRuntimeCache", "IRuntimeConfig")},
}
"""Names that not every version has: `compat` asks for the version before it uses them."""


def used_names() -> set[str]:
    """Every ``trt.NAME`` and ``trt.CLASS.NAME`` in the package's source, aliases of classes followed."""
    found: set[str] = set()
    for path in PACKAGE.glob("*.py"):
        tree = ast.parse(path.read_text())
        aliases = {
            node.targets[0].id: node.value.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Attribute) and ast.unparse(node.value.value) in ("trt", "self._trt")
        }  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                parts = ast.unparse(node).replace("self._trt.", "trt.").split(".")
                if parts[0] == "trt" and parts[1] not in ("__version__", "__name__", "__file__"):
                    found.add(".".join(parts[1:3]).removesuffix(".__init__"))
                elif parts[0] in aliases:
                    found.add(f"{aliases[parts[0]]}.{parts[1]}")
    return found


def has(surface: trt_surface.Surface, name: str) -> bool:
    cls, _, member = name.partition(".")
    return cls in surface.classes and (member in ("", "__init__", "__members__") or member in surface.classes[cls])


def somewhere(name: str, version: str) -> set[str]:
    """The versions that have a name: all, unless the table says otherwise of it or of its class."""
    return ONLY_SOME.get(name, ONLY_SOME.get(name.partition(".")[0], {version}))


def test_the_scan_finds_names() -> None:
    assert {"BuilderFlag.FP16", "Builder", "MemoryPoolType.WORKSPACE", "TensorIOMode.INPUT"} <= used_names()


@pytest.mark.parametrize("version", [*trt_surface.VERSIONS, *trt_surface.RTX_VERSIONS])
def test_every_name_in_the_source_exists(version: str) -> None:
    surface = trt_surface.load(version)
    assert surface.version.startswith(version.removeprefix("rtx-"))
    names = used_names() | set(ONLY_SOME)
    wrong = {name for name in names if has(surface, name) != (version in somewhere(name, version))}
    assert not wrong


def test_only_compat_asks_for_the_version() -> None:
    """Bounds on versions, and questions whether a version has a name, are in one module."""
    asks = re.compile(r"\bhasattr\((self\._)?trt\b|[<>]=?\s*\(\d+, \d+\)|\b(ONLY_)?TYPED_SINCE\b|\bOLDEST\b")
    modules = [path for path in PACKAGE.parent.parent.rglob("*.py") if path.name != "compat.py"]
    assert len(modules) > 100
    assert {path.name: found for path in modules if (found := asks.findall(path.read_text()))} == {}
    assert len(asks.findall((PACKAGE / "compat.py").read_text())) > 10


def test_strongly_typed_changed_its_value() -> None:
    """The trap that flags are used by name for: 1 in TensorRT 10, 0 in 11, where 1 means something else."""
    values = {v: trt_surface.load(v).classes["NetworkDefinitionCreationFlag"] for v in ("10.16.1", "11.0.0")}
    assert values["10.16.1"]["STRONGLY_TYPED"] == 1
    assert values["11.0.0"]["STRONGLY_TYPED"] == 0
    assert values["11.0.0"]["PREFER_JIT_PYTHON_PLUGINS"] == 1


@pytest.mark.parametrize("version", trt_surface.VERSIONS)
def test_the_fake_refuses_what_the_version_lacks(version: str) -> None:
    world = World(trt_surface.load(version), version)
    trt = module(world)
    config = trt.Builder(_logger(trt)).create_builder_config()
    with pytest.raises(AttributeError, match="unknown"):
        config.max_workspace_sise = 1
    with pytest.raises(AttributeError, match="read-only"):
        config.num_optimization_profiles = 1
    with pytest.raises(AttributeError):
        _ = config.set_memory_pool
    with pytest.raises(AttributeError):
        _ = trt.BuilderFlag.FP17
    assert hasattr(config, "max_workspace_size") == (version == "8.6.1")
    if version.startswith("11"):
        with pytest.raises(AttributeError, match="unknown"):
            config.int8_calibrator = object()
        assert not hasattr(trt.BuilderFlag, "FP16")


def test_the_fake_refuses_wrong_arguments() -> None:
    surface = trt_surface.load("10.3.0")
    world = World(surface, "10.3.0")
    trt = module(world)
    builder = trt.Builder(_logger(trt))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 20)
    for wrong in ((trt.MemoryPoolType.WORKSPACE,), ("WORKSPACE", 1), (trt.MemoryPoolType.WORKSPACE, 1.5), (1, 2, 3)):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            config.set_memory_pool_limit(*wrong)
    with pytest.raises(TypeError, match="incompatible"):
        trt.OnnxParser(builder, _logger(trt))
    with pytest.raises(TypeError, match="unknown"):
        check_call(surface, "f", ["name: str -> bool"], ("x",), {"profile": 1})


def _logger(trt: object) -> object:
    class Silent(trt.ILogger):  # type: ignore[name-defined, misc]
        def log(self, severity: object, msg: str) -> None:
            """Nothing."""

    return Silent()


@pytest.mark.parametrize(("text", "expected"), [("8.6.1", (8, 6)), ("10.16.1.11", (10, 16)), ("11.4.0.106", (11, 4))])
def test_versions_are_read(text: str, expected: tuple[int, int]) -> None:
    assert compat.parse_version(text) == expected


def test_typed_networks_by_version() -> None:
    rows = [((8, 6), True, False), ((10, 0), False, False), ((10, 0), True, True), ((10, 11), False, False),
            ((10, 12), False, True), ((11, 0), False, True)]  # fmt: skip
    assert [compat.is_typed(v, typed_file=typed) for v, typed, _ in rows] == [expected for _, _, expected in rows]
