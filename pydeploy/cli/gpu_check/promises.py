"""What is promised, as judgements of numbers: each returns a line that says what was seen, or raises `Broken` with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pydeploy.tasks.metric import Metric
from pydeploy.timing.ratio import ratio
from pydeploy.timing.records import Profile, Timing

LIMITS = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.15}
"""Relative error of an engine's outputs against ONNX Runtime's on the same file (int8: rounding may fall elsewhere)."""


class Broken(Exception):
    """A promise that was not kept; the text says what was seen."""


def require(kept: bool, text: str) -> str:
    """`text`; raises `Broken` with it unless `kept`."""
    if not kept:
        raise Broken(text)
    return text


def packages(parts: Mapping[str, str]) -> str:
    """Everything is there but, at most, NVML."""
    missing = [f"{part}: {text}" for part, text in parts.items() if text.startswith("missing")]
    needed = [text for text in missing if not text.startswith("NVML")]
    return require(not needed, "; ".join(missing) or f"{parts['GPU']}; {parts['bindings']}")


def budget(met: bool, pruned_us: float, budget_us: float, dense_us: float) -> str:
    """The pruned engine is within its budget."""
    return require(met, f"measured {pruned_us:.1f} us, budget {budget_us:.1f} us, dense {dense_us:.1f} us")


def kept(metric: Metric, before: float, after: float, limit: float, what: str) -> str:
    """At most `limit` (points or the metric's unit) is lost from `before` to `after`."""
    return require(metric.lost(before, after) <= limit, f"{what}: {metric.text(before)}, then {metric.text(after)}")


def prediction(error: float) -> str:
    """The last plan was predicted within a tenth."""
    return require(abs(error) <= 0.10, f"last round: {abs(error):.1%} off")


def table(predicted_us: Sequence[float], measured_us: Sequence[float]) -> str:
    """Plans that the table was not made from are predicted within a twentieth, in the median."""
    errors = np.abs(np.array(predicted_us) / np.array(measured_us) - 1)
    text = f"{len(errors)} unseen plans: median {np.median(errors):.1%}, largest {errors.max():.1%}"
    return require(float(np.median(errors)) <= 0.05, text)


def outputs(errors: Mapping[str, float]) -> str:
    """``{precision: relative error}`` lies within `LIMITS`."""
    over = [f"{name}: relative error {error:.3g}, at most {LIMITS[name]} expected"
            for name, error in errors.items() if error > LIMITS[name]]  # fmt: skip
    return require(
        not over, "; ".join(over) or "relative error: " + ", ".join(f"{n} {e:.2g}" for n, e in errors.items())
    )


def formats(name: str, dtype: str, layers: Sequence[Mapping[str, Any]], *, needed: bool) -> str:
    """Layers of the engine `name` read `dtype`; told with the multiples to which their channels are padded."""
    used = [layer for layer in layers if any(tensor["dtype"] == dtype for tensor in layer["inputs"])]
    padded = sorted({multiple for layer in layers for multiple in layer["padding"]})
    text = f"{name}: {len(used)} of {len(layers)} layers read {dtype}, channels in multiples of {padded}"
    return require(bool(used) or not needed, text)


def layers(ops: Sequence[str], found: Profile) -> str:
    """Nine in ten operators are found in the engine, and layers add up to the network."""
    missing = [name for name in ops if name not in found.layers]
    total = sum(timing.median_us for timing in found.layers.values())
    text = f"{len(ops) - len(missing)} of {len(ops)} operators found, layers {total:.1f} us, network {found.whole}"
    return require(len(missing) <= 0.1 * len(ops) and abs(total / found.whole.median_us - 1) <= 0.05, text)


def steady(condition: Mapping[str, float]) -> str:
    """Clocks did not move, and runs went through a CUDA graph."""
    facts = {key: round(value, 3) for key, value in condition.items()}
    kept = not condition["unstable"] and condition["cuda_graph"] == 1.0
    return require(kept, f"{facts}; lock the clocks where they move (nvidia-smi -lgc, jetson_clocks)")


def rebuild(first: Timing, second: Timing, seconds: Sequence[float]) -> str:
    """Two builds of one file take equally long to run; `seconds` are what each build took."""
    taken = ratio(first, second)
    text = (f"{first.median_us:.1f} and {second.median_us:.1f} us, {taken} in turns; built in "
            + " and ".join(f"{one:.0f}" for one in seconds) + " s")  # fmt: skip
    return require(abs(taken.value - 1) <= 0.05, text)


def rows(shapes: Mapping[str, Sequence[int]], batch: int) -> str:
    """Every output has `batch` rows."""
    return require(all(shape[0] == batch for shape in shapes.values()), f"outputs {dict(shapes)}")


def implicit_int8(input_types: Iterable[Sequence[str]], error: float) -> str:
    """Some layer of the engine of a float file reads int8, and its answers are right; `input_types` by layer."""
    known = list(input_types)
    used = sum("int8" in types for types in known)
    text = f"{used} of {len(known)} layers read int8, relative error {error:.2g}"
    return require(used > 0 and error <= LIMITS["int8"], text)
