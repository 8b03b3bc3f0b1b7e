"""What is drawn on pictures: words on a ground, and colours that are told apart."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from pydeploy.tasks.readings.base import Picture

if TYPE_CHECKING:
    from PIL import ImageFont

GROUND = (0, 0, 0, 160)
WHITE = (255, 255, 255)


def colour(number: int) -> tuple[int, int, int]:
    """A colour of its own for each small number: hues a golden angle apart, in three shades."""
    import colorsys

    hue, shade = (number * 0.6180339887) % 1.0, (1.0, 0.75, 0.55)[number % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, shade)
    return round(255 * red), round(255 * green), round(255 * blue)


def font_size(picture: Picture) -> int:
    """Pixels that suit the picture."""
    height, width, _ = picture.shape
    return max(10, int(min(height, width) / 16))


def written(
    picture: Picture, text: str, at: tuple[float, float] | None = None, ground: tuple[int, ...] = GROUND, size: int | None = None
) -> Picture:  # fmt: skip
    """A copy with white `text` on a ground of that colour; its upper left corner lies at ``(x, y)``, by default the picture's."""
    from PIL import Image, ImageDraw

    size = size or font_size(picture)
    image = Image.fromarray(picture)
    pen, letters = ImageDraw.Draw(image, "RGBA"), font(size)
    text = sayable(text, letters)
    x, y = (0.0, 0.0) if at is None else at
    corner = (x + size * 0.4, y + size * 0.3)
    left, top, right, bottom = pen.multiline_textbbox(corner, text, font=letters)
    pen.rectangle((x, y, right + left - x, bottom + top - y), fill=ground)
    pen.multiline_text(corner, text, font=letters, fill=WHITE)
    return np.array(image, np.uint8)


def sayable(text: str, letters: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, with question marks for what a font without such letters cannot write."""
    try:
        for line in text.splitlines():
            letters.getbbox(line)
    except UnicodeEncodeError:
        return text.encode("ascii", "replace").decode("ascii")
    return text


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)
