"""Decoded pictures are bounded by their pixels, and a changed byte of a picture is seen wherever it lies."""

from __future__ import annotations

import random
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pydeploy.data import images
from pydeploy.data.images import batches
from pydeploy.data.manifest import Manifest
from pydeploy.data.picture_set import Files, PictureSet, Split, sample_settings
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.data.room import Room

WAY = Preprocessing((0.5, 0.5, 0.5), (0.3, 0.3, 0.3), 40, 32)


@pytest.mark.parametrize("seed", range(5))
def test_threads_never_hold_more_than_there_is_room_for(seed: int) -> None:
    rng, room = random.Random(seed), Room(100)
    sizes = [rng.choice([0, 1, 30, 60, 99, 100, 101, 500]) for _ in range(60)]
    held: list[int] = []
    found: list[list[int]] = []
    lock = threading.Lock()

    def hold(pixels: int) -> None:
        with room.of(pixels):
            with lock:
                held.append(pixels)
                found.append(list(held))
            time.sleep(0.0005)
            with lock:
                held.remove(pixels)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, sizes))
    assert len(found) == len(sizes)
    for together in found:
        large = [size for size in together if size]
        assert sum(large) <= 100 or len(large) == 1


def test_room_is_given_back_after_an_error() -> None:
    room = Room(10)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), room.of(10):
            raise ValueError("broken")


def test_calibration_holds_few_large_pictures_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 pictures of 6 MB, of which 16 and more were in memory when only their number was bounded."""
    pixels = np.random.default_rng(0).integers(0, 256, (25, 40, 3), np.uint8)
    for number in range(30):
        picture = Image.fromarray(np.roll(pixels, number, 0)).resize((1600, 1250), Image.Resampling.NEAREST)
        picture.save(tmp_path / f"{number:02}.png", compress_level=1)
    monkeypatch.setattr(images, "ROOM", Room(2_000_000))
    manifest = Manifest("./", count=30, preprocessing=WAY, folder=tmp_path)
    tracemalloc.start()
    found = np.concatenate([batch.copy() for batch in batches(manifest)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * 1600 * 1250 * 3
    one_by_one = [WAY(np.asarray(Image.open(path))[None])[0] for path in sorted(tmp_path.glob("*.png"))]
    np.testing.assert_array_equal(found, np.stack(one_by_one))


def test_the_digest_sees_a_changed_byte_anywhere(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.bmp" for number in range(2)]
    for path in paths:
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    split = Split(Files(paths), np.array([0, 1]))
    made = PictureSet("mine", ("a", "b"), split, split, sample_settings(8))
    before, whole = made.digest(), paths[0].read_bytes()
    assert len(whole) > 3 * 4096
    for place in (60, 5000, len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        paths[0].write_bytes(bytes(changed))
        assert made.digest() != before
    paths[0].write_bytes(whole)
    assert made.digest() == before
