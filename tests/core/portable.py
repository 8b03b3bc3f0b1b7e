"""The compiled core as processors without AVX-512 run it, built beside the module itself and called through ctypes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

CORE = ("histogram", "bins", "surgery", "compress", "sizes", "threads")
"""Files of csrc/core that `portable.cpp` needs."""


def address(array):
    return ctypes.c_void_p(array.ctypes.data)


class Portable:
    """Typed calls into the library."""

    def __init__(self, library):
        self.library = library
        library.slack.restype = library.bins.restype = ctypes.c_size_t

    def bins(self, values, exponent, half):
        """The bins of all values that are not in bin 0, in order."""
        found = np.full(values.size + self.library.slack(), 7, np.uint32)
        kept = self.library.bins(address(values), ctypes.c_size_t(values.size), exponent, half, address(found))
        return found[:kept]

    def histogram(self, values, bins, threads=1):
        """The record of a histogram that counted `values`, all but its arrays as text."""
        negative, positive = np.zeros(bins, np.uint64), np.zeros(bins, np.uint64)
        numbers, extremes = np.zeros(3, np.int64), np.zeros(2)
        self.library.histogram(address(values), ctypes.c_size_t(values.size), ctypes.c_size_t(bins), threads,
                               address(negative), address(positive), address(numbers), address(extremes))  # fmt: skip
        low, high = extremes.tolist()
        exponent, nans, infinities = (str(number) for number in numbers)
        return {"exponent": exponent, "negative": negative.tolist(), "positive": positive.tolist(), "minimum": str(low),
                "maximum": str(high), "nan_count": nans, "inf_count": infinities}  # fmt: skip

    def gather(self, array, entries, threads=1):
        """What `_core.gather_many` makes of one job; entries must be valid."""
        counts = [size if picks is None else len(picks) for size, picks in zip(array.shape, entries, strict=True)]
        result = np.zeros(counts, array.dtype)
        shape, lengths = ((ctypes.c_size_t * 8)(*numbers) for numbers in (array.shape, counts))
        picks = (ctypes.c_void_p * 8)(*(None if index is None else index.ctypes.data for index in entries))
        self.library.gather(address(array), ctypes.c_size_t(array.itemsize), ctypes.c_size_t(array.ndim), shape, picks,
                            lengths, address(result), ctypes.c_size_t(result.nbytes), threads)  # fmt: skip
        return result


@pytest.fixture(scope="session")
def portable(tmp_path_factory):
    """Built with the optimization of a release."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler to build the portable core with; set CXX")
    here, library = Path(__file__).parent, tmp_path_factory.mktemp("portable") / "portable.so"
    core = here.parents[1] / "csrc" / "core"
    sources = [here / "portable.cpp", *(core / f"{name}.cpp" for name in CORE)]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # of the sanitizers
    command = [compiler, "-std=c++20", "-O3", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread",
               "-DPYDEPLOY_PORTABLE", f"-I{core.parent}", "-o", library, *sources]  # fmt: skip
    subprocess.run(command, check=True, env=environment)
    return Portable(ctypes.CDLL(str(library)))
