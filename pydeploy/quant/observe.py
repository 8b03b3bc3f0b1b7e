"""How wide each tensor's quantization grid should be: observers, and the `Ranges` they produce.

An observer turns what was seen of a tensor into the interval ``(lo, hi)`` that the 8-bit grid has to cover. Most choose
one threshold on ``|x|`` from a histogram of magnitudes; the interval is that threshold on both sides, but never wider than
what was seen, so a tensor after ReLU gets ``lo = 0`` and one that is never positive gets ``hi <= 0``. A symmetric grid then
takes ``max(|lo|, |hi|)``, an asymmetric one the interval itself.

* `minmax` covers everything that was seen.
* `moving_average` is the mean over the samples of each one's smallest and largest value. (A running mean would depend on
  the order of the samples, ONNX Runtime's mean over batches on the batch size.)
* `percentile` covers 99.99 % of the values (NVIDIA's choice; ONNX Runtime takes 99.999 %).
* `entropy` loses the least information: smallest Kullback-Leibler divergence between the distribution and its
  quantized form (Migacz, "8-bit inference with TensorRT", GTC 2017), but at most 1 % of the non-zero values is clipped:
  the divergence says nothing where a candidate's bins are all but empty, and for a tensor without values near zero
  (a spatial mean) it alone would put the threshold below nearly all of them. Each sign has a threshold of its own:
  the negative side of a leaky ReLU or of SiLU is narrow and full, and would outweigh the positive one.
* `mse` has the smallest mean squared rounding and clipping error.

The zero bin is part of the counts: half of a tensor after ReLU is exactly zero, and zero is always representable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy import _core
from pydeploy.errors import ConfigError, DataError, Mismatch, nearest
from pydeploy.files import parsed, write_json
from pydeploy.guests.names import Names
from pydeploy.quant.correction import ChannelSums

SIGNED_LEVELS = 128
"""Grid steps on one side of zero: int8, and uint8 for a tensor with both signs."""
UNSIGNED_LEVELS = 256
"""Grid steps of uint8 for a tensor with one sign."""
PERCENTILE = 99.99
ENTROPY_COVERS = 99.0
"""Percent of the non-zero magnitudes that `entropy` never clips."""

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one tensor. Both parts grow while samples are counted; neither depends on their order."""

    histogram: _core.Histogram = field(default_factory=_core.Histogram)
    """Every value: 4096 bins of one power-of-two width for each sign, at least 2048 of them below the largest value."""
    extremes: list[Range] = field(default_factory=list)
    """Smallest and largest value of each sample."""
    sums: ChannelSums = field(default_factory=ChannelSums)
    """Of the channels' means, where a layer with a bias reads the tensor."""

    def magnitudes(self) -> NDArray[np.uint64]:
        """Counts of ``|x|``, shape ``(bins,)``, both signs together."""
        return np.asarray(self.histogram.positive + self.histogram.negative, dtype=np.uint64)

    def clip(self, threshold: float) -> Range:
        """The threshold on both sides, but not wider than what was seen."""
        return self.within(-threshold, threshold)

    def within(self, low: float, high: float) -> Range:
        """From `low` to `high`, but not wider than what was seen; the value nearest to zero where all of them lie beyond, as those
        of a tensor that is almost constant may.
        """
        least, most = self.histogram.minimum, self.histogram.maximum
        lo, hi = max(least, low), min(most, high)
        return (lo, hi) if lo <= hi else (least, least) if least > high else (most, most)


Observer = Callable[[Seen, int], Range]
"""``(seen, levels) -> (lo, hi)``; `levels` is the number of grid steps from zero to the threshold."""


def minmax(seen: Seen, levels: int) -> Range:  # noqa: ARG001  # one signature for all observers
    """The smallest and largest value seen."""
    return seen.histogram.minimum, seen.histogram.maximum


def moving_average(seen: Seen, levels: int) -> Range:  # noqa: ARG001
    """The mean of the samples' smallest and of their largest values."""
    # fsum rounds once, at the end: the order of the samples leaves no trace.
    lows, highs = zip(*seen.extremes, strict=True)
    return math.fsum(lows) / len(lows), math.fsum(highs) / len(highs)


def percentile(seen: Seen, levels: int) -> Range:  # noqa: ARG001
    """The interval that holds `PERCENTILE` percent of the magnitudes."""
    return seen.clip(_core.percentile_threshold(seen.magnitudes(), seen.histogram.bin_width, PERCENTILE))


def entropy(seen: Seen, levels: int) -> Range:
    """The interval whose quantized distribution diverges least from the one seen, for each sign alone."""
    histogram = seen.histogram
    low, high = (_entropy_of(side, histogram.bin_width, levels) for side in (histogram.negative, histogram.positive))
    return seen.within(-low, high)


def _entropy_of(counts: NDArray[np.uint64], width: float, levels: int) -> float:
    """Threshold on the magnitudes of one sign; 0 where there are none."""
    if not counts.any():
        return 0.0
    threshold = _core.entropy_threshold(counts, width, levels)
    apart = counts.copy()
    apart[0] = 0
    return max(threshold, _core.percentile_threshold(apart, width, ENTROPY_COVERS) if apart.any() else 0.0)


def mse(seen: Seen, levels: int) -> Range:
    """The interval with the smallest mean squared quantization error."""
    return seen.clip(_core.mse_threshold(seen.magnitudes(), seen.histogram.bin_width, levels - 1))


OBSERVERS: Names[Observer] = Names(
    kind="observer",
    expected="a function (seen, levels) -> (lo, hi)",
    known={
        "minmax": minmax,
        "moving_average": moving_average,
        "percentile": percentile,
        "entropy": entropy,
        "mse": mse,
    },
    group="pydeploy.observers",
)


def observe(seen: Seen, observer: str, *, unsigned: bool = False) -> Range:
    """``(lo, hi)`` of one tensor by the named observer; `unsigned` says that one-sided tensors become uint8.

    Raises `ConfigError` for an unknown observer, `DataError` for a histogram without values.
    """
    choose = OBSERVERS[observer]
    histogram = seen.histogram
    if histogram.count == 0:
        raise DataError("no values were observed; calibrate with at least one sample")
    if histogram.minimum == histogram.maximum:  # a constant: one value, covered as it is
        return float(histogram.minimum), float(histogram.maximum)
    one_sided = histogram.minimum >= 0 or histogram.maximum <= 0
    found = choose(seen, UNSIGNED_LEVELS if unsigned and one_sided else SIGNED_LEVELS)
    return _checked(observer, found)


def _checked(observer: str, found: Any) -> Range:
    """What an observer returned, as an interval; users' observers may return anything."""
    try:
        lo, hi = (float(value) for value in found)
    except (TypeError, ValueError):
        raise ConfigError(f"observer '{observer}' returned {found!r}; expected two numbers (lo, hi)") from None
    if not (math.isfinite(lo) and math.isfinite(hi) and lo <= hi):
        raise ConfigError(f"observer '{observer}' returned ({lo}, {hi}); expected finite numbers, ascending")
    return lo, hi


@dataclass(frozen=True, slots=True)
class Ranges:
    """The interval of values of every calibrated tensor, and where it came from."""

    tensors: Mapping[str, Range]
    observer: str
    model: str
    """SHA-256 of the ONNX file that was run."""
    data: str
    """Hash of the samples, independent of their order and batch size."""
    count: int
    """Number of samples."""
    unsigned: bool = False
    """Whether thresholds were chosen for uint8 where a tensor has one sign."""
    means: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Each channel's mean, of the tensors that layers with a bias read; `quantize` corrects biases by them."""

    def __getitem__(self, tensor: str) -> Range:
        if tensor not in self.tensors:
            raise Mismatch(
                f"the ranges lack tensor '{tensor}'{nearest(tensor, self.tensors)}; calibrate this model again"
            )
        return self.tensors[tensor]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings; Python's floats survive JSON exactly."""
        tensors = {name: list(pair) for name, pair in self.tensors.items()}
        means = {name: list(values) for name, values in self.means.items()}
        return {"schema": 1, "observer": self.observer, "model": self.model, "data": self.data, "count": self.count,
                "unsigned": self.unsigned, "tensors": tensors, "means": means}  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ranges:
        """Raises `DataError` unless `data` is what `to_json` writes, with finite intervals."""
        try:
            if data["schema"] != 1:
                raise DataError(f"ranges of schema {data['schema']!r} cannot be read, expected 1; calibrate again")
            tensors = {name: _interval(name, pair) for name, pair in data["tensors"].items()}
            texts = (str(data["observer"]), str(data["model"]), str(data["data"]))
            means = {name: _means(name, values) for name, values in data.get("means", {}).items()}
            return cls(tensors, *texts, int(data["count"]), bool(data["unsigned"]), means)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"not a ranges file: {error!r}; expected the JSON that 'pydeploy calibrate' writes"
            ) from None

    def save(self, path: Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Ranges:
        return parsed(path, cls.from_json)


def _means(name: str, values: Any) -> tuple[float, ...]:
    means = tuple(float(value) for value in values)
    if not all(map(math.isfinite, means)):
        raise DataError(f"the channel means of tensor '{name}' are not all finite; calibrate again")
    return means


def _interval(name: str, pair: Any) -> Range:
    lo, hi = (float(value) for value in pair)
    if not (math.isfinite(lo) and math.isfinite(hi) and lo <= hi):
        raise DataError(
            f"the range of tensor '{name}' is ({lo}, {hi}); expected finite numbers, ascending; calibrate again"
        )
    return lo, hi
