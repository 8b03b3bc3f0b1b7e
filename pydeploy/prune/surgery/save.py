"""Saving and loading pruned models: safetensors with the plan in the metadata. Files of `torch.save` are read as data alone."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pydeploy.errors import DataError, Mismatch
from pydeploy.files import replacing
from pydeploy.plan import Plan
from pydeploy.prune.surgery.apply import replaced
from pydeploy.prune.surgery.module_numbers import has_number, kept_numbers, put
from pydeploy.prune.surgery.state_dicts import is_torch_file, state_dict, unwrapped
from pydeploy.prune.surgery.tensors import check_dense, packed, unpacked
from pydeploy.version import __version__

SCHEMA = "1"


def save(path: Path | str, model: nn.Module, plan: Plan | None = None) -> None:
    """Write all tensors of `model` and, in the metadata, `plan`, the model's class, the pydeploy version and a checksum."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            check_dense(name, tensor)
            tensors[name] = tensor.detach().cpu().contiguous().clone()
    facts = {"format": "pydeploy", "schema": SCHEMA, "version": __version__, "model": type(model).__name__,
             "sha256": _checksum(tensors), "plan": json.dumps(plan.to_json(), allow_nan=True) if plan else ""}  # fmt: skip
    if numbers := kept_numbers(model):
        facts["numbers"] = json.dumps(numbers)
    with replacing(Path(path)) as partial:
        write_tensors(tensors, partial, facts)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, facts: dict[str, str]) -> None:
    """A safetensors file; what hinders it is an `OSError`, as with any other file."""
    try:
        save_file(dict(tensors), path, metadata=facts)
    except SafetensorError as error:
        raise OSError(f"{error}") from None


def load(path: Path | str, model: nn.Module) -> nn.Module:
    """A copy of the freshly built *dense* `model`, cut to the shapes in the file and filled with its values.

    The file is one that `save` wrote, or ``torch.save(small.state_dict(), ...)``: of a plain, a compiled or a distributed module,
    or a checkpoint that holds one under ``state_dict`` or ``model``. The latter knows neither plan nor the integers in which
    modules keep widths (``graph.numbers``): where there are any, use `save`.
    Strict: raises `Mismatch` naming the first tensor that the model lacks, that the file lacks, or whose shape is not the
    one that the saved plan was made for (without a plan: cannot be a cut of the model's); `DataError` when the file is
    missing, truncated, edited or not one of ours.
    """
    path = Path(path)
    stored, facts = read(path)
    plan = _plan(path, facts)
    own = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    stored = stored if facts else unwrapped(stored, own)
    what = f"the saved {facts.get('model', 'model')}"
    for name in [*own, *stored]:
        _require(name, own.get(name), stored.get(name), what, path, plan.dense if plan is not None else {})
    small = replaced(model, own, {name: _adopt(own[name], stored[name]) for name in own})
    for place, values in _numbers(path, facts).items():
        if not has_number(small, place, len(values)):
            raise Mismatch(f"the model has no number '{place}', which {path} has; build the architecture of {what}")
        put(small, place, values)
    return small


def load_plan(path: Path | str) -> Plan | None:
    """The plan that a saved model was cut to, or None for a dense one."""
    return _plan(Path(path), read(path)[1])


def read(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a file that `save` wrote."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; expected a model that 'pydeploy.save' wrote")
    if is_torch_file(path):
        return state_dict(path), {}
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} is truncated or not a safetensors file ({error}); save the model again") from None
    if facts.get("format") != "pydeploy":
        raise DataError(f"{path} was not written by pydeploy.save (no such mark in its metadata)")
    if facts.get("schema") != SCHEMA:
        raise DataError(f"{path} has schema {facts.get('schema')!r}, expected {SCHEMA!r}; read it with the pydeploy that "
                        f"wrote it ({facts.get('version', 'unknown')})")  # fmt: skip
    if facts.get("sha256", "") not in ("", _checksum(tensors)):
        raise DataError(
            f"{path} was changed after it was written: its values contradict its checksum; save the model again"
        )
    return tensors, facts


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data if tensors[name].numel() else b"")
    return digest.hexdigest()


def _plan(path: Path, facts: Mapping[str, str]) -> Plan | None:
    try:
        return Plan.from_json(json.loads(facts["plan"])) if facts.get("plan") else None
    except (DataError, ValueError) as error:
        raise DataError(f"the plan in {path} is damaged ({error}); save the model and its plan again") from None


def _numbers(path: Path, facts: Mapping[str, str]) -> dict[str, list[int]]:
    """Integers of modules that follow the widths; files of older versions hold none."""
    try:
        return {str(place): [operator.index(value) for value in values]
                for place, values in json.loads(facts.get("numbers", "{}")).items()}  # fmt: skip
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the numbers of modules in {path} are damaged ({error}); save the model again") from None


def _require(name: str, own: Tensor | None, stored: Tensor | None, what: str, path: Path,
             dense: Mapping[str, tuple[int, ...]]) -> None:  # fmt: skip
    if own is None or stored is None:
        lacking, having = ("the model", path) if own is None else (path, "the model")
        raise Mismatch(f"{lacking} has no tensor '{name}', which {having} has; build the architecture of {what}")
    check_dense(name, own)
    shape = tuple(own.shape)
    if shape != dense.get(name, shape):
        raise Mismatch(
            f"'{name}' has the shape {list(shape)} in the model and {list(dense[name])} in the network that the plan in "
            f"{path} is for; build the dense architecture of {what}"
        )
    fits = own.dim() == stored.dim() and all(a <= b for a, b in zip(stored.shape, own.shape, strict=True))
    if not fits or own.dtype != stored.dtype:
        raise Mismatch(
            f"'{name}' is {stored.dtype}{list(stored.shape)} in {path} and {own.dtype}{list(own.shape)} in the model: "
            f"not a cut of it; build the dense architecture of {what}"
        )
    if stored.is_floating_point() and not bool(torch.isfinite(stored).all()):
        raise DataError(f"'{name}' in {path} holds NaN or infinite values; save the model again from a sound run")


def _adopt(own: Tensor, stored: Tensor) -> Tensor:
    tensor = unpacked(own, packed(stored)[0])
    if own.dim() == 4 and own.is_contiguous(memory_format=torch.channels_last) and not own.is_contiguous():
        tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return tensor
