"""Samples against Pillow, torchvision and the formula: equal to the byte."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from pydeploy.data.preprocessing import IMAGENET, Preprocessing
from pydeploy.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
RAW = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), np.uint8)


@given(
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    name=st.sampled_from(sorted(FILTERS)),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_resizing_equals_pillow_width_first(
    source: tuple[int, int], target: tuple[int, int], name: str, seed: int
) -> None:
    # A checkerboard of extremes makes every rounding and clipping count.
    pixels = np.random.default_rng(seed).choice(np.array([0, 1, 127, 255], np.uint8), (*source, 3))
    # Pillow 13 takes the height first where it shrinks much more than the width; results must not follow its version.
    wide = Image.fromarray(pixels).resize((target[1], source[0]), FILTERS[name])
    expected = np.asarray(wide.resize(target[::-1], FILTERS[name]))
    found = Preprocessing(*RAW, resize=target, interpolation=name)(pixels[None])
    np.testing.assert_array_equal(np.rint(found[0]).astype(np.uint8), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (256, 300), (224, 224), (61, 97), (257, 256)], ids=str)
def test_imagenet_equals_torchvisions_evaluation(size: tuple[int, int]) -> None:
    pixels = picture(*size)
    steps = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    cut = steps(Image.fromarray(pixels)).numpy()
    found = IMAGENET(pixels[None])[0]
    shift = np.array([255.0 * m for m in IMAGENET.mean], np.float32)[:, None, None]
    scale = np.array([255.0 * s for s in IMAGENET.std], np.float32)[:, None, None]
    np.testing.assert_array_equal(found, (cut.astype(np.float32) - shift) / scale)
    # torchvision divides by 255 first: the same up to float32's last digits.
    theirs = transforms.Normalize(IMAGENET.mean, IMAGENET.std)(torch.from_numpy(cut).float() / 255).numpy()
    np.testing.assert_allclose(found, theirs, atol=2e-6)


@pytest.mark.parametrize("resize", [None, 9, (7, 8)], ids=str)
def test_channels_may_come_first(resize: int | tuple[int, int] | None) -> None:
    images = RNG.integers(0, 256, (5, 12, 10, 3), np.uint8)
    way = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resize, 6)
    first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(way(images), way(first, planar=True))


@pytest.mark.parametrize("batch", [1, 3, 8, 64])
@pytest.mark.parametrize("threads", [1, 4])
def test_batches_hold_every_image_once_and_in_order(batch: int, threads: int) -> None:
    images = [picture(20 + i % 5, 30) for i in range(23)]
    way = Preprocessing((0.5,) * 3, (0.2,) * 3, 18, (16, 12))
    expected = np.concatenate([way(image[None]) for image in images])
    found = [part.copy() for part in way.batches(iter(images), batch, threads=threads)]
    assert [len(part) for part in found[:-1]] == [batch] * (len(found) - 1)
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_buffers_are_aligned_and_used_again() -> None:
    way = Preprocessing((0.5,), (0.2,))
    addresses = [part.ctypes.data for part in way.batches((picture(5, 7, 1) for _ in range(40)), 3)]
    assert all(address % 64 == 0 for address in addresses)
    assert len(set(addresses)) == 3


def test_an_abandoned_batch_outlives_its_batcher() -> None:
    way = Preprocessing((0.5,), (0.2,))
    images = RNG.integers(0, 256, (4, 9, 9, 1), np.uint8)
    batcher = way.batcher((9, 9), 4)
    batcher.submit(list(images))
    part = batcher.take()
    batcher.submit(list(images))  # still being packed when it goes
    del batcher
    gc.collect()
    np.testing.assert_array_equal(part, way(images))


def test_no_images_give_no_batches() -> None:
    assert list(IMAGENET.batches([], 4)) == []
    assert IMAGENET(np.empty((0, 9, 9, 3), np.uint8)).shape == (0, 3, 224, 224)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([picture(8, 8), picture(9, 8)], "becomes a sample of .9, 8. pixels, those before are .8, 8."),
        ([picture(8, 8, 1)], "the image has 1 channels, expected 3"),
        ([picture(8, 8).astype(np.float32)], "three-dimensional, C-contiguous uint8 array, got one of float32"),
        ([picture(8, 8)[0]], "must have three dimensions"),
    ],
    ids=["sizes", "channels", "dtype", "rank"],
)
def test_images_that_do_not_fit(images: list[np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(Preprocessing((0.5,) * 3, (0.5,) * 3).batches(images, 1))


def test_too_small_for_the_cut() -> None:
    with pytest.raises(DataError, match="an image of 8x9 becomes 8x9, too small to cut out 12x12"):
        Preprocessing((0.5,) * 3, (0.5,) * 3, crop=12)(picture(8, 9)[None])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (0.5,), "std": (0.5, 0.5)}, "one value per channel"),
        ({"mean": (), "std": ()}, "one value per channel"),
        ({"mean": (0.5,), "std": (0.0,)}, "std positive"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "mean must be finite"),
        ({"mean": (0.5,), "std": (1.0,), "interpolation": "nearst"}, "unknown interpolation"),
        ({"mean": (0.5,), "std": (1.0,), "crop": 0}, "crop must be at least 1"),
    ],
    ids=["counts", "none", "zero", "nan", "interpolation", "crop"],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**settings)
