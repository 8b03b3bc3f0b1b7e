"""An ONNX file in every precision that a target has, judged and measured: which engine to ship. Needs no PyTorch.

* Float, half, INT8, and INT8 only where it pays are built from the file and a calibration manifest.
* Every fourth batch of the manifest's samples takes no part in calibration: there, each engine's outputs are held against the float
  engine's. For a classifier, the share of samples whose best class changes counts; else the relative error.
* All engines are timed in turns. The fastest one that loses no more than the limit is recommended, and float where none is faster
  by more than the measurement may be off.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pydeploy.backends.base import Backend, Engine, Feeds, Session, open_backend, open_target, parse_target
from pydeploy.data.manifest import Manifest
from pydeploy.errors import BackendUnavailable, ConfigError, DataError, Mismatch
from pydeploy.files import replacing
from pydeploy.onnxfile.fixed_shapes import with_fixed_shapes
from pydeploy.profiling import agreement
from pydeploy.profiling.compare_outputs import Sums
from pydeploy.profiling.engines import measure_engines
from pydeploy.profiling.profile import profile
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.mixed import LayerOption, choose, conversion_us, neighbours, sensitivity
from pydeploy.quant.observe import Ranges
from pydeploy.quant.qdq import quantize
from pydeploy.timing.overhead import net
from pydeploy.timing.ratio import Ratio, ratio
from pydeploy.timing.records import Target, Timing

APART = 4
"""Of so many batches of samples one judges and does not calibrate."""
NOTICEABLE = 0.02
SENSITIVITY_SAMPLES = 64
MIXED_ROUNDS = 3
TIGHTEN = 0.7
BEST_CLASS, ERROR = "best class changed", "relative error"

log = logging.getLogger(__name__)
Say = Callable[[str], None]
Samples = Callable[[], Iterator[Feeds]]
"""All samples of the manifest from the first one, in batches of exactly the engine's size."""


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


@dataclass
class Bench:
    """What the steps share: the float file, where engines go, the backend of each precision, the samples."""

    onnx: Path
    out: Path
    target: str
    batch: int
    threads: int
    samples: Samples
    say: Say
    engines: dict[str, tuple[Backend, Engine]] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)
    int8_layers: dict[str, int] = field(default_factory=dict)
    measure: str = ERROR
    judged: int = 0

    def backend(self, precision: str) -> Backend:
        name, _, options = parse_target(self.target)
        return open_backend(name, precision=precision, batch=self.batch, threads=self.threads, options=options)

    def calibrating(self) -> Iterator[Feeds]:
        return (feeds for number, feeds in enumerate(self.samples()) if number % APART != APART - 1)

    def judging(self) -> Iterator[Feeds]:
        return (feeds for number, feeds in enumerate(self.samples()) if number % APART == APART - 1)

    def build(self, name: str, precision: str, path: Path) -> None:
        """Build `path`, hold the engine against its file, and judge it against float."""
        backend = self.backend(precision)
        checks = list(islice(self.calibrating(), agreement.SAMPLES))
        engine = agreement.build(backend, path, self.out / f"{name}.engine", checks)
        self.engines[name] = backend, engine
        self.lost[name] = self._judge(name)
        self.say(f"{name}: {self.measure} {self.lost[name]:.2f} %")

    def _judge(self, name: str) -> float:
        """Percent lost against the float engine; of float itself, which settles by what is judged, 0."""
        (one, first), (two, second) = self.engines["float"], self.engines[name]
        sums: dict[str, Sums] = {}
        changed = self.judged = 0
        with one.open(first) as a, two.open(second) as b:
            self.measure = BEST_CLASS if is_classifier(a) else ERROR
            for feeds in self.judging():
                ours, theirs = a.run(feeds), b.run(feeds)
                self.judged += self.batch
                for output, values in ours.items():
                    _finite(name, output, theirs[output])
                    sums[output] = sums.get(output, Sums()).plus(values, theirs[output])
                    if self.measure == BEST_CLASS:
                        changed += int((values.argmax(axis=1) != theirs[output].argmax(axis=1)).sum())
        if not self.judged:
            raise DataError(
                f"the manifest has too few samples: every {APART}th batch of {self.batch} judges, and there is none"
            )
        if self.measure == BEST_CLASS:
            return 100 * changed / self.judged
        return 100 * max(found.difference(output).relative_l2 for output, found in sums.items())


def is_classifier(session: Session) -> bool:
    """Whether an engine gives one row of scores a sample."""
    return len(session.outputs) == 1 and len(session.outputs[0].shape) == 2 and session.outputs[0].shape[1] > 1


def _finite(name: str, output: str, values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"engine '{name}': output '{output}' holds NaN or infinity")


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
    int8 = bench.backend("int8")
    bench.onnx = _whole(path, out, batch)
    bench.build("float", "fp32", bench.onnx)
    notes = _half(bench)
    ranges = calibrate(bench.onnx, bench.calibrating(), observer=observer, style=int8.int8_style, threads=threads,
                       resume=out / "counts.json", key=f"{manifest.key()} {batch} {APART}")  # fmt: skip
    ranges.save(out / "ranges.json")
    try:
        layers = _int8(bench, "int8", ranges, exclude)
        notes += _mixed(bench, ranges, layers, limit, exclude)
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


def _int8(bench: Bench, name: str, ranges: Ranges, exclude: Sequence[str]) -> list[str]:
    """An engine with pairs at all layers but the excluded ones, which are returned."""
    backend, path = bench.backend("int8"), bench.out / f"{name}.onnx"
    done = quantize(bench.onnx, ranges, path, style=backend.int8_style, target=backend.target(), exclude=exclude)
    bench.build(name, "int8", path)
    bench.int8_layers[name] = len(done.quantized)
    return list(done.quantized)


def _mixed(bench: Bench, ranges: Ranges, layers: Sequence[str], limit: float, exclude: Sequence[str]) -> list[str]:
    """An engine that is int8 where this pays within the limit; why there is none."""
    options = _options(bench, ranges, layers)
    edges = _edges(bench, ranges, options, exclude)
    lost, total = bench.lost["int8"], sum(option.error for option in options)
    # What is lost is taken to grow with the error of the outputs; the engine decides.
    allowed = math.inf if lost <= limit else total * limit / lost
    for _ in range(MIXED_ROUNDS):
        choice = choose(options, edges, allowed)
        if set(choice.int8) in (set(), set(layers)):
            break
        _int8(bench, "mixed", ranges, sorted({*exclude, *layers} - set(choice.int8)))
        if bench.lost["mixed"] <= limit:
            return []
        allowed = TIGHTEN * choice.error * limit / bench.lost["mixed"]
    for found in (bench.engines, bench.lost, bench.int8_layers):
        found.pop("mixed", None)
    for file in bench.out.glob("mixed.*"):
        file.unlink()
    whole = set(choice.int8) == set(layers)
    return [
        "no mixed engine: " + ("all layers are best in int8" if whole else "no layer is best in int8 within the limit")
    ]


def _options(bench: Bench, ranges: Ranges, layers: Sequence[str]) -> list[LayerOption]:
    """Every layer's time in both engines, and what it costs in the outputs alone."""
    times = {}
    for name in ("float", "int8"):
        found = net(profile(*bench.engines[name], layers, rounds=5, runs=10)).layers
        times[name] = {layer: time.median_us for layer, time in found.items()}
    feeds = list(islice(bench.calibrating(), max(1, SENSITIVITY_SAMPLES // bench.batch)))
    style = bench.backend("int8").int8_style
    errors = sensitivity(bench.onnx, ranges, feeds, layers, style=style, threads=bench.threads)
    return [LayerOption(layer, times["float"].get(layer, 0.0), times["int8"].get(layer, 0.0), errors[layer])
            for layer in layers]  # fmt: skip


def _edges(
    bench: Bench, ranges: Ranges, options: Sequence[LayerOption], exclude: Sequence[str]
) -> dict[tuple[str, str], float]:
    """What converting between neighbours takes, from an engine in which every second layer is int8."""
    values, names = neighbours(bench.onnx), [option.name for option in options]
    if len(names) < 2:
        return dict.fromkeys(values, 0.0)
    path, backend = bench.out / "second.onnx", bench.backend("int8")
    quantize(bench.onnx, ranges, path, style=backend.int8_style, target=backend.target(),
             exclude=sorted({*exclude, *names[1::2]}))  # fmt: skip
    engine = backend.build(path, bench.out / "second.engine")
    times = measure_engines({"float": bench.engines["float"], "second": (backend, engine)})
    for file in bench.out.glob("second.*"):
        file.unlink()
    float_us = times["float"].median_us
    each_us = conversion_us(
        options, values, names[::2], float_us, float_us * ratio(times["second"], times["float"]).value
    )
    return {edge: count * each_us for edge, count in values.items()}


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
