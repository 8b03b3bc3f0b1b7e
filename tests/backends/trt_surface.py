"""What the real TensorRT bindings offer, version by version: names, signatures, enum values.

`extract` reads it off an imported module (pybind11 writes every signature into the docstring); the tables of eight versions
are committed under ``tensorrt_api/``, so that code can be checked against versions that are not installed.
`make trt-contract` compares the tables with the real modules and writes them anew where asked.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

VERSIONS = ("8.6.1", "10.0.1", "10.3.0", "10.16.1", "11.0.0", "11.4.0")
RTX_VERSIONS = ("rtx-1.4.0", "rtx-1.7.1")
"""TensorRT for RTX: the same bindings under another name, with a few classes more."""
TABLES = Path(__file__).parent / "tensorrt_api"

CLASSES = (
    "Builder", "BuilderFlag", "DataType", "DeviceType", "Dims", "EngineInspector", "IBuilderConfig", "ICudaEngine",
    "IExecutionContext", "IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator", "ILayer", "ILogger", "INetworkDefinition",
    "IOptimizationProfile", "IProfiler", "IProgressMonitor", "ITensor", "ITimingCache", "IHostMemory",
    "LayerInformationFormat", "Logger", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser", "ParserError",
    "ProfilingVerbosity", "Runtime", "TensorFormat", "TensorIOMode", "TensorLocation",
)  # fmt: skip
"""The classes that a user of TensorRT meets when building, running and timing a network."""

RTX_CLASSES = ("ComputeCapability", "CudaGraphStrategy", "EngineInvalidityDiagnostics", "EngineValidity", "IRuntimeCache",
               "IRuntimeConfig")  # fmt: skip

Member = int | str | list[str]
"""An enum's value; 'r' or 'rw' for a property; the signatures of a method, without `self`."""


@dataclass(frozen=True)
class Surface:
    """One version of the bindings."""

    version: str
    classes: dict[str, dict[str, Member]]

    @property
    def rtx(self) -> bool:
        return self.version.startswith("1.")

    def save(self) -> None:
        rows = [f'  "{name}": {json.dumps(members)}' for name, members in self.classes.items()]
        text = f'{{"version": "{self.version}", "classes": {{\n' + ",\n".join(rows) + "\n}}\n"
        name = ("rtx-" if self.rtx else "") + ".".join(self.version.split(".")[:3])
        (TABLES / f"{name}.json").write_text(text)


def load(version: str) -> Surface:
    """The committed table of a version."""
    data = json.loads((TABLES / f"{version}.json").read_text())
    return Surface(data["version"], data["classes"])


def extract(module: ModuleType) -> Surface:
    """The surface of an imported binding module."""
    names = (*CLASSES, *RTX_CLASSES) if module.__version__.startswith("1.") else CLASSES
    found = {name: _members(getattr(module, name)) for name in names if hasattr(module, name)}
    return Surface(module.__version__, found)


def _members(cls: Any) -> dict[str, Member]:
    values = getattr(cls, "__members__", None)
    if values is not None:
        return {name: int(value) for name, value in values.items()}
    found: dict[str, Member] = {}
    for name in sorted(dir(cls)):
        if name.startswith("_") and name != "__init__":
            continue
        member = getattr(cls, name)
        if isinstance(member, property):
            found[name] = "r" if member.fset is None else "rw"
        elif signatures := _signatures(name, member.__doc__ or ""):
            found[name] = signatures
    return found


def _signatures(name: str, doc: str) -> list[str]:
    """``pool: MemoryPoolType, pool_size: int -> None`` of each overload, from the docstring's signature lines."""
    found = []
    for line in doc.splitlines():
        match = re.match(rf"^(?:\d+\. )?{re.escape(name)}\((?:self: [\w.]+(?:, )?)?(.*)\)( -> .*)?$", line)
        if match and "*args" not in match[1]:
            text = re.sub(
                r"tensorrt_bindings\.tensorrt\.|tensorrt_rtx_bindings\.tensorrt_rtx\.", "", match[1] + (match[2] or "")
            )
            found.append(text.strip())
    return found
