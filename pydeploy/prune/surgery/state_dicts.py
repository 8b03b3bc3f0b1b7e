"""State dicts in files of `torch.save`, read without running any code."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pydeploy.errors import DataError

_KEYS = ("state_dict", "model_state_dict", "model")
"""Where checkpoints of training loops hold the state dict."""
_WRAPPERS = ("module.", "_orig_mod.")
"""What distributed and compiled modules put before all names."""


def is_torch_file(path: Path) -> bool:
    """Whether `torch.save` wrote the file."""
    return zipfile.is_zipfile(path)


def state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors in the file. Raises `DataError` where it holds anything that is no data."""
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{path} holds more than tensors, or is damaged ({' '.join(str(error).split())[:160]}); "
            "save the state dict alone: torch.save(model.state_dict(), path)"
        ) from None
    held = next(
        (found[key] for key in _KEYS if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)), found
    )
    if not isinstance(held, Mapping) or not all(isinstance(name, str) for name in held):
        raise DataError(
            f"{path} holds a {type(held).__name__}, expected a state dict: torch.save(model.state_dict(), path)"
        )
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


def unwrapped(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The same by the names in the module itself, which has `names`."""
    found = dict(tensors)
    while found and not any(name in names for name in found):
        prefix = next((p for p in _WRAPPERS if all(name.startswith(p) for name in found)), "")
        if not prefix:
            break
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found
