"""Curves of a training, written by TensorBoard or whatever else accelerate knows, when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from pydeploy.errors import BackendUnavailable, ConfigError, nearest

EVERY = 10
"""Steps from one point of a curve to the next."""

Step = Callable[[int, int, Mapping[str, float]], None]


def track_named(track: str | None) -> str | None:
    """`track`; raises `ConfigError` for a name that accelerate does not know, `BackendUnavailable` for what is not installed."""
    if track is None:
        return None
    if track not in LOGGER_TYPE_TO_CLASS:
        raise ConfigError(f"unknown tracker '{track}'{nearest(track, LOGGER_TYPE_TO_CLASS)}; known to accelerate: "
                          f"{', '.join(LOGGER_TYPE_TO_CLASS)}")  # fmt: skip
    if track not in {str(getattr(one, "value", one)) for one in get_available_trackers()}:
        raise BackendUnavailable(f"the tracker '{track}' needs its package: pip install {track}")
    return track


class Tracking:
    """Writes while its block runs; with no `track` it does nothing."""

    def __init__(self, accelerator: Accelerator, track: str | None, out: Path, done: int) -> None:
        self.accelerator, self.track, self.out, self.done = accelerator, track, out, done

    def __enter__(self) -> Tracking:
        if self.track is not None:
            self.accelerator.init_trackers("curves")
        return self

    def __exit__(self, *_: object) -> None:
        if self.track is not None:
            self.accelerator.end_training()

    def step(self, progress: Step | None) -> Step:
        """What is called after every step: `progress`, and every few steps a point of each curve."""

        def told(done: int, total: int, numbers: Mapping[str, float]) -> None:
            self.done = done
            if self.track is not None and done % EVERY == 0:
                self.accelerator.log({f"step/{name}": value for name, value in numbers.items()}, step=done)
            if progress is not None:
                progress(done, total, numbers)

        return told

    def epoch(self, record: Any) -> None:
        """A point of each curve of epochs."""
        if self.track is not None:
            found = asdict(record)
            parts = found.pop("parts") or {}
            numbers = {name: value for name, value in {**found, **parts}.items() if isinstance(value, int | float)}
            self.accelerator.log({f"epoch/{name}": value for name, value in numbers.items()}, step=self.done)
