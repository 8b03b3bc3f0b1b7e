"""The contract between pydeploy and a runtime: `Backend` builds and opens engines, `Session` runs and times them.

* A backend is bound to one precision, batch and thread count; `target()` states them all.
* What is special about a backend is declared in its class, so that nobody else asks for its name.
* Nothing here imports a runtime: `open_backend` imports the one that is asked for. A backend is known by a name of
  `BACKENDS`, by a name that an installed package registers (entry points ``pydeploy.backends``), or by ``FILE.py:CLASS``
  or ``PACKAGE.MODULE:CLASS``.
* Input names, dtypes and shapes are checked here once (`check_feeds`), so a session need not.
"""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pydeploy.errors import BackendUnavailable, ConfigError, DataError, Mismatch, nearest
from pydeploy.files import read_json, sha256, write_json
from pydeploy.guests import resolve
from pydeploy.guests.names import Names
from pydeploy.timing.records import Padding, Target

Feeds = Mapping[str, NDArray[Any]]
"""Arrays by tensor name."""

BACKENDS: Mapping[str, str] = {
    "onnxruntime": "pydeploy.backends.onnxruntime:OnnxRuntime",
    "openvino": "pydeploy.backends.openvino:OpenVino",
    "tensorrt": "pydeploy.backends.tensorrt.backend:TensorRt",
    "tensorrt-rtx": "pydeploy.backends.tensorrt.rtx:TensorRtRtx",
    "null": "pydeploy.backends.null:Null",
}
"""Where each backend lives; named by import path so that listing them imports nothing heavy."""

NAMES: Names[Any] = Names("backend", "a class that derives from Backend", BACKENDS, "pydeploy.backends")
"""`BACKENDS`, entry points of installed packages (``name = "package.module:Class"``), and users' own code."""
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")


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


class Backend(ABC):
    """A runtime bound to one precision, batch size and number of threads.

    Made as ``Class(precision=..., batch=..., threads=...)``, with ``options=...`` where it `takes_options`; raises
    `BackendUnavailable` for a precision that it lacks. What follows the four facts is what it declares.
    """

    name: str
    precision: str
    batch: int
    threads: int
    options: object = ""
    """What was asked for beside them; its text, if any, is the target's fact ``options``."""

    takes_options: ClassVar[bool] = False
    int8_style: ClassVar[str] = "onnxruntime"
    """Where its int8 files have Q/DQ pairs: a name of `pydeploy.quant.styles.STYLES`."""
    beside_int8: ClassVar[str] = "fp32"
    """The precision of what an int8 file leaves unquantized."""
    halves: ClassVar[tuple[str, ...]] = ()
    """Half precisions that it may run, the preferred one first."""
    dynamic_batch: ClassVar[bool] = False
    """Whether it builds files whose first dimension is open."""
    analytic: ClassVar[bool] = False
    """Whether its numbers are computed, not measured."""
    only_builds: str = ""
    """Why engines can only be built here, not opened; '' where they can."""
    implicit: bool = False
    """Whether its int8 engines are built from float files, the ranges being known to it or found by it."""

    @classmethod
    def align_at(cls, precision: str, options: str = "") -> int:  # noqa: ARG003
        """Channel multiple at which the search for good widths starts; the measured stairs decide."""
        return 8

    @property
    def align(self) -> int:
        """`align_at` the precision and options that this one is bound to."""
        return self.align_at(self.precision, str(self.options))

    @classmethod
    def checkup(cls) -> Mapping[str, str]:
        """What this computer has and lacks for it, one line a part, besides its Python package."""
        return {}

    @abstractmethod
    def target(self) -> Target:
        """Everything a latency depends on besides the network; names the backend as `name`."""

    @abstractmethod
    def build(self, onnx: Path, out: Path) -> Engine:
        """Compile `onnx` into an engine file at `out`, with its facts beside it (`Engine.save`)."""

    @abstractmethod
    def open(self, engine: Engine) -> AbstractContextManager[Session]:
        """Load an engine; refuses one of another target (`Engine.require`)."""


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


class Choice(NamedTuple):
    """A target as it is typed: a backend's name, a precision, options as text."""

    backend: str
    precision: str
    options: str


def parse_target(text: str) -> Choice:
    """``BACKEND:PRECISION,OPTION=VALUE,...``; BACKEND may be ``FILE.py:CLASS``. Without a precision it is fp32."""
    found = re.fullmatch(rf"(.+?):({'|'.join(PRECISIONS)})(?:,(.*))?", text)
    if found is not None:
        return Choice(found[1], found[2], found[3] or "")
    head, _, options = text.partition(",")
    name, colon, precision = head.partition(":")
    if colon and not precision:
        raise ConfigError(f"a target is BACKEND:PRECISION, e.g. onnxruntime:fp32; '{text}' names no precision")
    if not colon or name in names():
        return Choice(name, precision or "fp32", options)
    return Choice(head, "fp32", options)


def names() -> tuple[str, ...]:
    """All backends that have a name here: pydeploy's own, then those that installed packages register."""
    return tuple(NAMES.all())


def backend_class(name: str) -> type[Backend]:
    """The class of that name; what it declares can be read without a device.

    Raises `BackendUnavailable` for an unknown name or where the backend's own package is not installed, `ConfigError` for
    code of a user's that cannot be run or is no backend, `DataError` for a file that does not exist.
    """
    if name in BACKENDS:
        return _own(name)
    if ":" not in name and name not in names():
        raise BackendUnavailable(
            f"unknown backend '{name}'{nearest(name, names())}; or your own: FILE.py:CLASS, PACKAGE.MODULE:CLASS"
        )
    found: object = NAMES.find(name)
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise ConfigError(f"{name} is no backend: expected a class that derives from pydeploy.backends.base.Backend")
    if missing := sorted(found.__abstractmethods__):
        raise ConfigError(f"{name} is no backend yet: write its {', '.join(missing)}")
    return found


def code_digest(name: str) -> str:
    """SHA-256 of the code of a backend from outside of pydeploy; '' for pydeploy's own."""
    return "" if name in BACKENDS else str(NAMES.stamp(name)["sha256"])


def _own(name: str) -> type[Backend]:
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        found: type[Backend] = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] == "pydeploy":
            raise
        raise BackendUnavailable(
            f"backend '{name}' needs the package '{error.name}': pip install 'pydeploy-hil[{name}]'"
        ) from None
    return found


def open_backend(name: str, *, precision: str = "fp32", batch: int = 1, threads: int = 0, options: str = "") -> Backend:
    """The named backend; ``threads=0`` means all cores this process may use.

    `options` are for backends that have any, such as ``sparse,dla_core=0`` for TensorRT.
    Raises `BackendUnavailable` when its package is not installed or it lacks the precision, and as `backend_class`.
    """
    kind = backend_class(name)
    if options and not kind.takes_options:
        raise ConfigError(f"backend '{name}' has no options, got '{options}'")
    given = {"precision": precision, "batch": batch, "threads": threads, **({"options": options} if options else {})}
    if name in BACKENDS:
        own: Backend = kind(**given)
        return own
    made: Backend = resolve.call(name, kind, given)
    made.name = name
    if made.target().backend != name:
        raise ConfigError(f"{name}: the target must state self.name as its backend, so that the backend is found again")
    return made


def open_target(text: str, *, batch: int = 1, threads: int = 0) -> Backend:
    """The backend of ``BACKEND:PRECISION`` or ``BACKEND:PRECISION,OPTION=VALUE,...``; raises as `open_backend`."""
    choice = parse_target(text)
    return open_backend(
        choice.backend, precision=choice.precision, batch=batch, threads=threads, options=choice.options
    )


def reopen(target: Target) -> Backend:
    """The backend that `target` states, its options included."""
    options = target.facts.get("options", "")
    return open_backend(
        target.backend, precision=target.precision, batch=target.batch, threads=target.threads, options=options
    )


def open_engine(path: Path | str) -> AbstractContextManager[Session]:
    """A built engine, loaded from its file and the record beside it, as a context: its ``run(feeds)`` computes.

    Raises `DataError` where the file or its record is missing or was changed, `Mismatch` where it is for another machine or
    another version of the runtime, `BackendUnavailable` where its runtime is not installed.
    """
    engine = Engine.load(Path(path))
    return reopen(engine.target).open(engine)


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
