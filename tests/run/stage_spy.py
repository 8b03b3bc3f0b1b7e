"""What a stage really reads: a job and artefacts that take notes of every setting and every stage's folder that is used."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from pydeploy.profiling import agreement
from pydeploy.run.artefacts import Artefacts
from pydeploy.run.job import Job
from pydeploy.run.stages.engines import check_samples
from pydeploy.settings import Settings, leaves


class SettingsSpy:
    """A section of a config; `seen` gets the dotted name of each setting that is read."""

    def __init__(self, section: Settings, path: str, seen: set[str]) -> None:
        self._section, self._path, self._seen = section, path, seen

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._section, name)
        if isinstance(value, Settings):
            return SettingsSpy(value, f"{self._path}{name}.", self._seen)
        if name in type(self._section).model_fields and value is not None:
            self._seen.add(f"{self._path}{name}")
        elif name in type(self._section).model_fields:
            self._seen.add(f"{self._path}{name}?")  # absent: whether it is there was asked
        return value

    def model_dump(self, *, include: set[str] | None = None, **more: Any) -> dict[str, Any]:
        found = self._section.model_dump(include=include, **more)
        self._seen.update(
            key for key in leaves(self._section, self._path) if key[len(self._path) :].split(".")[0] in found
        )
        return found


class Passing:
    """Anything else that belongs to a job; using it means to read `settings`."""

    def __init__(self, real: Any, seen: set[str], settings: tuple[str, ...], more: dict[str, str]) -> None:
        self._real, self._seen, self._settings, self._more = real, seen, settings, more

    def __getattr__(self, name: str) -> Any:
        self._seen.update(self._settings)
        if name in self._more:
            self._seen.add(self._more[name])
        return getattr(self._real, name)


class JobSpy:
    """A `Job` for stage functions."""

    def __init__(self, job: Job) -> None:
        self.seen: set[str] = set()
        self.config = SettingsSpy(job.config, "", self.seen)
        self.task = Passing(job.task, self.seen, ("task",), {})
        self.backend = Passing(job.backend, self.seen, ("target",), {})
        self.console, self.guest, self._job = job.console, job.guest, job
        self.shared = {"samples": list(islice(check_samples(job), agreement.SAMPLES))}

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def manifest(self) -> Any:
        self.seen.add("quantize.calibration")
        return self._job.manifest


class ArtefactsSpy:
    """`Artefacts`; `seen` gets the stages whose folders are asked for."""

    def __init__(self, root: Path) -> None:
        self._real, self.seen = Artefacts(root), set[str]()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if isinstance(value, Path):
            return self._noted(value)
        return lambda *given: self._noted(value(*given))

    def _noted(self, path: Path) -> Path:
        if path != self._real.root and path.exists():
            self.seen.add(path.relative_to(self._real.root).parts[0])
        return path
