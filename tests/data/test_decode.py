"""Every kind of picture becomes the same 8 bits that its pixels stand for."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pydeploy.data.decode import decode
from pydeploy.data.images import batches
from pydeploy.data.manifest import Manifest
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (9, 14, 3), np.uint8)
GREY = RNG.integers(0, 256, (9, 14), np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_lossless_formats_give_their_pixels(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RGB).save(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(decode(tmp_path / f"x.{suffix}"), RGB)
    Image.fromarray(GREY).save(tmp_path / f"g.{suffix}")
    np.testing.assert_array_equal(decode(tmp_path / f"g.{suffix}"), np.repeat(GREY[:, :, None], 3, 2))
    np.testing.assert_array_equal(decode(tmp_path / f"g.{suffix}", 1), GREY[:, :, None])


def test_transparency_is_dropped_and_palettes_become_colours(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 256, (9, 14, 1), np.uint8)
    Image.fromarray(np.concatenate([RGB, alpha], 2)).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(decode(tmp_path / "rgba.png"), RGB)
    Image.fromarray(np.stack([GREY, alpha[..., 0]], 2)).save(tmp_path / "la.png")
    np.testing.assert_array_equal(decode(tmp_path / "la.png", 1), GREY[:, :, None])
    few = (RGB // 128 * 255).astype(np.uint8)
    picture = Image.fromarray(few).quantize(8)
    picture.info["transparency"] = bytes([0, 255, 128, 7, 9, 11, 200, 3])
    picture.save(tmp_path / "p.png")
    np.testing.assert_array_equal(decode(tmp_path / "p.png"), np.asarray(picture.convert("RGBA"))[..., :3])


def test_cmyk_and_one_bit(tmp_path: Path) -> None:
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "x.tiff")
    np.testing.assert_allclose(decode(tmp_path / "x.tiff").astype(int), RGB, atol=1)
    Image.fromarray(GREY > 127).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(decode(tmp_path / "bit.png", 1)[..., 0], np.where(GREY > 127, 255, 0))


@pytest.mark.parametrize("name", ["x.png", "x.tiff"])
def test_sixteen_bits_are_scaled_by_their_range(tmp_path: Path, name: str) -> None:
    deep = np.linspace(0, 65535, 9 * 14).reshape(9, 14).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / name)
    expected = np.rint(deep / 65535 * 255)
    np.testing.assert_array_equal(decode(tmp_path / name, 1)[..., 0], expected)
    np.testing.assert_array_equal(decode(tmp_path / name, 3)[..., 2], expected)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (700.0, -30.0)])
def test_floats_are_zero_to_one_or_their_own_range(tmp_path: Path, scale: float, shift: float) -> None:
    values = (np.linspace(0, 1, 9 * 14).reshape(9, 14) * scale + shift).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "f.tiff")
    np.testing.assert_allclose(
        decode(tmp_path / "f.tiff", 1)[..., 0], np.linspace(0, 255, 9 * 14).reshape(9, 14), atol=0.51
    )


TURNS = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
         6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90}  # fmt: skip
"""How stored pixels are turned to be upright, by the EXIF tag 0x0112."""


@pytest.mark.parametrize("orientation", TURNS)
def test_the_orientation_of_the_camera_is_honoured(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / "x.png"), TURNS[orientation](RGB))


def test_what_is_no_picture_is_one_reason(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.jpg", quality=95)
    whole = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (("cut.jpg", "damaged"), ("text.png", "damaged"), ("empty.png", "damaged"), ("script.png", "damaged"),
                         ("pipe.png", "no file"), ("none.png", "missing"), (".", "no file")):  # fmt: skip
        with pytest.raises(DataError, match=reason):
            decode(tmp_path / name)


def test_pictures_beyond_memory_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    head = b"P6 60000 60000 255\n"
    (tmp_path / "huge.ppm").write_bytes(head + b"\0" * 100)
    with pytest.raises(DataError, match=r"too large|damaged: Image size"):
        decode(tmp_path / "huge.ppm")


def test_calibration_sees_upright_pictures_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "set").mkdir()
    Image.fromarray(RGB).save(tmp_path / "set" / "x.png", exif=exif)
    way = Preprocessing((0.5,) * 3, (0.25,) * 3)
    found = np.concatenate(
        [part.copy() for part in batches(Manifest("./set", count=1, preprocessing=way, folder=tmp_path))]
    )
    np.testing.assert_array_equal(found, way(np.rot90(RGB, -1)[None]))


def test_pixels_are_the_sample_before_it_is_normalized() -> None:
    way = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 20, (16, 12), "bicubic")
    image = RNG.integers(0, 256, (37, 51, 3), np.uint8)
    plain = Preprocessing(way.mean, way.std)
    np.testing.assert_array_equal(plain(way.pixels(image)[None]), way(image[None]))
    assert Preprocessing.parse(way.to_json(), "here") == way
