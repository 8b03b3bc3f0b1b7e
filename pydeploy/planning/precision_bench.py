"""Engines of an ONNX file in several precisions, each held against the float one: what choosing and mixing precisions share.

Every fourth batch of a manifest's samples judges: there, each engine's outputs are held against the float engine's. For a
classifier, the share of samples whose best class changes counts; else the relative error.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.base import Backend, Engine, Feeds, Session, open_backend, open_target, parse_target
from pydeploy.errors import ConfigError, DataError
from pydeploy.onnxfile.fixed_shapes import with_fixed_shapes
from pydeploy.profiling import agreement
from pydeploy.profiling.compare_outputs import Sums
from pydeploy.profiling.engines import measure_engines
from pydeploy.profiling.profile import profile
from pydeploy.quant.mixed import LayerOption, choose, conversion_us, neighbours, sensitivity
from pydeploy.quant.observe import Ranges
from pydeploy.quant.qdq import quantize
from pydeploy.timing.overhead import net
from pydeploy.timing.ratio import ratio

APART = 4
"""Of so many batches of samples one judges and does not calibrate."""
SENSITIVITY_SAMPLES = 64
MIXED_ROUNDS = 3
TIGHTEN = 0.7
BEST_CLASS, ERROR = "best class changed", "relative error"

log = logging.getLogger(__name__)
Say = Callable[[str], None]
Samples = Callable[[], Iterator[Feeds]]
"""All samples of the manifest from the first one, in batches of exactly the engine's size."""


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


def int8(bench: Bench, name: str, ranges: Ranges, exclude: Sequence[str]) -> list[str]:
    """An engine with pairs at all layers but the excluded ones, which are returned."""
    backend, path = bench.backend("int8"), bench.out / f"{name}.onnx"
    done = quantize(bench.onnx, ranges, path, style=backend.int8_style, target=backend.target(), exclude=exclude)
    bench.build(name, "int8", path)
    bench.int8_layers[name] = len(done.quantized)
    return list(done.quantized)


@dataclass(frozen=True)
class Mix:
    """Which layers are int8 in mixed precision, of which choices."""

    int8: tuple[str, ...]
    options: tuple[LayerOption, ...]
    """Every layer that can be int8: its time in float and in int8, and the error that it alone makes."""

    @property
    def note(self) -> str:
        """Why the mix is no engine of its own; '' where it is one."""
        if not self.int8:
            return "no layer is best in int8 within the limit"
        return "all layers are best in int8" if len(self.int8) == len(self.options) else ""


def mixed(bench: Bench, ranges: Ranges, layers: Sequence[str], limit: float, exclude: Sequence[str]) -> Mix:
    """Engine ``mixed``, int8 where this pays within the limit, unless the choice is that of another engine."""
    options = _options(bench, ranges, layers)
    edges = _edges(bench, ranges, options, exclude)
    lost, total = bench.lost["int8"], sum(option.error for option in options)
    # What is lost is taken to grow with the error of the outputs; the engine decides.
    allowed = math.inf if lost <= limit else total * limit / lost
    for _ in range(MIXED_ROUNDS):
        choice = choose(options, edges, allowed)
        if set(choice.int8) in (set(), set(layers)):
            break
        int8(bench, "mixed", ranges, sorted({*exclude, *layers} - set(choice.int8)))
        if bench.lost["mixed"] <= limit:
            return Mix(tuple(choice.int8), tuple(options))
        allowed = TIGHTEN * choice.error * limit / bench.lost["mixed"]
    for found in (bench.engines, bench.lost, bench.int8_layers):
        found.pop("mixed", None)
    for file in bench.out.glob("mixed.*"):
        file.unlink()
    return Mix(tuple(layers) if set(choice.int8) == set(layers) else (), tuple(options))


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


def mix(
    path: Path, ranges: Ranges, samples: Samples, target: str, out: Path, *, limit: float, batch: int = 1, threads: int = 0,
    exclude: Sequence[str] = (), say: Say = log.info,
) -> tuple[Mix, Bench]:  # fmt: skip
    """Build the float file `path` in float, int8 and mixed precision in the folder `out`; the layers that are best in int8.

    `ranges` are those of `path`, `limit` is the most that may be lost, in percent of best classes changed or relative error.
    Engine ``mixed`` and its file are there where the mix is neither all in float nor all in int8. Raises `ConfigError`,
    `Mismatch` where the ranges are another file's, `DataError` for samples that do not fit or are too few.
    """
    if not 0 <= limit < math.inf:
        raise ConfigError(f"the limit is a percentage from 0 upwards, got {limit}")
    open_target(target, batch=batch, threads=threads)  # a precision that is named must be one
    if with_fixed_shapes(path, {}, batch) is not None:
        raise ConfigError(f"{path} has open shapes or weights in other files, so its ranges are not those of what is built: write "
                          "it whole first ('pydeploy build --shape' leaves such a file beside the engine) and calibrate that")  # fmt: skip
    bench = Bench(path, out, target, batch, threads, samples, say)
    bench.build("float", "fp32", path)
    layers = int8(bench, "int8", ranges, exclude)
    return mixed(bench, ranges, layers, limit, exclude), bench
