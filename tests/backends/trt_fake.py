"""A TensorRT and a CUDA that exist nowhere: the real bindings' names and signatures, an analytic device behind them.

* What may be called, with which arguments, read and assigned, comes from the table of one version (`trt_surface`):
  an unknown name, an unknown assignment and a wrong argument are refused as the real bindings refuse them, the
  assignment even where the real ones let it pass.
* What happens then is the same for all versions: engines are costed with the `null` backend, CUDA's clock advances by
  those costs.
* `World.fail` makes single steps fail as TensorRT does: a return value, a line in the log.
"""

from __future__ import annotations

import base64
import json
import re
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from pydeploy.backends import null
from pydeploy.backends.fused_nodes import node_name
from pydeploy.backends.tensorrt import compat
from trt_surface import Surface

LAUNCH_US = 3.0  # what the host takes to enqueue one layer
PROFILE_US = 2.0  # what the profiler adds to each layer
STREAM = 0x5EED


@dataclass
class World:
    """What the fake runs on: a clock, memory, failures to order, and a record of what was asked."""

    surface: Surface
    table: str
    fail: set[str] = field(default_factory=set)
    host_us: float = 0.0
    gpu_us: float = 0.0
    numeric: bool = False
    """Compute outputs (on ONNX Runtime) instead of leaving zeros."""
    pending: Callable[[], None] | None = None
    """The last run's outputs, computed only when somebody reads them."""
    noise: float = 0.0
    """Relative amplitude of the GPU's run times."""
    memory: dict[int, bytearray] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    network_flags: int = 0
    flags: set[str] = field(default_factory=set)
    config: Any = None
    capturing: list[Callable[[], None]] | None = None
    runs: int = 0
    copies: list[Callable[[], None]] = field(default_factory=list)
    """Copies to the device that the stream has not come to yet: what they read must not change before."""
    calibrated: list[np.ndarray] = field(default_factory=list)
    """What a calibrator fed, batch by batch."""
    logged: list[str] = field(default_factory=list)
    validity: tuple[str, int] = ("VALID", 0)
    """What TensorRT for RTX says of an engine, with the bits of its diagnostics."""
    compiled: int = 0
    """How often kernels were compiled on the device."""
    gpus: list[str] = field(default_factory=list)
    """What engines are built for."""
    graphs: int = 0
    """CUDA graphs, and launchers made of them, that nobody has destroyed yet."""

    @property
    def major(self) -> int:
        if self.surface.rtx:
            return 11 if "INT8" not in self.surface.classes["BuilderFlag"] else 10
        return int(self.surface.version.split(".")[0])

    def flush(self) -> None:
        """What happens in the stream's order before anything else does."""
        for copy in self.copies:
            copy()
        self.copies.clear()

    def next_factor(self) -> float:
        self.runs += 1
        return 1.0 + self.noise * float(np.sin(self.runs * 12.9898))


# ---------------------------------------------------------------- arguments, as pybind11 checks them

_INT = r"^(int|typing\.SupportsInt)$"


def check_call(
    surface: Surface, where: str, signatures: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """`TypeError` unless some overload takes these arguments."""
    reasons = [why for text in signatures if (why := _refusal(surface, text, args, kwargs))]
    if len(reasons) == len(signatures):
        raise TypeError(f"{where}(): incompatible function arguments: {reasons}")


def _refusal(surface: Surface, text: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    parameters = _parameters(text.partition("->")[0])
    if len(args) > len(parameters):
        return f"takes {len(parameters)} arguments, got {len(args)}"
    given = dict(zip((name for name, _, _ in parameters), args, strict=False))
    given |= kwargs
    for name, kind, optional in parameters:
        if name not in given:
            if not optional:
                return f"'{name}' is missing"
        elif not _fits(surface, kind, given.pop(name)):
            return f"'{name}' must be {kind}"
    return f"unknown {sorted(given)}" if given else ""


def _parameters(text: str) -> list[tuple[str, str, bool]]:
    found = []
    for part in re.split(r", (?=\w+: )", text.strip()):
        if part:
            name, _, kind = part.partition(": ")
            kind, default, _ = kind.partition(" = ")
            found.append((name, kind.strip(), bool(default)))
    return found


def _fits(surface: Surface, kind: str, value: Any) -> bool:
    if re.match(_INT, kind):
        return isinstance(value, int | np.integer) and not isinstance(value, bool)
    simple: dict[str, Any] = {"str": str, "bool": bool, "buffer": bytes, "typing_extensions.Buffer": bytes,
                              "tuple": tuple, "list": list, "Dims": (tuple, list)}  # fmt: skip
    if kind in simple:
        return isinstance(value, simple[kind])
    name = kind.rpartition("::")[2].rpartition(".")[2]
    if name in surface.classes:
        mro = value.__class__.__mro__  # of a mock: the class that it stands for
        return any(getattr(base, "trt_name", base.__name__) == name for base in mro)
    return True


# ---------------------------------------------------------------- objects that show only what a version has


class Face:
    """An object of class `trt_name`: names come from the version's table, behaviour from `_core`."""

    trt_name = ""

    def __init__(self, world: World, trt_name: str, core: Any) -> None:
        members = world.surface.classes[trt_name]
        for name, value in (
            ("_world", world),
            ("_name", trt_name),
            ("_members", members),
            ("_core", core),
            ("_values", {}),
        ):
            object.__setattr__(self, name, value)
        core.face = self

    def __getattr__(self, name: str) -> Any:
        kind = self._members.get(name)
        if kind is None:
            raise AttributeError(f"'{self._name}' object has no attribute '{name}' in {self._world.surface.version}")
        if isinstance(kind, str):
            if name in self._values:
                return self._values[name]
            return getattr(self._core, name, None)
        assert isinstance(kind, list)
        behaviour = getattr(self._core, name)

        def method(*args: Any, **kwargs: Any) -> Any:
            check_call(self._world.surface, f"{self._name}.{name}", kind, args, kwargs)
            self._world.calls.append(f"{self._name}.{name}")
            return behaviour(*args, **kwargs)

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        kind = self._members.get(name)
        if kind != "rw":
            what = "read-only" if kind == "r" else "unknown"
            raise AttributeError(f"'{self._name}.{name}' is {what} in {self._world.surface.version}")
        self._world.calls.append(f"{self._name}.{name}=")
        self._values[name] = value
        assigned = getattr(self._core, f"assigned_{name}", None)
        if assigned is not None:
            assigned(value)


def face(world: World, name: str, core: Any) -> Any:
    cls = type(name, (Face,), {"trt_name": name})
    return cls(world, name, core)


class Blob(bytes):
    """An IHostMemory: readable through the buffer protocol."""

    trt_name = "IHostMemory"


class Enum:
    """One value of a pybind11 enum."""

    def __init__(self, kind: str, name: str, value: int) -> None:
        self.trt_name, self.name, self.value = kind, name, value

    def __int__(self) -> int:
        return self.value

    __index__ = __int__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Enum) and (self.trt_name, self.value) == (other.trt_name, other.value)

    def __hash__(self) -> int:
        return hash((self.trt_name, self.value))

    def __repr__(self) -> str:
        return f"<{self.trt_name}.{self.name}: {self.value}>"


def enum(kind: str, members: dict[str, Any]) -> Any:
    value_class = type(kind, (Enum,), {"trt_name": kind})
    values = {name: value_class(kind, name, number) for name, number in members.items()}

    class Closed(type):
        def __getattr__(cls, name: str) -> Any:
            raise AttributeError(f"type object '{kind}' has no attribute '{name}'")

    return Closed(kind, (), {**values, "__members__": values})


# ---------------------------------------------------------------- what happens behind the names


class Core:
    def __init__(self, world: World) -> None:
        self.world = world
        self.face: Any = None


class BuilderCore(Core):
    def __init__(self, world: World, logger: Any, make: Callable[[str, Any], Any]) -> None:
        super().__init__(world)
        self.logger, self.make = logger, make

    def create_network(self, flags: int = 0) -> Any:
        self.world.network_flags = flags
        return self.make("INetworkDefinition", NetworkCore(self.world, self.make))

    def create_builder_config(self) -> Any:
        self.world.config = self.make("IBuilderConfig", ConfigCore(self.world, self.make))
        return self.world.config

    def create_optimization_profile(self) -> Any:
        return self.make("IOptimizationProfile", ProfileCore(self.world))

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        if "build" in self.world.fail:
            say(self.world, self.logger, "ERROR", "Error Code 10: Could not find any implementation for node conv1.")
            return None
        if "memory" in self.world.fail:
            say(
                self.world,
                self.logger,
                "ERROR",
                "[virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory (Requested size was 8)",
            )
            return None
        monitor = getattr(config, "progress_monitor", None) if self.world.major >= 10 else None
        if monitor is not None:
            monitor.phase_start("Building engine", None, 3)
            if not all(monitor.step_complete("Building engine", step) for step in range(3)):
                return None
            monitor.phase_finish("Building engine")
        calibrator = getattr(config, "int8_calibrator", None)
        if calibrator is not None and not self.calibrate(calibrator, core_of(network), core_of(config)):
            say(self.world, self.logger, "ERROR", "Calibration failure occurred with no scaling factors detected.")
            return None
        plan = core_of(network).plan(core_of(config))
        core_of(config).learn()
        return Blob(json.dumps(plan).encode())

    def calibrate(self, calibrator: Any, network: NetworkCore, config: ConfigCore) -> bool:
        """As TensorRT does: a cache, else batches until there are none. What the calibrator raises is only printed."""
        assert "INT8" in self.world.flags
        if calibrator.read_calibration_cache():
            return True
        model = static(network.model, config.shapes)
        inputs = {name: shape for name, _, shape in ports(model, network.real_inputs)}
        assert config.shapes == {} or config.calibration_shapes == config.shapes, "the calibration profile is set"
        assert {shape[0] for shape in inputs.values()} == {calibrator.get_batch_size()}
        top, seen = 0.0, 0
        while (addresses := self.quietly(calibrator.get_batch, list(inputs))) is not None:
            for (name, shape), address in zip(inputs.items(), addresses, strict=True):
                batch = np.frombuffer(self.world.memory[address], np.float32).reshape(shape)
                self.world.calibrated.append(batch.copy())
                top, seen = max(top, float(np.abs(batch).max())), seen + 1
                assert name
        if not seen:
            return False
        scale = np.float32(top / 127).astype(">f4").tobytes().hex()
        text = f"TRT-{self.world.surface.version}-EntropyCalibration2\n{next(iter(inputs))}: {scale}\n"
        self.quietly(calibrator.write_calibration_cache, text.encode())
        return True

    def quietly(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except Exception as error:
            say(self.world, None, "ERROR", f"Exception caught in {call.__name__}(): {error}")
            return None


class NetworkCore(Core):
    def __init__(self, world: World, make: Callable[[str, Any], Any]) -> None:
        super().__init__(world)
        self.make = make
        self.model: onnx.ModelProto = onnx.ModelProto()

    @property
    def real_inputs(self) -> list[onnx.ValueInfoProto]:
        weights = {tensor.name for tensor in self.model.graph.initializer}
        return [value for value in self.model.graph.input if value.name not in weights]

    @property
    def num_inputs(self) -> int:
        return len(self.real_inputs)

    @property
    def num_layers(self) -> int:
        return len(self.model.graph.node)

    def get_input(self, index: int) -> Any:
        core = Core(self.world)
        core.name = self.real_inputs[index].name  # type: ignore[attr-defined]
        return self.make("ITensor", core)

    def get_layer(self, index: int) -> Any:
        core = Core(self.world)
        core.name = node_name(self.model.graph.node[index])  # type: ignore[attr-defined]
        core.operator = self.model.graph.node[index].op_type  # type: ignore[attr-defined]
        return self.make("ILayer", core)

    def plan(self, config: ConfigCore) -> dict[str, Any]:
        """The engine as JSON: its layers with their cost, inputs, outputs."""
        half = any(t.data_type in (10, 16) for t in self.model.graph.initializer) or self.world.flags & {"FP16", "BF16"}
        quantized = {n.output[0] for n in self.model.graph.node if n.op_type == "DequantizeLinear"}
        model = static(self.model, config.shapes)
        shapes = shapes_of(model)
        layers = []
        for node in model.graph.node:
            cost = null._cost(node, shapes)
            if cost is None:
                continue
            implicit = getattr(config.face, "int8_calibrator", None) is not None
            int8 = implicit or (len(node.input) > 1 and {node.input[0], node.input[1]} <= quantized)
            size = 1 if int8 else 2 if half else 4
            layers.append({"node": node_name(node), "us": null._layer_us(*cost, size, 1), "bits": 8 * size,
                           "cin": int(shapes[node.input[0]][1]), "cout": int(shapes[node.output[0]][1])})  # fmt: skip
        return {"version": self.world.surface.version, "layers": layers, "inputs": ports(model, self.real_inputs),
                "outputs": ports(model, list(model.graph.output)),
                "onnx": base64.b64encode(model.SerializeToString()).decode(),
                "dynamic": {name: list(shape) for name, shape in config.shapes.items()}}  # fmt: skip


def static(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size
    for value in copy.graph.output:
        if shapes:
            value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(copy, data_prop=True)


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    graph = model.graph
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        found[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return found


def ports(model: onnx.ModelProto, values: list[onnx.ValueInfoProto]) -> list[list[Any]]:
    kinds = {1: "FLOAT", 10: "HALF", 16: "BF16", 7: "INT64", 6: "INT32", 9: "BOOL", 3: "INT8"}
    shapes = shapes_of(model)
    return [[v.name, kinds[v.type.tensor_type.elem_type], list(shapes[v.name])] for v in values]


class ParserCore(Core):
    def __init__(self, world: World, network: Any, logger: Any, make: Callable[[str, Any], Any]) -> None:
        super().__init__(world)
        self.network, self.logger, self.make = network, logger, make
        self.num_errors = 0

    def parse(self, model: bytes, path: str | None = None) -> bool:
        if "parse" in self.world.fail:
            self.num_errors = 2
            say(self.world, self.logger, "ERROR", "ModelImporter.cpp: parsing failed")
            return False
        core_of(self.network).model = onnx.ModelProto.FromString(model)
        return True

    def get_error(self, index: int) -> Any:
        core = Core(self.world)
        core.node = lambda: index  # type: ignore[attr-defined]
        core.desc = lambda: f"Unsupported operator {index}\n(see the log)"  # type: ignore[attr-defined]
        core.node_operator = lambda: "Conv"  # type: ignore[attr-defined]
        return self.make("ParserError", core)


class ConfigCore(Core):
    def __init__(self, world: World, make: Callable[[str, Any], Any]) -> None:
        super().__init__(world)
        self.make = make
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.calibration_shapes: dict[str, tuple[int, ...]] = {}
        self.ranges: dict[str, tuple[Any, ...]] = {}
        self.cache: Any = None
        world.flags = {"TF32"}
        self.pools: dict[str, int] = {}

    def set_flag(self, flag: Any) -> None:
        typed_bit = {10: 2, 11: 0}.get(self.world.major, 0)
        typed = self.world.major >= 11 or bool(self.world.network_flags & typed_bit)
        if typed and flag.name in ("FP16", "INT8", "BF16", "FP8", "OBEY_PRECISION_CONSTRAINTS"):
            raise AssertionError(f"BuilderFlag.{flag.name} on a strongly typed network is an error of TensorRT's")
        self.world.flags.add(flag.name)

    def assigned_int8_calibrator(self, calibrator: Any) -> None:
        assert not self.world.network_flags & 2, "a strongly typed network takes no calibrator"

    def set_calibration_profile(self, profile: Any) -> bool:
        self.calibration_shapes = dict(core_of(profile).shapes)
        return True

    def clear_flag(self, flag: Any) -> None:
        self.world.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool.name] = size

    def add_optimization_profile(self, profile: Any) -> int:
        if "profile" in self.world.fail:
            return -1
        self.shapes, self.ranges = dict(core_of(profile).shapes), dict(core_of(profile).ranges)
        return 0

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        assert index < self.face.num_compute_capabilities
        self.world.gpus = [*self.world.gpus[:index], compute_capability.name]
        return "capability" not in self.world.fail

    def create_timing_cache(self, data: bytes) -> Any:
        if "cache-garbage" in self.world.fail and data:
            return None
        return self.make("ITimingCache", CacheCore(self.world, data))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        mine = f"trt {self.world.surface.version}\n".encode()
        data = core_of(cache).data
        if data and not data.startswith(mine):
            say(self.world, None, "ERROR", "timing cache mismatch")
            return ignore_mismatch
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache

    def learn(self) -> None:
        if self.cache is not None:
            core = core_of(self.cache)
            core.data = core.data or f"trt {self.world.surface.version}\n".encode()
            core.data += f"build {len(core.data)}\n".encode()

    def can_run_on_DLA(self, layer: Any) -> bool:  # noqa: N802
        return core_of(layer).operator in ("Conv", "Relu")


class CacheCore(Core):
    def __init__(self, world: World, data: bytes) -> None:
        super().__init__(world)
        self.data = data

    def serialize(self) -> Blob:
        return Blob(self.data)

    def combine(self, other: Any, ignore_mismatch: bool) -> bool:
        extra = [line for line in core_of(other).data.splitlines(keepends=True) if line not in self.data]
        self.data += b"".join(extra)
        return True


class ProfileCore(Core):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.ranges: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
        if "shape" in self.world.fail:
            raise ValueError("Shape provided for min is inconsistent with other shapes.")
        assert min[0] <= opt[0] <= max[0]
        self.shapes[input] = tuple(max)
        self.ranges[input] = (tuple(min), tuple(opt), tuple(max))


class RuntimeCore(Core):
    def __init__(self, world: World, logger: Any, make: Callable[[str, Any], Any]) -> None:
        super().__init__(world)
        self.logger, self.make = logger, make

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        verdict, bits = self.world.validity
        return self.world.module.EngineValidity.__members__[verdict], bits  # type: ignore[attr-defined]

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        try:
            plan = json.loads(serialized_engine)
            assert plan["version"] == self.world.surface.version
        except (ValueError, KeyError, AssertionError, TypeError):
            say(
                self.world,
                self.logger,
                "ERROR",
                "Error Code 1: Serialization (Serialization assertion magicTagRead failed.)",
            )
            return None
        return self.make("ICudaEngine", EngineCore(self.world, plan, self.logger, self.make))


class RuntimeConfigCore(Core):
    """How contexts of TensorRT for RTX run."""

    def __init__(self, world: World, make: Callable[[str, Any], Any]) -> None:
        super().__init__(world)
        self.make, self.cache = make, None

    def create_runtime_cache(self) -> Any:
        return self.make("IRuntimeCache", RuntimeCacheCore(self.world))

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True

    def get_runtime_cache(self) -> Any:
        return self.cache


class RuntimeCacheCore(Core):
    """Kernels that were compiled on the device."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.kernels = b""

    def deserialize(self, blob: bytes) -> bool:
        self.kernels = bytes(blob)
        return True

    def serialize(self) -> Blob:
        return Blob(self.kernels)


class EngineCore(Core):
    def __init__(self, world: World, plan: dict[str, Any], logger: Any, make: Callable[[str, Any], Any]) -> None:
        super().__init__(world)
        self.plan, self.logger, self.make = plan, logger, make
        self.ports = {row[0]: row for row in (*plan["inputs"], *plan["outputs"])}
        self.network: Any = None

    def compute(self, addresses: dict[str, int]) -> None:
        """Outputs of the network for what lies at the inputs' addresses."""
        import onnxruntime as ort

        memory = self.world.memory
        if self.network is None:
            self.network = ort.InferenceSession(base64.b64decode(self.plan["onnx"]), providers=["CPUExecutionProvider"])
        feeds = {name: np.frombuffer(memory[addresses[name]], compat.NUMPY_NAMES[kind]).reshape(shape)
                 for name, kind, shape in self.plan["inputs"]}  # fmt: skip
        names = [row[0] for row in self.plan["outputs"]]
        for name, values in zip(names, self.network.run(names, feeds), strict=True):
            memory[addresses[name]][:] = values.tobytes()

    @property
    def num_io_tensors(self) -> int:
        return len(self.ports)

    def get_tensor_name(self, index: int) -> str:
        return list(self.ports)[index]

    def get_tensor_mode(self, name: str) -> Any:
        inputs = {row[0] for row in self.plan["inputs"]}
        return self.enum("TensorIOMode", "INPUT" if name in inputs else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        return self.enum("DataType", self.ports[name][1])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self.ports[name][2])
        if "other dynamic" in self.world.fail:
            return (-1, -1, *shape[2:])
        return (-1, *shape[1:]) if self.plan["dynamic"] else shape

    def enum(self, kind: str, name: str) -> Any:
        return getattr(self.world.module, kind).__members__[name]  # type: ignore[attr-defined]

    def create_runtime_config(self) -> Any:
        return self.make("IRuntimeConfig", RuntimeConfigCore(self.world, self.make))

    def create_execution_context(self, runtime_config: Any = None) -> Any:
        assert (runtime_config is not None) == self.world.surface.rtx
        if "context" in self.world.fail:
            say(self.world, self.logger, "ERROR", "OutOfMemory")
            return None
        return self.make("IExecutionContext", ContextCore(self.world, self, runtime_config))

    def create_engine_inspector(self) -> Any:
        return self.make("EngineInspector", InspectorCore(self.world, self.plan))


class ContextCore(Core):
    def __init__(self, world: World, engine: EngineCore, runtime: Any = None) -> None:
        super().__init__(world)
        self.engine, self.runtime = engine, runtime
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.report: list[tuple[str, float]] = []
        self.warm = False

    def set_input_shape(self, name: str, shape: Any) -> bool:
        self.shapes[name] = tuple(shape)
        return "input shape" not in self.world.fail and next(iter(shape)) <= self.engine.plan["dynamic"][name][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.engine.ports[name][2])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return memory in self.world.memory and "address" not in self.world.fail

    def infer_shapes(self) -> list[str]:
        if "unknown shapes" in self.world.fail:
            return ["logits"]
        return sorted(set(self.engine.plan["dynamic"]) - set(self.shapes))

    def execute_async_v3(self, stream_handle: int) -> bool:
        world = self.world
        assert stream_handle == STREAM, "the handle of the stream that copies and events are on"
        assert set(self.addresses) == set(self.engine.ports), "every tensor has an address"
        assert self.face.nvtx_verbosity.name == "NONE", "detailed markers slow the enqueue down"
        assert self.warm or world.capturing is None, "a first run initializes what must not happen inside a capture"
        self.warm = True
        if self.runtime is not None:
            self.compile_kernels()
        if "enqueue" in world.fail or (world.capturing is not None and world.fail & {"capture", "enqueue in capture"}):
            say(world, self.engine.logger, "ERROR", "enqueueV3: Error Code 1: Cuda Runtime")
            return False
        layers = self.engine.plan["layers"]
        world.host_us += LAUNCH_US * len(layers)
        if world.capturing is not None:
            world.capturing.append(self.compute)
            return True
        self.compute()
        return True

    def compile_kernels(self) -> None:
        """At the first run, unless the runtime cache holds them; never with a profiler inside a CUDA graph."""
        strategy = self.runtime.cuda_graph_strategy.name
        assert strategy == ("DISABLED" if self.face.profiler is not None else "WHOLE_GRAPH_CAPTURE")
        cache = core_of(core_of(self.runtime).cache)
        if not cache.kernels:
            cache.kernels = b"kernels of the fake"
            self.world.compiled += 1

    def compute(self) -> None:
        world, layers = self.world, self.engine.plan["layers"]
        world.flush()
        profiled = self.face.profiler is not None
        factor = world.next_factor()
        times = [layer["us"] * factor + (PROFILE_US if profiled else 0.0) for layer in layers]
        world.gpu_us = max(world.gpu_us, world.host_us) + sum(times)
        names = [row["Name"] for row in inspector_layers(world, self.engine.plan)]
        self.report = list(zip(names, (us / 1e3 for us in times), strict=True))
        if world.numeric:
            world.pending = lambda: self.engine.compute(self.addresses)

    def report_to_profiler(self) -> bool:
        assert self.world.gpu_us <= self.world.host_us, "the stream was waited for"
        assert self.face.enqueue_emits_profile is False, "else every enqueue would wait for its end"
        for name, ms in self.report:
            self.face.profiler.report_layer_time(name, ms)
        return True


class InspectorCore(Core):
    def __init__(self, world: World, plan: dict[str, Any]) -> None:
        super().__init__(world)
        self.plan = plan

    def get_engine_information(self, format: Any) -> str:  # noqa: A002
        assert format.name == "JSON"
        assert self.face.execution_context is not None, "without a context dynamic shapes are not told"
        key = "I/O Tensors" if self.world.major >= 11 else "Bindings"
        return json.dumps({"Layers": inspector_layers(self.world, self.plan), key: []})


FORMATS = {
    32: ("Row major linear FP32", "Row major linear FP32 format (kLINEAR)", "Float"),
    16: ("Channel major FP16 format where channel % 8 == 0", "Eight channel FP16 format (kHWC8) where C is padded to a multiple of 8",
         "Half"),
    8: ("Thirty-two wide channel vectorized row major Int8 format", "Thirty-two wide channel vectorized row major INT8 format (kCHW32)",
        "Int8"),
}  # fmt: skip


def inspector_layers(world: World, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The plan's layers in the words of the version."""
    found = []
    for layer in plan["layers"]:
        old, new, dtype = FORMATS[layer["bits"]]
        said = {"Format": new, "Datatype": dtype} if world.major >= 11 else {"Format/Datatype": old}
        found.append({
            "Name": f"{layer['node']} + fused", "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Dimensions": [1, layer["cin"], 4, 4], **said}],
            "Outputs": [{"Name": "y", "Dimensions": [1, layer["cout"], 4, 4], **said}],
            "TacticName": "sm80_xmma_fprop", "Metadata": f"[ONNX Layer: {layer['node']}]\x1e[ONNX Layer: {layer['node']}.relu]",
        })  # fmt: skip
    return found


def say(world: World, logger: Any, severity: str, text: str) -> None:
    world.logged.append(text)
    if logger is not None:
        logger.log(Enum("Severity", severity, 1), text)


_cores: dict[int, tuple[Any, Any]] = {}


def remember(thing: Any, core: Any) -> None:
    """Keep the behaviour of an object that cannot hold it itself (a mock of a real class)."""
    core.face = thing
    _cores[id(thing)] = (thing, core)


def core_of(thing: Any) -> Any:
    """The behaviour behind a face, or behind a mock of the real class."""
    return object.__getattribute__(thing, "_core") if isinstance(thing, Face) else _cores[id(thing)][1]


# ---------------------------------------------------------------- the module


def module(world: World) -> types.ModuleType:
    """The module `tensorrt`, or `tensorrt_rtx`, of the world's version."""
    fake = types.ModuleType("tensorrt_rtx" if world.surface.rtx else "tensorrt")
    fake.__version__ = world.surface.version  # type: ignore[attr-defined]
    world.module = fake  # type: ignore[attr-defined]

    def make(name: str, core: Any) -> Any:
        return face(world, name, core)

    for name, members in world.surface.classes.items():
        if all(isinstance(value, int) for value in members.values()) and members:
            setattr(fake, name, enum(name, dict(members)))
    for name in ("ILogger", "IProfiler", "IProgressMonitor", "IInt8EntropyCalibrator2"):
        if name in world.surface.classes:
            setattr(fake, name, overridable(world, name))
    for name, start in entries(world, make).items():
        setattr(fake, name, constructor(world, name, start))
    return fake


def entries(world: World, make: Callable[[str, Any], Any]) -> dict[str, Callable[..., Any]]:
    """What the three classes that users construct themselves do."""
    return {
        "Builder": lambda logger: make("Builder", BuilderCore(world, logger, make)),
        "Runtime": lambda logger: make("Runtime", RuntimeCore(world, logger, make)),
        "OnnxParser": lambda network, logger: make("OnnxParser", ParserCore(world, network, logger, make)),
    }


def constructor(world: World, name: str, start: Callable[..., Any]) -> Callable[..., Any]:
    def construct(*args: Any, **kwargs: Any) -> Any:
        check_call(world.surface, name, world.surface.classes[name]["__init__"], args, kwargs)  # type: ignore[arg-type]
        return start(*args, **kwargs)

    return construct


def overridable(world: World, name: str) -> type:
    """A class that users derive from: a subclass may only override methods that the version calls."""
    members = world.surface.classes[name]

    def __init__(self: Any) -> None:  # noqa: N807
        self.initialized = True

    def __init_subclass__(cls: Any) -> None:  # noqa: N807
        public = [n for n in vars(cls) if not n.startswith("_") and callable(getattr(cls, n))]
        called = [n for n in public if n in members]
        assert called, f"{cls.__name__} overrides nothing of {name} in {world.surface.version}"

    return type(name, (), {"trt_name": name, "__init__": __init__, "__init_subclass__": classmethod(__init_subclass__)})
