"""What every kind of outputs is read by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.deployment import Deployment
from pydeploy.errors import DataError, Mismatch

Outputs = Mapping[str, NDArray[Any]]
"""One sample's outputs by name, without the axis of samples."""
Picture = NDArray[np.uint8]
"""``(H, W, 3)``."""


class Reading(ABC):
    """Outputs of one sample to a record, and the record on its picture.

    Places in a record are in pixels of the network's input, whose height and width it holds as ``size``; a picture that is
    drawn on may be larger or smaller, and what is drawn is scaled with it.
    """

    def __init__(self, way: Deployment) -> None:
        self.way = way

    @abstractmethod
    def read(self, outputs: Outputs) -> dict[str, Any]:
        """What the outputs of one sample say, as JSON. Raises `Mismatch` for outputs of other shapes than `way` describes."""

    @abstractmethod
    def draw(self, picture: Picture, record: Mapping[str, Any]) -> Picture:
        """A copy of the picture with the record drawn on it, of any size that suits."""

    @abstractmethod
    def headline(self, record: Mapping[str, Any]) -> str:
        """The record in a few words, for a line of a table."""

    def output(self, outputs: Outputs, name: str, *, ndim: int) -> NDArray[np.float64]:
        """One output as float64. Raises `Mismatch` where it is missing or has another number of axes, `DataError` for NaN."""
        if name not in outputs:
            raise Mismatch(f"the engine gives {', '.join(outputs)}; the preprocessing names the output '{name}'")
        found = outputs[name].astype(np.float64)
        if found.ndim != ndim:
            raise Mismatch(f"output '{name}' has the shape {found.shape} a picture; {self.way.kind} reads {ndim} axes")
        if not np.isfinite(found).all():
            raise DataError("the engine's output holds NaN or infinity; its weights or ranges are broken")
        return found
