"""The contract between pydeploy and a runtime: `Backend` builds and opens engines, `Session` runs and times them.

* A backend is bound to one precision, batch and thread count; `target()` states them all.
* Nothing here imports a runtime: `open_backend` imports the one that is asked for.
* Input names, dtypes and shapes are checked here once (`check_feeds`), so a session need not.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pydeploy.errors import BackendUnavailable, ConfigError, DataError, Mismatch, nearest
from pydeploy.files import read_json, sha256, write_json
from pydeploy.timing.records import Padding, Target

Feeds = Mapping[str, NDArray[Any]]
"""Arrays by tensor name."""

BACKENDS: Mapping[str, str] = {
    "onnxruntime": "pydeploy.backends.onnxruntime:OnnxRuntime",
    "openvino": "pydeploy.backends.openvino:OpenVino",
    "tensorrt": "pydeploy.backends.tensorrt.backend:TensorRt",
    "null": "pydeploy.backends.null:Null",
}
"""Where each backend lives; named by import path so that listing them imports nothing heavy."""

WITH_OPTIONS = ("tensorrt",)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, NumPy dtype name and static shape of an engine's input or output."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Samples of one layer of a running engine.

    `name` is what the runtime calls the layer; `nodes` are the ONNX node names it was fused from
    (empty for layers that the runtime inserted, such as layout conversions).
    """

    name: str
    nodes: tuple[str, ...]
    samples_us: NDArray[np.float64]
    padding: Padding = (0, 0)


class Session(Protocol):
    """A loaded engine. Obtained from `Backend.open` in a ``with`` block."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Outputs by name. Raises `DataError` when `feeds` does not match `inputs`."""

    def time(self, feeds: Feeds, n: int) -> NDArray[np.float64]:
        """Wall time of `n` runs, shape ``(n,)`` in microseconds, monotonic clock, no warm-up."""

    def layers(self, feeds: Feeds, n: int) -> Sequence[LayerTime]:
        """Per-layer times of `n` runs, in execution order, read from the running network."""


@runtime_checkable
class Conditioned(Protocol):
    """A session that also tells the device's condition during its timed runs (clocks, temperature, flags 0 or 1)."""

    def condition(self) -> Mapping[str, float]:
        """Facts by name; ``unstable`` = 1 when the samples show that the device's speed changed."""


class Backend(Protocol):
    """A runtime bound to one precision, batch size and number of threads."""

    name: str
    precision: str
    batch: int
    threads: int

    def target(self) -> Target:
        """Everything a latency depends on besides the network."""

    def build(self, onnx: Path, out: Path) -> Engine:
        """Compile `onnx` into an engine file at `out`, with its facts beside it."""

    def open(self, engine: Engine) -> AbstractContextManager[Session]:
        """Load an engine; refuses one of another target (`Mismatch`)."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A built file, and what it was built from and for."""

    path: Path
    backend: str
    target: Target
    onnx_sha256: str
    sha256: str = ""

    def save(self) -> Engine:
        """Write the facts beside the engine file (``<path>.json``); returns the record with the file's hash."""
        stamped = Engine(self.path, self.backend, self.target, self.onnx_sha256, sha256(self.path))
        facts = {**asdict(stamped), "path": self.path.name, "target": self.target.to_json(), "schema": 1}
        write_json(_facts_path(self.path), facts)
        return stamped

    @classmethod
    def load(cls, path: Path) -> Engine:
        facts = read_json(_facts_path(path))
        try:
            target = Target.from_json(facts["target"])
            engine = cls(path, facts["backend"], target, facts["onnx_sha256"], facts["sha256"])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{_facts_path(path)} is not an engine record ({error!r}); build the engine again"
            ) from None
        if not path.is_file() or sha256(path) != engine.sha256:
            raise DataError(f"{path} is missing or differs from what its record says; build the engine again")
        return engine

    def require(self, target: Target) -> None:
        """Raise unless this engine is for `target` (else `Mismatch`) and its file is as built (else `DataError`)."""
        target.require(self.target, f"engine {self.path}")
        if not self.path.is_file() or (self.sha256 and sha256(self.path) != self.sha256):
            raise DataError(f"{self.path} is missing or differs from what its record says; build the engine again")

    def require_onnx(self, onnx: Path) -> None:
        """Raise `Mismatch` unless this engine was built from exactly this ONNX file."""
        if sha256(onnx) != self.onnx_sha256:
            raise Mismatch(f"engine {self.path} was not built from {onnx} (other contents); build it from this file")


def _facts_path(path: Path) -> Path:
    return Path(f"{path}.json")


def open_backend(name: str, *, precision: str = "fp32", batch: int = 1, threads: int = 0, options: str = "") -> Backend:
    """The named backend; ``threads=0`` means all cores this process may use.

    `options` are for backends that have any (`WITH_OPTIONS`), such as ``sparse,dla_core=0`` for TensorRT.
    Raises `BackendUnavailable` when its package is not installed or it lacks the precision.
    """
    if name not in BACKENDS:
        raise BackendUnavailable(f"unknown backend '{name}'{nearest(name, BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] == "pydeploy":
            raise
        raise BackendUnavailable(
            f"backend '{name}' needs the package '{error.name}': pip install 'pydeploy-hil[{name}]'"
        ) from None
    if options and name not in WITH_OPTIONS:
        raise ConfigError(f"backend '{name}' has no options, got '{options}'; only {', '.join(WITH_OPTIONS)} has")
    chosen = {"options": options} if options else {}
    backend: Backend = factory(precision=precision, batch=batch, threads=threads, **chosen)
    return backend


def reopen(target: Target) -> Backend:
    """The backend that `target` states, its options included."""
    options = target.facts.get("options", "")
    return open_backend(
        target.backend, precision=target.precision, batch=target.batch, threads=target.threads, options=options
    )


def align_of(backend: Backend, otherwise: int = 8) -> int:
    """Channel multiple at which the search for good widths starts; the measured stairs decide."""
    return int(getattr(backend, "align", otherwise))


def check_feeds(feeds: Feeds, inputs: Sequence[TensorSpec]) -> None:
    """Raise `DataError` unless `feeds` has exactly the inputs' names, dtypes and shapes."""
    names = [spec.name for spec in inputs]
    if set(feeds) != set(names):
        raise DataError(f"the engine takes inputs {names}, got {sorted(feeds)}")
    for spec in inputs:
        array = feeds[spec.name]
        if array.dtype.name != spec.dtype or array.shape != spec.shape:
            raise DataError(
                f"input '{spec.name}' must be {spec.dtype}{list(spec.shape)}, got {array.dtype.name}{list(array.shape)}"
            )
