"""What a finite test set leaves open about a share."""

from __future__ import annotations

import math

Z = 1.959964
"""Quantile of the normal distribution for 95 %."""


def right_answers(share: float, n: int) -> int | None:
    """The number of right answers that `share` of `n` samples is; None for a metric that does not count answers."""
    count = round(share * n)
    return count if abs(share * n - count) <= 1e-6 * max(1, n) else None


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % score interval of a share of which `k` of `n` independent samples were seen (Wilson 1927)."""
    share, spread = k / n, Z * Z / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
