"""A run directory: one folder per stage, stamped with what the stage read, so that finished work is never redone.

A stage folder holds ``started.json`` while it is worked on and ``stamp.json`` once it is complete (written last). Both hold
the settings that the stage reads, files by the hash of their contents, and a hash of each stage before it: of what that read
and of what came out. A result is kept while all of these are what they were. A killed stage keeps its partial files, because
training and tables resume from their own checkpoints; they are thrown away only when what the stage reads has changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydeploy.errors import ConfigError, DataError
from pydeploy.files import read_json, sha256, write_json
from pydeploy.run.artefacts import Files, begun, finished


class Tick(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int, told: str = "") -> None:
        """`told` is what there is to say of the last step."""


class Console(Protocol):
    """Where a run tells what it is doing."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def bar(self, title: str) -> AbstractContextManager[Tick]:
        """A progress bar that disappears when its block ends."""


TRAINED = ("01_train", "07_finetune")
"""Stages whose network took long to make."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a stage's result depends on."""

    settings: Mapping[str, Any]
    """Each setting that the stage reads, as JSON; a file by the hash of its contents."""
    after: Mapping[str, str | None] = field(default_factory=dict)
    """A hash of each stage before it; None where that has still to be made."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What settings are where a config does not name them: a stamp of a version without a setting meant its default."""

    def changes(self, known: Mapping[str, Any]) -> list[str]:
        """How these differ from what a stamp says, in words."""
        return [
            *differences(known.get("settings", {}), self.settings, self.defaults),
            *(f"{stage} was done again" if made is not None else f"{stage} is done again"
              for stage, made in self.after.items() if made is None or known.get("after", {}).get(stage) != made),
        ]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return {"schema": 2, "settings": dict(self.settings), "after": dict(self.after)}


class EarlierStamps(Protocol):
    """What earlier versions wrote into run directories."""

    def objections(self, folder: Path, known: Mapping[str, Any], inputs: Inputs, kept: Sequence[str]) -> list[str]:
        """Why the work in `folder` with the notes `known` may be other than `inputs`; `kept`: earlier stages before it."""

    def recognizes(self, known: Mapping[str, Any]) -> bool:
        """Whether the notes are an earlier version's."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a stage's result stays, and if not, why."""

    stays: bool
    why: str = ""


@dataclass
class RunFolder:
    """The stages of one run, and how long each took."""

    path: Path
    console: Console
    reuse: Path | None = None
    earlier: EarlierStamps | None = None
    doubted: dict[str, str] = field(default_factory=dict)
    """Stages that are done again whatever they read, and why."""
    made: dict[str, str | None] = field(default_factory=dict)
    """A hash of each stage so far, of what it read and its result; None where it has still to be made."""
    from_earlier: list[str] = field(default_factory=list)
    """Stages whose result an earlier version made."""
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, console: Console, *, resume: bool, reuse: Path | None = None,
             earlier: EarlierStamps | None = None) -> RunFolder:  # fmt: skip
        """The folder, created if needed. A folder with finished stages is only entered with `resume`."""
        check_reuse(reuse)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot create {path}: {error.strerror}; choose a writable folder with --out") from None
        if not resume and begun(path):
            raise ConfigError(
                f"{path} already holds a run: pass --resume to continue it, or choose another folder with --out"
            )
        write_json(path / ".writable", {})
        (path / ".writable").unlink()
        return cls(path, console, reuse, earlier)

    @property
    def slimmed(self) -> bool:
        """Whether files were deleted that a stage would need to go on."""
        return any(read_json(path).get("removed") for path in self.path.glob("*/stamp.json"))

    def slim(self) -> int:
        """Delete the files of finished stages that are only needed to go on; returns how many bytes.

        Kept are records, plans, scores, the latency table and the trained networks: all that the report is made from, and what
        took long. The stages' stamps note what is gone, so that it does not count as damage.
        """
        freed = 0
        for stamp in sorted(self.path.glob("*/stamp.json")):
            known, folder = read_json(stamp), stamp.parent
            gone = [name for name in known["files"] if not _kept(folder, name)]
            write_json(stamp, {**known, "removed": sorted({*known.get("removed", []), *gone})})
            for path in [folder / name for name in gone if (folder / name).is_file()]:
                freed += path.stat().st_size
                path.unlink()
            for place in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
                if not any(place.iterdir()):
                    place.rmdir()
        return freed

    def stage(
        self, name: str, settings: Mapping[str, Any], make: Callable[[Path], None], after: Sequence[str] = (),
        defaults: Mapping[str, Any] | None = None,
    ) -> Path:  # fmt: skip
        """The folder of stage `name`, made by ``make(folder)`` unless its finished result stays."""
        folder, inputs = self.path / name, self._inputs(settings, after, defaults)
        verdict = self._judge(folder, inputs)
        if not verdict.stays and self._adopt(name, inputs):
            verdict = Verdict(stays=True)
        if verdict.stays:
            self._keep(folder, inputs)
            self.console.say(f"{name}: finished earlier, kept")
            return folder
        if Files(folder).stamp.is_file():
            self.console.say(f"{name}: done again, because {verdict.why}")
        spent, started = self._begin(folder, inputs), time.monotonic()
        try:
            make(folder)
        finally:
            spent += time.monotonic() - started
            write_json(Files(folder).started, {**inputs.to_json(), "seconds": spent})
        self._stamp(folder, inputs, spent)
        self.doubted.pop(name, None)
        Files(folder).started.unlink()
        self.console.say(f"{name}: done in {spent:.1f} s")
        return folder

    def foresee(
        self, name: str, settings: Mapping[str, Any], after: Sequence[str] = (),
        defaults: Mapping[str, Any] | None = None,
    ) -> Verdict:  # fmt: skip
        """What `stage` would do; nothing is written."""
        folder, inputs = self.path / name, self._inputs(settings, after, defaults)
        verdict = self._judge(folder, inputs)
        if not verdict.stays and self.reuse is not None and self._judge(self.reuse / name, inputs).stays:
            folder, verdict = self.reuse / name, Verdict(stays=True, why=f"taken from {self.reuse}")
        self._remember(folder, read_json(Files(folder).stamp) if verdict.stays else None)
        return verdict

    def _inputs(self, settings: Mapping[str, Any], after: Sequence[str], defaults: Mapping[str, Any] | None) -> Inputs:
        return Inputs(json.loads(json.dumps(settings)), {other: self.made[other] for other in after}, defaults or {})

    def _judge(self, folder: Path, inputs: Inputs) -> Verdict:
        """Whether the folder holds the result of `inputs`, and its files are the ones that were finished."""
        if not Files(folder).stamp.is_file():
            return Verdict(stays=False, why="it was interrupted" if Files(folder).started.is_file() else "it is new")
        known = read_json(Files(folder).stamp)
        changes = self._changes(folder, known, inputs)
        changes += [self.doubted[folder.name]] if folder.name in self.doubted and folder.parent == self.path else []
        gone = frozenset(known.get("removed", ()))
        if folder.parent != self.path and gone - {Files(folder).checkpoint.name}:
            return Verdict(stays=False, why=f"files of it were deleted in {folder.parent} with --slim")
        damaged = [
            name for name, digest in known["files"].items() if name not in gone and not _same(folder / name, digest)
        ]
        changes += [f"{damaged[0]} is missing or was changed"] if damaged else []
        return Verdict(stays=not changes, why="; ".join(changes))

    def _changes(self, folder: Path, known: Mapping[str, Any], inputs: Inputs) -> list[str]:
        if self.earlier is not None and self.earlier.recognizes(known):
            return self.earlier.objections(folder, known, inputs, self.from_earlier)
        return inputs.changes(known)

    def _begin(self, folder: Path, inputs: Inputs) -> float:
        """Keep the partial files of the same work, drop those of other work; returns seconds already spent."""
        notes = Files(folder).started
        if notes.is_file() and not self._changes(folder, known := read_json(notes), inputs):
            return float(known.get("seconds", 0.0))
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        write_json(notes, {**inputs.to_json(), "seconds": 0.0})
        return 0.0

    def _keep(self, folder: Path, inputs: Inputs) -> None:
        """Take note of a result that stays; a stamp of an earlier version is written anew, and says so."""
        known = read_json(Files(folder).stamp)
        if self.earlier is not None and self.earlier.recognizes(known):
            known = {
                **inputs.to_json(),
                "earlier": known["stamp"],
                "seconds": known["seconds"],
                "files": known["files"],
            }
            write_json(Files(folder).stamp, known)
        self._remember(folder, known)

    def _stamp(self, folder: Path, inputs: Inputs, seconds: float) -> None:
        known = {**inputs.to_json(), "seconds": seconds, "files": _hashes(folder)}
        write_json(Files(folder).stamp, known)
        self._remember(folder, known)

    def _remember(self, folder: Path, known: Mapping[str, Any] | None) -> None:
        self.made[folder.name] = _digest([known.get(key) for key in ("settings", "after", "files")]) if known else None
        if known:
            self.seconds[folder.name] = float(known["seconds"])
            if known.get("earlier") or (self.earlier is not None and self.earlier.recognizes(known)):
                self.from_earlier.append(folder.name)

    def _adopt(self, name: str, inputs: Inputs) -> bool:
        """Copy a finished stage with the same inputs from the run given with --reuse."""
        source = self.reuse / name if self.reuse else None
        if source is None or not self._judge(source, inputs).stays:
            return False
        target, partial = self.path / name, self.path / f".{name}.partial"
        for there in (target, partial):
            if there.exists():
                shutil.rmtree(there)
        shutil.copytree(source, partial)
        partial.replace(target)
        return True


def check_reuse(reuse: Path | None) -> None:
    """Raise `ConfigError` where a run directory to take results from holds none."""
    if reuse is not None and not finished(reuse):
        raise ConfigError(
            f"--reuse {reuse} is no run directory with a finished stage; pass the --out of an earlier run"
        )


def differences(was: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Which of the settings `now` are others than in `was`, in words."""
    missing = object()
    found = []
    for key, value in now.items():
        before = was.get(key, defaults.get(key, missing))
        if before != value:
            known = before is not missing and not _is_hash(before) and not _is_hash(value)
            found.append(f"{key} was {_short(before)}, is {_short(value)}" if known else f"{key} is another")
    return found


def _is_hash(value: Any) -> bool:
    return isinstance(value, Mapping) and "sha256" in value


def _short(value: Any, most: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _hashes(folder: Path) -> dict[str, str]:
    """Hashes of a finished stage's files. SQLite's side files and working notes come and go, so they are left out."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    kept = [
        p
        for p in files
        if not p.name.endswith(("-wal", "-shm", ".sqlite"))
        and p not in (Files(p.parent).started, Files(p.parent).stamp)
    ]
    return {str(p.relative_to(folder)): sha256(p) for p in kept}


def _kept(folder: Path, name: str) -> bool:
    """Whether a file outlives `RunFolder.slim`."""
    trained = folder.name in TRAINED and folder / name == Files(folder).weights
    return trained or Path(name).suffix in (".json", ".npz", ".sqlite")


def _same(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest
