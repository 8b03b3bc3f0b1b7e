"""Weights from files of any common form: pydeploy's own, safetensors, state dicts, training checkpoints. No code in them is run."""

from __future__ import annotations

import argparse
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pydeploy.errors import DataError, Mismatch
from pydeploy.prune.surgery import save

INSIDE = ("state_dict", "model", "model_state_dict", "ema", "state_dict_ema", "model_ema", "module", "net")
"""Where checkpoints keep the network's tensors, in the order in which they are looked for."""
PREFIXES = ("module.", "model.", "_orig_mod.")
"""What DataParallel, Lightning and torch.compile put before all names."""
_SCALAR: Any = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [argparse.Namespace, pathlib.PosixPath, np.dtype, _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"),
            *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_))]  # fmt: skip
"""What training programs keep beside the tensors, such as settings and the best accuracy: data only."""
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Fit:
    """How a file's tensors fit a model: names of the model, of the file, and of both with another shape."""

    taken: Mapping[str, Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    other: tuple[str, ...]
    """Sentences."""

    @property
    def whole(self) -> bool:
        return not (self.missing or self.unexpected or self.other)

    def __str__(self) -> str:
        lists = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.other}
        return "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in lists.items() if names)


def filled(model: nn.Module, path: Path, *, strict: bool = True) -> tuple[nn.Module, str]:
    """`model` with the tensors of a file, and in words what was left out ('' = nothing).

    A file of `pydeploy.save` cuts the model to its plan. Raises `DataError` where the file cannot be read or holds more than
    data, `Mismatch` with the first tensors that do not fit; without `strict`, whatever fits is taken, at least one tensor.
    """
    if is_ours(path):
        return save.load(path, model), ""
    fit = fitted(model, read(path))
    if not fit.taken or (strict and not fit.whole):
        remedy = "build the model that the file is of" + (
            ", or take what fits: strict: false, or --no-strict" if fit.taken else ""
        )
        raise Mismatch(f"{path} does not fit the model: {fit}; {remedy}")
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in fit.taken.items():
            own[name].copy_(tensor)
    return model, str(fit)


def is_ours(path: Path) -> bool:
    """Whether `pydeploy.save` wrote a file."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == "pydeploy"
    except (SafetensorError, OSError, RuntimeError, ValueError):
        return False


def read(path: Path) -> dict[str, Tensor]:
    """The network's tensors in a file, by the names that they have there. Raises `DataError`."""
    if not path.is_file():
        raise DataError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; expected a file of weights")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        if path.suffix == ".safetensors":
            raise DataError(f"{path} is truncated or not a safetensors file ({error}); save it again") from None
    found = _tensors(_loaded(path), path)
    if not found:
        raise DataError(
            f"{path} holds no tensors of a network; expected a state dict, or one under {', '.join(INSIDE)}"
        )
    return found


def _loaded(path: Path) -> Any:
    remedy = "save the tensors alone where it was made: torch.save(model.state_dict(), 'weights.pth')"
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file makes of the reader is not foreseen
        text = " ".join(str(error).split())
        _, code, name = text.partition("Unsupported global: GLOBAL ")
        if code:
            what = f"holds an object of {name.split()[0]}, as a whole pickled module does, which could run code"
        elif "TorchScript" in text:
            what = "is a TorchScript archive, which holds code"
        else:
            what = f"is truncated or no file of torch.save ({text[:100] or type(error).__name__})"
        raise DataError(f"{path} {what}; {remedy}") from None


def _tensors(found: Any, path: Path, depth: int = 3) -> dict[str, Tensor]:
    """The first mapping of names to tensors; what else lies in it, such as counters, is left out."""
    if not isinstance(found, Mapping) or not depth:
        return {}
    own = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    inside = (_tensors(found[key], path, depth - 1) for key in INSIDE if key in found)
    return next((tensors for tensors in inside if tensors), own)


def fitted(model: nn.Module, stored: Mapping[str, Tensor]) -> Fit:
    """How stored tensors fit a model, under the prefixes that most of its names then have."""
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    renamed = max(
        (_stripped(stored, prefixes) for prefixes in _orders()), key=lambda names: len(own.keys() & names.keys())
    )
    both = [name for name in own if name in renamed]
    other = [name for name in both if own[name].shape != renamed[name].shape]
    for name in both:
        if renamed[name].is_floating_point() and not bool(torch.isfinite(renamed[name]).all()):
            raise DataError(f"'{name}' of the weights holds NaN or infinite values; take another checkpoint")
    taken = {name: renamed[name] for name in both if name not in other}
    # Files of old versions have no counters of batches; only averages without a momentum read them.
    missing = [name for name in own if name not in renamed and not name.endswith("num_batches_tracked")]
    told = [f"{name} is {list(renamed[name].shape)}, the model's {list(own[name].shape)}" for name in other]
    return Fit(taken, tuple(missing), tuple(name for name in renamed if name not in own), tuple(told))


def _orders() -> Iterator[tuple[str, ...]]:
    """Prefixes to take off one after another; fewest first, so that none is taken off for nothing."""
    for count in range(4):
        yield from itertools.permutations(PREFIXES, count)


def _stripped(stored: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    names = {name: name for name in stored}
    for prefix in prefixes:
        names = {name: now.removeprefix(prefix) for name, now in names.items()}
    return {now: stored[name] for name, now in names.items()}


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
