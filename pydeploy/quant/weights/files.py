"""Writing and reading weights: a folder with the data in one format and ``manifest.json``, which describes all of it.

`FORMATS`: ``bin`` is ``weights.bin``, little-endian, every tensor at its offset, a multiple of 16, with ``weights.h``, the same
offsets for C; ``c-header`` is one header with the data in it; ``npz`` is NumPy's; ``text`` has one value a line behind a name and a shape.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.errors import ConfigError, DataError, nearest
from pydeploy.files import check_writable, parsed, replacing, sha256, write_json, write_text
from pydeploy.quant.weights.c_code import array, arrays_in, identifiers, layer_constants, offsets
from pydeploy.quant.weights.records import Grid, Layer, Tensor, Weights

ALIGN = 16
MANIFEST = "manifest.json"
Arrays = Mapping[str, NDArray[Any]]


def write(weights: Weights, folder: Path, kind: str) -> Path:
    """Write the data and, last, the manifest into `folder`; returns the path of the data.

    Raises `ConfigError` for an unknown format and `DataError` where something cannot be written.
    """
    if kind not in FORMATS:
        raise ConfigError(f"unknown format '{kind}'{nearest(kind, FORMATS)}")
    place = folder / FORMATS[kind][0]
    check_writable(place)
    for tensor in weights.tensors:
        if tensor.values.dtype.kind == "f" and not np.isfinite(tensor.values).all():
            raise DataError(f"'{tensor.name}' holds NaN or infinite values; export the weights of a sound model")
    FORMATS[kind][1](weights, place)
    at, facts = 0, []
    for tensor in weights.tensors:
        facts.append(tensor.facts() | ({"offset": at, "bytes": tensor.values.nbytes} if kind == "bin" else {}))
        at += -(-tensor.values.nbytes // ALIGN) * ALIGN
    manifest = {"schema": 1, "format": kind, "file": place.name, "sha256": sha256(place), "byte_order": "little",
                "layers": [asdict(layer) for layer in weights.layers], "tensors": facts}  # fmt: skip
    write_json(folder / MANIFEST, manifest)
    return place


def read(folder: Path) -> Weights:
    """What `write` wrote. Raises `DataError` for a manifest that is none and for data that are not those it describes."""
    return parsed(Path(folder) / MANIFEST, lambda data: _weights(data, Path(folder)))


def _weights(manifest: Any, folder: Path) -> Weights:
    try:
        kind, place, facts = manifest["format"], folder / Path(manifest["file"]).name, manifest["tensors"]
        if kind not in FORMATS:
            raise DataError(f"unknown format '{kind}'")
        if sha256(place) != manifest["sha256"]:
            raise DataError(f"{place} is not the file that it describes; export the weights again")
        arrays = FORMATS[kind][2](place, facts)
        tensors = tuple(_tensor(fact, arrays[fact["name"]]) for fact in facts)
        layers = tuple(
            Layer(**{**one, **{key: Grid(**one[key]) for key in ("input", "output") if one[key]}})
            for one in manifest["layers"]
        )
    except (KeyError, TypeError, ValueError, AttributeError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"is no manifest of weights ({error!r}); export them again") from None
    return Weights(tensors, layers)


def _tensor(fact: Mapping[str, Any], values: NDArray[Any]) -> Tensor:
    shaped = values.astype(fact["dtype"], copy=False).reshape(fact["shape"])
    return Tensor(
        fact["name"], shaped, tuple(fact.get("scale", ())), tuple(fact.get("zero_point", ())), fact.get("axis", 0)
    )


# ---------------------------------------------------------------- one pair of functions a format


def _write_bin(weights: Weights, place: Path) -> None:
    with replacing(place) as partial, partial.open("wb") as stream:
        for tensor in weights.tensors:
            data = np.ascontiguousarray(tensor.values, tensor.values.dtype.newbyteorder("<")).tobytes()
            stream.write(data + bytes(-len(data) % ALIGN))
    write_text(place.with_suffix(".h"), offsets(weights, ALIGN))


def _read_bin(place: Path, facts: list[Mapping[str, Any]]) -> Arrays:
    data = place.read_bytes()
    return {one["name"]: np.frombuffer(data, np.dtype(one["dtype"]).newbyteorder("<"),
                                       int(np.prod(one["shape"], dtype=np.int64)), one["offset"]) for one in facts}  # fmt: skip


def _write_npz(weights: Weights, place: Path) -> None:
    """As `numpy.savez`, which takes no array called ``file``."""
    with replacing(place) as partial, zipfile.ZipFile(partial, "w") as archive:
        for tensor in weights.tensors:
            with archive.open(f"{tensor.name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, tensor.values, allow_pickle=False)


def _read_npz(place: Path, _facts: list[Mapping[str, Any]]) -> Arrays:
    with np.load(place, allow_pickle=False) as found:
        return dict(found)


def _write_text(weights: Weights, place: Path) -> None:
    lines = []
    for tensor in weights.tensors:
        lines += [
            f"{tensor.name}:",
            f"shape: {' '.join(map(str, tensor.values.shape))}",
            *map(str, tensor.values.ravel().tolist()),
        ]
    write_text(place, "\n".join(lines) + "\n")


def _read_text(place: Path, facts: list[Mapping[str, Any]]) -> Arrays:
    lines, found, at = place.read_text(encoding="utf-8").splitlines(), {}, 0
    for one in facts:
        count = int(np.prod(one["shape"], dtype=np.int64))
        found[one["name"]] = np.array(
            lines[at + 2 : at + 2 + count], np.float64 if "float" in one["dtype"] else np.int64
        )
        at += 2 + count
    return found


def _write_header(weights: Weights, place: Path) -> None:
    names = identifiers([tensor.name for tensor in weights.tensors])
    guard = re.sub(r"\W", "_", place.name).upper()
    parts = [f"#ifndef {guard}\n#define {guard}\n#include <stdint.h>\n", layer_constants(weights),
             *(array(names[tensor.name], tensor.values) for tensor in weights.tensors), "#endif\n"]  # fmt: skip
    write_text(place, "\n".join(parts))


def _read_header(place: Path, facts: list[Mapping[str, Any]]) -> Arrays:
    found = arrays_in(place.read_text(encoding="utf-8"))
    names = identifiers([one["name"] for one in facts])
    return {one["name"]: found[names[one["name"]]][: int(np.prod(one["shape"], dtype=np.int64))] for one in facts}


FORMATS: Mapping[
    str, tuple[str, Callable[[Weights, Path], None], Callable[[Path, list[Mapping[str, Any]]], Arrays]]
] = {
    "bin": ("weights.bin", _write_bin, _read_bin),
    "text": ("weights.txt", _write_text, _read_text),
    "npz": ("weights.npz", _write_npz, _read_npz),
    "c-header": ("weights.h", _write_header, _read_header),
}
"""By name: the data file, its writer, its reader."""
