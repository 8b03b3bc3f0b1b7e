"""The compiled batcher by itself: order of calls, wrong settings, threads. What it computes: test_preprocessing.py."""

from __future__ import annotations

import numpy as np
import pytest

from pydeploy import _core


def core(**change: object) -> _core.Batcher:
    return _core.Batcher(**{"size": (4, 4), "resize": (0, 0), "interpolation": "bilinear", "shift": [0.0], "scale": [1.0],
                            "batch": 2, "buffers": 2, **change})  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (0, 4)}, "cannot be 0x4 pixels"),
        ({"shift": [0.0, 1.0]}, "one value per channel, got 2 and 1"),
        ({"scale": [0.0]}, "finite and not 0"),
        ({"resize": (0, 3)}, "cannot be resized to 0x3"),
        ({"interpolation": "nearest"}, "bilinear or bicubic"),
        ({"batch": 0}, "batches of 1 sample or more"),
        ({"buffers": 1}, "2 buffers or more"),
        ({"threads": -1}, "threads must be 0"),
    ],
    ids=["size", "channels", "scale", "resize", "interpolation", "batch", "buffers", "threads"],
)
def test_the_core_checks_its_settings(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        core(**change)


def test_the_core_checks_the_order_of_calls() -> None:
    batcher, image = core(), np.zeros((4, 4, 1), np.uint8)
    with pytest.raises(ValueError, match="no batch was submitted"):
        batcher.take()
    for images in ([], [image] * 3):
        with pytest.raises(ValueError, match=r"a batch has 1\.\.2 images"):
            batcher.submit(images)
    batcher.submit([image])
    batcher.submit([image, image])
    with pytest.raises(ValueError, match="all 2 buffers are in use"):
        batcher.submit([image])
    assert [len(batcher.take()), len(batcher.take())] == [1, 2]
    with pytest.raises(TypeError, match="contiguous uint8"):
        batcher.submit([np.zeros((8, 8, 1), np.uint8)[::2, ::2]])


@pytest.mark.parametrize("planar", [False, True])
def test_many_threads_pack_what_one_packs(planar: bool) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, 15 + i, 20) if planar else (15 + i, 20, 3), np.uint8) for i in range(24)]
    settings = {"size": (7, 6), "resize": (9, 0), "interpolation": "bicubic", "shift": [1.0] * 3, "scale": [2.0] * 3,
                "planar": planar, "batch": 24}  # fmt: skip
    found = []
    for threads in (1, 6):
        batcher = core(**settings, threads=threads)
        batcher.submit(images)
        found.append(batcher.take().copy())
    np.testing.assert_array_equal(*found)
