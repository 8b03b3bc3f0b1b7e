"""Masks of defects as a network learns them: dilated, weighted by how deep a pixel lies inside, brought to the network's places.

Source: Bozic, Tabernik and Skocaj, Computers in Industry 2021, and the settings that its authors published.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pydeploy.data.decode import opened

STRIDE = 8
"""Pixels a place, along each side."""
LOSSY = ("JPEG", "WEBP", "JPEG2000")
"""Formats that do not keep zeros: a pixel counts as defective from half of the range on."""

Mask = NDArray[np.bool_]
Values = NDArray[np.float32]


def read_mask(path: Path) -> Mask:
    """``(H, W)``: which pixels of a mask are not zero, as stored: indices of a palette, 16 bits and colours included.

    `DataError` with the reason, without the path, where it cannot be read.
    """
    with opened(path) as image:
        lossy = image.format in LOSSY
        values = np.asarray(image.convert({"LA": "L", "PA": "P", "RGBA": "RGB"}.get(image.mode, image.mode)))
    found = values > 127 if lossy else values != 0
    return np.asarray(found if found.ndim == 2 else found.any(axis=2))


def dilated(mask: Mask, side: int) -> Mask:
    """Every pixel that has a defective one within the square of `side` (odd) pixels around it."""
    if side == 1 or not mask.any():
        return mask
    found = mask
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (side // 2 + 1, side // 2)
        sums = np.pad(found.astype(np.int64), pad).cumsum(axis=axis)
        size = mask.shape[axis]
        first, last = (np.take(sums, range(start, start + size), axis=axis) for start in (0, side))
        found = last > first
    return found


def distances(mask: Mask) -> NDArray[np.float64]:
    """Euclidean distance of every defective pixel to the nearest sound one, 0 on those; infinity where none is sound.

    Exact: along columns by counting, then along rows over all columns (Felzenszwalb and Huttenlocher, 2012, by brute force
    within the rectangle that holds the defects).
    """
    found = np.zeros(mask.shape)
    if not mask.any():
        return found
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = tuple(slice(max(0, at[0] - 1), at[-1] + 2) for at in (rows, columns))  # with the sound pixels around
    inside = mask[box]
    height, width = inside.shape
    place = np.arange(height)[:, None]
    above = np.maximum.accumulate(np.where(inside, -np.inf, place), axis=0)
    below = np.minimum.accumulate(np.where(inside, np.inf, place)[::-1], axis=0)[::-1]
    near = np.minimum(place - above, below - place) ** 2
    across = (np.arange(width)[:, None] - np.arange(width)[None, :]) ** 2
    squared = np.stack([(near[row][None, :] + across).min(axis=1) for row in range(height)])
    found[box] = np.sqrt(squared)
    return found


def pixel_weights(mask: Values, power: float, most: float) -> Values:
    """What each pixel counts in the loss: 1 where nothing is wrong, ``most * (depth / greatest depth) ** power`` on defects.

    The depth is the distance to the nearest sound pixel. A mask that is defective everywhere counts `most` everywhere.
    """
    depth = distances(mask > 0)
    greatest = depth.max(initial=0.0)
    if greatest == 0:
        return np.ones(mask.shape, np.float32)
    share = np.ones_like(depth) if np.isinf(greatest) else depth / greatest
    return np.where(mask > 0, most * share**power, 1.0).astype(np.float32)


def reduced(values: Values) -> Values:
    """``(H, W)`` to ``(H / 8, W / 8)``: the mean of the 17 x 17 pixels around every eighth one, mirrored at the borders."""
    padded = np.pad(values, STRIDE, mode="reflect").astype(np.float64)
    sums = np.pad(padded.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    side = 2 * STRIDE + 1
    windows = sliding_window_view(sums, (side + 1, side + 1))[::STRIDE, ::STRIDE]
    total = windows[..., -1, -1] - windows[..., 0, -1] - windows[..., -1, 0] + windows[..., 0, 0]
    return np.asarray(total / side**2, np.float32)


def touched(mask: Mask) -> Mask:
    """``(H, W)`` to ``(H / 8, W / 8)``: places of 8 x 8 pixels with a defective one among them."""
    height, width = (side // STRIDE for side in mask.shape)
    blocks = mask[: height * STRIDE, : width * STRIDE].reshape(height, STRIDE, width, STRIDE)
    return np.asarray(blocks.any(axis=(1, 3)))
