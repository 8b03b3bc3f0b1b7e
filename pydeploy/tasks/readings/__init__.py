"""What engines' outputs mean, one file a kind: read as a record and drawn on the picture. Works without PyTorch.

`READINGS` has the class of each kind by name. A class is made of the `Deployment` beside the engine.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from pydeploy.data.deployment import Deployment
from pydeploy.errors import ConfigError, nearest
from pydeploy.tasks.readings.base import Reading

READINGS: Mapping[str, str] = {
    "classification": "pydeploy.tasks.readings.classification:Labels",
    "segmentation": "pydeploy.tasks.readings.segmentation:Masks",
    "detection": "pydeploy.tasks.readings.detection:Boxes",
    "inspection": "pydeploy.tasks.readings.inspection:Heat",
}
"""``module:class`` by kind; imported when an engine of the kind is read."""


def reading_of(way: Deployment) -> Reading:
    """The reading of an engine's outputs. Raises `ConfigError` for a kind that is unknown, `DataError` for wrong settings."""
    if way.kind not in READINGS:
        raise ConfigError(f"nothing is known of outputs of the kind '{way.kind}'{nearest(way.kind, READINGS)}")
    module, _, name = READINGS[way.kind].partition(":")
    made: Reading = getattr(importlib.import_module(module), name)(way)
    return made
