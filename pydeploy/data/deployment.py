"""``preprocessing.json``: how whoever deploys an engine has to feed it, and what its outputs mean. Lies beside the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.decode import decode
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import ConfigError, DataError
from pydeploy.files import parsed, write_json

FILE = "preprocessing.json"


@dataclass(frozen=True)
class Deployment:
    """One picture in, outputs that are read as their `kind` says (`pydeploy.tasks.readings`)."""

    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    input: str = "image"
    outputs: tuple[str, ...] = ("logits",)
    kind: str = "classification"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What reading the outputs takes besides, as JSON: thresholds, priors, colours of classes."""
    meaning: str = "logits, one a class; softmax gives scores"
    """The outputs in words, for whoever reads the file."""

    @property
    def channels(self) -> int:
        return len(self.preprocessing.mean)

    def feeds(self, pictures: Sequence[Path | str]) -> dict[str, NDArray[np.float32]]:
        """Files of pictures as the engine's inputs; as many as its batch size. Raises `DataError` that names a bad picture."""
        samples = [self._sample(Path(path)) for path in pictures]
        if len({one.shape for one in samples}) != 1:
            shapes = sorted({one.shape[2:] for one in samples})
            raise DataError(f"the pictures become samples of different sizes {shapes}: the preprocessing has no crop")
        return {self.input: np.concatenate(samples)}

    def _sample(self, path: Path) -> NDArray[np.float32]:
        try:
            return self.preprocessing(decode(path, self.channels)[None])
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """With what the numbers do not say in words: order of channels and of the steps."""
        return {
            "schema": 2,
            "kind": self.kind,
            "input": {"name": self.input, "layout": "NCHW", "type": "float32", "channels": "RGB" if self.channels == 3 else "grey"},
            "preprocessing": self.preprocessing.to_json(),
            "steps": "decode upright; resize (a number: the shorter side); crop the middle; (pixel / 255 - mean) / std",
            "outputs": list(self.outputs),
            "meaning": self.meaning,
            "settings": json.loads(json.dumps(dict(self.settings))),
            "classes": list(self.class_names),
        }  # fmt: skip

    def save(self, folder: Path) -> Path:
        """Write the file into the engine's folder."""
        write_json(folder / FILE, self.to_json())
        return folder / FILE

    @classmethod
    def load(cls, path: Path | str) -> Deployment:
        """Read the file; `DataError` where it is missing or another kind of file."""
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path} does not exist: it says how pictures become the engine's inputs, and is written beside every "
                            "engine of a run; copy it along, or name it with --preprocessing")  # fmt: skip
        return parsed(path, cls.from_json)

    @classmethod
    def from_json(cls, data: Any) -> Deployment:
        """Also of schema 1, which knew classification with one output."""
        try:
            way = Preprocessing.parse(data["preprocessing"], FILE)
            names = tuple(data["classes"])
            older = "outputs" not in data
            outputs = (data["output"]["name"],) if older else tuple(data["outputs"])
            kind = data["task"] if older else data["kind"]
            made = cls(way, names, data["input"]["name"], outputs, kind, dict(data.get("settings", {})))
            made = made if older else replace(made, meaning=data["meaning"])
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise DataError(f"not what an engine's preprocessing is written as ({error})") from None
        if (
            not names
            or not outputs
            or not all(isinstance(name, str) for name in (*names, *outputs, made.input, kind, made.meaning))
        ):
            raise DataError("'classes', 'meaning' and the names of input, outputs and kind must be text")
        return made
