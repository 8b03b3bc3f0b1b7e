"""Tasks by the names that a config gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydeploy.errors import ConfigError
from pydeploy.guests.names import Names
from pydeploy.guests.resolve import call
from pydeploy.tasks.contract import Task
from pydeploy.tasks.metric import Metric

TASKS: Names[Callable[..., Task]] = Names(
    kind="task",
    expected="a class that follows pydeploy.tasks.contract.Task",
    known={
        "classification": "pydeploy.tasks.classify:classification",
        "segmentation": "pydeploy.tasks.segment:segmentation",
        "detection": "pydeploy.tasks.detection.named:detection",
        "inspection": "pydeploy.tasks.inspecting:inspection",
    },
    group="pydeploy.tasks",
)
"""Each task's class or factory; its parameters are the task's settings."""


def build_task(name: str, **settings: Any) -> Task:
    """The named task; raises `ConfigError` for an unknown name or setting, `DataError` where its data are missing."""
    own = name in TASKS.known
    task = call(f"task '{name}'" if own else name, TASKS.find(name), settings, own=own)
    if not isinstance(task, Task):
        raise ConfigError(f"{name} gives a {type(task).__name__}; expected {TASKS.expected}")
    if not isinstance(getattr(task, "metric", None), Metric):
        raise ConfigError(
            f"{name}: 'metric' is {getattr(task, 'metric', None)!r}; expected a pydeploy.tasks.metric.Metric"
        )
    return task
