"""What was measured, and on what: `Target`, `Timing`. Every latency in this package is one of these."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pydeploy.errors import DataError, Mismatch

_X86 = ("x86_64", "amd64", "i386", "i686", "x86")
_EXACT = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"}
_BF16 = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}


@dataclass(frozen=True, slots=True)
class Target:
    """What is measured on. Two numbers may be compared or mixed only when their targets are equal."""

    device: str
    backend: str
    backend_version: str
    precision: str
    batch: int
    threads: int
    facts: Mapping[str, str] = field(default_factory=dict)
    """Clock, affinity, instruction sets and the like; part of the fingerprint, so keep them stable."""
    measured: bool = True
    """False for the analytic `null` backend: its numbers are computed, not measured."""

    @property
    def fingerprint(self) -> str:
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        note = "" if self.measured else " (analytic, NOT measured)"
        name = f"{self.device} / {self.backend} {self.backend_version}"
        return f"{name} / {self.precision} / batch {self.batch} / {self.threads} threads{note}"

    @property
    def instruction_sets(self) -> frozenset[str]:
        """Those that the runtime uses, as ``/proc/cpuinfo`` spells them; empty where unknown, as on a GPU."""
        return frozenset(self.facts.get("instruction_sets", "").split())

    @property
    def has_amx(self) -> bool:
        """Whether integers are multiplied in tiles (x86)."""
        return "amx_int8" in self.instruction_sets

    @property
    def has_bf16(self) -> bool:
        """Whether the processor computes in bfloat16 itself."""
        return bool(self.instruction_sets & _BF16)

    @property
    def saturates(self) -> bool:
        """Whether sums of two uint8 x int8 products are cut off at 16 bits, so that weights should keep to 7 bits.

        So on x86 without VNNI and AMX (the instruction ``vpmaddubsw``), and where an x86 does not tell what it has.
        """
        return self.facts.get("machine", "").lower() in _X86 and not self.instruction_sets & _EXACT

    def require(self, other: Target, what: str) -> None:
        """Raise `Mismatch` naming the first facts that differ between this target and `other`."""
        mine, theirs = self._flat(), other._flat()
        differing = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        if differing:
            facts = "; ".join(f"{key}: {mine.get(key)!r} against {theirs.get(key)!r}" for key in differing)
            raise Mismatch(f"{what} belongs to another target ({facts}); measure again on this target")

    def _flat(self) -> dict[str, Any]:
        """All facts side by side, the further ones by their own names."""
        return {**{key: value for key, value in asdict(self).items() if key != "facts"}, **self.facts}

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "facts": dict(self.facts)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        try:
            return cls(**{**data, "facts": dict(data.get("facts", {}))})
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not a target record: {error}") from None


def median_interval(values: ArrayLike) -> float:
    """Half the width of the median's 95 % confidence interval, relative to the median; 1 for fewer than three.

    The median's standard error is 1.2533 sigma / sqrt(n) for normal values; sigma is estimated by 1.4826 times the
    median absolute deviation, which a few outliers do not move (Rousseeuw and Croux 1993).
    """
    given = np.asarray(values, dtype=np.float64)
    median = float(np.median(given))
    if given.size < 3 or median == 0.0:
        return 0.0 if median == 0.0 else 1.0
    sigma = 1.4826 * float(np.median(np.abs(given - median)))
    return 1.96 * 1.2533 * sigma / math.sqrt(given.size) / abs(median)


@dataclass(frozen=True, slots=True)
class Turn:
    """What an engine took in one round of a comparison: the sum over its runs in that round, divided by their number."""

    us: float
    calm: bool = True
    """False when other load was noticed in that round."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The distribution of one measured quantity, in microseconds; never a bare mean."""

    n: int
    median_us: float
    p10_us: float
    p90_us: float
    disturbed: bool = False
    """True when other load was noticed while measuring and repeating did not get rid of it."""
    interval: float = 0.0
    """Half the width of the median's 95 % confidence interval, relative to the median."""
    outliers: int = 0
    """Samples that lie further than 1.5 times the quartiles' distance from them (Tukey 1977); they are kept."""
    turns: tuple[Turn, ...] = ()
    """Of engines that were timed in turns, one per round, the disturbed rounds included: what `ratio` pairs."""

    @classmethod
    def of(cls, samples_us: ArrayLike, *, disturbed: bool = False) -> Timing:
        """Summarize samples, shape ``(n,)`` in microseconds, taken to be independent."""
        samples = np.asarray(samples_us, dtype=np.float64)
        if samples.size == 0 or not np.isfinite(samples).all() or (samples < 0).any():
            raise DataError("timing samples must be finite, non-negative and at least one")
        p10, low, median, high, p90 = np.percentile(samples, (10, 25, 50, 75, 90))
        fence = 1.5 * (high - low)
        outliers = int(np.sum((samples < low - fence) | (samples > high + fence)))
        return cls(
            int(samples.size), float(median), float(p10), float(p90), disturbed, median_interval(samples), outliers
        )

    def centred(self, median_us: float, interval: float) -> Timing:
        """The same distribution with a median and an interval that were found by other means."""
        return replace(self, median_us=median_us, interval=interval)

    def scaled(self, factor: float) -> Timing:
        """Every time multiplied by `factor`."""
        times = {name: getattr(self, name) * factor for name in ("median_us", "p10_us", "p90_us")}
        return replace(self, **times, turns=tuple(Turn(turn.us * factor, turn.calm) for turn in self.turns))

    def less(self, us: float) -> Timing:
        """Every time shorter by `us`, none below zero."""
        times = {name: max(0.0, getattr(self, name) - us) for name in ("median_us", "p10_us", "p90_us")}
        width_us = self.interval * self.median_us
        return replace(self, **times, interval=width_us / times["median_us"] if times["median_us"] else 0.0)

    @property
    def spread(self) -> float:
        """Relative width of the middle 80 %: ``(p90 - p10) / median``."""
        return (self.p90_us - self.p10_us) / self.median_us if self.median_us else 0.0

    def __str__(self) -> str:
        flag = ", DISTURBED" if self.disturbed else ""
        return f"{self.median_us:.1f} us (p10 {self.p10_us:.1f}, p90 {self.p90_us:.1f}, n {self.n}{flag})"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Timing:
        try:
            return cls(**{**data, "turns": tuple(Turn(**turn) for turn in data.get("turns", ()))})
        except TypeError as error:
            raise DataError(f"not a timing record: {error}") from None


Padding = tuple[int, int]
"""Multiples that a layer's channels are padded to, read and written; 1 = not padded, 0 = the runtime does not tell."""


@dataclass(frozen=True)
class Profile:
    """One engine on one target: the whole network and, where the runtime tells, every layer."""

    target: Target
    whole: Timing
    layers: Mapping[str, Timing]
    """Per layer, by the model's operator name (`Op.name`), in execution order; what an engine runs between
    two operators is counted to the first of them, what it runs before all of them to ''."""
    condition: Mapping[str, float] = field(default_factory=dict)
    """Device condition around the measurement (drift of the reference kernel, foreign CPU share)."""
    padding: Mapping[str, Padding] = field(default_factory=dict)
    """Of those `layers` whose formats the runtime tells (TensorRT)."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """How many of the runtime's layers, in-place ones left out, each of `layers` sums up; one where it is not told."""

    @property
    def disturbed_layers(self) -> int:
        """How many layers were never read without other load."""
        return sum(timing.disturbed for timing in self.layers.values())

    def scaled(self, factor: float) -> Profile:
        """The profile as it would be on a computer that takes `factor` times as long for everything."""
        layers = {name: timing.scaled(factor) for name, timing in self.layers.items()}
        return replace(self, whole=self.whole.scaled(factor), layers=layers)

    def within(self, whole: Timing) -> Profile:
        """The same layers, scaled to another measurement of the whole network."""
        return replace(self.scaled(whole.median_us / self.whole.median_us), whole=whole)

    def to_json(self) -> dict[str, Any]:
        return {"schema": 1, "target": self.target.to_json(), "whole": self.whole.to_json(),
                "layers": {name: t.to_json() for name, t in self.layers.items()},
                "condition": dict(self.condition), "padding": {name: list(p) for name, p in self.padding.items()},
                "parts": dict(self.parts)}  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        try:
            layers = {name: Timing.from_json(t) for name, t in data["layers"].items()}
            padding = {name: (int(cin), int(cout)) for name, (cin, cout) in data.get("padding", {}).items()}
            parts = {name: int(count) for name, count in data.get("parts", {}).items()}
            whole = Timing.from_json(data["whole"])
            return cls(Target.from_json(data["target"]), whole, layers, data["condition"], padding, parts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not a profile file: {error!r}") from None
