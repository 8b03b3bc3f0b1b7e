"""Masks against loops over pixels, PyTorch's padding and pooling, and files in every way that masks are stored."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch.nn import functional as F

from pydeploy.data.defect_masks import Mask, dilated, distances, pixel_weights, read_mask, reduced, touched
from pydeploy.errors import DataError

MASKS = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9))


@settings(deadline=None, max_examples=30)
@given(mask=MASKS, side=st.sampled_from([1, 3, 7]))
def test_dilation_looks_at_every_neighbour(mask: Mask, side: int) -> None:
    reach = side // 2
    for row, column in np.ndindex(mask.shape):
        near = mask[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
        assert dilated(mask, side)[row, column] == near.any()


@settings(deadline=None, max_examples=30)
@given(mask=MASKS)
def test_distances_are_to_the_nearest_sound_pixel(mask: Mask) -> None:
    sound = np.argwhere(~mask)
    for place in np.ndindex(mask.shape):
        expected = min((math.dist(place, other) for other in sound), default=math.inf) if mask[place] else 0.0
        assert distances(mask)[place] == pytest.approx(expected)


def test_weights_grow_towards_the_middle_of_the_deepest_defect() -> None:
    mask = np.zeros((9, 12), np.float32)
    mask[1:8, 1:8] = 1  # four pixels deep
    mask[4, 10] = 0.2  # one pixel deep, after resizing
    found = pixel_weights(mask, power=2, most=3)
    assert found[4, 4] == 3
    assert found[1, 1] == pytest.approx(3 / 16)
    assert found[4, 10] == pytest.approx(3 / 16)
    assert (found[mask == 0] == 1).all()
    assert (pixel_weights(np.zeros((4, 4), np.float32), 2, 3) == 1).all()
    assert (pixel_weights(np.ones((4, 4), np.float32), 2, 3) == 3).all()


def test_reduction_is_mirrored_padding_and_average_pooling() -> None:
    for shape in ((16, 16), (64, 24), (640, 232)):
        values = np.random.default_rng(0).random(shape).astype(np.float32)
        padded = F.pad(torch.from_numpy(values)[None, None], (8, 8, 8, 8), mode="reflect")
        expected = F.avg_pool2d(padded, 17, 8)[0, 0].numpy()
        assert reduced(values).shape == expected.shape == (shape[0] // 8, shape[1] // 8)
        np.testing.assert_allclose(reduced(values), expected, rtol=1e-5)
    # A single pixel is a soft target at every place whose window holds it.
    one = np.zeros((32, 32), np.float32)
    one[9, 20] = 1
    assert np.count_nonzero(reduced(one)) == 4
    assert reduced(one).max() == pytest.approx(1 / 289)


def test_a_place_is_touched_by_one_pixel() -> None:
    mask = np.zeros((16, 24), np.bool_)
    mask[7, 8] = mask[15, 23] = True
    assert touched(mask).tolist() == [[False, True, False], [False, False, True]]


def test_masks_are_read_as_stored(tmp_path: Path) -> None:
    values = np.zeros((4, 5), np.uint8)
    values[1, 2:4] = 1
    colours = np.zeros((4, 5, 3), np.uint8)
    colours[1, 2:4, 2] = 9
    palette = Image.fromarray(values).convert("P")
    palette.putdata(values.ravel().tolist())
    palette.putpalette([0, 0, 0] * 256)  # every index is black
    files = {
        "bit": Image.fromarray(values > 0), "byte": Image.fromarray(values), "deep": Image.fromarray(values.astype(np.uint16)),
        "colour": Image.fromarray(colours), "palette": palette, "alpha": Image.fromarray(values).convert("LA"),
        "visible": Image.fromarray(colours).convert("RGBA"), "tiff": Image.fromarray(values.astype(np.float32) / 1e3),
    }  # fmt: skip
    for name, image in files.items():
        path = tmp_path / f"{name}.{'tif' if name == 'tiff' else 'png'}"
        image.save(path)
        assert np.array_equal(read_mask(path), values > 0), name
    noisy = np.zeros((16, 16), np.uint8)
    noisy[4:12, 4:12] = 255
    Image.fromarray(noisy).save(tmp_path / "lossy.jpg", quality=60)
    assert np.array_equal(read_mask(tmp_path / "lossy.jpg"), noisy > 0)
    (tmp_path / "broken.png").write_bytes((tmp_path / "byte.png").read_bytes()[:40])
    for name, text in (("broken.png", "damaged"), ("none.png", "missing")):
        with pytest.raises(DataError, match=text):
            read_mask(tmp_path / name)
