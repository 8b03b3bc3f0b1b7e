"""OpenVINO on the CPU: fp32, bf16 (computed in bf16 where the processor has it), and int8 from Q/DQ files.

* An engine file is one line of JSON (the layers in execution order, and which ONNX nodes each came from) followed by
  OpenVINO's compiled blob.
* One stream, latency hint, fixed number of threads. What an int8 file leaves unquantized runs in fp32.
* Layer times come from the runtime's counters. These are means over all runs since the network was loaded, in whole
  microseconds, so `layers` loads the network anew and returns one sample: the mean over its runs.
* Names that OpenVINO makes up are numbered anew at each load, so layers are joined by their place (`_in_place`).
* OpenVINO leaves an alternate signal stack on the thread that loads it: `_core` keeps that off the caller's threads.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pydeploy.backends import device
from pydeploy.backends.base import Backend, Engine, Feeds, LayerTime, TensorSpec, check_feeds
from pydeploy.backends.fused_nodes import node_name
from pydeploy.backends.quiet_openvino import ov
from pydeploy.errors import BackendUnavailable, DataError
from pydeploy.files import replacing, sha256
from pydeploy.onnxfile.read import read_onnx
from pydeploy.onnxfile.unsigned import unsigned
from pydeploy.timing.records import Target

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""The precision that OpenVINO is told to compute in, where the file does not say otherwise."""

_WARM_UP = 3  # runs of a newly loaded network that allocate memory and are kept out of its layer times

_CAP = device.onednn_cap()  # oneDNN reads it once, when OpenVINO is loaded

_BIAS_CUT = "/WithoutBiases"
"""What OpenVINO appends to the name of a layer whose bias it has split off."""

Nodes = Mapping[str, Sequence[str]]
"""ONNX node names of each layer, layers in execution order."""


@cache
def _core() -> ov.Core:
    """The one Core of this process, with its CPU plugin loaded.

    The plugin registers an alternate signal stack on the thread that loads it and unmaps it when its Core goes, but
    takes it back only where Cores go in the reverse order of their coming; the next signal on that thread is then the
    last. So the Core stays, and a thread that ends loads it.
    """

    def load() -> ov.Core:
        core = ov.Core()
        core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return core

    with ThreadPoolExecutor(1) as apart:
        return apart.submit(load).result()


class OpenVino(Backend):
    """OpenVINO bound to one precision, batch size and thread count (0 = all usable cores)."""

    name = "openvino"
    int8_style = "openvino"
    halves = ("bf16",)

    def __init__(self, precision: str = "fp32", batch: int = 1, threads: int = 0) -> None:
        if precision not in PRECISIONS:
            raise BackendUnavailable(f"backend 'openvino' runs {', '.join(PRECISIONS)}; '{precision}' was asked for")
        self._core = _core()
        self.precision = precision
        self.batch = batch
        self._device = device.cpu(cap=_CAP)
        self.threads = threads or self._device.cores
        if precision == "bf16":
            self._require_bf16()

    def _require_bf16(self) -> None:
        """OpenVINO emulates bf16 without its instructions, slower than fp32, and lists it as a capability all the same."""
        target = self.target()
        listed = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if not listed or (target.instruction_sets and not target.has_bf16):
            cap = f" under ONEDNN_MAX_CPU_ISA={_CAP}" if _CAP else ""
            raise BackendUnavailable(
                f"this CPU has no bf16 instructions (avx512_bf16, amx_bf16){cap}; use fp32 or int8"
            )

    @classmethod
    def align_at(cls, precision: str, options: str = "") -> int:  # noqa: ARG003
        return device.LANES

    def target(self) -> Target:
        return Target(self._device.name, self.name, ov.__version__, self.precision, self.batch, self.threads,
                      self._device.facts)  # fmt: skip

    def build(self, onnx: Path, out: Path) -> Engine:
        onnx, out = Path(onnx), Path(out)
        source = read_onnx(onnx, precision=self.precision, batch=self.batch)
        try:
            compiled = self._core.compile_model(self._read(onnx, source), "CPU", self._properties())
            blob = compiled.export_model().getvalue()
        except RuntimeError as error:
            raise DataError(f"OpenVINO cannot build {onnx}: {_reason(error)}") from None
        header = json.dumps(_nodes(compiled, source.graph)).encode() + b"\n"
        with replacing(out) as partial:
            partial.write_bytes(header + blob)
        return Engine(out, self.name, self.target(), sha256(onnx)).save()

    @contextmanager
    def open(self, engine: Engine) -> Iterator[OpenVinoSession]:
        engine.require(self.target())
        yield OpenVinoSession(self._core, engine.path, self._properties())

    def _read(self, path: Path, source: onnx.ModelProto) -> ov.Model:
        given = source if self.target().has_amx else unsigned(source)
        return self._core.read_model(path if given is source else given.SerializeToString())

    def _properties(self) -> dict[str, Any]:
        return {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": self.threads,
                "INFERENCE_PRECISION_HINT": PRECISIONS[self.precision]}  # fmt: skip


def _reason(error: Exception) -> str:
    """The last line of OpenVINO's report; the ones before name places in its own source."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1][:300]


def _nodes(compiled: ov.CompiledModel, source: onnx.GraphProto) -> dict[str, list[str]]:
    """ONNX node names of each layer of `compiled`, in source order; names of OpenVINO's own making are left out.

    OpenVINO names a layer after its ONNX node, or after the output tensor where that is an output of the network.
    """
    known = {output: node_name(node) for node in source.node for output in node.output}
    known.update({node_name(node): node_name(node) for node in source.node})
    order = {node_name(node): index for index, node in enumerate(source.node)}
    found: dict[str, list[str]] = {}
    for name, merged in _layers(compiled):
        nodes = {known[one] for one in merged if one in known}
        found.setdefault(name, []).extend(sorted(nodes, key=order.__getitem__))
    return found


def _layers(compiled: ov.CompiledModel) -> list[tuple[str, list[str]]]:
    """(name, names of what was merged into it) of each layer that runs with the network, in execution order.

    What depends on constants alone was computed when the network was loaded.
    """
    constant: set[str] = set()
    found = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        name, facts = op.get_friendly_name(), op.get_rt_info()
        kind = str(facts["layerType"].astype(str))
        sources = [port.get_source_output().get_node().get_friendly_name() for port in op.inputs()]
        if kind == "Const" or (sources and constant.issuperset(sources)):
            constant.add(name)
        elif kind not in ("Input", "Output"):
            merged = str(facts["originalLayersNames"].astype(str)).replace(_BIAS_CUT, "").split(",")
            found.append((name, merged))
    return found


class OpenVinoSession:
    """A loaded engine; see `pydeploy.backends.base.Session`."""

    def __init__(self, core: ov.Core, path: Path, properties: Mapping[str, Any]) -> None:
        self._core = core
        self._path = path
        self._properties = dict(properties)
        header, _, self._blob = path.read_bytes().partition(b"\n")
        self._compiled = self._load(self._properties)
        self._nodes: Nodes = json.loads(header)
        self._request = self._compiled.create_infer_request()
        self.inputs: Sequence[TensorSpec] = [_spec(port) for port in self._compiled.inputs]
        self.outputs: Sequence[TensorSpec] = [_spec(port) for port in self._compiled.outputs]

    def _load(self, properties: Mapping[str, Any]) -> ov.CompiledModel:
        try:
            return self._core.import_model(io.BytesIO(self._blob), "CPU", dict(properties))
        except RuntimeError as error:
            raise DataError(f"OpenVINO cannot load {self._path} ({_reason(error)}); build the engine again") from None

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        check_feeds(feeds, self.inputs)
        results = self._request.infer(dict(feeds))
        return {spec.name: results[index] for index, spec in enumerate(self.outputs)}

    def time(self, feeds: Feeds, n: int) -> NDArray[np.float64]:
        check_feeds(feeds, self.inputs)
        for name, array in feeds.items():
            self._request.set_tensor(name, ov.Tensor(array))
        once, clock = self._request.infer, perf_counter_ns
        ticks = np.empty((n, 2), dtype=np.int64)
        for index in range(n):
            start = clock()
            once(share_outputs=True)
            ticks[index] = start, clock()
        return np.asarray((ticks[:, 1] - ticks[:, 0]) / 1e3, dtype=np.float64)

    def layers(self, feeds: Feeds, n: int) -> Sequence[LayerTime]:
        check_feeds(feeds, self.inputs)
        request = self._load({**self._properties, "PERF_COUNT": True}).create_infer_request()
        for name, array in feeds.items():
            request.set_tensor(name, ov.Tensor(array))
        cold = _counters(request, _WARM_UP)
        warm = _counters(request, n)
        told = _in_place([counter.name for counter in warm], self._nodes)
        return [LayerTime(name, nodes, np.array([_mean_us(before, after, n)]))
                for (name, nodes), before, after in zip(told, cold, warm, strict=True)]  # fmt: skip


def _in_place(names: Sequence[str], built: Nodes) -> list[tuple[str, tuple[str, ...]]]:
    """Name and nodes of each loaded layer as they were when the engine was built.

    By place, where all names that both know stand at the same place; otherwise by name.
    """
    places = {name: place for place, name in enumerate(built)}
    if len(names) == len(built) and all(places.get(name, place) == place for place, name in enumerate(names)):
        return [(name, tuple(nodes)) for name, nodes in built.items()]
    return [(name, tuple(built.get(name, ()))) for name in names]


@dataclass(frozen=True, slots=True)
class _Counter:
    """Mean time of a layer since loading, rounded down to whole microseconds."""

    name: str
    mean_us: float
    kernel: bool
    """False where OpenVINO names none: a layer that changes nothing but the shape, and then takes no time."""


def _counters(request: ov.InferRequest, runs: int) -> list[_Counter]:
    """The counters of all layers after `runs` more runs, in execution order.

    The runtime lists what it merged into a layer as well ("undef"), and says of what took less than a microsecond that
    it did not run.
    """
    for _ in range(runs):
        request.infer(share_outputs=True)
    return [_Counter(info.node_name, info.real_time.total_seconds() * 1e6, not info.exec_type.startswith("unknown"))
            for info in request.get_profiling_info()
            if info.exec_type != "undef" and info.node_type not in ("Parameter", "Result")]  # fmt: skip


def _mean_us(cold: _Counter, warm: _Counter, n: int) -> float:
    """Mean of the last `n` runs. A run's time is rounded down before it is summed, and the mean again: each half of one."""
    if warm.mean_us == 0.0 and not warm.kernel:
        return 0.0
    total = (_WARM_UP + n) * (warm.mean_us + 0.5) - _WARM_UP * (cold.mean_us + 0.5)
    return max(0.0, total / n + 0.5)


def _spec(port: ov.ConstOutput) -> TensorSpec:
    if port.partial_shape.is_dynamic:
        raise DataError(f"'{port.any_name}' has the dynamic shape {port.partial_shape}; export with static shapes")
    return TensorSpec(port.any_name, np.dtype(port.element_type.to_dtype()).name, tuple(port.shape))
