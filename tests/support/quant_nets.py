"""Small networks for the quantization tests, as ONNX files, and what runtimes make of them."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
NODE = helper.make_node


def conv(name: str, source: str, target: str, cin: int, cout: int, kernel: int = 3, groups: int = 1, seed: int = 0,
         bias: bool = True) -> tuple[onnx.NodeProto, dict[str, Array]]:  # fmt: skip
    """A same-size convolution node and its weights."""
    rng = np.random.default_rng([seed, cin, cout, kernel])
    fan = cin // groups * kernel * kernel
    weights = {f"{name}.weight": rng.normal(0, fan**-0.5, (cout, cin // groups, kernel, kernel)).astype(np.float32)}
    if bias:
        weights[f"{name}.bias"] = rng.normal(0, 0.1, cout).astype(np.float32)
    node = NODE("Conv", [source, *weights], [target], name=name, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4,
                group=groups)  # fmt: skip
    return node, weights


def gemm(name: str, source: str, target: str, cin: int, cout: int) -> tuple[onnx.NodeProto, dict[str, Array]]:
    rng = np.random.default_rng([7, cin, cout])
    weights = {f"{name}.weight": rng.normal(0, cin**-0.5, (cout, cin)).astype(np.float32),
               f"{name}.bias": rng.normal(0, 0.1, cout).astype(np.float32)}  # fmt: skip
    return NODE("Gemm", [source, *weights], [target], name=name, transB=1), weights


def save(
    path: Path, parts: list[Any], inputs: dict[str, list[Any]], outputs: list[str], opset: int = 20, shape: Any = None
) -> Path:
    """Write a model of nodes, or (node, weights) pairs, in execution order; `shape` is the outputs', where none is inferred."""
    nodes, weights = [], {}
    for part in parts:
        node, own = part if isinstance(part, tuple) else (part, {})
        nodes.append(node)
        weights.update(own)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def residual(path: Path, batch: Any = 1, width: int = 16, zero_channel: int | None = None) -> Path:
    """stem, one residual block, spatial mean, linear: the smallest ResNet."""
    c2 = conv("block.conv2", "r1", "c2", width, width, seed=2)
    if zero_channel is not None:
        c2[1]["block.conv2.weight"][zero_channel] = 0
    axes = {"axes": np.array([-1, -2], np.int64)}
    parts = [conv("stem", "x", "c0", 3, width), NODE("Relu", ["c0"], ["r0"], name="relu0"),
             conv("block.conv1", "r0", "c1", width, width, seed=1), NODE("Relu", ["c1"], ["r1"], name="relu1"), c2,
             NODE("Add", ["c2", "r0"], ["s"], name="add"), NODE("Relu", ["s"], ["r2"], name="relu2"),
             (NODE("ReduceMean", ["r2", "axes"], ["m"], name="pool", keepdims=0), axes),
             gemm("fc", "m", "y", width, 10)]  # fmt: skip
    return save(path, parts, {"x": [batch, 3, 8, 8]}, ["y"])


def chain(path: Path, activation: onnx.NodeProto | None = None, opset: int = 20, **shape: Any) -> Path:
    """conv, activation (``c`` to ``a``), conv, output: what a fused activation needs."""
    parts = [conv("first", "x", "c", 3, 16, **shape), activation or NODE("Relu", ["c"], ["a"], name="act"),
             conv("second", "a", "b", 16, 16, seed=3), NODE("Relu", ["b"], ["d"], name="act2"),
             NODE("GlobalAveragePool", ["d"], ["p"], name="pool"), NODE("Flatten", ["p"], ["f"], name="flatten"),
             gemm("fc", "f", "y", 16, 4)]  # fmt: skip
    return save(path, parts, {"x": [1, 3, 8, 8]}, ["y"], opset)


def random_feeds(path: Path, count: int = 16, seed: int = 0, batch: int = 1) -> list[dict[str, Array]]:
    """Normal samples for each input of the model."""
    rng = np.random.default_rng(seed)
    inputs = onnx.load(path).graph.input
    shapes = {i.name: [batch, *(d.dim_value for d in i.type.tensor_type.shape.dim[1:])] for i in inputs}
    return [{k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()} for _ in range(count)]


def run(path: Path, feeds: list[dict[str, Array]], optimize: bool = True) -> Array:
    """The first output of every batch on ONNX Runtime, joined."""
    loaded = session(path, None, optimize=optimize)
    return np.concatenate([loaded.run(None, feed)[0] for feed in feeds])


def executed(path: Path, scratch: Path) -> collections.Counter[str]:
    """How many nodes of each type ONNX Runtime executes."""
    session(path, scratch / "executed.onnx", optimize=True)
    return collections.Counter(node.op_type for node in onnx.load(scratch / "executed.onnx").graph.node)


def session(path: Path, optimized: Path | None = None, *, optimize: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def openvino_model(path: Path) -> Any:
    """The file compiled as the backend compiles it, everything that is not quantized in float32."""
    from pydeploy.backends.openvino import OpenVino

    backend = OpenVino("int8", threads=1)
    return backend._core.compile_model(backend._read(path, onnx.load(path)), "CPU", backend._properties())


def openvino_layers(compiled: Any) -> list[tuple[str, str]]:
    """Type and run-time precision of every layer that OpenVINO executes."""
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    return [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in infos]
