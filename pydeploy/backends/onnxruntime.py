"""ONNX Runtime on the CPU: fp32, and int8 from Q/DQ files.

* The engine is the graph after ONNX Runtime's own optimization for this CPU, an ONNX file again. It is opened with
  optimization off, so what was built is what runs. Where each node came from is kept in its metadata.
* Every session has a fixed number of threads, runs its nodes in sequence, and stops spinning when a run ends, so
  that sessions timed in turns do not disturb each other.
* Layer times come from the runtime's profiler, which rounds down to whole microseconds; half of one is added back.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from pydeploy.backends import device
from pydeploy.backends.base import Backend, Engine, Feeds, LayerTime, TensorSpec, check_feeds
from pydeploy.backends.fused_nodes import source_nodes
from pydeploy.errors import BackendUnavailable, DataError
from pydeploy.files import replacing, sha256
from pydeploy.onnxfile.integer_biases import integer_biases
from pydeploy.onnxfile.read import read_onnx
from pydeploy.timing.records import Target

PRECISIONS = ("fp32", "int8")
_NODES = "pydeploy.origins"
_PROVIDERS = ["CPUExecutionProvider"]
_DTYPES = {"float": "float32", "double": "float64"}  # ONNX Runtime's spelling where it differs from NumPy's
_WARM_UP = 2  # a profiled session is always new, and its first runs allocate memory


class OnnxRuntime(Backend):
    """ONNX Runtime bound to one precision, batch size and thread count (0 = all usable cores)."""

    name = "onnxruntime"

    def __init__(self, precision: str = "fp32", batch: int = 1, threads: int = 0) -> None:
        if precision not in PRECISIONS:
            raise BackendUnavailable(f"backend 'onnxruntime' runs {', '.join(PRECISIONS)}; '{precision}' was asked for")
        self.precision = precision
        self.batch = batch
        self._device = device.cpu()
        self.threads = threads or self._device.cores

    @classmethod
    def align_at(cls, precision: str, options: str = "") -> int:  # noqa: ARG003
        return device.LANES

    def target(self) -> Target:
        return Target(self._device.name, self.name, ort.__version__, self.precision, self.batch, self.threads,
                      self._device.facts)  # fmt: skip

    def build(self, onnx: Path, out: Path) -> Engine:
        onnx, out = Path(onnx), Path(out)
        source = read_onnx(onnx, precision=self.precision, batch=self.batch)
        with replacing(out) as partial:
            _write_optimized(onnx, source, partial, self.threads, exact=self.target().saturates)
        return Engine(out, self.name, self.target(), sha256(onnx)).save()

    @contextmanager
    def open(self, engine: Engine) -> Iterator[OnnxRuntimeSession]:
        engine.require(self.target())
        yield OnnxRuntimeSession(engine.path, self.threads)


_UNASKED = ["WeightBiasQuantization"]
"""Passes of the runtime that change numbers: this one writes int32 biases (`integer_biases` does that), but also rounds the
float weights of a layer between two pairs to int8, with one scale for all of them."""


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _load(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(str(path), options, providers=_PROVIDERS)
    except Exception as error:  # the runtime's exceptions share no base of their own
        raise DataError(f"ONNX Runtime cannot load {path} ({_reason(error)}); build the engine again") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _write_optimized(path: Path, source: onnx.ModelProto, out: Path, threads: int, *, exact: bool) -> None:
    """Write the graph that ONNX Runtime makes of `path` for this CPU, with the source nodes of every node, to `out`.

    `exact` is for CPUs on which uint8 x int8 products saturate: weights beyond 7 bits then become uint8, which does not.
    """
    options = _options(threads)
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(out)
    given = integer_biases(source)
    try:
        ort.InferenceSession(str(path) if given is source else given.SerializeToString(), options, providers=_PROVIDERS,
                             disabled_optimizers=_UNASKED)  # fmt: skip
    except Exception as error:
        raise DataError(f"ONNX Runtime cannot run {path}: {_reason(error)}") from None
    model = onnx.load(out)
    names: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in names:
            node.name = f"{node.name or node.op_type}#{index}"
        names.add(node.name)
    nodes = source_nodes(source.graph, [(node.name, node.op_type) for node in model.graph.node])
    onnx.helper.set_model_props(model, {_NODES: json.dumps(nodes)})
    onnx.save(model, out)


class OnnxRuntimeSession:
    """A loaded engine; see `pydeploy.backends.base.Session`."""

    def __init__(self, path: Path, threads: int) -> None:
        self._path = path
        self._threads = threads
        self._session = _load(path, _options(threads))
        self.inputs: Sequence[TensorSpec] = [_spec(value) for value in self._session.get_inputs()]
        self.outputs: Sequence[TensorSpec] = [_spec(value) for value in self._session.get_outputs()]
        metadata = self._session.get_modelmeta().custom_metadata_map
        if _NODES not in metadata:
            raise DataError(f"{path} was not built by pydeploy; build an engine from it")
        self._nodes = {name: tuple(nodes) for name, nodes in json.loads(metadata[_NODES]).items()}

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        check_feeds(feeds, self.inputs)
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def time(self, feeds: Feeds, n: int) -> NDArray[np.float64]:
        check_feeds(feeds, self.inputs)
        binding = self._session.io_binding()
        held = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        for spec in self.outputs:
            held[spec.name] = ort.OrtValue.ortvalue_from_shape_and_type(spec.shape, np.dtype(spec.dtype))
            binding.bind_ortvalue_output(spec.name, held[spec.name])
        once, clock = self._session.run_with_iobinding, perf_counter_ns
        ticks = np.empty((n, 2), dtype=np.int64)
        for index in range(n):
            start = clock()
            once(binding)
            ticks[index] = start, clock()
        return np.asarray((ticks[:, 1] - ticks[:, 0]) / 1e3, dtype=np.float64)

    def layers(self, feeds: Feeds, n: int) -> Sequence[LayerTime]:
        check_feeds(feeds, self.inputs)
        with tempfile.TemporaryDirectory(prefix="pydeploy-", ignore_cleanup_errors=True) as folder:
            options = _options(self._threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = _load(self._path, options)
            for _ in range(_WARM_UP + n):
                session.run(None, dict(feeds))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return _layer_times(events, self._nodes, n)


def _layer_times(events: Sequence[dict[str, Any]], nodes: dict[str, tuple[str, ...]], n: int) -> list[LayerTime]:
    """One `LayerTime` per node, samples of the last `n` runs, from the profiler's trace events."""
    suffix = "_kernel_time"
    durations: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(suffix):
            durations.setdefault(event["name"].removesuffix(suffix), []).append(event["dur"] + 0.5)
    if any(len(samples) != _WARM_UP + n for samples in durations.values()):
        raise DataError(
            f"ONNX Runtime's profile does not hold every layer of all {n} runs; profile fewer runs at a time"
        )
    return [LayerTime(name, nodes.get(name, ()), np.asarray(samples[_WARM_UP:], dtype=np.float64))
            for name, samples in durations.items()]  # fmt: skip


def _spec(value: Any) -> TensorSpec:
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    if not all(isinstance(dim, int) for dim in value.shape):
        raise DataError(f"'{value.name}' has the dynamic shape {value.shape}; export the model with static shapes")
    return TensorSpec(value.name, _DTYPES.get(kind, kind), tuple(value.shape))
