"""A run directory: one folder per stage, stamped with a hash of its inputs, so that finished work is never redone.

A stage folder holds ``started.json`` while it is worked on and ``stamp.json`` once it is complete (written last). A
killed stage keeps its partial files, because training and tables resume from their own checkpoints; they are thrown
away only when the stage's inputs have changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydeploy.errors import ConfigError, DataError
from pydeploy.files import read_json, sha256, write_json

Tick = Callable[[int, int], None]
"""``tick(done, total)``: moves a progress bar."""


class Console(Protocol):
    """Where a run tells what it is doing."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def bar(self, title: str) -> AbstractContextManager[Tick]:
        """A progress bar that disappears when its block ends."""


@dataclass
class RunFolder:
    """The stages of one run, and how long each took."""

    path: Path
    console: Console
    reuse: Path | None = None
    stamps: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, console: Console, *, resume: bool, reuse: Path | None = None) -> RunFolder:
        """The folder, created if needed. A folder with finished stages is only entered with `resume`."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot create {path}: {error.strerror}; choose a writable folder with --out") from None
        if not resume and any(path.glob("*/st*.json")):
            raise ConfigError(
                f"{path} already holds a run: pass --resume to continue it, or choose another folder with --out"
            )
        if reuse is not None and not reuse.is_dir():
            raise ConfigError(f"--reuse {reuse}: no such run directory")
        write_json(path / ".writable", {})
        (path / ".writable").unlink()
        return cls(path, console, reuse)

    def stage(
        self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], None], after: tuple[str, ...] = ()
    ) -> Path:
        """The folder of stage `name`, made by ``make(folder)`` unless a finished one with the same inputs exists.

        `inputs` is whatever the result depends on besides the stages named in `after`.
        """
        stamp = _digest({"inputs": inputs, "after": {other: self.stamps[other] for other in after}})
        self.stamps[name] = stamp
        folder = self.path / name
        if not self._finished(folder, stamp):
            self._adopt(name, stamp)
        if self._finished(folder, stamp):
            self.seconds[name] = float(read_json(folder / "stamp.json")["seconds"])
            self.console.say(f"{name}: finished earlier, kept")
            return folder
        spent = self._begin(folder, stamp)
        started = time.monotonic()
        try:
            make(folder)
        finally:
            spent += time.monotonic() - started
            write_json(folder / "started.json", {"stamp": stamp, "seconds": spent})
        write_json(folder / "stamp.json", {"stamp": stamp, "seconds": spent, "files": _hashes(folder)})
        (folder / "started.json").unlink()
        self.seconds[name] = spent
        self.console.say(f"{name}: done in {spent:.1f} s")
        return folder

    def again(self, pattern: str, why: str) -> None:
        """Have the finished stages whose names fit `pattern` done again, because of `why`."""
        for stamp in sorted(self.path.glob(f"{pattern}/stamp.json")):
            stamp.unlink()
            self.console.say(f"{stamp.parent.name}: {why}, so this stage is done again")

    def _begin(self, folder: Path, stamp: str) -> float:
        """Keep the partial files of the same work, drop those of other work; returns seconds already spent."""
        notes = folder / "started.json"
        if notes.is_file():
            known = read_json(notes)
            if known.get("stamp") == stamp:
                return float(known.get("seconds", 0.0))
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        write_json(notes, {"stamp": stamp, "seconds": 0.0})
        return 0.0

    def _finished(self, folder: Path, stamp: str) -> bool:
        """True when the folder holds this very work and its files are the ones that were finished."""
        notes = folder / "stamp.json"
        if not notes.is_file():
            return False
        known = read_json(notes)
        if known.get("stamp") != stamp:
            return False
        damaged = [name for name, digest in known["files"].items() if not _same(folder / name, digest)]
        if damaged:
            self.console.say(f"{folder.name}: {damaged[0]} is missing or was changed, so this stage is done again")
        return not damaged

    def _adopt(self, name: str, stamp: str) -> None:
        """Copy a finished stage with the same inputs from the run given with --reuse."""
        source = self.reuse / name if self.reuse else None
        if source is None or not self._finished(source, stamp):
            return
        target = self.path / name
        if target.exists():
            shutil.rmtree(target)
        partial = self.path / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        partial.replace(target)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _hashes(folder: Path) -> dict[str, str]:
    """Hashes of a finished stage's files. SQLite's side files and working notes come and go, so they are left out."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    kept = [
        p
        for p in files
        if not p.name.endswith(("-wal", "-shm", ".sqlite")) and p.name not in ("started.json", "stamp.json")
    ]
    return {str(p.relative_to(folder)): sha256(p) for p in kept}


def _same(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest
