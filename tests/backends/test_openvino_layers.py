"""OpenVINO's layers, whose names and counters vary from load to load, are the same ones each time they are read."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pydeploy.backends import device
from pydeploy.backends.base import Backend, Engine, open_backend
from pydeploy.profiling.profile import profile, random_feeds

openvino = pytest.importorskip("pydeploy.backends.openvino", reason="needs pip install 'pydeploy-hil[openvino]'")
pytestmark = pytest.mark.openvino

WIDTH = 8
STEPS = ("conv", "mul", "add", "gate", "batch_norm", "instance_norm", "layer_norm", "concat", "split", "scale", "power",
         "transpose", "swish")  # fmt: skip


class Drawn:
    """A network of `steps`, each of which reads the newest value and an earlier one, all of `WIDTH` channels."""

    def __init__(self, steps: list[tuple[str, int]], *, named: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random, self.named = np.random.default_rng(0), named
        self.values = [self.conv("image", 3)]
        for step, earlier in steps:
            newest, other = self.values[-1], self.values[earlier % len(self.values)]
            self.values.append(getattr(self, step)(newest, other))

    def constant(self, *shape: int) -> str:
        values = self.random.uniform(0.5, 1.5, shape).astype(np.float32)
        return self.held(values)

    def held(self, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def node(self, operation: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        index = len(self.nodes)
        names = [f"v{index}" + (f".{k}" if k else "") for k in range(outputs)]
        name = f"{operation.lower()}_{index}" if self.named else ""
        self.nodes.append(helper.make_node(operation, list(inputs), names, name, **attributes))
        return names[0]

    def conv(self, value: str, cin: int | str = WIDTH) -> str:
        cin = cin if isinstance(cin, int) else WIDTH
        return self.node("Conv", value, self.constant(WIDTH, cin, 3, 3), kernel_shape=[3, 3], pads=[1] * 4)

    def mul(self, a: str, b: str) -> str:
        return self.node("Mul", a, b)

    def add(self, a: str, b: str) -> str:
        return self.node("Add", a, b)

    def gate(self, a: str, b: str) -> str:
        return self.node("Mul", a, self.node("Sigmoid", b))

    def swish(self, a: str, _: str) -> str:
        return self.node("HardSwish", a)

    def scale(self, a: str, _: str) -> str:
        return self.node("Mul", a, self.constant(1, WIDTH, 1, 1))

    def power(self, a: str, b: str) -> str:
        return self.node("Div", a, self.node("Sqrt", self.node("Add", self.node("Mul", b, b), self.constant(1))))

    def batch_norm(self, a: str, _: str) -> str:
        return self.node("BatchNormalization", a, *(self.constant(WIDTH) for _ in range(4)))

    def instance_norm(self, a: str, _: str) -> str:
        return self.node("InstanceNormalization", a, self.constant(WIDTH), self.constant(WIDTH))

    def layer_norm(self, a: str, _: str) -> str:
        return self.node("LayerNormalization", a, self.constant(6), self.constant(6))

    def concat(self, a: str, b: str) -> str:
        both = self.node("Concat", a, b, axis=1)
        return self.node("Conv", both, self.constant(WIDTH, 2 * WIDTH, 1, 1), kernel_shape=[1, 1])

    def split(self, a: str, _: str) -> str:
        first = self.node("Split", a, outputs=2, axis=1, num_outputs=2)
        return self.node("Concat", f"{first}.1", first, axis=1)

    def transpose(self, a: str, _: str) -> str:
        return self.node("Transpose", a, perm=[0, 1, 3, 2])

    def save(self, path: Path) -> Path:
        self.node("ReduceMean", self.values[-1], self.held(np.array([2, 3])), keepdims=0)
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 6, 6])
        end = helper.make_tensor_value_info(self.nodes[-1].output[0], TensorProto.FLOAT, [1, WIDTH])
        graph = helper.make_graph(self.nodes, "drawn", [image], [end], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return path


def read(backend: Backend, engine: Engine, times: int) -> list[list[tuple[str, tuple[str, ...]]]]:
    with backend.open(engine) as session:
        feeds = random_feeds(session.inputs)
        return [[(one.name, one.nodes) for one in session.layers(feeds, 1)] for _ in range(times)]


# OpenVINO 2026.4 mixes AVX-512 into what it compiles for two norms in a row when it is held below AVX-512 where the
# processor has it, and crashes. On a processor without AVX-512 (an emulated one) the same network is right.
CAPPED = "avx512f" not in device.cpu(cap=device.onednn_cap()).facts.get("instruction_sets", "avx512f").split()
MIXED = CAPPED and "avx512f" in device.cpu().facts["instruction_sets"].split()
SAFE = tuple(step for step in STEPS if not (MIXED and step in ("instance_norm", "layer_norm")))

steps = st.lists(st.tuples(st.sampled_from(SAFE), st.integers(0, 20)), min_size=1, max_size=12)


@given(steps, st.booleans())
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_layers_are_the_same_at_each_load(drawn: list[tuple[str, int]], named: bool) -> None:
    backend = open_backend("openvino", threads=1)
    with tempfile.TemporaryDirectory() as folder:
        source = Drawn(drawn, named=named).save(Path(folder) / "net.onnx")
        nodes = {node.name or node.output[0] for node in onnx.load(source).graph.node}
        engine = backend.build(source, Path(folder) / "net.engine")
        loads = read(backend, engine, 2)
        backend.build(source, Path(folder) / "other.engine")  # OpenVINO numbers its own names on
        loads += read(backend, engine, 2)
        found = profile(backend, engine, rounds=3, runs=1)
    assert all(load == loads[0] for load in loads)
    assert list(found.layers) == list(dict.fromkeys(nodes[0] if nodes else name for name, nodes in loads[0]))
    assert {timing.n for timing in found.layers.values()} == {3}
    claims = [node for _, nodes in loads[0] for node in nodes]
    assert set(claims) <= nodes
    assert len(claims) == len(set(claims)), "no node in two layers"


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 99))
def test_renumbered_names_are_joined_by_place(own: list[bool], step: int) -> None:
    """Layers that OpenVINO names itself have another number after each load."""
    built = {f"Multiply_{i}" if made_up else f"conv{i}": [f"node{i}"] for i, made_up in enumerate(own)}
    names = [f"Multiply_{100 + i * step}" if made_up else f"conv{i}" for i, made_up in enumerate(own)]
    assert openvino._in_place(names, built) == [(name, tuple(nodes)) for name, nodes in built.items()]


def test_layers_of_another_compilation_are_joined_by_name() -> None:
    built = {"a": ["x"], "Multiply_3": ["y"], "b": ["z"]}
    assert openvino._in_place(["a", "b"], built) == [("a", ("x",)), ("b", ("z",))]
    assert openvino._in_place(["b", "Multiply_7", "a"], built) == [("b", ("z",)), ("Multiply_7", ()), ("a", ("x",))]
