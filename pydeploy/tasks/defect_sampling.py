"""Which sound pictures are seen in an epoch: as many as there are defective ones, those that were seen least first.

Source: Bozic, Tabernik and Skocaj, Computers in Industry 2021, and the code that its authors published.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def draws(sound: int, wanted: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Numbers of `wanted` of the `sound` pictures, each at most once, epoch after epoch."""
    used = np.zeros(sound)
    epoch = 0
    while True:
        rng = np.random.default_rng([seed, epoch])
        chances = probabilities(used)
        chosen = (
            rng.permutation(sound)[:wanted] if chances is None else rng.choice(sound, wanted, replace=False, p=chances)
        )
        used[chosen] += 1
        epoch += 1
        yield chosen


def probabilities(used: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """How likely each picture is drawn that was `used` so often; None before the first use, where all are alike.

    ``(1 - used / most - median + 1) ** (4 ln n)``: twice as much above the median is many times as likely.
    """
    if not used.any():
        return None
    unused = 1 - used / used.max()
    powers = (unused - np.median(unused) + 1) ** (4 * math.log(len(used)))
    # Where almost all were used equally often, those above have no chance at all: too few would be left to draw from.
    powers = np.maximum(powers, powers.max() * 1e-12)
    return np.asarray(powers / powers.sum())
