"""What an engine says about pictures: one record a picture, by the reading of its kind of outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from pydeploy.tasks.readings.base import Picture, Reading


@dataclass(frozen=True)
class Prediction:
    """One picture's record, or why the picture could not be read."""

    path: Path
    record: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.path), **({"error": self.error} if self.error else self.record)}


def listed(places: Sequence[Path]) -> list[Path]:
    """Picture files as they are, folders by the pictures in them."""
    found = [path for place in places for path in (pictures_in(place) if place.is_dir() else [place])]
    if missing := [path for path in places if not path.exists()]:
        raise DataError(f"{missing[0]} does not exist; give pictures, or folders of them")
    if not found:
        raise DataError(f"no pictures in {', '.join(map(str, places))}")
    return found


def predictions(session: Session, reading: Reading, paths: Sequence[Path]) -> Iterator[Prediction]:
    """The record of every picture, in order; pictures that cannot be read come with their `error`.

    Raises `Mismatch` where the reading's preprocessing is not that of the engine.
    """
    if len(session.inputs) != 1 or len(session.inputs[0].shape) != 4:
        raise Mismatch(
            f"the engine takes {[spec.name for spec in session.inputs]}; predicting needs one input of pictures"
        )
    batch = session.inputs[0].shape[0]
    for start in range(0, len(paths), batch):
        chunk = paths[start : start + batch]
        pixels = [_sample(path, reading.way) for path in chunk]
        good = [one for one in pixels if not isinstance(one, str)]
        records = iter(_records(session, reading, np.stack(good)) if _equal(good) else ())
        for path, one in zip(chunk, pixels, strict=True):
            yield Prediction(path, error=one) if isinstance(one, str) else Prediction(path, next(records))


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


def _records(session: Session, reading: Reading, pixels: NDArray[np.uint8]) -> list[dict[str, Any]]:
    spec = session.inputs[0]
    samples = replace(reading.way.preprocessing, resize=None, crop=None)(pixels)
    if samples.shape[1:] != tuple(spec.shape[1:]):
        raise Mismatch(
            f"the preprocessing makes samples of {samples.shape[1:]}, the engine takes {tuple(spec.shape[1:])}"
        )
    filled = np.concatenate([samples, np.repeat(samples[-1:], spec.shape[0] - len(samples), 0)]).astype(spec.dtype)
    outputs = session.run({spec.name: filled})
    if len(outputs) == len(reading.way.outputs) == 1:  # an engine whose only output has another name
        outputs = dict(zip(reading.way.outputs, outputs.values(), strict=True))
    return [reading.read({name: array[index] for name, array in outputs.items()}) for index in range(len(pixels))]


def shown(path: Path, way: Deployment) -> Picture:
    """What is drawn on: the whole picture, or, where the preprocessing cuts out its middle, what the network sees of it."""
    picture = decode(path)
    rows = way.preprocessing.crop is not None and way.kind != "classification"
    return way.preprocessing.pixels(picture) if rows else picture


def save_picture(picture: Picture, out: Path) -> None:
    """Write a picture in the format of the suffix of `out`, atomically."""
    from PIL import Image

    with replacing(out) as partial:
        Image.fromarray(picture).save(partial)
