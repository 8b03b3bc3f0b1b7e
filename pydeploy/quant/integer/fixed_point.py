"""Multiplying int32 sums by a real factor without floating point.

A factor is ``mantissa * 2**-31 * 2**exponent`` with an int32 mantissa in ``[2**30, 2**31)``. A value times it is the upper half of
the doubled 64-bit product, rounded with halves up, then divided by a power of two, rounded with halves away from zero.
Source: Jacob et al., arXiv 1712.05877, section 2.2; the rounding is that of gemmlowp and TensorFlow Lite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

INT32 = (-(2**31), 2**31 - 1)

Int64s = NDArray[np.int64]
"""Values that fit into 32 bits, held in 64."""


def factor(real: NDArray[np.float64] | float) -> tuple[Int64s, Int64s]:
    """Mantissa and exponent of each real factor, which must be above 0 and finite."""
    fraction, exponent = np.frexp(np.asarray(real, np.float64))
    mantissa = np.rint(fraction * 2.0**31).astype(np.int64)
    carried = mantissa == 2**31
    return np.where(carried, 2**30, mantissa), exponent.astype(np.int64) + carried


def times(values: NDArray[Any], mantissa: Int64s, exponent: Int64s) -> Int64s:
    """``round(values * mantissa * 2**(exponent - 31))`` of int32 values, which broadcasts; saturates at 32 bits."""
    left, right = np.maximum(exponent, 0), np.maximum(-exponent, 0)
    shifted = np.clip(np.asarray(values, np.int64) << left, *INT32)
    upper = (shifted * mantissa + (1 << 30)) >> 31
    size = np.minimum(right, 62)
    half = (np.int64(1) << size) >> 1
    found: Int64s = np.sign(upper) * ((np.abs(upper) + half) >> size)
    return found
