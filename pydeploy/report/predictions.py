"""What an engine says about pictures: labels with scores, as JSON and written on the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.base import Session
from pydeploy.data.decode import decode
from pydeploy.data.deployment import Deployment
from pydeploy.data.folders import pictures_in
from pydeploy.errors import DataError, Mismatch
from pydeploy.files import replacing

MARGIN = 0.03
LINES = 3
"""Labels that are written on a picture."""


@dataclass(frozen=True)
class Prediction:
    """One picture's labels, best first, each with its share of the softmax."""

    path: Path
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""
    """Why the picture could not be read."""

    def to_json(self) -> dict[str, Any]:
        if self.error:
            return {"path": str(self.path), "error": self.error}
        (label, score), *_ = self.top
        return {"path": str(self.path), "label": label, "score": score,
                "top": [{"label": name, "score": value} for name, value in self.top]}  # fmt: skip


def listed(places: Sequence[Path]) -> list[Path]:
    """Picture files as they are, folders by the pictures in them."""
    found = [path for place in places for path in (pictures_in(place) if place.is_dir() else [place])]
    if missing := [path for path in places if not path.exists()]:
        raise DataError(f"{missing[0]} does not exist; give pictures, or folders of them")
    if not found:
        raise DataError(f"no pictures in {', '.join(map(str, places))}")
    return found


def classify(session: Session, way: Deployment, paths: Sequence[Path], most: int = 5) -> Iterator[Prediction]:
    """The best `most` labels of every picture, in order; pictures that cannot be read come with their `error`.

    Raises `Mismatch` where `way` is not that of the engine.
    """
    if len(session.inputs) != 1 or len(session.inputs[0].shape) != 4:
        raise Mismatch(
            f"the engine takes {[spec.name for spec in session.inputs]}; predicting needs one input of pictures"
        )
    batch, *shape = session.inputs[0].shape
    for start in range(0, len(paths), batch):
        chunk = paths[start : start + batch]
        pixels = [_sample(path, way) for path in chunk]
        good = [one for one in pixels if not isinstance(one, str)]
        scores = iter(_scores(session, way, np.stack(good), shape) if _equal(good) else ())
        for path, one in zip(chunk, pixels, strict=True):
            yield (
                Prediction(path, error=one)
                if isinstance(one, str)
                else Prediction(path, _best(next(scores), way, most))
            )


def _sample(path: Path, way: Deployment) -> NDArray[np.uint8] | str:
    try:
        return way.preprocessing.pixels(decode(path, way.channels))
    except DataError as error:
        return str(error)


def _equal(pixels: Sequence[NDArray[np.uint8]]) -> bool:
    """Whether there are any; `Mismatch` where they differ in size."""
    if len(sizes := {one.shape for one in pixels}) > 1:
        raise Mismatch(
            f"the preprocessing makes samples of different sizes ({sorted(sizes)}) of these pictures: it has no crop"
        )
    return bool(pixels)


def _scores(session: Session, way: Deployment, pixels: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.float64]:
    """Softmax over the classes, ``(pictures, classes)``."""
    spec = session.inputs[0]
    samples = replace(way.preprocessing, resize=None, crop=None)(pixels)
    if samples.shape[1:] != tuple(shape):
        raise Mismatch(f"the preprocessing makes samples of {samples.shape[1:]}, the engine takes {tuple(shape)}")
    filled = np.concatenate([samples, np.repeat(samples[-1:], spec.shape[0] - len(samples), 0)]).astype(spec.dtype)
    outputs = session.run({spec.name: filled})
    logits = outputs.get(way.output, next(iter(outputs.values()))).astype(np.float64)[: len(samples)]
    if logits.shape != (len(samples), len(way.class_names)):
        raise Mismatch(
            f"the engine gives {logits.shape[1:]} numbers a picture, the preprocessing names {len(way.class_names)} classes"
        )
    if not np.isfinite(logits).all():
        raise DataError("the engine's output holds NaN or infinity; its weights or ranges are broken")
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return found


def _best(scores: NDArray[np.float64], way: Deployment, most: int) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-scores, kind="stable")[:most]
    return tuple((way.class_names[index], float(scores[index])) for index in order)


def draw(found: Prediction, out: Path) -> None:
    """The picture with its best labels in its upper left corner, as JPEG or whatever the suffix of `out` says."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(decode(found.path))
    size = max(10, round(min(image.size) / 16))
    text = "\n".join(f"{label} {score:.1%}" for label, score in found.top[:LINES])
    pen, font = ImageDraw.Draw(image, "RGBA"), ImageFont.load_default(size)
    try:
        pen.multiline_textbbox((0, 0), text, font=font)
    except UnicodeEncodeError:  # a font without the letters
        text = text.encode("ascii", "replace").decode("ascii")
    left, top, right, bottom = pen.multiline_textbbox((size * 0.4, size * 0.3), text, font=font)
    pen.rectangle((0, 0, right + left, bottom + top), fill=(0, 0, 0, 160))
    pen.multiline_text((size * 0.4, size * 0.3), text, font=font, fill=(255, 255, 255))
    with replacing(out) as partial:
        image.save(partial)
