"""The `Backend` for TensorRT for RTX: engines are built anywhere, without a GPU, and run on GeForce and RTX GPUs.

* An engine is for the compute capabilities that it was built for, on whatever GPU has one of them, and for the version that
  built it. Kernels are compiled on the device at the first run and kept in ``<engine>.kernels``.
* Everything is strongly typed: fp16 and bf16 take a float file, types are written into a copy of it.
* Building needs neither GPU nor driver; `open` needs both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydeploy.backends.base import Backend, Engine
from pydeploy.backends.tensorrt import compat
from pydeploy.backends.tensorrt.build import build
from pydeploy.backends.tensorrt.checkup import checkup_rtx
from pydeploy.backends.tensorrt.cuda_python import CudaStream
from pydeploy.backends.tensorrt.driver import Gpu, find_gpu
from pydeploy.backends.tensorrt.options import ALIGN, SPARSE_ALIGN, limit_workspace, read_options, shown
from pydeploy.backends.tensorrt.rtx_session import RtxSession
from pydeploy.backends.tensorrt.sources import read
from pydeploy.errors import BackendUnavailable, ConfigError, Mismatch, nearest
from pydeploy.files import sha256
from pydeploy.timing.records import Target

NAME = "tensorrt-rtx"
CURRENT = "current"
_TURING = "sm75"


@dataclass(frozen=True, slots=True)
class RtxOptions:
    """Choices of a build, all of them part of the target."""

    gpus: str = ""
    """What it is built for: compute capabilities joined by '+', such as ``sm86+sm89``, or ``current``; '' = all from Ampere on."""
    sparse: bool = False
    """Let it use 2:4 sparse kernels where the weights have that pattern."""
    workspace_mib: int = 0
    """Most scratch memory that a kernel may take; 0 = all of the device's."""

    def __post_init__(self) -> None:
        if self.workspace_mib < 0:
            raise ConfigError(f"workspace_mib must be 0 or more, got {self.workspace_mib}")

    def __str__(self) -> str:
        return shown(self, without="")


@dataclass(frozen=True, slots=True)
class _Build:
    """The options as `build` takes them, with the GPUs spelled out."""

    options: RtxOptions
    gpus: tuple[str, ...]
    dla_core: int = -1

    def configure(self, trt: ModuleType, config: Any) -> None:
        compat.set_gpus(trt, config, self.gpus)
        limit_workspace(trt, config, self.options.workspace_mib)
        if self.options.sparse:
            config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)


class TensorRtRtx(Backend):
    """TensorRT for RTX bound to one precision and batch size. There are no threads: one stream of one GPU."""

    name = NAME
    threads = 1
    options: RtxOptions
    takes_options = True
    int8_style = "tensorrt-rtx"
    beside_int8 = "fp16"
    halves = ("fp16", "bf16")
    dynamic_batch = True

    def __init__(self, precision: str = "fp32", batch: int = 1, threads: int = 0, options: str = "") -> None:
        if threads > 1:
            raise BackendUnavailable(f"backend '{NAME}' times one stream; {threads} threads were asked for, leave it 0")
        self._trt = compat.load_rtx()
        self._gpu, self.only_builds = _gpu_at_hand(self._trt)
        compat.check_precision(compat.version(self._trt), precision, self._gpu.capability if self._gpu else None, NAME)
        self.precision, self.batch = precision, batch
        self.options = read_options(RtxOptions, options, NAME)
        self.gpus = _gpus(self.options.gpus, compat.known_gpus(self._trt), self._trt.__version__)
        if CURRENT in self.gpus and self._gpu is None:
            raise BackendUnavailable(
                f"an engine for the current GPU needs it; name what it is for instead: {self.only_builds}"
            )

    @classmethod
    def align_at(cls, precision: str, options: str = "") -> int:
        align = ALIGN[precision]
        return max(SPARSE_ALIGN, align) if read_options(RtxOptions, options, NAME).sparse else align

    @classmethod
    def checkup(cls) -> Mapping[str, str]:
        return checkup_rtx()

    def target(self) -> Target:
        """The GPU at hand; without one, what engines are built for."""
        facts = dict(self._gpu.facts) if self._gpu else {}
        if str(self.options):
            facts["options"] = str(self.options)
        device = self._gpu.name if self._gpu else f"any GPU of {', '.join(self.gpus)}"
        return Target(device, self.name, self._trt.__version__, self.precision, self.batch, self.threads, facts)

    def build(self, onnx: Path, out: Path) -> Engine:
        onnx, out = Path(onnx), Path(out)
        source = read(self._trt, onnx, self.precision, self.batch)
        built = build(self._trt, source, self.precision, _Build(self.options, self.gpus), cache=None)
        facts = {"gpus": list(self.gpus), "options": asdict(self.options)}
        return built.save(Engine(out, self.name, self.target(), sha256(onnx)), facts)

    @contextmanager
    def open(self, engine: Engine) -> Iterator[RtxSession]:
        """Refuses an engine of another version, precision or batch, and one that is not for the GPU at hand."""
        engine.require(engine.target)  # the file is as it was built
        self._require_same(engine)
        gpu = find_gpu()
        compat.check_driver(self._trt, gpu.driver)
        self._require_built_for(engine, gpu)
        with (
            closing(CudaStream()) as stream,
            closing(RtxSession(self._trt, engine.path, self.batch, stream)) as session,
        ):
            yield session

    def _require_same(self, engine: Engine) -> None:
        """The version, precision and batch size are this one's; no GPU is asked."""
        mine, theirs = self.target(), engine.target
        if mine.backend_version != theirs.backend_version:
            raise Mismatch(
                f"engine {engine.path} was built by TensorRT for RTX {theirs.backend_version}, this is {mine.backend_version}: "
                "build it again with this version, or install that one on this machine"
            )
        differing = [name for name in ("backend", "precision", "batch") if getattr(mine, name) != getattr(theirs, name)]
        if differing:
            facts = "; ".join(
                f"{name}: {getattr(mine, name)!r} against {getattr(theirs, name)!r}" for name in differing
            )
            raise Mismatch(f"engine {engine.path} is for another target ({facts}); build it again for this one")

    def _require_built_for(self, engine: Engine, gpu: Gpu) -> None:
        theirs = engine.target
        here = f"sm{gpu.capability[0]}{gpu.capability[1]}"
        built_for = _gpus(
            theirs.facts.get("options", ""), compat.known_gpus(self._trt), theirs.backend_version, options=True
        )
        if here not in built_for and CURRENT not in built_for:
            raise Mismatch(f"engine {engine.path} was built for {', '.join(built_for)}, this GPU is {here}; "
                           f"build it again with --for {here}")  # fmt: skip


def _gpu_at_hand(trt: ModuleType) -> tuple[Gpu | None, str]:
    """The GPU, and '' or why there is none that could run engines."""
    try:
        gpu = find_gpu()
        compat.check_driver(trt, gpu.driver)
    except BackendUnavailable as error:
        return None, str(error)
    return gpu, ""


def _gpus(text: str, known: tuple[str, ...], version: str, *, options: bool = False) -> tuple[str, ...]:
    """``sm86+sm89`` -> names; '' = all known from Ampere on. With `options`, `text` holds all options."""
    chosen = read_options(RtxOptions, text, NAME).gpus if options else text
    if not chosen:
        return tuple(name for name in known if name != _TURING)
    names = tuple(dict.fromkeys(name.strip().lower() for name in chosen.split("+")))
    for name in names:
        if name not in (*known, CURRENT):
            raise ConfigError(
                f"TensorRT for RTX {version} builds for {', '.join(known)} and {CURRENT}, not for '{name}'{nearest(name, known)}"
            )
    if CURRENT in names and len(names) > 1:
        raise ConfigError(f"'{CURRENT}' stands alone, got '{chosen}'")
    return names
