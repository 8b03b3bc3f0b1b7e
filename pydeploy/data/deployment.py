"""``preprocessing.json``: how whoever deploys an engine has to feed it, and what its outputs mean. Lies beside the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import ConfigError, DataError
from pydeploy.files import parsed, write_json

FILE = "preprocessing.json"


@dataclass(frozen=True)
class Deployment:
    """Pictures in, scores of classes out."""

    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    input: str = "image"
    output: str = "logits"
    task: str = "classification"

    @property
    def channels(self) -> int:
        return len(self.preprocessing.mean)

    def to_json(self) -> dict[str, Any]:
        """With what the numbers do not say in words: order of channels and of the steps."""
        return {
            "schema": 1,
            "task": self.task,
            "input": {"name": self.input, "layout": "NCHW", "type": "float32", "channels": "RGB" if self.channels == 3 else "grey"},
            "preprocessing": self.preprocessing.to_json(),
            "steps": "decode upright; resize (a number: the shorter side); crop the middle; (pixel / 255 - mean) / std",
            "output": {"name": self.output, "meaning": "logits, one a class; softmax gives scores"},
            "classes": list(self.class_names),
        }  # fmt: skip

    def save(self, folder: Path) -> Path:
        """Write the file into the engine's folder."""
        write_json(folder / FILE, self.to_json())
        return folder / FILE

    @classmethod
    def load(cls, path: Path) -> Deployment:
        """Read the file; `DataError` where it is missing or another kind of file."""
        if not path.is_file():
            raise DataError(f"{path} does not exist: it says how pictures become the engine's inputs, and is written beside every "
                            "engine of a run; copy it along, or name it with --preprocessing")  # fmt: skip
        return parsed(path, cls.from_json)

    @classmethod
    def from_json(cls, data: Any) -> Deployment:
        try:
            way = Preprocessing.parse(data["preprocessing"], FILE)
            names = tuple(data["classes"])
            made = cls(way, names, data["input"]["name"], data["output"]["name"], data["task"])
        except (KeyError, TypeError, AttributeError, ConfigError) as error:
            raise DataError(f"not what an engine's preprocessing is written as ({error})") from None
        if not names or not all(isinstance(name, str) for name in (*names, made.input, made.output, made.task)):
            raise DataError("'classes' and the names of input, output and task must be text")
        return made
