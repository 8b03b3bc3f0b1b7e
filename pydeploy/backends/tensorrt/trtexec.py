"""trtexec, NVIDIA's command line for TensorRT: the command to run, and the files that it writes.

For machines without Python bindings (Jetson, slim containers). Known defects of the files are repaired on reading:

* layer names are written as they are, so a backslash or a control character breaks the JSON;
* totals can be printed as ``nan`` or ``inf``;
* the profile counts its warm-up runs too: medians are used, not means;
* layer names may occur twice, and signal/wait entries of auxiliary streams are no layers.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.base import LayerTime
from pydeploy.backends.tensorrt import compat
from pydeploy.backends.tensorrt.inspector import LayerInfo, parse_layers
from pydeploy.backends.tensorrt.layer_times import join, layer_times
from pydeploy.backends.tensorrt.options import Options
from pydeploy.errors import DataError
from pydeploy.timing.overhead import without_overhead

PLACES = ("trtexec", "/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
"""Where TensorRT's packages put it: the PATH, Debian packages and JetPack, NVIDIA's containers."""

WARM_UP_MS, DURATION_S = 500, 5
LEAST_S = 2 * (WARM_UP_MS / 1e3 + DURATION_S)
"""What one network takes besides its build: it is timed, then profiled."""

_BAD_ESCAPE = re.compile(r'\\(?!["\\/bfnrt]|u[0-9a-fA-F]{4})')
_BAD_NUMBER = re.compile(r"([:,\[]\s*)[+-]?(?:nan|inf)(?:inity)?(?=\s*[,}\]])", re.IGNORECASE)
_NO_LAYER = re.compile(r"^\s*\[?(signal|wait)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Files:
    """The three files of one run of trtexec."""

    times: Path
    profile: Path
    layers: Path

    @classmethod
    def beside(cls, onnx: Path) -> Files:
        """``net.onnx`` -> ``net.times.json``, ``net.profile.json``, ``net.layers.json``."""
        times, profile, layers = (onnx.with_name(f"{onnx.stem}.{kind}.json") for kind in ("times", "profile", "layers"))
        return cls(times, profile, layers)


@dataclass(frozen=True)
class Run:
    """What one run of trtexec measured. Of a layer it tells only the median: its samples are that one value."""

    whole_us: NDArray[np.float64]
    layers: tuple[LayerTime, ...]
    infos: tuple[LayerInfo, ...]
    count: int
    """Runs that the layers' medians are taken over."""
    overhead_us: float
    """What the profiler added to each layer, already taken off."""


def find(places: Sequence[str] | None = None) -> tuple[str, compat.Version] | None:
    """The trtexec in the first of `places` (None: `PLACES`) that has one, and its version; None where it does not say."""
    program = next((found for place in (PLACES if places is None else places) if (found := shutil.which(place))), None)
    if program is None:
        return None
    try:
        done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = compat.trtexec_version(done.stdout + done.stderr)
    return None if version is None else (program, version)


def command(
    onnx: Path,
    version: compat.Version,
    precision: str,
    *,
    program: str = "trtexec",
    typed_file: bool = False,
    options: Options | None = None,
    batch_shapes: str = "",
) -> list[str]:
    """Arguments that build `onnx`, time it as this package does, and leave `Files.beside` it.

    `batch_shapes` (``image:8x3x224x224``) is for files with a dynamic batch. Raises `BackendUnavailable` or
    `ConfigError` for what this version cannot do.
    """  # fmt: skip
    options, files = options or Options(), Files.beside(onnx)
    implicit = bool(options.calibration)
    compat.check_stated(version, precision, implicit=implicit)
    switches = compat.trtexec_switches(version, precision, typed_file=typed_file, implicit=implicit)
    chosen = [f"--shapes={batch_shapes}"] if batch_shapes else []
    chosen += [f"--builderOptimizationLevel={options.optimization_level}"] if options.optimization_level != 3 else []
    chosen += [f"--memPoolSize=workspace:{options.workspace_mib}"] if options.workspace_mib else []
    chosen += ["--sparsity=enable"] if options.sparse else []
    chosen += [f"--useDLACore={options.dla_core}", "--allowGPUFallback"] if options.dla_core >= 0 else []
    chosen += [f"--calib={options.calibration}"] if options.calibration else []
    cache = options.timing_cache or str(onnx.with_name("timing.cache"))
    return [program, f"--onnx={onnx}", *switches, *chosen,
            "--profilingVerbosity=detailed", f"--timingCacheFile={cache}", "--maxAuxStreams=0",
            f"--warmUp={WARM_UP_MS}", f"--duration={DURATION_S}", f"--exportTimes={files.times}",
            f"--exportProfile={files.profile}", f"--exportLayerInfo={files.layers}"]  # fmt: skip


def read_run(files: Files) -> Run:
    """The three files as one measurement; the layers without what profiling added to them."""
    whole_us = read_times(files.times)
    count, rows = read_profile(files.profile)
    joined = join([(name, np.array([us])) for name, us in rows], read_layers(files.layers))
    freed, overhead_us = without_overhead([times for _, times in joined], float(np.median(whole_us)))
    infos = [info for info, _ in joined]
    layers = layer_times(list(zip(infos, freed, strict=True)))
    return Run(whole_us, tuple(layers), tuple(infos), count, overhead_us)


def read_times(path: Path) -> NDArray[np.float64]:
    """GPU compute time of every query in microseconds, from ``--exportTimes`` (warm-up is not in it)."""
    rows = _load(path, "--exportTimes")
    try:
        times = np.array([float(row["computeMs"]) for row in rows], dtype=np.float64) * 1e3
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a file of trtexec --exportTimes ({error!r})") from None
    if times.size == 0 or not np.isfinite(times).all() or (times <= 0).any():
        raise DataError(f"{path} holds no usable times; run trtexec for longer (--duration)")
    return times


def read_profile(path: Path) -> tuple[int, list[tuple[str, float]]]:
    """Number of runs, and the median of every layer in microseconds in execution order, from ``--exportProfile``."""
    rows = _load(path, "--exportProfile")
    try:
        count = next((int(row["count"]) for row in rows if "count" in row), 1)
        layers = [(str(row["name"]), _median_ms(row) * 1e3) for row in rows if "name" in row]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is not a file of trtexec --exportProfile ({error!r})") from None
    layers = [(name, us) for name, us in layers if not _NO_LAYER.match(name)]
    if not layers or not all(np.isfinite(us) for _, us in layers):
        raise DataError(f"{path} names no layers with finite times; run trtexec again with --separateProfileRun")
    return count, layers


def _median_ms(row: dict[str, Any]) -> float:
    values = [float(row[key]) for key in ("medianMs", "averageMs") if row.get(key) is not None]
    return next((value for value in values if np.isfinite(value)), float("nan"))


def read_layers(path: Path) -> list[LayerInfo]:
    """Layers of ``--exportLayerInfo``."""
    try:
        found = parse_layers(_repaired(_text(path)))
    except DataError as error:
        raise DataError(f"{path} is not a file of trtexec --exportLayerInfo: {error}") from None
    return [info for info in found if not _NO_LAYER.match(info.name)]


def _load(path: Path, switch: str) -> Sequence[dict[str, Any]]:
    text = _text(path)
    try:
        rows = json.loads(_repaired(text), strict=False)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable as a file of trtexec {switch} ({error})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is not a file of trtexec {switch}: expected a list of objects")
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _repaired(text: str) -> str:
    """`text` as JSON that Python reads: lone backslashes doubled, ``nan`` and ``inf`` (both say nothing) made NaN."""
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return _BAD_ESCAPE.sub(r"\\\\", _BAD_NUMBER.sub(r"\1NaN", text))
    return text
