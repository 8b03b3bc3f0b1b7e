"""Which layers become int8: those that gain time, as long as what they cost in the outputs stays within a limit.

* What a layer gains is measured inside running networks: its time in the float engine and in the int8 engine.
* What it costs is measured as well: the error of the outputs with only that layer quantized (`sensitivity`). Errors
  of several layers are taken to add up, which is the usual assumption (Dong et al., HAWQ-V2, arXiv 1911.03852, section 3);
  the built model is measured in the end.
* Where a float layer meets an int8 one, the values between them are converted; `choose` counts that as well.
* The choice is exact: pairwise costs and a limit make greedy choices wrong, so the latency solver decides.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy import _core
from pydeploy.backends.base import Feeds
from pydeploy.errors import ConfigError, DataError
from pydeploy.onnxfile.execute import as_written
from pydeploy.onnxfile.load import read_float_model
from pydeploy.onnxfile.nodes import WEIGHTED, label
from pydeploy.onnxfile.prepare import prepare
from pydeploy.quant.observe import Ranges
from pydeploy.quant.qdq import quantize

Edges = Mapping[tuple[str, str], float]
"""By (layer, layer behind it): how many values pass between them, or the time in us that converting those takes."""


@dataclass(frozen=True, slots=True)
class LayerOption:
    """One layer that may be int8: its time either way in us, and the error of the outputs where it alone is int8."""

    name: str
    float_us: float
    int8_us: float
    error: float

    @property
    def gain_us(self) -> float:
        return self.float_us - self.int8_us


@dataclass(frozen=True, slots=True)
class Choice:
    """What `choose` decided."""

    int8: tuple[str, ...]
    """Layers that become int8, in the order given."""
    saved_us: float
    """Time that this saves over the float network, conversions included, by the sums of what was measured."""
    error: float
    """Sum of the chosen layers' errors."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sensitivity(
    onnx_path: Path,
    ranges: Ranges,
    batches: Iterable[Feeds],
    layers: Sequence[str],
    *,
    style: str,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """For each of `layers`, ``|y_q - y|² / |y|²`` over all outputs and `batches`, with only that layer quantized.

    The models are run as written, whatever the style and the processor: pairs say what is rounded. Raises `DataError` without
    batches, and as `quantize` does.
    """
    onnx_path, feeds = Path(onnx_path), list(batches)
    if not feeds:
        raise DataError("there are no samples to find sensitive layers with; give at least one batch")
    nodes = [label(node) for node in prepare(read_float_model(onnx_path)).nodes]
    reference = _outputs(onnx_path, feeds, threads)
    size = float(np.sum(np.square(reference, dtype=np.float64))) or 1.0
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="pydeploy-") as folder:
        path = Path(folder) / "one.onnx"
        for done, layer in enumerate(layers, start=1):
            quantize(onnx_path, ranges, path, style=style, exclude=[name for name in nodes if name != layer])
            apart = _outputs(path, feeds, threads).astype(np.float64) - reference
            found[layer] = float(np.sum(np.square(apart))) / size
            if progress is not None:
                progress(done, len(layers))
    return found


def _outputs(path: Path, feeds: Sequence[Feeds], threads: int) -> NDArray[np.float32]:
    """All outputs of all batches in one row."""
    session = as_written(path, threads)
    return np.concatenate([np.ravel(output) for feed in feeds for output in session.run(None, dict(feed))])


def neighbours(onnx_path: Path) -> dict[tuple[str, str], float]:
    """How many values pass from each layer with weights to each one behind it, through layers without weights."""
    graph = prepare(read_float_model(Path(onnx_path)))
    before: dict[str, set[str]] = {}
    found: dict[tuple[str, str], float] = {}
    for node in graph.nodes:
        reached = set().union(*(before.get(tensor.name, set()) for tensor in node.inputs)) if node.inputs else set()
        if node.op in WEIGHTED:
            shape = [size if isinstance(size, int) else 1 for size in node.inputs[0].shape or ()]
            found.update({(source, label(node)): float(prod(shape)) for source in reached})
            reached = {label(node)}
        before.update({tensor.name: reached for tensor in node.outputs})
    return found


def conversion_us(
    options: Sequence[LayerOption], values: Edges, int8: Iterable[str], float_us: float, mixed_us: float
) -> float:
    """Time that converting one value takes, from a measured network in which only the layers `int8` are int8.

    `float_us` and `mixed_us` are the times of the float and of that network, measured in turns. Never below 0.
    """
    chosen = set(int8)
    predicted_us = float_us - sum(option.gain_us for option in options if option.name in chosen)
    converted = sum(count for (a, b), count in values.items() if (a in chosen) != (b in chosen))
    return max(0.0, mixed_us - predicted_us) / converted if converted else 0.0


def choose(options: Sequence[LayerOption], edges: Edges, limit: float, *, seconds: float = 10.0) -> Choice:
    """The layers that save the most time while their errors add up to at most `limit` (infinite = speed alone).

    `edges` gives the time in us of converting what passes between two layers when only one is int8; layers that are not
    in `options` stay float. Raises `ConfigError` for a negative limit or a problem too large to be solved exactly.
    """
    if np.isnan(limit) or limit < 0:
        raise ConfigError(f"the limit on the error is {limit}, expected a number from 0 upwards")
    if not options:
        return Choice((), 0.0, 0.0)
    place = {option.name: index for index, option in enumerate(options)}
    values = [np.array([0.0, option.gain_us]) for option in options]
    scopes: list[list[int]] = [[index] for index in range(len(options))]
    # Where speed alone counts, errors must not: all of them could exceed any finite number.
    costs = [np.array([0.0, option.error if np.isfinite(limit) else 0.0]) for option in options]
    for (source, target), time_us in edges.items():
        inside = [place[name] for name in (source, target) if name in place]
        if len(inside) == 1:
            values[inside[0]][1] -= time_us
        elif len(inside) == 2 and inside[0] != inside[1] and time_us:
            # One more variable says whether the two differ; its wrong value is not allowed.
            values.append(np.array([0.0, -time_us]))
            differ = np.array([[0, 1], [1, 0]])
            scopes.append([*inside, len(values) - 1])
            costs.append(np.where(differ[..., None] == np.arange(2), 0.0, np.inf))
    try:
        solution = _core.solve(values, scopes, costs, limit if np.isfinite(limit) else 1.0, 0.0, seconds)
    except ValueError as error:
        raise ConfigError(f"no exact choice of layers can be computed: {error}") from None
    chosen = [option for index, option in enumerate(options) if solution.choice[index]]
    return Choice(tuple(option.name for option in chosen), solution.value, sum(option.error for option in chosen))
