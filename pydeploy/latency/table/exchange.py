"""Latency tables as CSV and JSON, for people, spreadsheets and other machines. Both read back what they write."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from pydeploy.errors import DataError, Mismatch
from pydeploy.files import read_json, write_json, write_text
from pydeploy.latency.table.store import (
    NETWORK_COLUMNS,
    SAMPLE_COLUMNS,
    SCHEMA,
    Network,
    Padded,
    Sample,
    network_from,
    network_row,
    padded_from,
    padded_row,
    sample_from,
    sample_row,
)
from pydeploy.timing.records import Target


def to_csv(path: Path, target: Target, samples: Sequence[Sample]) -> None:
    """One line per sample set; the last column is the target's fingerprint."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*SAMPLE_COLUMNS, "target"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**sample_row(sample), "target": target.fingerprint} for sample in samples)
    write_text(path, text.getvalue())


def to_json(
    path: Path, target: Target, samples: Sequence[Sample], networks: Sequence[Network], padded: Sequence[Padded]
) -> None:
    """Everything: ``{schema, target, samples: [...], networks: [...], padding: [...]}``."""
    data = {"schema": SCHEMA, "target": target.to_json(), "samples": [sample_row(s) for s in samples],
            "networks": [network_row(n) for n in networks], "padding": [padded_row(p) for p in padded]}  # fmt: skip
    write_json(path, data)


def read(path: Path, target: Target) -> tuple[list[Sample], list[Network], list[Padded]]:
    """The rows of an exported file. `Mismatch` when it is of another target, `DataError` when it is no export."""
    try:
        return _read_csv(path, target) if path.suffix.lower() == ".csv" else _read_json(path, target)
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise DataError(f"{path} is not an exported latency table ({error!r}); nothing was imported") from None


def _read_json(path: Path, target: Target) -> tuple[list[Sample], list[Network], list[Padded]]:
    data = read_json(path)
    target.require(Target.from_json(data["target"]), f"{path}")
    samples = [sample_from(tuple(row[name] for name in SAMPLE_COLUMNS)) for row in data["samples"]]
    networks = [network_from(tuple(row[name] for name in NETWORK_COLUMNS)) for row in data["networks"]]
    return samples, networks, [padded_from(row) for row in data.get("padding", [])]


def _read_csv(path: Path, target: Target) -> tuple[list[Sample], list[Network], list[Padded]]:
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    foreign = {row["target"] for row in rows} - {target.fingerprint}
    if foreign:
        raise Mismatch(
            f"{path} holds rows of target {', '.join(sorted(foreign))}, this table is of {target.fingerprint} "
            f"({target}); import it into a table of its own"
        )
    return [sample_from(tuple(row[name] for name in SAMPLE_COLUMNS)) for row in rows], [], []
