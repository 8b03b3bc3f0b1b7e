"""PyTorch model → ONNX file that every other stage can follow by name.

* Batch norm is folded into the convolution before it.
* The node of every layer is named like the layer's operator in the graph (``layer1.0.conv1``; a second call of the
  same layer ``layer1.0.conv1:2``), its weight like the parameter. Latency tables and reports rely on it.
* An input is called ``input``, several as the forward calls them; outputs as the forward's dicts do, or ``output``.
* Masks (`pydeploy.prune.surgery.masks`) are folded into the weights.
* The batch is static: latency and calibration are for one batch size.
* The file is run on ONNX Runtime and compared with the PyTorch model before it is put in place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from pydeploy.errors import ConfigError, DataError, TraceError
from pydeploy.export.arguments import Arguments, arguments, outputs
from pydeploy.export.check import check_same
from pydeploy.export.exporter import exported, reason
from pydeploy.export.names import set_names
from pydeploy.files import replacing
from pydeploy.prune.surgery.masks import unmasked


def export(model: nn.Module, example: Any, path: Path | str, *, example_kwargs: Mapping[str, Any] | None = None,
           batch: int = 1, input_names: Sequence[str] | None = None, output_names: Sequence[str] | None = None,
           deployed: Callable[[Any], Any] | None = None, tolerance: float = 1e-3,
           say: Callable[[str], None] | None = None) -> Path:  # fmt: skip
    """Write `model` as ONNX at `path`.

    `example` holds the forward's arguments at batch 1: a tensor, or a tuple of tensors, None, numbers, and lists, dicts,
    tuples of these; `example_kwargs` (or a dict in place of `example`) are arguments by keyword. Tensors become inputs, the
    rest is built in.
    `deployed` picks from the forward's result what the file gives, all of it by default.
    Outputs that are no tensors are left out; `say` is told of them (else the log).
    Raises `DataError` when weights hold NaN, `TraceError` when the model fails or cannot be exported, `Mismatch` when ONNX
    Runtime's outputs differ from PyTorch's by more than `tolerance` of the largest value.
    """
    path = Path(path)
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"'{name}' holds NaN or infinite values; export a model from a sound training run")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TraceError(
            "a module that torch.jit has compiled cannot be exported; export the module that it was made from"
        )
    given = arguments(model.forward, example, example_kwargs)
    given = given.with_tensors([_input(t, batch) for t in given.tensors])
    call = _Call(unmasked(model).eval().to("cpu", torch.float32), given, deployed or (lambda found: found))
    found = call.outputs(given.tensors, say or logging.getLogger(__name__).warning)
    own = set(model.state_dict())
    ins = _chosen("input", input_names, given.names(model.forward), own)
    outs = _chosen("output", output_names, found, {*ins, *own})
    program, parameter_of = exported(call, given.tensors)
    set_names(program, ins, outs, parameter_of, _own_names(call))

    def compute(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(outs, call(*tensors), strict=True))

    with replacing(path) as partial:
        onnx.save(program, str(partial))
        check_same(compute, dict(zip(ins, given.tensors, strict=True)), partial, tolerance)
    return path


class _Call(nn.Module):
    """A model called with some arguments, as a function of their tensors that gives the result's tensors."""

    def __init__(self, net: nn.Module, given: Arguments, deployed: Callable[[Any], Any]) -> None:
        super().__init__()
        self.deployed = deployed
        self.net = net
        self.given = given

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = self.given.with_tensors(tensors)
        return tuple(outputs(self.deployed(self.net(*given.args, **given.kwargs)))[0].values())

    def outputs(self, tensors: Sequence[Tensor], say: Callable[[str], None]) -> list[str]:
        """Names of the tensors that the model returns. Raises `TraceError` when it fails or returns none."""
        given = self.given.with_tensors([t.clone() for t in tensors])
        try:
            with torch.no_grad():
                made, rest = outputs(self.deployed(self.net(*given.args, **given.kwargs)))
        except Exception as error:
            shapes = [list(t.shape) for t in tensors]
            raise TraceError(f"the model fails on inputs of shape {shapes}: {reason(error)}") from error
        for name, tensor in made.items():
            if tensor.is_complex() or tensor.layout != torch.strided:
                kind = "complex" if tensor.is_complex() else "sparse"
                raise TraceError(
                    f"output '{name}' is {kind}, and ONNX has no such tensors; return its parts or make it dense"
                )
        if not made:
            raise TraceError(f"the model returns {type(rest[0][1]).__name__ if rest else 'nothing'}; expected tensors")
        for name, leaf in rest:
            say(f"output '{name}' is {leaf!r:.40}, not a tensor: left out")
        return list(made)


def _own_names(call: _Call) -> dict[str, str]:
    """What the model calls each tensor, by its name in the call; a tied one has the first of its names."""
    tensors = call.net.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    return {f"net.{name}": first[id(tensor)] for name, tensor in tensors.items()}


def _input(tensor: Tensor, batch: int) -> Tensor:
    """A fresh copy on the CPU, in float32, of `batch` samples."""
    tensor = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)
    if tensor.dim() and tensor.shape[0] == 1:
        tensor = tensor.expand(batch, *tensor.shape[1:])
    return tensor.contiguous().clone()


def _chosen(kind: str, asked: Sequence[str] | None, own: Sequence[str], taken: set[str]) -> list[str]:
    """The names asked for, or the model's own where none were; of these, one that something else in the file has gets `kind` before
    it.
    """
    if asked is None:
        return [f"{kind}.{name}" if name in taken else name for name in own]
    if len(asked) != len(own):
        raise ConfigError(f"{kind}_names are {list(asked)}; the model has {len(own)}: {', '.join(own)}")
    if bad := [name for name in asked if not name or not name.isprintable()]:
        raise ConfigError(f"a name of an {kind} is printable text, got {bad[0]!r}")
    if len(set(asked)) != len(asked) or not taken.isdisjoint(asked):
        again = next(name for name in asked if name in taken or list(asked).count(name) > 1)
        raise ConfigError(f"{kind}_names are {list(asked)}; '{again}' is taken by another tensor of the file")
    return list(asked)
