"""The file under a latency table: SQLite, one target per file, crash-safe, shared by several processes.

* Write-ahead logging and one transaction per probe: a process killed anywhere loses no finished probe.
* Nothing is deleted: what a faster level of the device makes obsolete is flagged as disturbed (`flag`).
* `turn` lets one process at a time measure: two would disturb each other. A killed process frees its turn.
* A file is created whole and then linked into place, so two processes may start the same table.
* Connections are opened per operation, so a table holds no handle and may be used after a fork.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydeploy.errors import DataError
from pydeploy.graph import OpKey, Widths
from pydeploy.timing.records import Padding, Target, Timing

SCHEMA = 2
_APPLICATION = 0x70644C54  # "pdLT" in SQLite's application_id: tells our files from other databases
_BUSY_S = 30.0

_TIMING = """n INTEGER NOT NULL, median_us REAL NOT NULL, p10_us REAL NOT NULL, p90_us REAL NOT NULL,
  disturbed INTEGER NOT NULL, interval REAL NOT NULL, outliers INTEGER NOT NULL"""
_PROVENANCE = """source TEXT NOT NULL, probe TEXT NOT NULL, date TEXT NOT NULL, version TEXT NOT NULL,
  reference_us REAL NOT NULL"""
_CREATE = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE samples (key TEXT NOT NULL, {_TIMING}, {_PROVENANCE});
CREATE TABLE networks (graph TEXT NOT NULL, widths TEXT NOT NULL, layers_us REAL NOT NULL, {_TIMING}, {_PROVENANCE});
CREATE INDEX samples_key ON samples (key);
CREATE INDEX networks_graph ON networks (graph);
"""
_CREATE_PADDING = """CREATE TABLE IF NOT EXISTS padding (key TEXT NOT NULL, cin INTEGER NOT NULL, cout INTEGER NOT NULL,
  probe TEXT NOT NULL)"""  # only in files of runtimes that tell it


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a measurement comes from: 'probe', 'engine' or a foreign file, the probe's id, UTC date, pydeploy version."""

    source: str
    probe: str
    date: str
    version: str
    reference_us: float = 0.0
    """The reference engine's time that the samples are scaled to (0 = there was none)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One layer's samples in one network."""

    key: OpKey
    timing: Timing
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Network:
    """One whole network's samples; `layers_us` is the sum of its layers' medians."""

    graph: str
    widths: Widths
    """Of all prunable groups."""
    layers_us: float
    whole: Timing
    provenance: Provenance

    @property
    def plan(self) -> frozenset[tuple[str, int]]:
        """`widths` as a key: networks of equal widths are measurements of one network."""
        return frozenset(self.widths.items())


@dataclass(frozen=True, slots=True)
class Padded:
    """The channel multiples that one layer reads and writes in one network (`pydeploy.timing.records.Padding`)."""

    key: OpKey
    padding: Padding
    probe: str


def create(path: Path, target: Target) -> None:
    """Make an empty table file at `path`; does nothing when another process was faster."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise DataError(f"cannot create {path}: {error.strerror}; choose a writable folder with free space") from None
    partial = Path(name)
    meta = {
        "schema": str(SCHEMA),
        "target": json.dumps(target.to_json(), sort_keys=True),
        "fingerprint": target.fingerprint,
    }
    try:
        with _connection(partial) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.executescript(_CREATE)
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        partial.chmod(0o644)
        _link(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _link(partial: Path, path: Path) -> None:
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            partial.replace(path)


def read_target(path: Path) -> Target:
    """The target that the table at `path` belongs to. `DataError` for anything but a sound table file."""
    if not path.is_file():
        raise DataError(
            f"no latency table at {path}; make one with: pydeploy table measure MODEL --target ... --db {path}"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty, so it is not a latency table; delete it and measure again")
    with _connection(path) as connection:
        if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            raise DataError(f"{path} is an SQLite file, but not a latency table of pydeploy; choose another path")
        problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise DataError(f"{path} is damaged ({problem}); restore it from an export or measure again")
        meta = dict(connection.execute("SELECT name, value FROM meta"))
    if meta.get("schema") != str(SCHEMA):
        raise DataError(f"{path} has table schema {meta.get('schema')}, this version reads {SCHEMA}; measure again")
    return Target.from_json(json.loads(meta["target"]))


@contextmanager
def _connection(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)) as connection:
            yield connection
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise DataError(f"{path} was locked by another process for {_BUSY_S:.0f} s; try again") from None
        raise DataError(f"cannot use {path}: {error}; is the folder writable and the disk not full?") from None
    except sqlite3.DatabaseError as error:
        raise DataError(
            f"{path} is not a readable latency table ({error}): it is damaged or another kind of file; "
            "restore it from an export or measure again"
        ) from None


def append(
    path: Path, samples: Iterable[Sample], networks: Iterable[Network] = (), padded: Iterable[Padded] = ()
) -> None:
    """Add all rows in one transaction."""
    formats = [padded_row(one) for one in padded]
    rows = [tuple(sample_row(s).values()) for s in samples]
    wholes = [tuple(network_row(n).values()) for n in networks]
    with _connection(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.executemany("INSERT INTO networks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", wholes)
        if formats:
            connection.execute(_CREATE_PADDING)
            connection.executemany("INSERT INTO padding VALUES (?, ?, ?, ?)", formats)
        connection.execute("COMMIT")


def flag(path: Path, probes: Iterable[str]) -> None:
    """Mark all rows of `probes` as disturbed, so that newer ones count instead."""
    names = [(name,) for name in probes]
    with _connection(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("UPDATE samples SET disturbed = 1 WHERE probe = ?", names)
        connection.executemany("UPDATE networks SET disturbed = 1 WHERE probe = ?", names)
        connection.execute("COMMIT")


def set_note(path: Path, name: str, value: str) -> None:
    """Keep a further fact beside the target, such as the model's input shapes."""
    with _connection(path) as connection:
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"note:{name}", value))


def note(path: Path, name: str) -> str:
    """A fact that `set_note` kept; '' where there is none."""
    with _connection(path) as connection:
        row = connection.execute("SELECT value FROM meta WHERE name = ?", (f"note:{name}",)).fetchone()
    return str(row[0]) if row else ""


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait until no other process measures for this table, and keep others waiting meanwhile."""
    with path.with_name(path.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read(path: Path) -> tuple[list[Sample], list[Network]]:
    """All rows, in order of insertion."""
    with _connection(path) as connection:
        connection.execute("BEGIN")  # both tables as of one moment
        samples = connection.execute("SELECT * FROM samples ORDER BY rowid").fetchall()
        networks = connection.execute("SELECT * FROM networks ORDER BY rowid").fetchall()
        connection.execute("COMMIT")
    return [sample_from(row) for row in samples], [network_from(row) for row in networks]


def read_padding(path: Path) -> list[Padded]:
    """What runtimes told of padded channels, in order of insertion."""
    with _connection(path) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'padding'").fetchone():
            return []
        rows = connection.execute("SELECT key, cin, cout, probe FROM padding ORDER BY rowid").fetchall()
    return [padded_from(row) for row in rows]


def probes(path: Path) -> set[str]:
    """Ids of all probes in the file now, other processes' included."""
    with _connection(path) as connection:
        return {str(name) for (name,) in connection.execute("SELECT DISTINCT probe FROM networks")}


def sample_from(row: tuple[Any, ...]) -> Sample:
    key, *rest = row
    return Sample(_key(str(key)), _as_timing(*rest[:7]), _as_provenance(*rest[7:]))


def network_from(row: tuple[Any, ...]) -> Network:
    graph, widths, layers, *rest = row
    kept = {str(name): int(width) for name, width in json.loads(widths).items()}
    return Network(str(graph), kept, float(layers), _as_timing(*rest[:7]), _as_provenance(*rest[7:]))


def padded_from(row: Iterable[Any]) -> Padded:
    key, cin, cout, probe = row
    return Padded(_key(str(key)), (int(cin), int(cout)), str(probe))


def padded_row(padded: Padded) -> list[Any]:
    """A flat, JSON-ready form that `padded_from` reads."""
    return [_text(padded.key), *padded.padding, padded.probe]


def _as_timing(n: Any, median: Any, p10: Any, p90: Any, disturbed: Any, interval: Any, outliers: Any) -> Timing:
    return Timing(int(n), float(median), float(p10), float(p90), bool(int(disturbed)), float(interval), int(outliers))


def _as_provenance(source: Any, probe: Any, date: Any, version: Any, reference_us: Any) -> Provenance:
    return Provenance(str(source), str(probe), str(date), str(version), float(reference_us))


def _timing(timing: Timing) -> tuple[int, float, float, float, int, float, int]:
    return (timing.n, timing.median_us, timing.p10_us, timing.p90_us, int(timing.disturbed), timing.interval,
            timing.outliers)  # fmt: skip


def _provenance(provenance: Provenance) -> tuple[str, str, str, str, float]:
    return provenance.source, provenance.probe, provenance.date, provenance.version, provenance.reference_us


@lru_cache(maxsize=1 << 16)
def _key(text: str) -> OpKey:
    return OpKey.from_list(json.loads(text))


def _text(key: OpKey) -> str:
    return json.dumps(key.to_list(), separators=(",", ":"))


SAMPLE_COLUMNS = ("key", "n", "median_us", "p10_us", "p90_us", "disturbed", "interval", "outliers",
                  "source", "probe", "date", "version", "reference_us")  # fmt: skip
NETWORK_COLUMNS = ("graph", "widths", "layers_us", *SAMPLE_COLUMNS[1:])


def sample_row(sample: Sample) -> dict[str, Any]:
    """A flat, JSON-ready form, columns in the file's order."""
    values = (_text(sample.key), *_timing(sample.timing), *_provenance(sample.provenance))
    return dict(zip(SAMPLE_COLUMNS, values, strict=True))


def network_row(network: Network) -> dict[str, Any]:
    """A flat, JSON-ready form, columns in the file's order."""
    widths = json.dumps(dict(network.widths), sort_keys=True)
    values = (network.graph, widths, network.layers_us, *_timing(network.whole), *_provenance(network.provenance))
    return dict(zip(NETWORK_COLUMNS, values, strict=True))
