"""What a calibration has counted so far, and the file that lets an interrupted one go on.

The file is JSON: the hash of the model, a key of the calibration set, the hash of every sample counted, and per tensor the
histogram, each sample's extremes and the channels' means. Counts do not depend on the observer, so another observer costs no inference.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy import _core
from pydeploy.backends.base import Feeds
from pydeploy.errors import DataError
from pydeploy.files import read_json, write_text
from pydeploy.quant.correction import ChannelSums
from pydeploy.quant.observe import Seen

SCHEMA = 2


@dataclass
class Counts:
    """One `Seen` per tensor and the hash of every sample that went into them."""

    model: str
    """`pydeploy.onnxfile.prepare.files_hash` of the float model."""
    data: str
    """Key of the calibration set ('' = not known)."""
    tensors: dict[str, Seen]
    samples: list[str] = field(default_factory=list)
    by_channel: frozenset[str] = frozenset()
    """Tensors whose channels' means are added up as well."""

    @classmethod
    def empty(cls, model: str, data: str, names: Iterable[str], by_channel: frozenset[str] = frozenset()) -> Counts:
        return cls(model, data, {name: Seen() for name in names}, by_channel=by_channel)

    def add(self, sample: str, values: Mapping[str, NDArray[Any]], threads: int) -> None:
        """Count one sample's values of every tensor.

        Raises `DataError` naming the first tensor that holds NaN or infinity, or that is not float32 or float16.
        """
        jobs = [(seen.histogram, _countable(name, values[name])) for name, seen in self.tensors.items()]
        extremes = _core.count_many(jobs, threads)
        for (name, seen), (low, high) in zip(self.tensors.items(), extremes.tolist(), strict=True):
            if seen.histogram.nan_count or seen.histogram.inf_count:
                raise DataError(
                    f"tensor '{name}' holds {seen.histogram.nan_count} NaN and {seen.histogram.inf_count} infinite values "
                    f"for the sample number {len(self.samples) + 1}; check the samples and the weights"
                )
            if values[name].size:
                seen.extremes.append((low, high))
            if name in self.by_channel:
                seen.sums.add(values[name])
        self.samples.append(sample)

    def remaining(self) -> Counter[str]:
        """How often each sample was counted; the caller takes away what it meets again."""
        return Counter(self.samples)

    def samples_hash(self) -> str:
        """One hash of all samples, in no order."""
        return _hash_of(self.samples)

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        tensors = {name: {**_histogram_record(seen.histogram), "extremes": seen.extremes, "sums": seen.sums.parts.tolist()}
                   for name, seen in self.tensors.items()}  # fmt: skip
        record = {"schema": SCHEMA, "model": self.model, "data": self.data, "samples": self.samples,
                  "by_channel": sorted(self.by_channel), "tensors": tensors}  # fmt: skip
        write_text(path, json.dumps(record, separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, path: Path) -> Counts:
        """Raises `DataError` unless the file is what `save` writes."""
        data = read_json(path)
        try:
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']!r}, expected {SCHEMA}")
            tensors = {name: _seen(record) for name, record in data["tensors"].items()}
            samples = [bytes.fromhex(sample).hex() for sample in data["samples"]]
            return cls(str(data["model"]), str(data["data"]), tensors, samples, frozenset(data["by_channel"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{path} does not hold calibration counts ({error!r}); delete it and calibrate again"
            ) from None

    @classmethod
    def resume(cls, path: Path, model: str, data: str, names: Sequence[str], by_channel: frozenset[str]) -> Counts:
        """The counts in `path` where they belong to this model, set and choice of tensors; else empty ones."""
        if path.exists():
            found = cls.load(path)
            suits = set(names) <= set(found.tensors) and by_channel <= found.by_channel
            if (found.model, found.data) == (model, data) and suits:
                return cls(model, data, {name: found.tensors[name] for name in names}, found.samples, by_channel)
        return cls.empty(model, data, names, by_channel)


def sample_hash(arrays: Sequence[NDArray[Any]]) -> str:
    """Hash of one sample: its values for all inputs, in the order of their names."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def hash_of_samples(batches: Iterable[Feeds]) -> str:
    """What `Counts.samples_hash` is once all samples in `batches` were counted."""
    return _hash_of(
        sample_hash([feeds[name][row] for name in sorted(feeds)])
        for feeds in batches
        for row in range(len(next(iter(feeds.values()))))
    )


def _hash_of(samples: Iterable[str]) -> str:
    return hashlib.sha256(b"".join(sorted(map(bytes.fromhex, samples)))).hexdigest()


def _countable(name: str, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype not in (np.float32, np.float16):
        raise DataError(f"tensor '{name}' is {values.dtype}; calibration counts float32 and float16 tensors")
    return np.ascontiguousarray(values)


def _histogram_record(histogram: _core.Histogram) -> dict[str, Any]:
    """The histogram's state as plain numbers; empty bins at the end are left out."""
    record = histogram.state()
    for half in ("negative", "positive"):
        record[half] = np.trim_zeros(record[half], "b").tolist()
    empty = histogram.count == 0
    return {**record, "bins": histogram.bins, **({"minimum": None, "maximum": None} if empty else {})}


def _seen(record: Mapping[str, Any]) -> Seen:
    state = dict(record)
    for half in ("negative", "positive"):
        counts = np.zeros(int(record["bins"]), np.uint64)
        counts[: len(record[half])] = record[half]
        state[half] = counts
    parts = np.array(record["sums"], np.int64)
    if parts.ndim != 2 or len(parts) != 2:
        raise ValueError("sums of channels that are not two rows")
    extremes = [(float(low), float(high)) for low, high in record["extremes"]]
    return Seen(_core.Histogram.from_state(state), extremes, ChannelSums(parts))
