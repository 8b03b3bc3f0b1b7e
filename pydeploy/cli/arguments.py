"""What users type, turned into objects: models, input shapes, targets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pydeploy.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pydeploy.backends.base import Backend

MODEL_HELP = "pydeploy:NAME, torchvision:NAME, timm:NAME, or your own FILE.py:FACTORY or PACKAGE.MODULE:FACTORY."
INPUT_HELP = "Shape of one input, e.g. 1x3x224x224; repeat for several."
CRITERION_HELP = "A name that 'pydeploy criteria' lists, or your own FILE.py:FUNCTION."
OPTION_HELP = "Argument of the model's factory as key=value; repeat for several."
TARGET_HELP = (
    "BACKEND:PRECISION, e.g. onnxruntime:fp32, openvino:bf16, tensorrt:int8; options follow: tensorrt:fp16,sparse. "
    "BACKEND may be your own FILE.py:CLASS or PACKAGE.MODULE:CLASS."
)
GPUS_HELP = "GPUs that an engine of tensorrt-rtx is for, e.g. sm86,sm89 [default: all from Ampere on]."
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
"""The option that every verb has; `console.tell` follows it."""
Strict = Annotated[
    bool,
    typer.Option(help="Whether every tensor of the model must be in --weights and fit; if not, what fits is taken."),
]
"""Beside every option --weights."""
EXAMPLE_HELP = "Batch size that the engine is built for."


def model_named(spec: str, options: Sequence[str] = ()) -> nn.Module:
    """The model that `spec` names, built with ``key=value`` options, in eval mode."""
    _, colon, name = spec.rpartition(":")
    if not colon or not name:
        raise ConfigError(f"a model is given as {MODEL_HELP[:-1]}; got '{spec}'")
    from pydeploy.models.named import named

    return named(spec, options_of(options, "model"))


def options_of(texts: Sequence[str], what: str) -> dict[str, Any]:
    """``key=value`` options, values as YAML; `what` says whose they are."""
    import yaml

    pairs = [text.partition("=") for text in texts]
    if any(not equals for _, equals, _ in pairs):
        raise ConfigError(f"{what} options are key=value, got {list(texts)}")
    try:
        return {key: yaml.safe_load(value) for key, _, value in pairs}
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: 2024-13-45, which looks like a date
        raise ConfigError(f"a {what} option's value is not YAML, got {list(texts)}") from None


def shapes(texts: Sequence[str]) -> list[tuple[int, ...]]:
    """``1x3x224x224`` → ``(1, 3, 224, 224)``."""
    if not texts:
        raise ConfigError("give the shape of every input with --input, e.g. --input 1x3x224x224")
    if bad := [text for text in texts if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text)]:
        raise ConfigError(f"an input shape is numbers joined by 'x', e.g. 1x3x224x224; got '{bad[0]}'")
    return [tuple(int(size) for size in text.split("x")) for text in texts]


def named_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """``x=1x3x224x224`` → ``{"x": (1, 3, 224, 224)}``; a shape without a name is the only input's, ``''``."""
    pairs = [text.rpartition("=") for text in texts]
    names = [name for name, _, _ in pairs]
    if len(set(names)) != len(names):
        raise ConfigError(f"--shape gives an input twice: {', '.join(texts)}")
    return dict(zip(names, shapes([size for _, _, size in pairs]), strict=True)) if texts else {}


def example(texts: Sequence[str]) -> tuple[Tensor, ...]:
    """Seeded random inputs of the given shapes."""
    import torch

    generator, sizes = torch.Generator().manual_seed(0), shapes(texts)
    try:
        return tuple(torch.randn(shape, generator=generator) for shape in sizes)
    except (RuntimeError, TypeError) as error:  # so PyTorch says that memory is lacking, or a size too large for it
        raise ConfigError(f"inputs of shape {', '.join(texts)} cannot be made: {str(error).splitlines()[0]}") from None


def dense_or_cut(spec: str, options: Sequence[str], weights: Path | None, *, strict: bool = True) -> nn.Module:
    """The named model, filled with the tensors of `weights` when given, and cut where they are those of a cut one.

    Without `strict`, whatever fits is taken, and what is left out is told on stderr.
    """
    if weights is None:
        if not strict:
            raise ConfigError("--no-strict goes with --weights: it takes what fits of that file")
        return model_named(spec, options)
    from pydeploy.cli.console import Terminal
    from pydeploy.models.weights import filled

    model, left_out = filled(model_named(spec, options), weights, strict=strict)
    if left_out:
        Terminal().say(f"{weights}: what fits is taken; {left_out}")
    return model.eval()


def backend_named(target: str, *, batch: int = 1, threads: int = 0) -> Backend:
    """The backend of ``BACKEND:PRECISION``, or of ``BACKEND:PRECISION,OPTION=VALUE,...``."""
    from pydeploy.backends.base import open_target

    return open_target(target, batch=batch, threads=threads)


def for_gpus(target: str, gpus: str | None) -> str:
    """The target with the GPUs of ``--for``, such as ``sm86,sm89``, among its options."""
    from pydeploy.backends.base import parse_target
    from pydeploy.errors import ConfigError

    if gpus is None:
        return target
    if not gpus:
        raise ConfigError("--for names no GPU; expected compute capabilities such as sm86,sm89")
    choice = parse_target(target)
    options = [choice.options] if choice.options else []
    return f"{choice.backend}:{choice.precision},{','.join([*options, f'gpus={gpus.replace(chr(44), chr(43))}'])}"


def backend_of(engine: Path) -> tuple[Backend, Any]:
    """The backend that a built engine is for, and its record."""
    from pydeploy.backends.base import Engine, reopen

    record = Engine.load(engine)
    return reopen(record.target), record
