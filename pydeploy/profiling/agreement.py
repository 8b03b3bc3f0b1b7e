"""Whether an int8 or half-precision engine computes what its file says; every such build in pydeploy goes through `build`.

The file is run exactly as written, in float32 and without optimization, by ONNX Runtime, and so is the engine on the same few
samples. They may differ by what rounding explains: a runtime adds up in another order, fuses layers, leaves a pair out.
At worst every rounding falls another way, which moves the outputs by as much as the rounding itself does, times the square
root of 2 where the two are independent. That is measured, on the same samples: the file with its rounding against the file
without (int8), or against the file with all tensors rounded (half). A larger difference is an error that names the first layer.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from pydeploy.backends.base import Backend, Engine, Feeds, Session
from pydeploy.errors import Mismatch
from pydeploy.onnxfile.control_flow import captured
from pydeploy.onnxfile.execute import as_written
from pydeploy.onnxfile.load import read_model
from pydeploy.onnxfile.nodes import QUANTIZE, RESTORE
from pydeploy.onnxfile.rounding import grid_ends, rounded, smooth
from pydeploy.onnxfile.widen import is_half, widen
from pydeploy.profiling.compare_layers import ends
from pydeploy.profiling.profile import random_feeds

SAMPLES = 4
REDRAWN = 1.5
"""How many times the effect of rounding an engine may be off: the square root of 2, and a little for few samples."""
FLOOR = 1e-3
"""Relative difference that is never an error."""
_HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_SEVEN_BITS = 63
log = logging.getLogger(__name__)

Outputs = Mapping[str, NDArray[np.float64]]
"""By name, all samples in a row; float tensors only."""


def build(backend: Backend, path: Path, out: Path, feeds: Sequence[Feeds] = ()) -> Engine:
    """Build `path` for `backend` at `out`; an int8 or half-precision engine is compared with the file.

    `feeds` are samples of the engine's inputs, of which the first few are used; random ones without any.
    Raises `Mismatch` naming the first layer where the engine is wrong; it is removed then.
    """
    engine = backend.build(path, out)
    try:
        require_agreement(backend, engine, path, feeds)
    except Mismatch:
        for file in (out, out.with_name(out.name + ".json")):
            file.unlink(missing_ok=True)
        raise
    return engine


def require_agreement(backend: Backend, engine: Engine, path: Path, feeds: Sequence[Feeds] = ()) -> None:
    """Raise `Mismatch` where the engine of `path` is further from the file than rounding explains; see `build`."""
    if backend.precision not in ("int8", *_HALF) or not backend.target().measured:
        return
    if backend.only_builds:
        log.warning("%s is not compared with %s: %s", path, engine.path, backend.only_builds)
        return
    original = read_model(path).whole()
    quantized = any(node.op_type == QUANTIZE for node in original.graph.node)
    if backend.precision == "int8" and not quantized:  # the runtime itself decides what is rounded
        return
    with backend.open(engine) as session:
        samples = list(feeds[:SAMPLES]) or _random(original, session)
        found = _of_session(session, samples)
    try:
        file = _Exact(original, backend)
        allowed = file.allowed(samples, [])
    except Exception as error:  # ONNX Runtime's own types
        log.warning("%s is not compared with its engine: ONNX Runtime cannot run it (%s)", path, str(error)[:200])
        return
    for name in found:
        if not _agree(found[name], *allowed[name]):
            exact, limit = allowed[name]
            size = float(np.linalg.norm(exact)) or 1.0
            raise Mismatch(
                f"the engine of {path} for {backend.target()} is wrong: output '{name}' differs from the file's by "
                f"{np.linalg.norm(found[name] - exact) / size:.1%}, where rounding explains {limit / size:.1%}; "
                f"{_where(backend, original, file, samples)}; {_advice(backend, original)}"
            )


def _agree(found: NDArray[np.float64], exact: NDArray[np.float64], limit: float) -> bool:
    if not np.isfinite(exact).all():
        return True
    return bool(np.linalg.norm(found - exact) <= limit)


@dataclass
class _Exact:
    """The file as written, in float32, and what its rounding is worth."""

    original: onnx.ModelProto
    backend: Backend

    def __post_init__(self) -> None:
        self.exact = onnx.ModelProto()
        self.exact.CopyFrom(self.original)
        half = _HALF.get(self.backend.precision)
        if is_half(self.exact):
            half = half or TensorProto.FLOAT16
            widen(self.exact)
        self.others = []
        if any(node.op_type == QUANTIZE for node in self.exact.graph.node):
            self.others.append(smooth(self.exact))
        if half:
            self.others.append(rounded(self.exact, half))

    def allowed(self, samples: Sequence[Feeds], taps: Sequence[str]) -> dict[str, tuple[NDArray[np.float64], float]]:
        """Exact values of the outputs, and of the tensors `taps`, each with the norm of the difference that is allowed."""
        exact = _run(self.exact, samples, taps, self.backend.threads)
        others = [_run(other, samples, taps, self.backend.threads) for other in self.others]
        found = {}
        for name, values in exact.items():
            noise = sum(float(np.sum(np.square(other[name] - values))) for other in others)
            floor = FLOOR * float(np.linalg.norm(values))
            # Where rounding itself leaves the range of the type, nothing can be said.
            limit = float(np.sqrt(REDRAWN**2 * noise + floor**2)) if np.isfinite(noise) else float("inf")
            found[name] = (values, limit)
        return found


def _run(model: onnx.ModelProto, samples: Sequence[Feeds], taps: Sequence[str], threads: int) -> Outputs:
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    own = {value.name for value in model.graph.output}
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps if name not in own)
    session = as_written(tapped, threads)
    names = [output.name for output in session.get_outputs() if output.type in ("tensor(float)", "tensor(float16)")]
    runs = [session.run(names, dict(feeds)) for feeds in samples]
    return _in_a_row(names, runs)


def _of_session(session: Session, samples: Sequence[Feeds]) -> Outputs:
    names = [spec.name for spec in session.outputs if "float" in spec.dtype]
    runs = []
    for feeds in samples:
        result = session.run(feeds)
        runs.append([result[name].copy() for name in names])
    return _in_a_row(names, runs)


def _in_a_row(names: Sequence[str], runs: Sequence[Sequence[NDArray[Any]]]) -> Outputs:
    return {name: np.concatenate([np.ravel(run[place]) for run in runs]).astype(np.float64)
            for place, name in enumerate(names)}  # fmt: skip


def _random(model: onnx.ModelProto, session: Session) -> list[Feeds]:
    """Random inputs, within the grid of the pair that reads them where there is one."""
    grids = grid_ends(model.graph)
    reach = {node.input[0]: grids[node.output[0]] for node in model.graph.node
             if node.op_type == QUANTIZE and node.output[0] in grids}  # fmt: skip
    found: list[Feeds] = []
    for seed in range(SAMPLES):
        feeds = random_feeds(session.inputs, seed)
        for name, (low, high) in reach.items():
            if name in feeds:
                feeds[name] = np.clip((low + high) / 2 + (high - low) / 6 * feeds[name], low, high).astype(
                    feeds[name].dtype
                )
        found.append(feeds)
    return found


def _where(backend: Backend, original: onnx.ModelProto, file: _Exact, samples: Sequence[Feeds]) -> str:
    """The first layer up to which the network, built alone, is wrong: found by bisection, then upwards along its inputs."""
    graph = onnx.shape_inference.infer_shapes(original).graph
    types = {value.name: value for value in (*graph.value_info, *graph.output)}
    places = {tensor: layer for layer, tensor in ends(graph)
              if tensor in types and types[tensor].type.tensor_type.elem_type in (TensorProto.FLOAT, *_HALF.values())}  # fmt: skip
    allowed = file.allowed(samples, list(places))
    tensors = [tensor for tensor in places if tensor in allowed]

    @cache
    def wrong(tensor: str) -> bool:
        with _upto(backend, original, types[tensor]) as session:
            return not _agree(_of_session(session, samples)[tensor], *allowed[tensor])

    low, high = -1, len(tensors)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if wrong(tensors[middle]) else (middle, high)
    if high == len(tensors):
        return "no single layer is to blame"
    found = tensors[high]
    # Branches run side by side, so that the order alone does not tell what comes first.
    while earlier := next((tensor for tensor in _nearest(graph, found, set(tensors)) if wrong(tensor)), ""):
        found = earlier
    return f"the first layer that differs is '{places[found]}'"


def _nearest(graph: onnx.GraphProto, tensor: str, among: set[str]) -> list[str]:
    """The tensors of `among` that `tensor` is computed from, without others of them in between."""
    makers = {name: node for node in graph.node for name in node.output}
    seen, front = {tensor}, [tensor]
    found: list[str] = []
    while front:
        node = makers.get(front.pop())
        for name in (*node.input, *captured(node)) if node is not None else ():
            if name not in seen:
                seen.add(name)
                (found if name in among else front).append(name)
    return found


@contextmanager
def _upto(backend: Backend, model: onnx.ModelProto, value: onnx.ValueInfoProto) -> Iterator[Session]:
    """An engine of the network up to one tensor."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    needed, kept = {value.name}, []
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed.update((*node.input, *captured(node)))
    del part.graph.node[:], part.graph.output[:], part.graph.value_info[:], part.graph.initializer[:]
    part.graph.node.extend(reversed(kept))
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    part.graph.output.append(value)
    with tempfile.TemporaryDirectory(prefix="pydeploy-") as folder:
        source = Path(folder) / "part.onnx"
        onnx.save(part, source)
        with backend.open(backend.build(source, Path(folder) / "part.engine")) as session:
            yield session


def _advice(backend: Backend, model: onnx.ModelProto) -> str:
    weights = {node.input[0] for node in model.graph.node if node.op_type in (QUANTIZE, RESTORE)}
    wide = any(tensor.name in weights and tensor.data_type == TensorProto.INT8
               and np.abs(numpy_helper.to_array(tensor).astype(np.int16)).max(initial=0) > _SEVEN_BITS
               for tensor in model.graph.initializer)  # fmt: skip
    if backend.precision == "int8" and backend.target().saturates and wide:
        return (
            "its weights have 8 bits and this processor adds their products in 16: quantize for this processor, "
            "then they have 7 ('pydeploy quantize' here, or with --processor)"
        )
    if backend.precision == "int8":
        return "keep that layer in float (--exclude), quantize in this runtime's style, or build for another runtime"
    return "keep that layer in float32 (pydeploy half --keep), or build in fp32"
