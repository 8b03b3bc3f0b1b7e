"""One file per run that training can go on from: weights, momentum, finished epochs and what they belong to.

safetensors with a JSON header, replaced atomically after every epoch; no pickle. Everything random is a function of
(seed, epoch), so there is no generator state to keep.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pydeploy.errors import DataError, Mismatch
from pydeploy.files import replacing
from pydeploy.prune.surgery.save import write_tensors

_HEADER = "pydeploy.fit"


def weights_digest(model: nn.Module) -> str:
    """A short hash of all parameters and buffers, names and shapes included."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: Mapping[str, Any], history: list[Any]
) -> None:
    """Write the state after ``len(history)`` epochs. `identity` says which run it is; `history` is JSON."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum
    # Contiguous copies: safetensors keeps neither memory formats nor shared storage.
    plain = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    header = {_HEADER: json.dumps({"schema": 1, "identity": dict(identity), "history": history})}
    with replacing(path) as partial:
        write_tensors(plain, partial, header)


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: Mapping[str, Any]) -> list[Any]:
    """Load the file into `model` and `optimizer`; returns the history of finished epochs.

    Raises `DataError` for a broken file and `Mismatch` naming the first difference when it is from another run.
    """
    header, tensors = _read(path)
    for key, wanted in json.loads(json.dumps(identity)).items():
        found = header["identity"].get(key)
        if found != wanted:
            raise Mismatch(f"{path} is from another run ({key}: {found!r} there, {wanted!r} here); "
                           "delete it or start without resuming")  # fmt: skip
    # copy_ keeps each parameter's own memory format, and with it the order of summation.
    for name, value in model.state_dict().items():
        value.copy_(tensors[f"model.{name}"])
    for name, parameter in model.named_parameters():
        if f"momentum.{name}" in tensors:
            momentum = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
            optimizer.state[parameter]["momentum_buffer"] = momentum.detach()
    history: list[Any] = header["history"]
    return history


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as stream:
            text = (stream.metadata() or {}).get(_HEADER, "")
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
        return json.loads(text), tensors
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is not a training checkpoint ({error}); delete it or start without resuming") from None
