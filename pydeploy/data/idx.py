"""Reader of the idx format, in which the MNIST family of data sets is kept.

Layout, big-endian: two zero bytes, one byte for the element type (8 = uint8), one for the number of axes,
a uint32 per axis, then the values in row-major order. Files may be compressed with gzip.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pydeploy.errors import DataError

_UINT8 = 8


def read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The uint8 array in `path`, which must have `shape`.

    Raises `DataError` naming the file when it is unreadable, cut short, or another kind of file.
    """
    again = "delete it and fetch it again"
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); {again}") from None
    header = 4 + 4 * len(shape)
    if len(data) < header or data[:2] != b"\0\0" or data[2] != _UINT8 or data[3] != len(shape):
        raise DataError(f"{path} is not an idx file of {len(shape)} axes of uint8 (starts with {data[:4]!r}); {again}")
    found = tuple(int(n) for n in np.frombuffer(data, ">u4", len(shape), offset=4))
    if found != shape:
        raise DataError(f"{path} holds an array of shape {found}, expected {shape}; {again}")
    size = int(np.prod(shape))
    if len(data) != header + size:
        raise DataError(f"{path} holds {len(data) - header} values, expected {size}; {again}")
    return np.frombuffer(data, np.uint8, size, offset=header).reshape(shape).copy()  # writable, as torch wants it
