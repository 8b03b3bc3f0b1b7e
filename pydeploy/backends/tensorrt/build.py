"""ONNX file -> serialized engine. The caller has made sure that there is a GPU."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Protocol

from pydeploy.backends.base import Engine
from pydeploy.backends.fused_nodes import node_name
from pydeploy.backends.tensorrt import compat, timing_cache
from pydeploy.backends.tensorrt.logger import make_logger
from pydeploy.backends.tensorrt.sources import Source
from pydeploy.errors import DataError
from pydeploy.files import replacing, write_json

log = getLogger(__name__)

PROGRESS_S = 10.0  # between two lines about a running build


class Choices(Protocol):
    """What a build is asked for beside its precision."""

    @property
    def dla_core(self) -> int: ...

    def configure(self, trt: ModuleType, config: Any) -> None:
        """Write the choices into a builder configuration."""


@dataclass(frozen=True, slots=True)
class Built:
    """A serialized engine and facts of its build."""

    plan: bytes
    seconds: float
    typed: bool
    gpu_fallback: tuple[str, ...]
    """Layers that the DLA cannot run."""

    def save(self, engine: Engine, facts: Mapping[str, Any]) -> Engine:
        """Write the plan at ``engine.path``, and how it was built, with `facts`, beside it; returns the record that is kept.

        Where there is no space for the plan nothing changes; where there is none for the notes no plan stays.
        """
        out = engine.path
        notes = out.with_name(out.name + ".build.json")
        with replacing(out) as partial:
            partial.write_bytes(self.plan)
        try:
            write_json(notes, {"schema": 1, "seconds": self.seconds, "strongly_typed": self.typed, **facts})
            return engine.save()
        except DataError:
            for path in (out, notes):
                path.unlink(missing_ok=True)
            raise


def build(
    trt: ModuleType, source: Source, precision: str, options: Choices, cache: Path | None, calibrator: Any = None
) -> Built:
    """Raises `DataError` with TensorRT's own reasons when the file cannot be parsed or no engine comes out.

    `cache` keeps kernel timings; None where the builder takes none. `calibrator` is for implicit int8; what went wrong in
    it (its `failure`) is raised here.
    """
    began = time.monotonic()
    messages = make_logger(trt)
    messages.errors.clear()
    builder = trt.Builder(messages)
    # A strongly typed network takes no calibrator.
    typed = calibrator is None and compat.is_typed(compat.version(trt), typed_file=source.typed)
    network = builder.create_network(compat.network_flags(trt, typed=typed))
    parser = trt.OnnxParser(network, messages)
    _parse(parser, source, style=trt.__name__.replace("_", "-"))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    options.configure(trt, config)
    compat.set_precision(trt, config, precision, typed=typed)
    profile = _add_profile(builder, config, network, source)
    if calibrator is not None:
        compat.set_calibrator(config, calibrator, profile)
    fallback = _use_dla(trt, config, network, options.dla_core) if options.dla_core >= 0 else ()
    if cache is not None:
        timing_cache.attach(config, cache)
    plan = _serialized(trt, builder, network, config)
    if calibrator is not None and calibrator.failure is not None:
        raise calibrator.failure
    if plan is None:
        raise DataError(f"TensorRT cannot build {source.path}: {messages.reason()}{_advice(messages.reason())}")
    if cache is not None:
        timing_cache.store(config, cache)
    return Built(bytes(memoryview(plan)), time.monotonic() - began, typed, fallback)


def _parse(parser: Any, source: Source, *, style: str) -> None:
    if parser.parse(source.model.SerializeToString(), str(source.path)):
        return
    names = [node_name(node) for node in source.model.graph.node]
    lines = [compat.parser_error(parser.get_error(index), names) for index in range(parser.num_errors)]
    shown = "\n  ".join(lines) or "no reason was given"
    raise DataError(
        f"TensorRT cannot read {source.path}:\n  {shown}\n"
        f"it may stop at the first fault; all are named by 'pydeploy lint {source.path} --style {style}'"
    )


def _add_profile(builder: Any, config: Any, network: Any, source: Source) -> Any:
    """One optimization profile for files with a dynamic batch: any batch up to the target's, tuned for the target's.

    None for static shapes.
    """
    if not source.shapes:
        return None
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        if name in source.shapes:
            full = source.shapes[name]
            _set_shape(profile, name, full, source.path)
    if config.add_optimization_profile(profile) < 0:
        raise DataError(f"TensorRT refuses the input shapes {dict(source.shapes)} for {source.path}")
    return profile


def _set_shape(profile: Any, name: str, full: tuple[int, ...], path: Path) -> None:
    try:
        profile.set_shape(name, (1, *full[1:]), full, full)
    except ValueError as error:
        raise DataError(f"TensorRT refuses shape {list(full)} for input '{name}' of {path}: {error}") from None


def _use_dla(trt: ModuleType, config: Any, network: Any, core: int) -> tuple[str, ...]:
    """Everything on the DLA that it can run; returns the layers that fall back to the GPU."""
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    fallback = tuple(layer.name for layer in layers if not config.can_run_on_DLA(layer))
    if fallback:
        log.warning("%d of %d layers cannot run on the DLA and fall back to the GPU: %s", len(fallback), len(layers),
                    ", ".join(fallback))  # fmt: skip
    return fallback


def _serialized(trt: ModuleType, builder: Any, network: Any, config: Any) -> Any:
    """The plan, or None. Ctrl-C stops the build at its next step instead of waiting for its end."""
    with held_interrupts() as asked:
        compat.watch_progress(trt, config, _reporter(asked))
        return builder.build_serialized_network(network, config)


def _reporter(asked: Sequence[object]) -> Callable[[str, int, int], bool]:
    """Tells about the build now and then, and ends it when `asked` holds anything."""
    last = [time.monotonic()]

    def step(phase: str, done: int, total: int) -> bool:
        if time.monotonic() - last[0] >= PROGRESS_S:
            last[0] = time.monotonic()
            log.info("TensorRT build: %s, %d of %d", phase, done, total)
        return not asked

    return step


@contextmanager
def held_interrupts() -> Iterator[list[tuple[int, FrameType | None]]]:
    """Collects Ctrl-C, which must not be raised through TensorRT's own code, and acts on it at the end."""
    asked: list[tuple[int, FrameType | None]] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):  # ignored, as after 'nohup'
        yield asked
        return
    signal.signal(signal.SIGINT, lambda number, frame: asked.append((number, frame)))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
        if asked:
            before(*asked[0])


def _advice(reason: str) -> str:
    text = reason.lower()
    if "out of memory" in text or "outofmemory" in text or "cudaerrormemoryallocation" in text:
        return "; free memory on the device, or set workspace_mib lower"
    if match := re.search(r"\(SM(\d+)\)|target\(s\) sm(\d+)", reason):
        return f"; leave sm{match[1] or match[2]} out (--for)"
    if "has no runners that implement it" in text:
        return "; the network must end before that layer"
    if "could not find any implementation" in text:
        return "; raise workspace_mib, or leave the layer in float (sm 7.5 and older lack some int8 kernels)"
    return ""
