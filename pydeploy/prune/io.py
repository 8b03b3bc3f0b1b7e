"""Saving and loading pruned models: safetensors with the plan in the metadata. No pickle anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pydeploy.errors import DataError, Mismatch
from pydeploy.files import replacing
from pydeploy.graph import Plan
from pydeploy.prune.surgery import like, replaced
from pydeploy.version import __version__


def save(path: Path | str, model: nn.Module, plan: Plan | None = None) -> None:
    """Write all tensors of `model` and, in the metadata, `plan`, the model's class and the pydeploy version."""
    tensors = {name: t.detach().contiguous().clone() for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    facts = {"format": "pydeploy", "schema": "1", "version": __version__, "model": type(model).__name__,
             "plan": json.dumps(plan.to_json(), allow_nan=True) if plan else ""}  # fmt: skip
    with replacing(Path(path)) as partial:
        save_file(tensors, partial, metadata=facts)


def load(path: Path | str, model: nn.Module) -> nn.Module:
    """A copy of the freshly built *dense* `model`, cut to the shapes in the file and filled with its values.

    Strict: raises `Mismatch` naming the first tensor that the model lacks, that the file lacks, or whose shape cannot
    be a cut of the model's; `DataError` when the file is missing, truncated or not one of ours.
    """
    stored, _ = read(path)
    own = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    for name in [*own, *stored]:
        _require(name, own.get(name), stored.get(name), Path(path))
    return replaced(model, {name: _adopt(own[name], stored[name]) for name in own})


def load_plan(path: Path | str) -> Plan | None:
    """The plan that a saved model was cut to, or None for a dense one."""
    _, facts = read(path)
    return Plan.from_json(json.loads(facts["plan"])) if facts.get("plan") else None


def read(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a file that `save` wrote."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; expected a model that 'pydeploy.save' wrote")
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise DataError(f"{path} is truncated or not a safetensors file ({error}); save the model again") from None
    if facts.get("format") != "pydeploy":
        raise DataError(f"{path} was not written by pydeploy.save (no such mark in its metadata)")
    return tensors, facts


def _require(name: str, own: Tensor | None, stored: Tensor | None, path: Path) -> None:
    if own is None or stored is None:
        lacking, having = ("the model", path) if own is None else (path, "the model")
        raise Mismatch(f"{lacking} has no tensor '{name}', which {having} has; build the architecture that was saved")
    fits = own.dim() == stored.dim() and all(a <= b for a, b in zip(stored.shape, own.shape, strict=True))
    if not fits or own.dtype != stored.dtype:
        raise Mismatch(
            f"'{name}' is {stored.dtype}{list(stored.shape)} in {path} and {own.dtype}{list(own.shape)} in the model: "
            "not a cut of it; build the dense architecture that was saved"
        )
    if stored.is_floating_point() and not bool(torch.isfinite(stored).all()):
        raise DataError(f"'{name}' in {path} holds NaN or infinite values; save the model again from a sound run")


def _adopt(own: Tensor, stored: Tensor) -> Tensor:
    if own.dtype == torch.bfloat16:
        return like(own, stored.view(torch.int16).numpy())
    return like(own, stored.numpy())
