"""What a run knows of each of its engines and of its latency table: records, checked when they are written and when they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pydeploy.errors import DataError
from pydeploy.files import read_json, write_json
from pydeploy.tasks.metric import MetricTable
from pydeploy.timing.records import Timing

Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    """A JSON file. Unknown, missing and wrong entries are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        write_json(path, self.model_dump(mode="json"))


class EngineFacts(_Record):
    """One built engine of a run."""

    latency: Timing
    """Measured when it was built; engines are compared by what is measured in turns at the end."""
    metrics: dict[str, float]
    """The task's metrics over the whole test set, computed from the engine's outputs."""
    tables: dict[str, MetricTable] = Field(default_factory=dict)
    """What explains them: values of each class, a confusion matrix."""
    params: Count
    macs: Count
    precision: str
    target: str
    """`Target.fingerprint` of what it was measured on."""
    bytes: Count
    """Size of the engine's file."""
    onnx_bytes: Count


class TableFacts(_Record):
    """How the latency table was measured."""

    probes: Count
    keys: Count
    disturbed: Count
    """Probe networks of which there is no measurement but under other load."""
    seconds: Annotated[float, Field(ge=0)]


Record = TypeVar("Record", bound=_Record)


def load(kind: type[Record], path: Path) -> Record:
    """The record of this kind in a file; `DataError` that names the file and what is wrong with it."""
    data = read_json(path)
    try:
        return kind.model_validate_json(json.dumps(data))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path}: '{place}' {first['msg'].removeprefix('Input ')}; delete the folder and run again with --resume"
        ) from None
