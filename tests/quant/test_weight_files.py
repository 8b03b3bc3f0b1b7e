"""Weights as plain files: what is read is what was written, in every format; and it is what the ONNX file computes with."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import quant_nets as nets
from onnx_nets import residual
from pydeploy.errors import ConfigError, DataError
from pydeploy.onnxfile.execute import as_written
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.integer.interpreter import Interpreter
from pydeploy.quant.qdq import quantize
from pydeploy.quant.weights.c_code import identifiers
from pydeploy.quant.weights.files import FORMATS, read, write
from pydeploy.quant.weights.from_onnx import of_onnx
from pydeploy.quant.weights.records import Grid, Layer, Tensor, Weights
from test_cli import fails, pydeploy

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "bare-metal.md"


def int8_file(
    folder: Path, parts: list[object], style: str = "onnxruntime", shape: tuple[int, ...] = (1, 3, 9, 11)
) -> Path:
    path = nets.save(folder / "net.onnx", parts, {"x": list(shape)}, ["y"])
    ranges = calibrate(path, nets.random_feeds(path, 8), observer="minmax", style=style, threads=1, few=0)
    quantize(path, ranges, folder / "int8.onnx", style=style, min_channels=1)
    return folder / "int8.onnx"


@pytest.fixture(scope="module", params=["onnxruntime", "openvino", "tensorrt"])
def int8(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three convolutions, Relu between, in the style of a runtime; ONNX Runtime's leaves the last one in float."""
    parts = [nets.conv("one", "x", "a", 3, 16), nets.NODE("Relu", ["a"], ["r"], name="relu"), nets.conv("two", "r", "b", 16, 8, seed=1),
             nets.NODE("Relu", ["b"], ["c"], name="last"), nets.conv("three", "c", "y", 8, 8, seed=2)]  # fmt: skip
    return int8_file(tmp_path_factory.mktemp("int8"), parts, request.param)


def same(one: Weights, other: Weights) -> None:
    assert one.layers == other.layers
    assert [tensor.facts() for tensor in one.tensors] == [tensor.facts() for tensor in other.tensors]
    for mine, theirs in zip(one.tensors, other.tensors, strict=True):
        np.testing.assert_array_equal(mine.values, theirs.values)


NAMES = st.sampled_from(["a", "file", "a.weight", "a_weight", "0.1", "int", "größe", "x" * 40, "a b", "Δ", "A"])
ARRAYS = st.tuples(
    st.sampled_from(["float32", "int8", "uint8", "int32", "int64"]),
    st.lists(st.integers(0, 4), max_size=4),
    st.integers(0, 99),
)


@given(st.lists(st.tuples(NAMES, ARRAYS), max_size=5, unique_by=lambda one: one[0]), st.sampled_from(sorted(FORMATS)))
@settings(max_examples=60, deadline=None)
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[object], kind: str
) -> None:
    tensors = []
    for name, (dtype, shape, seed) in drawn:  # type: ignore[misc]
        random = np.random.default_rng(seed)
        values = (
            random.normal(size=shape) * 10.0 ** random.integers(-40, 30)
            if dtype == "float32"
            else random.integers(0, 120, shape)
        )
        tensors.append(
            Tensor(name, np.asarray(values).astype(dtype), (0.1,) if seed % 2 else (), (3,) if seed % 2 else ())
        )
    layer = Layer("l", "Conv", {}, {"group": 1, "pads": [1, 1, 1, 1]}, Grid(0.5, 3, "uint8"), None)
    weights = Weights(tuple(tensors), (layer,) if kind in ("npz", "text") else ())
    folder = tmp_path_factory.mktemp("weights")
    write(weights, folder, kind)
    same(read(folder), weights)


def test_identifiers_are_different_and_of_c() -> None:
    names = ["a.b", "a_b", "a b", "int", "1x", "", "_x"]
    found = identifiers(names)
    assert len(set(found.values())) == len(names)
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", one) and one != "int" for one in found.values())


@pytest.mark.parametrize("kind", FORMATS)
def test_an_int8_file(int8: Path, kind: str, tmp_path: Path) -> None:
    """Weights and biases are the file's integers, each with the scale that restores what the file computes with."""
    weights = of_onnx(int8)
    write(weights, tmp_path, kind)
    same(read(tmp_path), weights)
    model = onnx.load(int8)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    tensors = {tensor.name: tensor for tensor in weights.tensors}
    assert [layer.name for layer in weights.layers] == ["one", "two", "three"]
    for layer in weights.layers[: 2 if tensors["three.weight"].values.dtype == np.float32 else 3]:
        weight, bias = tensors[layer.tensors["weight"]], tensors[layer.tensors["bias"]]
        assert (weight.name, bias.name) == (f"{layer.name}.weight", f"{layer.name}.bias")
        assert weight.values.dtype == np.int8
        assert bias.values.dtype == np.int32
        np.testing.assert_array_equal(np.float32(weight.scale), stored[f"{weight.name}_scale"])
        assert layer.input is not None
        np.testing.assert_allclose(bias.scale, layer.input.scale * np.array(weight.scale))
        if f"{bias.name}_int32" in stored:
            np.testing.assert_array_equal(bias.values, stored[f"{bias.name}_int32"])
        else:
            np.testing.assert_allclose(bias.values * np.array(bias.scale), stored[bias.name], atol=max(bias.scale))
    assert weights.layers[0].output is not None
    assert weights.layers[0].output == weights.layers[1].input


def test_float_files_and_models(tmp_path: Path) -> None:
    """The state dict in its order; with batch norms folded, the same numbers as the exported file has."""
    net = residual(tmp_path / "net.onnx")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(net).graph.initializer}
    weights = of_onnx(net)
    assert [layer.name for layer in weights.layers][:2] == ["stem", "layer1.0.conv1"]
    for tensor in weights.tensors:
        np.testing.assert_array_equal(tensor.values, stored[tensor.name])
    assert weights.layers[0].attributes["strides"] == [1, 1]
    torch.manual_seed(0)
    done = pydeploy(
        "export-weights", "pydeploy:resnet8", "-o", "width=8", "--out", tmp_path / "plain", "--format", "npz"
    )
    assert done.returncode == 0, done.stderr
    assert "running_var" in " ".join(tensor.name for tensor in read(tmp_path / "plain").tensors)
    saved = tmp_path / "w.pth"
    from pydeploy.models import build

    torch.save(build("resnet8", width=8).state_dict(), saved)
    one = ("pydeploy:resnet8", "-o", "width=8", "--input", "1x3x16x16", "--weights", saved)
    assert pydeploy("export", *one, "--out", tmp_path / "made.onnx").returncode == 0
    assert pydeploy("export-weights", *one, "--fold-bn", "--out", tmp_path / "folded").returncode == 0
    folded = {tensor.name: tensor.values for tensor in read(tmp_path / "folded").tensors}
    assert not [name for name in folded if "running" in name]
    for tensor in of_onnx(tmp_path / "made.onnx").tensors:
        np.testing.assert_allclose(folded[tensor.name].reshape(tensor.values.shape), tensor.values, atol=1e-6)


def test_wrong_input(tmp_path: Path) -> None:
    net = residual(tmp_path / "net.onnx")
    fails(
        pydeploy("export-weights", net, "--format", "bim", "--out", tmp_path / "a"),
        "unknown format 'bim' (did you mean 'bin'?)",
    )
    fails(pydeploy("export-weights", net, "--input", "1x3x8x8", "--out", tmp_path / "a"), "are for a model by name")
    fails(pydeploy("export-weights", tmp_path / "no.onnx", "--out", tmp_path / "a"), "does not exist")
    fails(pydeploy("export-weights", net, "--out", net), "is not a folder")
    assert not (tmp_path / "a").exists()
    with pytest.raises(DataError, match="NaN or infinite"):
        write(Weights((Tensor("w", np.array([np.nan], np.float32)),)), tmp_path / "a", "bin")
    with pytest.raises(ConfigError, match="unknown format"):
        write(Weights(()), tmp_path / "a", "onnx")
    write(of_onnx(net), tmp_path / "b", "bin")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    for changes, said in (({"format": "x"}, "unknown format 'x'"), ({"tensors": [{}]}, "is no manifest"), ({"file": 3}, "is no manifest"),
                          ({"sha256": "0"}, "is not the file that it describes"), ({"layers": [{"a": 1}]}, "is no manifest")):  # fmt: skip
        (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest | changes))
        with pytest.raises(DataError, match=said):
            read(tmp_path / "b")
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere")


LAYERS: dict[str, list[object]] = {
    "grouped": [nets.conv("layer", "r", "b", 16, 16, groups=4, seed=1)],
    "depthwise": [nets.conv("layer", "r", "b", 16, 16, groups=16, seed=1)],
    "transposed": [(nets.NODE("ConvTranspose", ["r", "w", "c"], ["b"], name="layer", strides=[2, 2], group=2),
                    {"w": np.random.default_rng(1).normal(size=(16, 4, 2, 2)).astype(np.float32),
                     "c": np.linspace(-1, 1, 8, dtype=np.float32)})],
    "clipped": [nets.conv("layer", "r", "o", 16, 8, seed=1), nets.NODE("Clip", ["o", "low", "high"], ["b"], name="clip")],
    "gemm": [nets.NODE("Flatten", ["r"], ["f"], name="flat"), nets.gemm("layer", "f", "b", 16 * 25, 12)],
}  # fmt: skip


LAYERS["gemm, alpha"] = LAYERS["gemm"]
KINDS = [
    (kind, style)
    for kind in LAYERS
    for style in ("onnxruntime", "tensorrt")
    if (kind, style) != ("transposed", "onnxruntime")
]


def run_onnx(op: str, arrays: dict[str, np.ndarray], attributes: dict[str, object]) -> np.ndarray:
    """One operator on ONNX Runtime in float32, which is exact for sums of integers below 2**24."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, [*arrays], ["y"], **attributes)],
        "one",
        [onnx.helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, value.shape) for key, value in arrays.items()],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    found: np.ndarray = as_written(model, 1).run(None, arrays)[0]
    assert np.abs(found).max() < 2**24
    return found


@pytest.mark.parametrize(("kind", "style"), KINDS)
def test_every_kind_of_layer(kind: str, style: str, tmp_path: Path) -> None:
    """From the exported tensors alone, by ONNX Runtime: the levels that the file has there, to one step."""
    ends = {"low": np.float32(-0.3), "high": np.float32(0.4)} if kind == "clipped" else {}
    width = 16 if kind in ("grouped", "depthwise") else 8
    end = nets.gemm("end", "d", "y", 12, 4) if "gemm" in kind else nets.conv("end", "d", "y", width, 8)
    parts = [nets.conv("one", "x", "a", 3, 16), (nets.NODE("Relu", ["a"], ["r"], name="relu"), ends), *LAYERS[kind],
             nets.NODE("Relu", ["b"], ["d"], name="last"), end]  # fmt: skip
    path = int8_file(tmp_path, parts, style, (1, 3, 5, 5))
    if kind == "gemm, alpha":  # as another program may write it
        model = onnx.load(path)
        node = next(node for node in model.graph.node if node.name == "layer")
        node.attribute.extend([onnx.helper.make_attribute("alpha", 0.5), onnx.helper.make_attribute("beta", 2.0)])
        onnx.save(model, path)
    weights, (feed,) = of_onnx(path), nets.random_feeds(path, 1, seed=3)
    layer = next(one for one in weights.layers if one.name == "layer")
    tensors = {
        part: next(one.values for one in weights.tensors if one.name == name) for part, name in layer.tensors.items()
    }
    assert layer.input is not None
    assert layer.output is not None
    levels, nodes = Interpreter(path).levels(feed), list(onnx.load(path).graph.node)
    makers = {name: node for node in nodes for name in node.output}
    readers = {node.input[0]: node for node in nodes}
    node = next(node for node in nodes if node.name == "layer")
    read = levels[makers[node.input[0]].input[0]]
    while node.op_type != "QuantizeLinear":
        node = readers[node.output[0]]
    arrays = {"x": (read.astype(np.int64) - layer.input.zero_point).astype(np.float32)}
    arrays |= {part: tensors[part].astype(np.float32) for part in ("weight", "bias") if part in tensors}
    sums = run_onnx(
        layer.op, arrays, {key: value for key, value in layer.attributes.items() if key not in ("alpha", "beta")}
    )
    if kind == "gemm, alpha":
        judged = as_written(onnx.load(path), 1).run(None, feed)[0]
        np.testing.assert_allclose(Interpreter(path).run(feed)["y"], judged, atol=0.03 * np.abs(judged).max())
    real = tensors["multiplier"] * 2.0 ** (tensors["exponent"] - 31.0)
    steps = np.rint(sums.astype(np.float64) * real.reshape(1, -1, *[1] * (sums.ndim - 2)))
    found = np.clip(steps + layer.output.zero_point, layer.low, layer.high)
    assert np.abs(found - levels[node.output[0]]).max() <= 1
    assert len(np.unique(found)) > 5


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    "settings_of", [{}, {"strides": [2, 2]}, {"dilations": [2, 1], "pads": [2, 0, 1, 1]}, {"group": 2}], ids=str
)
def test_the_program_of_the_page_computes_a_convolution(settings_of: dict[str, object], tmp_path: Path) -> None:
    """Compiled as the page says; every level equals the interpreter's, with either sign of the input's type."""
    node, weights = nets.conv("conv.1", "r", "b", 8, 16, groups=int(settings_of.get("group", 1)), seed=1)  # type: ignore[call-overload]
    for name, value in settings_of.items():
        node.attribute.remove(next(one for one in node.attribute if one.name == name)) if name in [
            a.name for a in node.attribute
        ] else None
        node.attribute.append(onnx.helper.make_attribute(name, value))
    parts = [nets.conv("one", "x", "a", 3, 8), nets.NODE("Relu", ["a"], ["r"], name="relu"), (node, weights),
             nets.NODE("Relu", ["b"], ["c"], name="last"), nets.conv("end", "c", "y", 16, 8, seed=2)]  # fmt: skip
    program = re.search(r"```c\n(.*?)```", PAGE.read_text(), re.S)
    assert program is not None
    (tmp_path / "conv.c").write_text(program[1])
    for style in ("onnxruntime", "tensorrt"):
        path = int8_file(tmp_path, parts, style)
        write(of_onnx(path), tmp_path / style, "bin")
        layer = of_onnx(path).layers[1]
        assert layer.output is not None
        command = ["cc", "-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-DLAYER=conv_1", f"-I{tmp_path / style}", tmp_path / "conv.c",
                   "-o", tmp_path / style / "conv"]  # fmt: skip
        subprocess.run(command, check=True)
        (feed,) = nets.random_feeds(path, 1, seed=3)
        levels = Interpreter(path).levels(feed)
        nodes = {node.name: node for node in onnx.load(path).graph.node}
        given = next(node.input[0] for node in nodes.values() if node.output[0] == nodes["conv.1"].input[0])
        wanted = next(name for name in levels if name.startswith("c_q"))
        done = subprocess.run([tmp_path / style / "conv", tmp_path / style / "weights.bin", "9", "11"], input=levels[given].tobytes(),
                              capture_output=True, check=True)  # fmt: skip
        found = np.frombuffer(done.stdout, levels[wanted].dtype).reshape(levels[wanted].shape)
        np.testing.assert_array_equal(found, levels[wanted])
        assert len(np.unique(found)) > 10


def test_c_headers_compile(int8: Path, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    write(of_onnx(int8), tmp_path, "c-header")
    (tmp_path / "main.c").write_text(
        '#include "weights.h"\nint main(void) { return one_weight[0] != one_weight[0] || one_input_signed < 0; }\n'
    )
    subprocess.run(
        ["cc", "-std=c99", "-Wall", "-Wno-unused-const-variable", "-Werror", "main.c", "-o", "main"],
        cwd=tmp_path,
        check=True,
    )
    subprocess.run([tmp_path / "main"], check=True)
