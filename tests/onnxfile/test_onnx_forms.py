"""One network, written in every way that ONNX allows, is one network: the same layers become int8, with the same numbers.

The oracle is the plain file: ranges and Q/DQ of any other way to write it must give the outputs that the plain file's give.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import quant_nets as nets
from pydeploy.errors import DataError
from pydeploy.onnxfile.load import read_float_model
from pydeploy.onnxfile.prepare import export_graph, prepare
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.half import to_half
from pydeploy.quant.lint import lint
from pydeploy.quant.qdq import quantize
from pydeploy.quant.styles import STYLES

NODE = helper.make_node
F16 = TensorProto.FLOAT16
SAMPLES = np.random.default_rng(0).normal(size=(16, 1, 3, 8, 8)).astype(np.float16).astype(np.float32)


class Writer:
    """Writes one stored tensor in some other way: `nodes` compute it from `stored`."""

    def __init__(self, name: str, values: nets.Array, draw: Callable[[Any], Any]) -> None:
        self.name, self.draw = name, draw
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.count = 0
        self.finish(self.written(values, draw(st.integers(1, 3))))

    def fresh(self) -> str:
        self.count += 1
        return f"{self.name}.{self.count}"

    def keep(self, values: Any, dtype: Any = None) -> str:
        name = self.fresh()
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype), name))
        return name

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = self.fresh()
        self.nodes.append(NODE(op, inputs, [name], name=f"{name}_node", **attributes))
        return name

    def finish(self, last: str) -> None:
        self.nodes.append(NODE("Identity", [last], [self.name], name=f"{self.name}_last"))

    def written(self, values: nets.Array, depth: int) -> str:
        if not depth:
            return self.keep(values)
        way = self.draw(st.sampled_from(sorted(WAYS)))
        return WAYS[way](self, values, depth - 1)


def _transposed(w: Writer, v: nets.Array, depth: int) -> str:
    order = list(range(v.ndim))[::-1]
    return w.node("Transpose", [w.written(np.ascontiguousarray(v.transpose(order)), depth)], perm=order)


def _reshaped(w: Writer, v: nets.Array, depth: int) -> str:
    return w.node("Reshape", [w.written(v.ravel(), depth), w.keep(v.shape, np.int64)])


def _unsqueezed(w: Writer, v: nets.Array, depth: int) -> str:
    inner = w.node("Unsqueeze", [w.written(v, depth), w.keep([0], np.int64)])
    return w.node("Squeeze", [inner, w.keep([0], np.int64)])


def _multiplied(w: Writer, v: nets.Array, depth: int) -> str:
    return w.node("Mul", [w.written(v * np.float32(0.25), depth), w.keep(np.float32(4))])


def _cast(w: Writer, v: nets.Array, depth: int) -> str:
    return w.node("Cast", [w.keep(v, w.draw(st.sampled_from([np.float16, np.float64])))], to=TensorProto.FLOAT)


def _joined(w: Writer, v: nets.Array, depth: int) -> str:
    half = len(v) // 2
    if not half:
        return w.keep(v)
    return w.node("Concat", [w.written(v[:half], depth), w.keep(v[half:])], axis=0)


def _constant(w: Writer, v: nets.Array, depth: int) -> str:
    if w.draw(st.booleans()):
        return w.node("Constant", [], value=numpy_helper.from_array(v))
    flat = w.node("Constant", [], value_floats=[float(x) for x in v.ravel()])
    return w.node("Reshape", [flat, w.node("Constant", [], value_ints=list(v.shape))])


def _sliced(w: Writer, v: nets.Array, depth: int) -> str:
    wide = np.concatenate([v, v])
    bounds = [w.keep([len(v)], np.int64), w.keep([2 * len(v)], np.int64)]
    return w.node("Slice", [w.written(wide, depth), *bounds, w.keep([0], np.int64)])


WAYS: dict[str, Callable[[Writer, nets.Array, int], str]] = {
    "identity": lambda w, v, d: w.node("Identity", [w.written(v, d)]),
    "dropout": lambda w, v, d: w.node("Dropout", [w.written(v, d)]),
    "transposed": _transposed, "reshaped": _reshaped, "unsqueezed": _unsqueezed, "multiplied": _multiplied, "cast": _cast,
    "joined": _joined, "constant": _constant, "sliced": _sliced,
}  # fmt: skip


def plain(path: Path) -> Path:
    """A small network with every kind of stored tensor, float16 values throughout, so that a detour over it loses nothing."""
    rng = np.random.default_rng(3)
    norm = {"n.scale": rng.uniform(0.5, 2, 16), "n.shift": rng.normal(size=16), "n.mean": rng.normal(size=16),
            "n.var": rng.uniform(0.5, 2, 16)}  # fmt: skip
    up = {"up.weight": rng.normal(size=(16, 16, 2, 2)) / 8}
    parts = [nets.conv("a", "x", "a0", 3, 16), (NODE("BatchNormalization", ["a0", *norm], ["a1"], name="n"), norm),
             NODE("Relu", ["a1"], ["a2"], name="r0"), nets.conv("b", "a2", "b0", 16, 16, seed=1),
             NODE("Add", ["b0", "a2"], ["s"], name="add"), NODE("Relu", ["s"], ["b1"], name="r1"),
             (NODE("ConvTranspose", ["b1", "up.weight"], ["u"], name="up", strides=[2, 2], kernel_shape=[2, 2]), up),
             NODE("Relu", ["u"], ["u1"], name="r2"), NODE("GlobalAveragePool", ["u1"], ["p"], name="pool"),
             NODE("Flatten", ["p"], ["f"], name="flat"), nets.gemm("fc", "f", "y", 16, 10)]  # fmt: skip
    rounded = [(p[0], {k: v.astype(np.float16).astype(np.float32) for k, v in p[1].items()}) if isinstance(p, tuple) else p
               for p in parts]  # fmt: skip
    return nets.save(path, rounded, {"x": [1, 3, 8, 8]}, ["y"])


def quantized(path: Path, style: str) -> tuple[tuple[str, ...], nets.Array]:
    """Layers that became int8, and what the file gives, exactly as written."""
    out = path.with_suffix(f".{style}.q.onnx")
    half = onnx.load(path).graph.input[0].type.tensor_type.elem_type == F16
    feeds = [{"x": values.astype(np.float16) if half else values} for values in SAMPLES]
    report = quantize(path, calibrate(path, feeds, observer="minmax", threads=1), out, style=style, min_channels=1)
    onnx.checker.check_model(onnx.load(out), full_check=True)
    assert [finding for finding in lint(out, style) if finding.severity == "error"] == []
    return report.quantized, nets.run(out, feeds, optimize=False).astype(np.float32)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[tuple[str, ...], nets.Array]]:
    path = plain(tmp_path_factory.mktemp("plain") / "net.onnx")
    return {style: quantized(path, style) for style in STYLES}


def require_same(path: Path, style: str, answers: Any, tolerance: float = 1e-4) -> None:
    layers, found = quantized(path, style)
    wanted_layers, wanted = answers[style]
    assert layers == wanted_layers
    # Rounding of float32 may move single values to the next step of a grid.
    assert np.abs(found - wanted).max() < max(tolerance, 0.002) * np.abs(wanted).max()
    assert np.median(np.abs(found - wanted)) < tolerance * np.abs(wanted).max()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), style=st.sampled_from(sorted(STYLES)))
def test_constants_written_in_any_way(tmp_path: Path, answers: Any, data: st.DataObject, style: str) -> None:
    path = plain(tmp_path / "net.onnx")
    model = onnx.load(path)
    chosen = data.draw(st.sets(st.sampled_from(sorted(t.name for t in model.graph.initializer)), min_size=1))
    nodes: list[onnx.NodeProto] = []
    for tensor in list(model.graph.initializer):
        if tensor.name in chosen:
            writer = Writer(tensor.name, numpy_helper.to_array(tensor), data.draw)
            model.graph.initializer.remove(tensor)
            model.graph.initializer.extend(writer.stored)
            nodes += writer.nodes
    old = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *old])
    onnx.save(model, path)
    require_same(path, style, answers)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("version", [3, 4, 8, 10])
def test_initializers_that_are_inputs_as_well(tmp_path: Path, answers: Any, version: int, style: str) -> None:
    """IR version 3 demands it; exporters do it later too."""
    path = plain(tmp_path / "net.onnx")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version = version
    onnx.save(model, path)
    require_same(path, style, answers)
    written = onnx.load(path.with_suffix(f".{style}.q.onnx"))
    assert [value.name for value in written.graph.input] == ["x"]
    assert written.ir_version == (9 if version == 3 else version)  # 9 came with the model's operators


@pytest.mark.parametrize("style", STYLES)
def test_nodes_that_change_nothing(tmp_path: Path, answers: Any, style: str) -> None:
    """Identity, Dropout and casts to the same type between a layer and what is fused into it."""
    path = plain(tmp_path / "net.onnx")
    model = onnx.load(path)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        made, read = node.output[0], f"{node.output[0]}.inner"
        nodes.append(node)
        if made != "y":
            node.output[0] = read
            nodes += [NODE("Dropout", [read], [f"{read}.a"]), NODE("Cast", [f"{read}.a"], [f"{read}.b"], to=TensorProto.FLOAT),
                      NODE("Identity", [f"{read}.b"], [made])]  # fmt: skip
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(kept)
    onnx.save(model, path)
    require_same(path, style, answers)


def halved(model: onnx.ModelProto, *, inside: bool, skip: tuple[str, ...] = ()) -> onnx.ModelProto:
    """The model in float16; with casts at its ends where it is so only `inside`, some layers left in float32."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and not tensor.name.startswith(skip):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    del graph.value_info[:]
    if not inside:
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.elem_type = F16
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        own = bool(skip) and node.name.startswith(skip)
        for place, name in enumerate(node.input):
            if (inside and name == "x") or (own and place == 0):
                nodes.append(NODE("Cast", [name], [f"{name}.to.{node.name}"], to=TensorProto.FLOAT if own else F16))
                node.input[place] = f"{name}.to.{node.name}"
        nodes.append(node)
        if own or (inside and node.output[0] == "y"):
            nodes.append(NODE("Cast", [f"{node.output[0]}.in"], [node.output[0]], to=F16 if own else TensorProto.FLOAT))
            node.output[0] = f"{node.output[0]}.in"
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return model


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("inside", [False, True], ids=["ends-too", "inside"])
@pytest.mark.parametrize("skip", [(), ("b",)], ids=["all", "one-layer-float"])
def test_float16_files(tmp_path: Path, answers: Any, style: str, skip: tuple[str, ...], *, inside: bool) -> None:
    path = plain(tmp_path / "net.onnx")
    onnx.save(halved(onnx.load(path), inside=inside, skip=skip), path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    require_same(path, style, answers, 1e-4 if inside else 1e-3)
    written = onnx.load(path.with_suffix(f".{style}.q.onnx"))
    assert [v.type.tensor_type.elem_type for v in (*written.graph.input, *written.graph.output)] == [
        TensorProto.FLOAT if inside else F16] * 2  # fmt: skip


@pytest.mark.parametrize("keep_io", [False, True])
def test_what_half_writes_can_be_calibrated_and_quantized(tmp_path: Path, *, keep_io: bool) -> None:
    path, half = plain(tmp_path / "net.onnx"), tmp_path / "half.onnx"
    to_half(path, half, keep_io=keep_io, keep=["b"])
    layers, found = quantized(half, "openvino")
    assert layers == ("a", "b", "up", "fc")
    wanted = quantized(path, "openvino")[1]
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.parametrize("style", STYLES)
def test_functions_of_the_file_are_inlined(tmp_path: Path, answers: Any, style: str) -> None:
    path = plain(tmp_path / "net.onnx")
    model = onnx.load(path)
    relu = next(node for node in model.graph.node if node.name == "r0")
    conv = next(node for node in model.graph.node if node.name == "b")
    inner = onnx.NodeProto()
    inner.CopyFrom(conv)
    inner.input[:], inner.output[:] = ["d", "w", "c"], ["z"]
    own = [helper.make_opsetid("", 20)]
    model.functions.extend([
        helper.make_function("own", "Activation", ["d"], ["z"], [NODE("Relu", ["d"], ["z"], name="inner")], own),
        helper.make_function("own", "Layer", ["d", "w", "c"], ["z"], [inner], own)])  # fmt: skip
    for node, op in ((relu, "Activation"), (conv, "Layer")):
        del node.attribute[:]
        node.op_type, node.domain = op, "own"
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, path)
    layers, found = quantized(path, style)
    assert len(layers) == len(answers[style][0])
    assert np.abs(found - answers[style][1]).max() < 0.002 * np.abs(found).max()


# Control flow


def info(name: str, kind: int = TensorProto.FLOAT, shape: Any = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branching(path: Path, *, large: bool, nested: bool, loop: bool) -> Path:
    """A network whose middle is an If, or a Loop, that reads maps and weights of the graph around it."""
    width = 48 if large else 16
    rng = np.random.default_rng(width)
    a, b = nets.conv("a", "x", "a0", 3, width), nets.conv("b", "o", "b0", width, 16, seed=1)
    inner, weights = nets.conv("inner", "h", "t", width, width, seed=2)
    other = helper.make_graph([NODE("Relu", ["h"], ["e"], name="else_relu")], "else", [], [info("e")])
    body = [inner]
    if nested:
        deep = helper.make_graph(
            [NODE("Add", ["t", "shift"], ["deep_out"], name="deep")], "deep", [], [info("deep_out")]
        )
        plain_branch = helper.make_graph([NODE("Relu", ["h"], ["flat"], name="flat")], "flat", [], [info("flat")])
        body.append(NODE("If", ["up"], ["n"], name="nested", then_branch=deep, else_branch=plain_branch))
    last = "n" if nested else "t"
    if loop:
        carried = [
            NODE("Identity", ["go"], ["on"], name="on"),
            *body,
            NODE("Add", ["state", last], ["next"], name="sum"),
        ]
        state = info("state", shape=[1, width, 8, 8])
        given = [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), state]
        inside = helper.make_graph(carried, "body", given, [info("on", TensorProto.BOOL, []), info("next")])
        flow = NODE("Loop", ["times", "", "h"], ["o"], name="flow", body=inside)
    else:
        then = helper.make_graph(body, "then", [], [info(last)])
        flow = NODE("If", ["up"], ["o"], name="flow", then_branch=then, else_branch=other)
    stored = {
        "zero": np.float32(0),
        "times": np.int64(2),
        "shift": rng.normal(size=(1, width, 1, 1)).astype(np.float32),
    }
    parts = [a, NODE("Relu", ["a0"], ["h"], name="relu"), NODE("ReduceMean", ["x"], ["mean"], name="mean", keepdims=0),
             (NODE("Greater", ["mean", "zero"], ["up"], name="up"), {**stored, **weights}), flow, b,
             NODE("Relu", ["b0"], ["b1"], name="last"), NODE("GlobalAveragePool", ["b1"], ["y"], name="pool")]  # fmt: skip
    return nets.save(path, parts, {"x": [1, 3, 8, 8]}, ["y"], 17, [1, 16, 1, 1])


FLOWS = [{"large": large, "nested": nested, "loop": loop}
         for large in (False, True) for nested in (False, True) for loop in (False, True)]  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", FLOWS, ids=lambda kind: "-".join(k for k, v in kind.items() if v) or "plain")
def test_control_flow_survives(tmp_path: Path, kind: dict[str, bool], style: str) -> None:
    path, out = branching(tmp_path / "net.onnx", **kind), tmp_path / "q.onnx"
    feeds = nets.random_feeds(path)
    report = quantize(path, calibrate(path, feeds, observer="minmax"), out, style=style, min_channels=1)
    assert report.quantized == ("a", "b")
    assert report.skipped == {"inner": "it is inside of 'flow', which is control flow"}
    onnx.checker.check_model(onnx.load(out), full_check=True)
    assert [finding for finding in lint(out, style) if finding.severity == "error"] == []
    original, fresh = nets.run(path, feeds), nets.random_feeds(path, seed=4)
    assert np.abs(nets.run(out, feeds) - original).max() < 0.05 * np.abs(original).max()
    assert np.abs(nets.run(out, fresh) - nets.run(path, fresh)).max() < 0.08 * np.abs(original).max()
    before, after = (next(node for node in onnx.load(p).graph.node if node.name == "flow") for p in (path, out))
    assert (after.op_type, list(after.output)) == (before.op_type, list(before.output))
    # Whoever leaves all layers in float gets the network as it was.
    with pytest.raises(DataError, match="no layer of"):
        quantize(path, calibrate(path, feeds), out, style=style, exclude=["a", "b", "inner"])


@pytest.mark.parametrize("kind", FLOWS, ids=lambda kind: "-".join(k for k, v in kind.items() if v) or "plain")
def test_control_flow_in_half_precision(tmp_path: Path, kind: dict[str, bool]) -> None:
    path, out = branching(tmp_path / "net.onnx", **kind), tmp_path / "half.onnx"
    feeds = nets.random_feeds(path)
    report = to_half(path, out, batches=feeds)
    assert {"a", "b"} <= set(report.converted)
    assert report.kept["flow"] == "it is control flow, whose bodies stay float32"
    original = nets.run(path, feeds)
    assert np.abs(nets.run(out, feeds) - original).max() < 0.01 * np.abs(original).max()


def test_preparing_a_model_changes_no_number(tmp_path: Path) -> None:
    paths = [
        plain(tmp_path / "plain.onnx"),
        *(branching(tmp_path / f"{i}.onnx", **kind) for i, kind in enumerate(FLOWS)),
    ]
    for path in paths:
        out = tmp_path / "prepared.onnx"
        source = read_float_model(path)
        model = export_graph(prepare(source).cleanup())
        model.ir_version = source.model.ir_version
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, out)
        feeds = nets.random_feeds(path)
        wanted = nets.run(path, feeds)
        assert np.abs(nets.run(out, feeds) - wanted).max() < 1e-5 * np.abs(wanted).max() + 1e-6


def test_a_scalar_input_belongs_to_every_sample(tmp_path: Path) -> None:
    path = plain(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.input.append(info("gain", TensorProto.FLOAT, []))
    relu = next(node for node in model.graph.node if node.name == "r0")
    relu.op_type = "Mul"
    relu.input.append("gain")
    onnx.save(model, path)
    samples = np.concatenate([feed["x"] for feed in nets.random_feeds(plain(tmp_path / "other.onnx"))])
    together = calibrate(path, [{"x": samples, "gain": np.float32(0.5).reshape(())}], observer="minmax")
    apart = calibrate(
        path, [{"x": row[None], "gain": np.float32(0.5).reshape(())} for row in samples], observer="minmax"
    )
    assert together == apart
    assert together.count == 16


def test_old_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    path = nets.save(tmp_path / "old.onnx", [nets.conv("a", "x", "y", 3, 16)], {"x": [1, 3, 8, 8]}, ["y"], opset=9)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        model.graph.input.append(info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version = 3
    onnx.save(model, path)
    with pytest.raises(DataError, match="opset 9, int8 needs 13 or later; export with a newer opset"):
        calibrate(path, [])
