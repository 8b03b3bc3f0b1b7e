"""What may be asked of a TensorRT build besides precision and batch, written ``tensorrt:int8,sparse,dla_core=0``."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydeploy.errors import ConfigError, nearest

Made = TypeVar("Made")

ALIGN = {"fp32": 4, "tf32": 4, "fp16": 8, "bf16": 8, "int8": 32}
"""Channel multiple at which the search for good widths starts; the measured stairs decide (TensorRT developer guide,
'Optimizing for Tensor Cores')."""
SPARSE_ALIGN = 16
AVG_TIMING_ITERATIONS = 8  # trtexec's; the API's default of 1 makes the choice of kernels noisier


@dataclass(frozen=True, slots=True)
class Options:
    """Choices of a build. All but `timing_cache` are part of the target: other choices make another engine."""

    sparse: bool = False
    """Let TensorRT use 2:4 sparse kernels where the weights have that pattern."""
    dla_core: int = -1
    """DLA core for all layers that it can run; the others fall back to the GPU and are reported. -1 = GPU only."""
    optimization_level: int = 3
    """0 to 5: how long TensorRT searches for kernels."""
    workspace_mib: int = 0
    """Most scratch memory that a kernel may take; 0 = all of the device's."""
    calibration: str = ""
    """Calibration cache for implicit int8 (TensorRT 8.6 and 10), for a file without Q/DQ nodes."""
    timing_cache: str = ""
    """File that remembers kernel timings between builds; by default one per version and device in the user's cache."""

    def __post_init__(self) -> None:
        if not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"optimization_level goes from 0 to 5, got {self.optimization_level}")
        if self.workspace_mib < 0 or self.dla_core < -1:
            raise ConfigError("workspace_mib must be 0 or more and dla_core -1 or more")

    @classmethod
    def parse(cls, text: str) -> Options:
        """From ``name=value`` joined by commas; a name alone switches on. `ConfigError` names the nearest known name."""
        return read_options(cls, text, "tensorrt")

    def configure(self, trt: ModuleType, config: Any) -> None:
        """Write the choices into a builder configuration; the DLA's layers are chosen by `build`."""
        config.avg_timing_iterations = AVG_TIMING_ITERATIONS
        config.builder_optimization_level = self.optimization_level
        config.max_aux_streams = 0  # layers run one after the other, so that their times add up
        limit_workspace(trt, config, self.workspace_mib)
        if self.sparse:
            config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)

    def __str__(self) -> str:
        """The choices that differ from the defaults, as `parse` reads them; '' when none does."""
        return shown(self, "timing_cache")

    def align(self, precision: str) -> int:
        """Channel multiple at which probing starts."""
        return max(SPARSE_ALIGN, ALIGN[precision]) if self.sparse else ALIGN[precision]

    def cache_file(self, version: str, device: str, capability: tuple[int, int]) -> Path:
        """Where kernel timings of this version and device are kept."""
        if self.timing_cache:
            return Path(self.timing_cache)
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        slug = "".join(c if c.isalnum() else "-" for c in device)
        return home / "pydeploy" / f"tensorrt-{version}-{slug}-sm{capability[0]}{capability[1]}.timing"


def limit_workspace(trt: ModuleType, config: Any, mib: int) -> None:
    """Most scratch memory that a kernel may take; 0 = no limit."""
    if mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, mib << 20)


def read_options(kind: type[Made], text: str, backend: str) -> Made:
    """``name=value`` joined by commas as a record; a name alone switches on. `ConfigError` names the nearest known name."""
    kinds = {field.name: type(field.default) for field in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, bool | int | str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if name not in kinds:
            raise ConfigError(f"backend '{backend}' has no option '{name}'{nearest(name, kinds)}")
        values[name] = _value(name, value, kinds[name])
    return kind(**values)


def shown(options: Any, without: str) -> str:
    """The choices that differ from the defaults, as `read_options` reads them; the field `without` is never part."""
    kept = {f.name: getattr(options, f.name) for f in fields(options)
            if f.name != without and getattr(options, f.name) != f.default}  # fmt: skip
    return ",".join(name if value is True else f"{name}={value}" for name, value in kept.items())


def _value(name: str, text: str, kind: type) -> bool | int | str:
    if kind is bool:
        if text.lower() not in ("", "true", "false"):
            raise ConfigError(f"option '{name}' is true or false, got '{text}'")
        return text.lower() != "false"
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"option '{name}' is a number, got '{text}'") from None
    return text
