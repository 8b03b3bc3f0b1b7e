"""An ONNX file in every precision that a target has, judged and measured: which engine to ship. Needs no PyTorch.

* Float, half, INT8, and INT8 only where it pays are built from the file and a calibration manifest.
* Every fourth batch of the manifest's samples takes no part in calibration: there, each engine's outputs are held against the float
  engine's. For a classifier, the share of samples whose best class changes counts; else the relative error.
* All engines are timed in turns. The fastest one that loses no more than the limit is recommended, and float where none is faster
  by more than the measurement may be off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from pydeploy.backends.base import open_target
from pydeploy.data.manifest import Manifest
from pydeploy.errors import BackendUnavailable, ConfigError, Mismatch
from pydeploy.files import replacing
from pydeploy.onnxfile.fixed_shapes import with_fixed_shapes
from pydeploy.planning.precision_bench import APART, Bench, Samples, Say, int8, log, mixed
from pydeploy.profiling.engines import measure_engines
from pydeploy.quant.calibrate import calibrate
from pydeploy.timing.ratio import Ratio, ratio
from pydeploy.timing.records import Target, Timing

NOTICEABLE = 0.02


@dataclass(frozen=True)
class Found:
    """One engine: how far its outputs are from float's, and how long it takes."""

    name: str
    engine: Path
    lost: float
    """By `Verdict.measure`, in percent."""
    latency: Timing
    ratio: Ratio
    """Of its latency to the float engine's."""
    bytes: int
    int8_layers: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "engine": self.engine.name,
            "latency": self.latency.to_json(),
            "ratio": self.ratio.to_json(),
        }


@dataclass(frozen=True)
class Verdict:
    """All engines, the recommended one and why."""

    target: Target
    measure: str
    limit: float
    samples: int
    """How many samples judged."""
    engines: tuple[Found, ...]
    recommended: str
    reasons: tuple[str, ...]

    @property
    def faster(self) -> bool:
        """Whether another engine than float is recommended."""
        return self.recommended != "float"

    def to_json(self) -> dict[str, Any]:
        return {"schema": 1, "target": self.target.to_json(), "measure": self.measure, "limit": self.limit, "samples": self.samples,
                "engines": [one.to_json() for one in self.engines], "recommended": self.recommended,
                "reasons": list(self.reasons)}  # fmt: skip


def choose_precision(
    path: Path, manifest: Manifest, samples: Samples, target: str, out: Path, *, limit: float, batch: int = 1, threads: int = 0,
    observer: str = "mse", exclude: Sequence[str] = (), say: Say = log.info,
) -> Verdict:  # fmt: skip
    """Build, judge and measure every precision of `target` (its own precision does not matter) in the folder `out`.

    `limit` is the most that may be lost, in percent. Raises `BackendUnavailable` where the target has no float or no int8
    engines, `DataError` for samples that do not fit or are too few.
    """
    if not 0 <= limit < math.inf:
        raise ConfigError(f"the limit is a percentage from 0 upwards, got {limit}")
    open_target(target, batch=batch, threads=threads)  # a precision that is named must be one
    bench = Bench(path, out, target, batch, threads, samples, say)
    style = bench.backend("int8").int8_style
    bench.onnx = _whole(path, out, batch)
    bench.build("float", "fp32", bench.onnx)
    notes = _half(bench)
    ranges = calibrate(bench.onnx, bench.calibrating(), observer=observer, style=style, threads=threads,
                       resume=out / "counts.json", key=f"{manifest.key()} {batch} {APART}")  # fmt: skip
    ranges.save(out / "ranges.json")
    try:
        layers = int8(bench, "int8", ranges, exclude)
        if note := mixed(bench, ranges, layers, limit, exclude).note:
            notes.append(f"no mixed engine: {note}")
    except Mismatch as error:  # an engine that does not compute what its file says
        notes.append(f"refused: {error}")
    return _verdict(bench, limit, notes)


def _whole(path: Path, out: Path, batch: int) -> Path:
    """`path`, or where its weights lie elsewhere or its shapes are open, ``model.onnx`` in `out`, whole and fixed."""
    made = with_fixed_shapes(path, {}, batch)
    if made is None:
        return path
    with replacing(out / "model.onnx") as partial:
        onnx.save(made, partial)
    return out / "model.onnx"


def _half(bench: Bench) -> list[str]:
    """The first half precision that the target runs; why there is none."""
    refusals = {precision: _refusal(bench, precision) for precision in bench.backend("fp32").halves}
    able = [precision for precision, why in refusals.items() if not why]
    if able:
        try:
            bench.build("half", able[0], bench.onnx)
        except Mismatch as error:
            return [f"refused: {error}"]
        return []
    return [f"no half-precision engine: {next(iter(refusals.values()), 'the backend has no half precision')}"]


def _refusal(bench: Bench, precision: str) -> str:
    try:
        bench.backend(precision)
    except BackendUnavailable as error:
        return str(error)
    return ""


def _verdict(bench: Bench, limit: float, notes: Sequence[str]) -> Verdict:
    bench.say(f"timing {', '.join(bench.engines)} in turns")
    times = measure_engines(bench.engines)
    found = {name: Found(name, engine.path, bench.lost[name], times[name], ratio(times[name], times["float"]),
                         engine.path.stat().st_size, bench.int8_layers.get(name, 0))
             for name, (_, engine) in bench.engines.items()}  # fmt: skip
    recommended, reasons = recommend(found, bench.measure, limit)
    target = bench.engines["float"][0].target()
    return Verdict(target, bench.measure, limit, bench.judged, tuple(found.values()), recommended, (*reasons, *notes))


def recommend(found: Mapping[str, Found], measure: str, limit: float) -> tuple[str, list[str]]:
    """The fastest engine within the limit, float unless another one is faster beyond doubt; and what speaks against others."""
    others = {name: one for name, one in found.items() if name != "float"}
    best = "float"
    for name, one in others.items():
        faster = one.ratio.below(1 - NOTICEABLE) and one.ratio.value < found[best].ratio.value * (1 - NOTICEABLE)
        best = name if one.lost <= limit and faster else best
    chosen = found[best]
    said = f"{best} takes {chosen.ratio.value:.3f} of float's time, {measure} {chosen.lost:.2f} %"
    reasons = ["float: nothing within the limit is faster beyond doubt" if best == "float" else said]
    for name, one in others.items():
        if one.lost > limit:
            reasons.append(f"{name}: {measure} {one.lost:.2f} %, more than the {limit:g} % allowed")
        elif name != best:
            reasons.append(f"{name} is not faster than {best} beyond doubt ({one.ratio} of float)")
        if one.ratio.disturbed:
            reasons.append(f"other load disturbed the measurement of {name}; measure again when the computer is quiet")
    return best, reasons
