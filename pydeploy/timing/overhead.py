"""What reading a network's layers adds to each of them, found from the network's own time.

A profiler's events take about as long for every layer, so that the layers of a small network add up to more than the
network takes: on ONNX Runtime 2 us a layer, on a GPU the events between kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pydeploy.timing.records import Profile


def overhead_us(medians_us: NDArray[np.float64], whole_us: float, parts: NDArray[np.float64]) -> float:
    """C >= 0 in microseconds such that the sum of ``max(median - parts * c, 0)`` is `whole_us`; 0 where it is less already.

    `medians_us` and `parts`, shape (layers,): each entry's time and how many of the runtime's layers it sums up. Found
    exactly, piece by piece; entries without parts take no share.
    """
    where = (medians_us > 0) & (parts > 0)
    fixed_us = float(medians_us[parts <= 0].sum())
    order = np.argsort(medians_us[where] / parts[where])
    medians, counts = medians_us[where][order], parts[where][order]
    while medians.size and (fixed_us + medians.sum() - whole_us) / counts.sum() > medians[0] / counts[0]:
        medians, counts = medians[1:], counts[1:]
    return max(0.0, float((fixed_us + medians.sum() - whole_us) / counts.sum())) if medians.size else 0.0


def without_overhead(
    samples: Sequence[NDArray[np.float64]], whole_us: float
) -> tuple[list[NDArray[np.float64]], float]:
    """Samples of single layers less `overhead_us`, and that constant. Where the sum is within `whole_us` nothing changes."""
    medians = np.array([np.median(times) for times in samples])
    constant = overhead_us(medians, whole_us, np.ones(len(medians)))
    return [np.maximum(times - constant, 0.0) if np.median(times) > 0 else times for times in samples], constant


def net(profile: Profile) -> Profile:
    """`profile` for people: its layers less what reading them added, so that they add up to the network at most.

    ``condition["overhead_us"]`` tells what was taken off each of the runtime's layers. Latency tables keep what was read:
    the constant lies in their offset.
    """
    medians = np.array([timing.median_us for timing in profile.layers.values()])
    parts = np.array([profile.parts.get(name, 1) for name in profile.layers], dtype=np.float64)
    constant = overhead_us(medians, profile.whole.median_us, parts)
    layers = {name: timing.less(constant * profile.parts.get(name, 1)) for name, timing in profile.layers.items()}
    return replace(profile, layers=layers, condition={**profile.condition, "overhead_us": constant})
