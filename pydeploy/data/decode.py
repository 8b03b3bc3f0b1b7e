"""One picture file as pixels: the only place where pictures are opened.

* Formats that Pillow decodes itself; none that starts other programs.
* The orientation that a camera noted (EXIF) is applied, so that up is up.
* Deeper pixels are scaled to 8 bits: 16-bit ones by their range, floating ones from 0 to 1, and where they do not keep to
  that, from their least to their largest value. Transparency is dropped, CMYK and palettes become RGB.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pydeploy.errors import BackendUnavailable, ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset({".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MODES = {1: "L", 3: "RGB"}
"""Pillow's names by the number of channels."""
ORIENTATION = 0x0112
"""The tag of EXIF; 1 = upright."""
MOST_PIXELS = 178_956_970
"""Pictures beyond this are refused before they are decoded: half a gigabyte in RGB, Pillow's own limit."""


def decode(path: Path | BinaryIO, channels: int = 3) -> NDArray[np.uint8]:
    """The picture in a file, or in its bytes, as ``(H, W, channels)`` uint8.

    `DataError` with the reason, without the path, where it cannot be read.
    """
    if channels not in MODES:
        raise ConfigError(f"pictures have 1 or 3 channels, not {channels}")
    with opened(path) as image:
        pixels = np.array(_eight_bits(image, MODES[channels]), np.uint8)  # writable, as torch wants it
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


@contextmanager
def opened(path: Path | BinaryIO) -> Iterator[Image.Image]:
    """The picture, decoded and upright; `DataError` with the reason where it, or what is done with it inside, fails."""
    try:
        from PIL import Image
    except ImportError:
        raise BackendUnavailable("pictures need the package 'pillow': pip install pillow") from None
    if isinstance(path, Path) and not path.is_file():
        raise DataError("no file" if path.exists() else "missing")
    try:
        with Image.open(path, formats=_formats()) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(f"too large: {image.width} x {image.height} pixels, at most {MOST_PIXELS:,}")
            kind, found = image.format, _upright(image)
            found.format = kind
            yield found
    except FileNotFoundError:
        raise DataError("missing") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None


def pixels_of(path: Path) -> int:
    """How many pixels a picture has, from its header; 0 where that cannot be read (`decode` says why)."""
    from PIL import Image

    try:
        with Image.open(path, formats=_formats()) as image:
            return int(image.width * image.height)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return 0


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    image.load()
    try:
        return image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError):  # damaged notes: the pixels are what counts
        return image


def _eight_bits(image: Image.Image, mode: str) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_scaled(np.asarray(image))).convert(mode)
    if image.mode in ("P", "PA"):  # what is transparent in a palette is spelled in several ways
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _scaled(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Values of more than 8 bits as 0..255."""
    given = values.astype(np.float64)
    if not np.isfinite(given).all():
        raise ValueError("it holds NaN or infinity")
    low, high = (0.0, 1.0) if np.issubdtype(values.dtype, np.floating) else (0.0, 65535.0)
    if given.min() < low or given.max() > high:
        low, high = float(given.min()), float(given.max())
    return np.rint((given - low) * (255.0 / (high - low))).astype(np.uint8)
