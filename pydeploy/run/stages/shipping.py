"""``deploy/`` in a run directory: the one engine to ship, what says how to feed it, and lines of Python that run it."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydeploy.data.deployment import FILE
from pydeploy.errors import ConfigError
from pydeploy.files import read_json, replacing, sha256, write_text
from pydeploy.report import Report
from pydeploy.report.usage import told, usage
from pydeploy.run.artefacts import Files


def ship(report: Report, source: Path, folder: Path) -> None:
    """Fill `folder` with the recommended engine in `source`, its record, its ONNX file, ``preprocessing.json`` and a README.

    Whatever an earlier run of the same directory shipped is replaced. Raises `ConfigError` where the engine was deleted with
    ``--slim`` and another one was shipped.
    """
    here, there = Files(source), Files(folder)
    if not here.engine.is_file():
        if _shipped(source, there):
            return
        raise ConfigError(
            f"the engine in {source} is recommended now, but was deleted with --slim; run again into another folder"
        )
    for name in ("engine", "onnx"):
        _copy(getattr(here, name), getattr(there, name))
    _copy(Path(f"{here.engine}.json"), Path(f"{there.engine}.json"))
    if (source / FILE).is_file():
        _copy(source / FILE, folder / FILE)
    else:
        (folder / FILE).unlink(missing_ok=True)
    write_text(there.readme, f"# {report.model}\n\n{told(report)}\n\n{_indented(usage(report, folder))}\n")


def _shipped(source: Path, there: Files) -> bool:
    """Whether the engine that `source` had lies in the folder already."""
    engine = Files(source).engine
    made = read_json(Files(source).stamp)["files"].get(engine.name)
    return there.engine.is_file() and sha256(there.engine) == made


def _copy(source: Path, target: Path) -> None:
    if target.is_file() and sha256(target) == sha256(source):
        return
    with replacing(target) as partial:
        shutil.copyfile(source, partial)


def _indented(lines: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in lines.splitlines())
