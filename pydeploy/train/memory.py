"""Training memory: freed tensors stay with the process instead of going back to the system after every layer."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_LARGE_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Tell the C library to reuse large freed blocks; true where it listens (glibc).

    By default glibc maps every activation of a few MB anew and gives it back when it is freed, so that each layer of
    each step pays for clearing fresh pages: 10 to 25 % of a training step on a CPU (``bench/bench_train.py``). The
    setting holds for the whole process and costs memory only after the peak.
    Source: mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    settings = ((_MMAP_THRESHOLD, _LARGE_BYTES), (_TRIM_THRESHOLD, _LARGE_BYTES), (_TOP_PAD, _LARGE_BYTES >> 3))
    return all(mallopt(key, value) == 1 for key, value in settings)
