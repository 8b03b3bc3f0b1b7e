"""From a network to the engine of a target: exported, quantized where it must be, built, and compared with its file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydeploy.backends.base import Backend, Engine, Feeds, open_target
from pydeploy.errors import ConfigError
from pydeploy.files import write_json
from pydeploy.latency.probes.quantized import needs_pairs, random_ranges
from pydeploy.profiling import agreement
from pydeploy.quant.observe import Ranges

if TYPE_CHECKING:
    from torch import nn


def samples_in(example: Any) -> int:
    """The number of samples in the forward's arguments."""
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    tensors = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    if not tensors or not all(tensor.dim() for tensor in tensors):
        raise ConfigError(
            f"example is {type(example).__name__}; expected a tensor or a tuple of tensors, the samples along the first axis"
        )
    return int(tensors[0].shape[0])


def build_engine(
    model: nn.Module,
    example: Any,
    target: str | Backend,
    out: Path | str,
    *,
    threads: int = 0,
    calibration: Callable[[Path], Ranges] | None = None,
    exclude: Sequence[str] = (),
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    samples: Sequence[Feeds] = (),
    deployed: Callable[[Any], Any] | None = None,
) -> Engine:
    """Export `model` into the folder `out` and build ``model.engine`` for `target`, ``BACKEND:PRECISION`` or a backend.

    `example` holds the forward's arguments, a tensor or a tuple of tensors, with as many samples as the engine takes at once.
    For an int8 target ``float.onnx`` is exported and ``model.onnx`` has Q/DQ pairs with the ranges that ``calibration(path)``
    finds for it; without one they come from random inputs, which is enough to measure latency. `exclude` are layers that stay
    in float, names or patterns. An int8 or half-precision engine is compared with its file on `samples`, feeds of its inputs
    (default: random ones); `deployed` picks from the forward's result what the engine gives. Raises `ConfigError`,
    `TraceError`, `DataError`, `BackendUnavailable`, and `Mismatch` where the runtime computes something else than the file.
    """
    from pydeploy.export import export

    folder = Path(out)
    backend = open_target(target, batch=samples_in(example), threads=threads) if isinstance(target, str) else target
    folder.mkdir(parents=True, exist_ok=True)
    pairs = needs_pairs(backend)
    onnx = export(model, example, folder / ("float.onnx" if pairs else "model.onnx"), batch=backend.batch,
                  input_names=input_names, output_names=output_names, deployed=deployed)  # fmt: skip
    if not pairs:
        return agreement.build(backend, onnx, folder / "model.engine", samples)
    return build_int8(backend, onnx, folder, calibration=calibration, exclude=exclude, samples=samples)


def build_int8(
    backend: Backend, onnx: Path, folder: Path, *, calibration: Callable[[Path], Ranges] | None = None,
    exclude: Sequence[str] = (), samples: Sequence[Feeds] = (),
) -> Engine:  # fmt: skip
    """``model.onnx``, the int8 form of a float file, ``quantized.json`` and ``model.engine``; as in `build_engine`."""
    ranges = random_ranges(onnx, backend.int8_style, backend.threads) if calibration is None else calibration(onnx)
    insert_pairs(backend, onnx, ranges, folder, exclude)
    return agreement.build(backend, folder / "model.onnx", folder / "model.engine", samples)


def insert_pairs(backend: Backend, onnx: Path, ranges: Ranges, folder: Path, exclude: Sequence[str] = ()) -> None:
    """``model.onnx`` with Q/DQ pairs where `backend` likes them, and ``quantized.json``, which says where."""
    from pydeploy.quant.qdq import quantize

    target = backend.target()
    done = quantize(onnx, ranges, folder / "model.onnx", style=backend.int8_style, target=target, exclude=exclude)
    write_json(folder / "quantized.json", asdict(done))
